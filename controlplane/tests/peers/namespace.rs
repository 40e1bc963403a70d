//! A network namespace and the processes in it, all ended with the test.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use millrace_testkit::http::{Client, Request, Response};
use millrace_testkit::in_netns;
use serde_json::Value;

const DEBUG_PORT: u16 = 15014;

/// A process that ends with the test.
pub(crate) struct Process(pub(crate) Child);

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A network namespace, held open by a process that waits for the end of its input.
pub(crate) struct Namespace(Process);

impl Namespace {
    /// A new one whose loopback device is up and has these addresses too.
    pub(crate) fn with(addresses: &[&str]) -> Self {
        let more = addresses
            .iter()
            .map(|address| format!("ip address add {address}/32 dev lo && "));
        let more: String = more.collect();
        let script = format!("ip link set lo up && {more}echo up && cat");
        let mut unshare = Command::new("unshare");
        unshare
            .args(["--net", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut holder = Process::start(&mut unshare);
        let mut line = String::new();
        let output = holder.0.stdout.as_mut().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).unwrap();
        assert_eq!(line.trim(), "up");
        Self(holder)
    }

    /// Whether one can be made here.
    pub(crate) fn possible() -> bool {
        let made = Command::new("unshare").args(["--net", "true"]).status();
        made.is_ok_and(|status| status.success())
    }

    /// A program to be run in it.
    pub(crate) fn run(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        let namespace = format!("--net=/proc/{}/ns/net", self.0.0.id());
        command.arg(namespace).arg("--").arg(program);
        command
    }

    /// The namespace, to enter it.
    pub(crate) fn file(&self) -> File {
        File::open(format!("/proc/{}/ns/net", self.0.0.id())).unwrap()
    }

    /// A listener in it.
    pub(crate) fn listen(&self, address: SocketAddr) -> TcpListener {
        in_netns(self.file(), || Ok(TcpListener::bind(address)?)).unwrap()
    }

    /// What is answered to a request at a port of its loopback address.
    pub(crate) fn ask(&self, port: u16, request: &Request) -> anyhow::Result<Response> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let stream = in_netns(self.file(), || Ok(TcpStream::connect(address)?))?;
        Client::over(stream)?.send(request)
    }

    /// A page of pilot's debug server.
    pub(crate) fn page(&self, path: &str) -> Option<Value> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, DEBUG_PORT));
        self.get(address, &address.to_string(), path)?.json().ok()
    }

    /// What a request for a host is answered by whoever listens there.
    pub(crate) fn status(&self, address: SocketAddr, host: &str) -> Option<u16> {
        self.get(address, host, "/").map(|response| response.status)
    }

    fn get(&self, address: SocketAddr, host: &str, path: &str) -> Option<Response> {
        let namespace = self.file();
        let stream = in_netns(namespace, || Ok(TcpStream::connect(address)?)).ok()?;
        let mut client = Client::over(stream).ok()?;
        client.send(&Request::get(host, path)).ok()
    }
}

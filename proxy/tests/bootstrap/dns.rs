//! The DNS example as it stands (R45), in a namespace where its ports are free and the resolver is that of a
//! cluster: `simple` is the name of a Service in the proxy's own namespace.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;

use millrace_testkit::{CLUSTER_DNS, Cluster, Pod, echo, until};
use parking_lot::Mutex;

use crate::{LIMIT, STATIC};

/// What the Service is called in full.
const NAME: &str = "simple.default.svc.cluster.local";

#[test]
fn the_dns_example_serves_the_service_simple() {
    millrace_testkit::require!(cluster);
    let cluster = Cluster::new().unwrap();
    let node = cluster.node("node").unwrap();
    let (pod, service) = (node.pod("proxy").unwrap(), node.pod("service").unwrap());
    let listener = service
        .listen(SocketAddr::from(([0, 0, 0, 0], 80)))
        .unwrap();
    let _service = echo::http(listener, "simple").unwrap();
    let IpAddr::V4(ip) = service.ip() else {
        panic!("{} is not IPv4", service.ip());
    };
    let asked = resolver(&pod, ip);

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bootstrap.yaml");
    let log = directory.path().join("admin.log");
    let mut file = STATIC.replace("ADMIN_LOG", &log.display().to_string());
    for (from, to) in [
        ("port_value: 0", "port_value: 9901"),
        ("port_value: 0", "port_value: 10000"),
        ("KIND", "LOGICAL_DNS\n    dns_lookup_family: V4_ONLY"),
        ("HOST", "simple"),
        ("PORT", "80"),
    ] {
        file = file.replacen(from, to, 1);
    }
    std::fs::write(&path, file).unwrap();
    let program = cluster.executable(env!("CARGO_BIN_EXE_millrace-proxy").as_ref());
    let mut command = Command::new(program.unwrap());
    command.arg("-c").arg(&path).args(["--workers", "1"]);
    let proxy = pod.spawn("proxy", command).unwrap();

    let get = |port: u16, path: &str| {
        let to = SocketAddr::from(([127, 0, 0, 1], port));
        pod.get(to, "any", path)
    };
    // The name may resolve a moment after the listener is bound.
    let served = until(LIMIT, || match get(10000, "/") {
        Ok(response) if response.status == 200 => Ok(response),
        other => Err(format!("{other:?}")),
    });
    let served = served.unwrap_or_else(|error| panic!("{error:#}: {}", proxy.log()));
    assert_eq!(echo::Seen::of(&served).unwrap().server, "simple");
    assert!(
        asked.lock().iter().any(|name| name == NAME),
        "{:?}",
        asked.lock()
    );
    let clusters = get(9901, "/clusters").unwrap().text();
    assert!(
        clusters.contains(&format!("some_service::{ip}:80::")),
        "{clusters}"
    );
}

/// The cluster's resolver, in the pod itself: it knows one Service. What it was asked for.
fn resolver(pod: &Pod, ip: Ipv4Addr) -> Arc<Mutex<Vec<String>>> {
    let mut command = Command::new("ip");
    let address = format!("{CLUSTER_DNS}/32");
    command.args(["address", "add", &address, "dev", "lo"]);
    assert!(pod.output(command).unwrap().status.success());
    let socket = pod.udp(SocketAddr::from((CLUSTER_DNS, 53))).unwrap();
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let noted = asked.clone();
    std::thread::spawn(move || serve(&socket, ip, &noted));
    asked
}

fn serve(socket: &UdpSocket, ip: Ipv4Addr, asked: &Mutex<Vec<String>>) {
    let mut buffer = [0; 512];
    while let Ok((length, client)) = socket.recv_from(&mut buffer) {
        let query = &buffer[..length];
        let (name, end) = name(query);
        // Class and type follow the name; what comes after is EDNS, which need not be answered.
        let question = &query[12..end + 4];
        let known = name.eq_ignore_ascii_case(NAME);
        let is_a = query[end..end + 2] == [0, 1];
        asked.lock().push(name);
        let mut answer = query[..2].to_vec();
        let code = if known { 0 } else { 3 };
        let answers = u8::from(known && is_a);
        answer.extend([0x85, 0x80 | code, 0, 1, 0, answers, 0, 0, 0, 0]);
        answer.extend(question);
        if answers == 1 {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4]);
            answer.extend(ip.octets());
        }
        drop(socket.send_to(&answer, client));
    }
}

/// The name asked for, and where it ends.
fn name(query: &[u8]) -> (String, usize) {
    let (mut labels, mut at) = (Vec::new(), 12);
    while query[at] != 0 {
        let label = at + 1..at + 1 + usize::from(query[at]);
        at = label.end;
        labels.push(String::from_utf8_lossy(&query[label]).into_owned());
    }
    (labels.join("."), at + 1)
}

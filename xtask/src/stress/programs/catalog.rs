//! The programs: how each is got, started as a server, and called by its own clients.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use super::drive::Drive;
use crate::setup::Programs;

/// The user that `PostgreSQL` runs as, which refuses root.
const NOBODY: u32 = 65_534;

/// A real program that serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Program {
    /// net/http, HTTP/1.1.
    Go,
    /// net/http, HTTP/2 without TLS.
    GoHttp2,
    /// Files, and a reverse proxy before Go.
    Nginx,
    /// A reverse proxy before Go.
    Haproxy,
    /// node:http.
    Node,
    /// asyncio: aiohttp.
    Aiohttp,
    /// asyncio: uvicorn.
    Uvicorn,
    /// Blocking workers that close after each answer.
    Gunicorn,
    /// Embedded, NIO.
    Tomcat,
    Redis,
    Postgres,
}

/// What a program finds where it is started.
pub(super) struct Place<'a> {
    pub(super) programs: &'a Programs,
    /// A directory of its own.
    pub(super) dir: &'a Path,
    pub(super) files: &'a Path,
    pub(super) port: u16,
    /// Where bodies are echoed, for who passes them on.
    pub(super) echo: SocketAddr,
    pub(super) echo_host: &'a str,
}

/// What a client is told.
pub(super) struct Target<'a> {
    pub(super) programs: &'a Programs,
    /// This very program, where pods may execute it.
    pub(super) this: &'a Path,
    pub(super) dir: &'a Path,
    pub(super) files: &'a Path,
    pub(super) at: SocketAddr,
    pub(super) host: &'a str,
    pub(super) seconds: u64,
    pub(super) seed: u64,
    /// Another for every run.
    pub(super) run: u32,
}

impl Program {
    /// Those that pass bodies on come after those that echo them.
    pub(super) const ALL: [Self; 11] = [
        Self::Go,
        Self::GoHttp2,
        Self::Node,
        Self::Aiohttp,
        Self::Uvicorn,
        Self::Gunicorn,
        Self::Tomcat,
        Self::Nginx,
        Self::Haproxy,
        Self::Redis,
        Self::Postgres,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Go => "go",
            Self::GoHttp2 => "go-http2",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Node => "node",
            Self::Aiohttp => "aiohttp",
            Self::Uvicorn => "uvicorn",
            Self::Gunicorn => "gunicorn",
            Self::Tomcat => "tomcat",
            Self::Redis => "redis",
            Self::Postgres => "postgres",
        }
    }

    /// The name of its port, which tells the protocol.
    pub(super) fn protocol(self) -> &'static str {
        match self {
            Self::Redis | Self::Postgres => "tcp",
            Self::GoHttp2 => "http2",
            _ => "http",
        }
    }

    /// Whether it passes bodies on to Go.
    pub(super) fn passes_on(self) -> bool {
        matches!(self, Self::Nginx | Self::Haproxy)
    }

    /// Whether others can have bodies echoed by it.
    pub(super) fn echoes(self) -> bool {
        self.protocol() == "http" && !self.passes_on()
    }

    pub(super) fn uid(self) -> Option<u32> {
        (self == Self::Postgres).then_some(NOBODY)
    }

    /// Gets what the server and its clients need.
    ///
    /// # Errors
    ///
    /// If something cannot be had here.
    pub(super) fn provide(self, programs: &Programs) -> anyhow::Result<()> {
        let go = || {
            programs.go("go-server", SERVER_GO)?;
            programs.go("go-client", CLIENT_GO)
        };
        let wrk = || programs.debian("wrk", &["wrk"]);
        let ab = || programs.debian("ab", &AB);
        let python = || programs.python("python");
        match self {
            Self::Go => drop((go()?, wrk()?, python()?)),
            Self::GoHttp2 => drop(go()?),
            Self::Nginx => drop((
                programs.debian("nginx", &["nginx"])?,
                wrk()?,
                ab()?,
                python()?,
            )),
            Self::Haproxy => drop((programs.debian("haproxy", &HAPROXY)?, ab()?, go()?)),
            Self::Node => drop(Programs::present("node")?),
            Self::Aiohttp | Self::Gunicorn => drop(python()?),
            Self::Uvicorn => drop((python()?, wrk()?)),
            Self::Tomcat => drop((programs.java(&TOMCAT, &TOMCAT_JARS)?, wrk()?)),
            Self::Redis => drop((programs.debian("redis-server", &REDIS)?, python()?)),
            Self::Postgres => drop(self.postgres_programs()?),
        }
        Ok(())
    }

    /// The server.
    pub(super) fn serve(self, place: &Place<'_>) -> anyhow::Result<Command> {
        let mut command = match self {
            Self::Go | Self::GoHttp2 => go(place)?,
            Self::Nginx => nginx(place)?,
            Self::Haproxy => haproxy(place)?,
            Self::Node => node(place)?,
            Self::Aiohttp => aiohttp(place)?,
            Self::Uvicorn => uvicorn(place)?,
            Self::Gunicorn => gunicorn(place)?,
            Self::Tomcat => tomcat(place)?,
            Self::Redis => redis(place)?,
            Self::Postgres => postgres(place)?,
        };
        command.env("FILES", place.files);
        Ok(command)
    }

    /// The clients that are run against it one after the other.
    pub(super) fn drives(self, target: &Target<'_>) -> anyhow::Result<Vec<Drive>> {
        match self {
            Self::Redis => Drive::redis(target, &REDIS),
            Self::Postgres => Drive::postgres(target, &self.postgres_programs()?),
            Self::GoHttp2 => Ok(vec![Drive::go(target, true)?]),
            Self::Gunicorn => Ok(vec![Drive::own(target), Drive::python(target, "requests")?]),
            Self::Go => Ok(vec![
                Drive::own(target),
                Drive::go(target, false)?,
                Drive::wrk(target)?,
                Drive::python(target, "requests")?,
            ]),
            Self::Nginx => Ok(vec![
                Drive::own(target),
                Drive::wrk(target)?,
                Drive::ab(target)?,
                Drive::curl(target)?,
                Drive::python(target, "aiohttp")?,
            ]),
            Self::Haproxy => Ok(vec![
                Drive::own(target),
                Drive::ab(target)?,
                Drive::go(target, false)?,
            ]),
            Self::Node => Ok(vec![Drive::own(target), Drive::node(target)?]),
            Self::Aiohttp => Ok(vec![Drive::own(target), Drive::python(target, "aiohttp")?]),
            Self::Uvicorn | Self::Tomcat => Ok(vec![Drive::own(target), Drive::wrk(target)?]),
        }
    }

    /// Where `PostgreSQL`'s programs are.
    fn postgres_programs(self) -> anyhow::Result<PathBuf> {
        let versions = Path::new("/usr/lib/postgresql");
        let newest = fs::read_dir(versions)
            .ok()
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
            .filter(|dir| dir.join("initdb").is_file() && dir.join("pgbench").is_file())
            .max();
        newest.with_context(|| format!("there is no {} server on this machine", self.name()))
    }
}

const SERVER_GO: &str = include_str!("peers/server.go");
pub(super) const CLIENT_GO: &str = include_str!("peers/client.go");
pub(super) const AB: [&str; 3] = ["apache2-utils", "libapr1", "libaprutil1"];
const HAPROXY: [&str; 4] = [
    "haproxy",
    "liblua5.3-0",
    "libopentracing-c-wrapper0",
    "libopentracing1",
];
const TOMCAT: [&str; 2] = ["libtomcat10-embed-java", "libtomcat10-java"];
const TOMCAT_JARS: [&str; 2] = ["tomcat10-embed-core.jar", "tomcat10-annotations-api.jar"];
const REDIS: [&str; 5] = [
    "redis-server",
    "redis-tools",
    "libjemalloc2",
    "liblzf1",
    "libatomic1",
];

fn go(place: &Place<'_>) -> anyhow::Result<Command> {
    let mut go = place.programs.go("go-server", SERVER_GO)?;
    go.args(["-listen", &format!(":{}", place.port), "-files"]);
    go.arg(place.files);
    Ok(go)
}

fn nginx(place: &Place<'_>) -> anyhow::Result<Command> {
    let mut nginx = place.programs.debian("nginx", &["nginx"])?;
    let config = config(place, "nginx.conf", include_str!("peers/nginx.conf"))?;
    nginx.arg("-e").arg(place.dir.join("error.log"));
    nginx.arg("-p").arg(place.dir).arg("-c").arg(config);
    Ok(nginx)
}

fn haproxy(place: &Place<'_>) -> anyhow::Result<Command> {
    let mut haproxy = place.programs.debian("haproxy", &HAPROXY)?;
    let config = config(place, "haproxy.cfg", include_str!("peers/haproxy.cfg"))?;
    haproxy.arg("-db").arg("-f").arg(config);
    Ok(haproxy)
}

fn node(place: &Place<'_>) -> anyhow::Result<Command> {
    let mut node = Programs::present("node")?;
    node.arg(script(
        place.dir,
        "server.mjs",
        include_str!("peers/server.mjs"),
    )?);
    node.arg(place.files).args(["::", &place.port.to_string()]);
    Ok(node)
}

fn aiohttp(place: &Place<'_>) -> anyhow::Result<Command> {
    let mut python = place.programs.python("python")?;
    python.arg(script(place.dir, "aio.py", include_str!("peers/aio.py"))?);
    python.arg(place.files);
    python.args(["0.0.0.0", &place.port.to_string()]);
    Ok(python)
}

fn uvicorn(place: &Place<'_>) -> anyhow::Result<Command> {
    let mut uvicorn = place.programs.python("uvicorn")?;
    script(place.dir, "asgi.py", include_str!("peers/asgi.py"))?;
    uvicorn.args(["asgi:app", "--host", "0.0.0.0", "--no-access-log"]);
    uvicorn.args(["--port", &place.port.to_string()]);
    uvicorn.args(["--timeout-keep-alive", "60", "--app-dir"]);
    uvicorn.arg(place.dir);
    Ok(uvicorn)
}

fn gunicorn(place: &Place<'_>) -> anyhow::Result<Command> {
    let mut gunicorn = place.programs.python("gunicorn")?;
    script(place.dir, "wsgi.py", include_str!("peers/wsgi.py"))?;
    gunicorn.args(["wsgi:app", "--workers", "4", "--no-control-socket"]);
    gunicorn.args(["--bind", &format!("0.0.0.0:{}", place.port), "--chdir"]);
    gunicorn.arg(place.dir);
    Ok(gunicorn)
}

fn tomcat(place: &Place<'_>) -> anyhow::Result<Command> {
    let mut java = place.programs.java(&TOMCAT, &TOMCAT_JARS)?;
    java.arg(script(
        place.dir,
        "Server.java",
        include_str!("peers/Server.java"),
    )?);
    java.arg(place.files).arg(place.dir);
    java.arg(place.port.to_string());
    Ok(java)
}

fn redis(place: &Place<'_>) -> anyhow::Result<Command> {
    let mut redis = place.programs.debian("redis-server", &REDIS)?;
    redis.args(["--port", &place.port.to_string(), "--bind", "0.0.0.0"]);
    redis.args(["--protected-mode", "no", "--save", "", "--appendonly", "no"]);
    Ok(redis)
}

/// A server that makes its data first.
fn postgres(place: &Place<'_>) -> anyhow::Result<Command> {
    let programs = Program::Postgres.postgres_programs()?;
    let Some(data) = place.dir.join("data").to_str().map(str::to_owned) else {
        bail!("{} is no text", place.dir.display());
    };
    nix::unistd::chown(place.dir, Some(NOBODY.into()), Some(NOBODY.into()))
        .with_context(|| format!("giving {} away", place.dir.display()))?;
    let bin = programs.display();
    let mut shell = Command::new("/bin/sh");
    shell.arg("-c").arg(format!(
        "{bin}/initdb -D {data} -A trust -U postgres && echo 'host all all 0.0.0.0/0 trust' >>{data}/pg_hba.conf \
         && exec {bin}/postgres -D {data} -p {} -c listen_addresses='*' -c fsync=off -k {}",
        place.port,
        place.dir.display()
    ));
    Ok(shell)
}

/// Writes a configuration with what is known of the place.
fn config(place: &Place<'_>, name: &str, text: &str) -> anyhow::Result<PathBuf> {
    let text = text
        .replace("DIR", &place.dir.display().to_string())
        .replace("FILES", &place.files.display().to_string())
        .replace("PORT", &place.port.to_string())
        .replace("ECHO_HOST", place.echo_host)
        .replace("ECHO", &place.echo.to_string());
    script(place.dir, name, &text)
}

/// Writes a file for a program to read.
pub(super) fn script(dir: &Path, name: &str, text: &str) -> anyhow::Result<PathBuf> {
    let path = dir.join(name);
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

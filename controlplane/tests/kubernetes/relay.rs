//! A way to the API server that a test can cut.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Hands bytes on while it is open; while it is cut, connections end at once.
pub(crate) struct Relay {
    at: SocketAddr,
    open: watch::Sender<bool>,
    running: JoinHandle<()>,
}

impl Relay {
    pub(crate) async fn start(to: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let at = listener.local_addr()?;
        let (open, state) = watch::channel(true);
        let running = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(carry(stream, to, state.clone()));
            }
        });
        Ok(Self { at, open, running })
    }

    pub(crate) fn at(&self) -> SocketAddr {
        self.at
    }

    pub(crate) fn cut(&self) {
        self.open.send_replace(false);
    }

    pub(crate) fn heal(&self) {
        self.open.send_replace(true);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.running.abort();
    }
}

async fn carry(mut from: TcpStream, to: SocketAddr, mut state: watch::Receiver<bool>) {
    if !*state.borrow() {
        return;
    }
    let carried = async {
        let mut to = TcpStream::connect(to).await?;
        copy_bidirectional(&mut from, &mut to).await
    };
    tokio::select! {
        // Either end closes in its own time; that is no failure.
        ended = carried => drop(ended),
        cut = state.wait_for(|open| !open) => drop(cut),
    }
}

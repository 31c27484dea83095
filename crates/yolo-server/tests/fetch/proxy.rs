//! A TCP proxy that breaks connections, and counts the bytes that it brings to the client.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

/// What happens to a connection after so many bytes to the client.
#[derive(Debug, Clone, Copy)]
pub enum Break {
    /// It is closed.
    Cut(u64),
    /// It stays open, and nothing comes any more.
    Hold(u64),
}

/// A running proxy; it ends with the process.
pub struct Proxy {
    pub address: SocketAddr,
    down: Arc<AtomicU64>,
    connections: Arc<AtomicUsize>,
}

impl Proxy {
    /// Passes connections on to `upstream`; the first ones break as `breaks` says, the later ones do not.
    pub fn start(upstream: SocketAddr, breaks: Vec<Break>) -> Self {
        Self::start_with(upstream, breaks, |_| {})
    }

    /// [`Self::start`]; before the connection of each number, from 0 on, is passed on, `before` is told.
    pub fn start_with(
        upstream: SocketAddr,
        breaks: Vec<Break>,
        mut before: impl FnMut(usize) + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (down, connections) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicUsize::new(0)));
        let proxy = Self { address, down: Arc::clone(&down), connections: Arc::clone(&connections) };
        thread::spawn(move || {
            for client in listener.incoming() {
                let number = connections.fetch_add(1, Ordering::SeqCst);
                before(number);
                let broken = breaks.get(number).copied();
                let (client, server) = (client.unwrap(), TcpStream::connect(upstream).unwrap());
                let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || copy(from, to, None, &AtomicU64::new(0)));
                let down = Arc::clone(&down);
                thread::spawn(move || copy(server, client, broken, &down));
            }
        });
        proxy
    }

    /// Bytes brought to clients so far, TLS included.
    pub fn down(&self) -> u64 {
        self.down.load(Ordering::SeqCst)
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, broken: Option<Break>, counted: &AtomicU64) {
    let mut left = match broken {
        Some(Break::Cut(bytes) | Break::Hold(bytes)) => bytes,
        None => u64::MAX,
    };
    let mut buffer = vec![0; 16 << 10];
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let Ok(read @ 1..) = from.read(&mut buffer[..most]) else { break };
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
        counted.fetch_add(read as u64, Ordering::SeqCst);
        left -= read as u64;
    }
    if left == 0 && matches!(broken, Some(Break::Hold(_))) {
        // Until the client is gone.
        let _ = to.read(&mut buffer);
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

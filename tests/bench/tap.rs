//! A port in front of an instance that counts the requests passing through it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts until the program ends.
pub struct Tap {
    pub port: u16,
    requests: Arc<AtomicU64>,
}

impl Tap {
    pub fn before(instance: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let requests = Arc::new(AtomicU64::new(0));
        let counted = requests.clone();
        std::thread::spawn(move || {
            for from in listener.incoming() {
                let from = from.expect("a connection");
                let to = TcpStream::connect(("127.0.0.1", instance)).expect("the instance");
                let (back_from, back_to) =
                    (to.try_clone().expect("a socket"), from.try_clone().expect("a socket"));
                let counted = counted.clone();
                std::thread::spawn(move || pass(from, to, &counted));
                std::thread::spawn(move || pass(back_from, back_to, &AtomicU64::new(0)));
            }
        });
        Self { port, requests }
    }

    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

/// The prober writes a request's head at once, so that each read begins with one.
fn pass(mut from: TcpStream, mut to: TcpStream, requests: &AtomicU64) {
    let mut buffer = [0; 65536];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let heads = buffer[..read].windows(11).filter(|window| window == b" HTTP/1.1\r\n").count();
        requests.fetch_add(heads as u64, Ordering::Relaxed);
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

//! What a program posted to a listener of a test: read whole, and answered with 200.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

pub struct Posted {
    pub path: String,
    pub body: Vec<u8>,
}

impl Posted {
    pub fn read(stream: TcpStream) -> io::Result<Self> {
        let mut reader = BufReader::new(stream);
        let mut request = String::new();
        reader.read_line(&mut request)?;
        assert!(request.starts_with("POST "), "{request}");
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            if line.trim().is_empty() {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().expect("a length");
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
        let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
        Ok(Self { path, body })
    }
}

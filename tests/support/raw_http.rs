//! HTTP/1.1 over a bare socket: every header goes out as written and the answer comes back as sent, framing included.
//! A library client would add, fold or repair what a test wants to see.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A server that has not answered by then does not answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// An answer as it stood on the wire, its body freed from the framing.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// Names in lower case; a name sent twice has both values, separated by a line break.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
    /// What came after the answer; of an upgrade, the first bytes of the other protocol.
    pub rest: Vec<u8>,
}

/// Sends one request on a connection of its own. `headers` go out in this order and with nothing added.
pub async fn exchange(
    port: u16,
    method: &str,
    path: &str,
    headers: &[(String, String)],
    body: Option<&str>,
) -> io::Result<Response> {
    let (response, _) = upgrade(port, method, path, headers, body).await?;
    Ok(response)
}

/// As [`exchange`], and hands over the connection: after a 101 it speaks the other protocol.
pub async fn upgrade(
    port: u16,
    method: &str,
    path: &str,
    headers: &[(String, String)],
    body: Option<&str>,
) -> io::Result<(Response, TcpStream)> {
    let mut request = format!("{method} {path} HTTP/1.1\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    request.push_str(body.unwrap_or_default());
    let conversation = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(request.as_bytes()).await?;
        let response = read_response(&mut stream, method).await?;
        Ok((response, stream))
    };
    tokio::time::timeout(DEADLINE, conversation)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {DEADLINE:?}")))?
}

async fn read_response(stream: &mut TcpStream, method: &str) -> io::Result<Response> {
    let mut wire = Wire { stream, read: Vec::new() };
    let mut lines = Vec::new();
    loop {
        let line = wire.line().await?;
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    let status = lines
        .first()
        .and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok())
        .ok_or_else(|| broken(format!("not a status line: {:?}", lines.first())))?;
    let mut headers: BTreeMap<String, String> = BTreeMap::new();
    for line in &lines[1..] {
        let (name, value) = line.split_once(':').ok_or_else(|| broken(format!("not a header: {line:?}")))?;
        headers
            .entry(name.to_ascii_lowercase())
            .and_modify(|before| *before = format!("{before}\n{}", value.trim()))
            .or_insert_with(|| value.trim().to_owned());
    }
    let body = if method == "HEAD" || status == 204 || status == 304 || status < 200 {
        Vec::new()
    } else if headers.get("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        wire.chunks().await?
    } else if let Some(length) = headers.get("content-length") {
        let length = length.parse().map_err(|_| broken(format!("content-length {length:?}")))?;
        wire.exactly(length).await?
    } else {
        wire.until_closed().await?
    };
    Ok(Response { status, headers, body, rest: wire.read })
}

/// What has been read from the connection and not been used yet.
struct Wire<'a> {
    stream: &'a mut TcpStream,
    read: Vec<u8>,
}

impl Wire<'_> {
    async fn more(&mut self) -> io::Result<usize> {
        self.stream.read_buf(&mut self.read).await
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.read.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.read.drain(..end + 2).take(end).collect();
                return String::from_utf8(line).map_err(|_| broken("a header that is not text".to_owned()));
            }
            if self.more().await? == 0 {
                return Err(broken(format!("closed after {:?}", String::from_utf8_lossy(&self.read))));
            }
        }
    }

    async fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.read.len() < length {
            if self.more().await? == 0 {
                return Err(broken(format!(
                    "closed {} bytes before the end of the body",
                    length - self.read.len()
                )));
            }
        }
        Ok(self.read.drain(..length).collect())
    }

    async fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line().await?;
            let size =
                usize::from_str_radix(line.trim(), 16).map_err(|_| broken(format!("chunk size {line:?}")))?;
            body.extend(self.exactly(size).await?);
            self.line().await?;
            if size == 0 {
                return Ok(body);
            }
        }
    }

    async fn until_closed(&mut self) -> io::Result<Vec<u8>> {
        while self.more().await? > 0 {}
        Ok(std::mem::take(&mut self.read))
    }
}

fn broken(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

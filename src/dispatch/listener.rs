//! Where clients come in: addresses and unix sockets of the configuration, or sockets that systemd holds for us, so
//! that nobody is refused while we restart.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tokio::net::{TcpListener, TcpSocket, UnixListener};

use super::trust::Peer;
use super::worker::{Accepted, AcceptedStream};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 4096;

/// An address to listen on: `127.0.0.1:9080`, or `unix:/run/t3/dispatch.sock`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub enum Listen {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

#[derive(Debug, thiserror::Error)]
#[error("'{0}' is not an address to listen on; expected 127.0.0.1:9080 or unix:/run/t3-prober/dispatch.sock")]
pub struct NotAnAddress(String);

impl FromStr for Listen {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        match text.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(_) => Err(NotAnAddress(text.to_owned())),
            None => text.parse().map(Self::Tcp).map_err(|_| NotAnAddress(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Listen {
    type Error = NotAnAddress;

    fn try_from(text: String) -> Result<Self, NotAnAddress> {
        text.parse()
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A bound listener.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    passed: bool,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

#[derive(Debug, thiserror::Error)]
pub enum CannotListen {
    #[error("cannot listen on {0}: {1}; see who holds it with ss -ltnp, or change [dispatch] listen")]
    Bind(Listen, io::Error),
    #[error(
        "cannot use the sockets that were passed in LISTEN_FDS: {0}; a dispatch socket is a stream socket"
    )]
    Passed(io::Error),
}

/// The listeners that systemd passed, or those of the configuration where it passed none.
pub fn open(listen: &[Listen]) -> Result<Vec<Listener>, CannotListen> {
    let passed = passed().map_err(CannotListen::Passed)?;
    if !passed.is_empty() {
        return Ok(passed);
    }
    listen
        .iter()
        .map(|listen| bind(listen).map_err(|error| CannotListen::Bind(listen.clone(), error)))
        .collect()
}

fn passed() -> io::Result<Vec<Listener>> {
    let mut fds = listenfd::ListenFd::from_env();
    let mut listeners = Vec::new();
    for index in 0..fds.len() {
        // Asked for as the wrong kind, a socket stays where it is.
        if let Ok(Some(listener)) = fds.take_tcp_listener(index) {
            listener.set_nonblocking(true)?;
            listeners.push(Listener { socket: Socket::Tcp(TcpListener::from_std(listener)?), passed: true });
        } else if let Some(listener) = fds.take_unix_listener(index)? {
            listener.set_nonblocking(true)?;
            listeners
                .push(Listener { socket: Socket::Unix(UnixListener::from_std(listener)?), passed: true });
        }
    }
    Ok(listeners)
}

fn bind(listen: &Listen) -> io::Result<Listener> {
    let socket = match listen {
        Listen::Tcp(address) => {
            let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            socket.set_reuseaddr(true)?;
            socket.bind(*address)?;
            Socket::Tcp(socket.listen(BACKLOG)?)
        }
        Listen::Unix(path) => Socket::Unix(bind_unix(path)?),
    };
    Ok(Listener { socket, passed: false })
}

/// A socket file that nobody answers on is left over from a process that was killed.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if path.exists() && std::os::unix::net::UnixStream::connect(path).is_err() {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

impl Listener {
    /// Whether it ends with this process, and whoever waits at it is refused then.
    pub fn is_ours(&self) -> bool {
        !self.passed
    }

    pub fn address(&self) -> String {
        match &self.socket {
            Socket::Tcp(listener) => {
                listener.local_addr().map_or_else(|_| String::new(), |address| address.to_string())
            }
            Socket::Unix(listener) => {
                let path =
                    listener.local_addr().ok().and_then(|address| Some(address.as_pathname()?.to_owned()));
                format!("unix:{}", path.unwrap_or_default().display())
            }
        }
    }

    /// The next connection, on no runtime yet.
    pub async fn accept(&self) -> io::Result<Accepted> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, from) = listener.accept().await?;
                let stream = stream.into_std()?;
                let to = stream.local_addr()?;
                Ok(Accepted { stream: AcceptedStream::Tcp(stream), peer: Peer::Tcp { from, to } })
            }
            Socket::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let uid = stream.peer_cred().ok().map(|peer| peer.uid());
                Ok(Accepted { stream: AcceptedStream::Unix(stream.into_std()?), peer: Peer::Unix { uid } })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_tcp_or_an_absolute_unix_path() {
        assert_eq!("127.0.0.1:9080".parse::<Listen>().ok(), Some(Listen::Tcp(([127, 0, 0, 1], 9080).into())));
        assert_eq!("unix:/run/x".parse::<Listen>().ok(), Some(Listen::Unix("/run/x".into())));
        for text in ["", "9080", "localhost:9080", "unix:run/x", "/run/x"] {
            assert!(text.parse::<Listen>().is_err(), "{text}");
        }
    }
}

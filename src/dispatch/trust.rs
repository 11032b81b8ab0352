//! Whose word about a user's identity is taken. Loopback is no trust boundary: every user here has a shell.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::t3::sockets;

/// The other end of an accepted connection.
#[derive(Clone, Debug)]
pub enum Peer {
    /// Over our unix socket, by a process of this uid.
    Unix {
        uid: Option<u32>,
    },
    Tcp {
        from: SocketAddr,
        to: SocketAddr,
    },
}

/// Who is believed.
#[derive(Debug, Default)]
pub struct Trust {
    pub proxies: Vec<Network>,
    /// Uids whose processes on this machine are believed.
    pub uids: Vec<u32>,
    /// Uids of served users: never believed over the unix socket, whatever its mode has become.
    pub served: std::sync::RwLock<Vec<u32>>,
    pub secret: Option<Secret>,
}

impl Trust {
    /// Whether every request on this connection is believed. Asked once, when it is accepted.
    pub fn believes(&self, peer: &Peer) -> bool {
        match peer {
            Peer::Unix { uid } => uid.is_some_and(|uid| self.uids.contains(&uid) || !self.serves(uid)),
            Peer::Tcp { from, to } => match sockets::connected(canonical(*from), canonical(*to)) {
                // A process on this machine, whichever of our addresses it used: its uid decides, not its address.
                // One that is closed already belongs to nobody, which some kernels show as root's.
                Ok(Some(socket)) => socket.inode != 0 && self.uids.contains(&socket.uid),
                Ok(None) => {
                    let ip = from.ip().to_canonical();
                    // What a local process sent before it reset the connection can still be read.
                    self.proxies.iter().any(|network| network.contains(ip)) && !is_own_address(ip)
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot ask the kernel whose socket a peer is; the peer is not believed");
                    false
                }
            },
        }
    }

    /// Whether a request that shows this secret is believed from anywhere.
    pub fn knows(&self, shown: &[u8]) -> bool {
        self.secret.as_ref().is_some_and(|secret| secret.is(shown))
    }

    fn serves(&self, uid: u32) -> bool {
        self.served.read().unwrap_or_else(std::sync::PoisonError::into_inner).contains(&uid)
    }
}

/// Whether this is an address of this machine; where that cannot be told, it is.
fn is_own_address(ip: IpAddr) -> bool {
    if ip.is_loopback() || ip.is_unspecified() {
        return true;
    }
    nix::ifaddrs::getifaddrs().map_or(true, |interfaces| {
        interfaces.filter_map(|interface| interface.address).any(|address| {
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip()))) == Some(ip)
        })
    })
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A secret that is compared by its digest, in the same time wherever it differs.
#[derive(Clone)]
pub struct Secret([u8; 32]);

impl Secret {
    pub fn new(secret: &[u8]) -> Self {
        Self(Sha256::digest(secret).into())
    }

    pub fn is(&self, shown: &[u8]) -> bool {
        let shown: [u8; 32] = Sha256::digest(shown).into();
        self.0.iter().zip(&shown).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// An address, or a network as `10.0.0.0/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

#[derive(Debug, thiserror::Error)]
#[error("'{0}' is not an address or network; expected 10.0.0.7, 10.0.0.0/8 or fd00::/8")]
pub struct NotANetwork(String);

impl Network {
    pub fn contains(self, ip: IpAddr) -> bool {
        let shift = |width: u32| width - u32::from(self.bits).min(width);
        match (self.address, ip) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => {
                (net.to_bits() ^ ip.to_bits()).checked_shr(shift(32)).unwrap_or(0) == 0
            }
            (IpAddr::V6(net), IpAddr::V6(ip)) => {
                (net.to_bits() ^ ip.to_bits()).checked_shr(shift(128)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let wrong = || NotANetwork(text.to_owned());
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u8>().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(width);
        if bits > width { Err(wrong()) } else { Ok(Self { address, bits }) }
    }
}

impl TryFrom<String> for Network {
    type Error = NotANetwork;

    fn try_from(text: String) -> Result<Self, NotANetwork> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(from: &str) -> Peer {
        Peer::Tcp { from: from.parse().expect("an address"), to: "192.0.2.1:80".parse().expect("an address") }
    }

    fn proxies(networks: &[&str]) -> Trust {
        Trust {
            proxies: networks.iter().map(|text| text.parse().expect("a network")).collect(),
            ..Trust::default()
        }
    }

    #[test]
    fn a_remote_peer_is_believed_only_from_a_named_network() {
        let trust = proxies(&["198.51.100.0/24", "2001:db8::/32"]);
        assert!(trust.believes(&peer("198.51.100.77:1")));
        assert!(trust.believes(&peer("[::ffff:198.51.100.77]:1")));
        assert!(trust.believes(&peer("[2001:db8::1]:1")));
        assert!(!trust.believes(&peer("198.51.101.77:1")));
    }

    #[test]
    fn no_network_makes_loopback_believed() {
        assert!(!proxies(&["0.0.0.0/0", "127.0.0.0/8", "::/0"]).believes(&peer("127.0.0.1:1")));
        assert!(proxies(&["0.0.0.0/0"]).believes(&peer("203.0.113.1:1")));
    }

    #[test]
    fn a_local_process_is_believed_by_its_uid_whichever_of_our_addresses_it_uses() {
        let listener = std::net::TcpListener::bind("0.0.0.0:0").expect("a port");
        let at = SocketAddr::from(([127, 0, 0, 1], listener.local_addr().expect("an address").port()));
        let stream = std::net::TcpStream::connect(at).expect("connected");
        let peer = Peer::Tcp { from: stream.local_addr().expect("an address"), to: at };
        let own = nix::unistd::getuid().as_raw();
        assert!(Trust { uids: vec![own], ..Trust::default() }.believes(&peer));
        assert!(!Trust { uids: vec![own + 1], ..proxies(&["0.0.0.0/0"]) }.believes(&peer));
    }

    #[test]
    fn the_unix_socket_is_believed_but_never_from_a_served_user() {
        let trust = Trust { uids: vec![7], served: vec![8, 7].into(), ..Trust::default() };
        assert!(trust.believes(&Peer::Unix { uid: Some(7) }));
        assert!(trust.believes(&Peer::Unix { uid: Some(9) }));
        assert!(!trust.believes(&Peer::Unix { uid: Some(8) }));
        assert!(!trust.believes(&Peer::Unix { uid: None }));
    }

    #[test]
    fn a_secret_is_known_whole_and_never_shown() {
        let trust = Trust { secret: Some(Secret::new(b"open sesame")), ..Trust::default() };
        assert!(trust.knows(b"open sesame"));
        assert!(!trust.knows(b"open sesam") && !trust.knows(b"") && !Trust::default().knows(b""));
        assert_eq!(format!("{:?}", trust.secret), "Some(***)");
    }

    #[test]
    fn a_network_that_is_none_is_refused() {
        for text in ["", "10.0.0.0/33", "10.0.0/8", "fd00::/129", "x"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }
}

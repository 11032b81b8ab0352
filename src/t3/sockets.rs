//! The machine's TCP sockets, asked of the kernel one at a time (`sock_diag`): an exact question costs the same with ten
//! sockets or ten thousand, where `/proc/net/tcp` is read whole and takes milliseconds on an idle machine.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const IPPROTO_TCP: u8 = 6;
const TCP_LISTEN: u8 = 10;

/// Where the fields lie in the kernel's answer (`struct nlmsghdr`, then `struct inet_diag_msg`).
const STATE_AT: usize = 17;
const UID_AT: usize = 80;
const INODE_AT: usize = 84;

/// The listener that takes connections to this address; `None` where nothing listens.
pub fn listener(at: SocketAddr) -> io::Result<Option<Socket>> {
    let nobody = SocketAddr::new(if at.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() }, 0);
    Ok(ask(at, nobody)?.filter(|found| found.state == TCP_LISTEN))
}

/// The socket at `near` which is connected to `far`; `None` where this machine has no such socket.
pub fn connected(near: SocketAddr, far: SocketAddr) -> io::Result<Option<Socket>> {
    // Without a match the kernel goes on to listeners, and one on the wildcard address matches any peer.
    Ok(ask(near, far)?.filter(|found| found.state != TCP_LISTEN))
}

/// A TCP socket of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    pub uid: u32,
    /// 0 while a connection waits to be accepted: it has no owner yet.
    pub inode: u32,
    state: u8,
}

fn ask(near: SocketAddr, far: SocketAddr) -> io::Result<Option<Socket>> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let netlink = socket(AddressFamily::Netlink, SockType::Datagram, flags, SockProtocol::NetlinkSockDiag)?;
    let question = question(near, far);
    sendto(netlink.as_raw_fd(), &question, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = [0_u8; 512];
    // The kernel has answered before `sendto` returns.
    let len = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT)?;
    let answer = answer.get(..len).unwrap_or_default();
    let number =
        |at: usize| answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    match kind {
        Some(SOCK_DIAG_BY_FAMILY) => match (answer.get(STATE_AT), number(UID_AT), number(INODE_AT)) {
            (Some(state), Some(uid), Some(inode)) => Ok(Some(Socket { uid, inode, state: *state })),
            _ => Err(io::ErrorKind::InvalidData.into()),
        },
        Some(NLMSG_ERROR) => {
            let code = number(16).map_or(0, |raw| i32::from_ne_bytes(raw.to_ne_bytes()));
            match Errno::from_raw(-code) {
                Errno::ENOENT => Ok(None),
                errno => Err(errno.into()),
            }
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// `struct nlmsghdr`, then `struct inet_diag_req_v2`.
fn question(near: SocketAddr, far: SocketAddr) -> Vec<u8> {
    let family: u8 = if near.is_ipv4() { 2 } else { 10 };
    let mut out = Vec::with_capacity(72);
    out.extend_from_slice(&72_u32.to_ne_bytes());
    out.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    out.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&[family, IPPROTO_TCP, 0, 0]);
    out.extend_from_slice(&u32::MAX.to_ne_bytes());
    out.extend_from_slice(&near.port().to_be_bytes());
    out.extend_from_slice(&far.port().to_be_bytes());
    for ip in [near.ip(), far.ip()] {
        match ip {
            IpAddr::V4(ip) => {
                out.extend_from_slice(&ip.octets());
                out.extend_from_slice(&[0; 12]);
            }
            IpAddr::V6(ip) => out.extend_from_slice(&ip.octets()),
        }
    }
    out.extend_from_slice(&[0; 4]);
    // INET_DIAG_NOCOOKIE
    out.extend_from_slice(&[0xff; 8]);
    out
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn own() -> u32 {
        nix::unistd::geteuid().as_raw()
    }

    fn uid(found: io::Result<Option<Socket>>) -> Option<u32> {
        found.expect("asked").map(|socket| socket.uid)
    }

    #[test]
    fn a_listener_is_its_owners_and_a_free_port_nobodys() {
        let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
        let at = socket.local_addr().expect("an address");
        assert_eq!(uid(listener(at)), Some(own()));
        drop(socket);
        assert_eq!(uid(listener(at)), None);
    }

    #[test]
    fn a_listener_on_all_addresses_takes_loopback_connections() {
        for bind in ["0.0.0.0:0", "[::]:0"] {
            let socket = TcpListener::bind(bind).expect("a port");
            let port = socket.local_addr().expect("an address").port();
            assert_eq!(uid(listener(([127, 0, 0, 1], port).into())), Some(own()), "{bind}");
        }
    }

    #[test]
    fn a_local_peer_is_found_and_a_remote_one_is_not() {
        let socket = TcpListener::bind("0.0.0.0:0").expect("a port");
        let port = socket.local_addr().expect("an address").port();
        let client = TcpStream::connect(("127.0.0.1", port)).expect("connected");
        let (near, far) = (client.local_addr().expect("near"), client.peer_addr().expect("far"));
        assert_eq!(uid(connected(near, far)), Some(own()));
        // The same port number as a listener of ours, on somebody else's address.
        let remote = SocketAddr::from(([192, 0, 2, 1], port));
        assert_eq!(uid(connected(remote, far)), None);
    }
}

//! Whose process a port belongs to. Every user of the host has a shell, so whoever binds a free port first receives
//! what is sent there: before a credential or cookie leaves, the kernel's socket table must name the right uid.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use procfs::Current;
use procfs::net::{TcpNetEntry, TcpState};
use procfs::process::{FDTarget, Process};

use crate::outcome::{Failure, Reason};

/// A listening TCP socket, as `/proc/net/tcp` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    pub port: u16,
    pub uid: u32,
    /// Another inode on the same port is another start of the server.
    pub inode: u64,
}

/// Every listener that a connection to 127.0.0.1 can reach.
pub fn listeners() -> io::Result<Vec<Listener>> {
    let listening = |entry: &TcpNetEntry| {
        entry.state == TcpState::Listen && reached_from_loopback(entry.local_address.ip())
    };
    Ok(sockets()?
        .iter()
        .filter(|entry| listening(entry))
        .map(|entry| Listener { port: entry.local_address.port(), uid: entry.uid, inode: entry.inode })
        .collect())
}

/// The listeners on one port: more than one where processes of one user share it (`SO_REUSEPORT`).
pub fn listeners_on(port: u16) -> io::Result<Vec<Listener>> {
    Ok(listeners()?.into_iter().filter(|listener| listener.port == port).collect())
}

/// Confirms that the far end of an established loopback connection is a process of `uid`.
///
/// Both the listeners on the port and the accepted socket itself are looked at: a squatter who accepted the
/// connection and then made room for the rightful server still owns the accepted socket.
pub fn confirm(ours: SocketAddr, theirs: SocketAddr, uid: u32) -> Result<(), Failure> {
    let unreadable = |error: io::Error| {
        Failure::new(
            Reason::Unreadable,
            format!("cannot read the kernel's socket table to see whose port {} is: {error}", theirs.port()),
        )
    };
    let sockets = sockets().map_err(unreadable)?;
    let refuse = |owner: u32| {
        Err(Failure::new(
            Reason::WrongOwner,
            format!(
                "port {} belongs to uid {owner}, not to uid {uid}; nothing was sent to it",
                theirs.port()
            ),
        ))
    };
    let mut listening = false;
    for entry in &sockets {
        let is_listener = entry.state == TcpState::Listen
            && entry.local_address.port() == theirs.port()
            && reached_from_loopback(entry.local_address.ip());
        let is_far_end = same(entry.local_address, theirs) && same(entry.remote_address, ours);
        // A connection that is still in the accept queue has no owner yet (inode 0); it dies with its listener.
        if (is_listener || (is_far_end && entry.inode != 0)) && entry.uid != uid {
            return refuse(entry.uid);
        }
        listening |= is_listener;
    }
    if listening {
        Ok(())
    } else {
        Err(Failure::new(Reason::Refused, format!("nothing listens on port {} any more", theirs.port())))
    }
}

/// The uid of the process at the far end of a loopback connection that we accepted; `None` for a peer that is not on
/// this host, or is gone already.
pub fn of_peer(ours: SocketAddr, theirs: SocketAddr) -> io::Result<Option<u32>> {
    if !theirs.ip().to_canonical().is_loopback() {
        return Ok(None);
    }
    let is_peer = |entry: &&TcpNetEntry| {
        same(entry.local_address, theirs) && same(entry.remote_address, ours) && entry.inode != 0
    };
    Ok(sockets()?.iter().find(is_peer).map(|entry| entry.uid))
}

/// How long the process behind a socket has been running; `None` where its files may not be looked at.
pub fn age(inode: u64) -> Option<Duration> {
    let holds = |process: &Process| {
        let files = process.fd().ok()?;
        files.flatten().any(|file| file.target == FDTarget::Socket(inode)).then_some(())
    };
    let process =
        procfs::process::all_processes().ok()?.flatten().find(|process| holds(process).is_some())?;
    let started = process.stat().ok()?.starttime as f64 / procfs::ticks_per_second() as f64;
    let uptime = procfs::Uptime::current().ok()?.uptime;
    Some(Duration::from_secs_f64((uptime - started).max(0.0)))
}

fn sockets() -> io::Result<Vec<TcpNetEntry>> {
    let table = |result: procfs::ProcResult<Vec<TcpNetEntry>>| result.map_err(io::Error::other);
    let mut sockets = table(procfs::net::tcp())?;
    // A host without IPv6 has no tcp6 table.
    sockets.extend(table(procfs::net::tcp6()).unwrap_or_default());
    Ok(sockets)
}

fn reached_from_loopback(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip == Ipv4Addr::LOCALHOST || ip.is_unspecified(),
        IpAddr::V6(ip) => ip.is_unspecified(),
    }
}

fn same(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port() && one.ip().to_canonical() == other.ip().to_canonical()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn own_uid() -> u32 {
        nix::unistd::geteuid().as_raw()
    }

    #[test]
    fn a_listener_of_our_own_is_seen_with_its_uid() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = listener.local_addr().expect("address").port();
        let found = listeners_on(port).expect("socket table");
        assert_eq!(found.iter().map(|listener| listener.uid).collect::<Vec<_>>(), [own_uid()]);
        let age = age(found[0].inode).expect("our own process may be looked at");
        assert!(age < Duration::from_secs(24 * 3600), "{age:?}");
    }

    #[test]
    fn a_connection_to_our_own_listener_is_confirmed_and_to_anybody_elses_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let stream = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        let (ours, theirs) = (stream.local_addr().expect("ours"), stream.peer_addr().expect("theirs"));
        confirm(ours, theirs, own_uid()).expect("our own");
        let refused = confirm(ours, theirs, own_uid() + 1).expect_err("somebody else's");
        assert_eq!(refused.reason, Reason::WrongOwner);
    }

    #[test]
    fn a_peer_on_this_host_is_known_by_its_uid() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let _client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        let (stream, peer) = listener.accept().expect("accept");
        assert_eq!(of_peer(stream.local_addr().expect("ours"), peer).expect("socket table"), Some(own_uid()));
        assert_eq!(
            of_peer(stream.local_addr().expect("ours"), "192.0.2.1:80".parse().expect("address"))
                .expect("remote"),
            None
        );
    }

    #[test]
    fn an_accepted_connection_whose_listener_is_gone_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let stream = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        let (ours, theirs) = (stream.local_addr().expect("ours"), stream.peer_addr().expect("theirs"));
        let _accepted = listener.accept().expect("accept");
        drop(listener);
        assert_eq!(confirm(ours, theirs, own_uid()).expect_err("no listener").reason, Reason::Refused);
    }
}

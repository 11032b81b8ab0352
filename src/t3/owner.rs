//! Whose process a port belongs to. Every user of the host has a shell, so whoever binds a free port first receives
//! what is sent there: before a credential or cookie leaves, the kernel must name the right uid.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use procfs::Current;
use procfs::process::FDTarget;

use super::sockets::{self, Socket};
use crate::outcome::{Failure, Reason};

/// The listener that a connection to 127.0.0.1 reaches. Another inode on the same port is another start of the server.
pub fn listener(port: u16) -> io::Result<Option<Socket>> {
    sockets::listener((Ipv4Addr::LOCALHOST, port).into())
}

/// Confirms that the far end of an established connection within this machine is a process of one of these uids.
///
/// Both the listener on the port and the accepted socket itself are looked at: a squatter who accepted the connection
/// and then made room for the rightful server still owns the accepted socket.
pub fn confirm(ours: SocketAddr, theirs: SocketAddr, uids: &[u32]) -> Result<(), Failure> {
    let port = theirs.port();
    let unreadable = |error: io::Error| {
        Failure::new(
            Reason::Unreadable,
            format!("cannot ask the kernel whose port {port} is (it needs AF_NETLINK sockets): {error}"),
        )
    };
    let Some(listener) = sockets::listener(theirs).map_err(unreadable)? else {
        return Err(Failure::new(Reason::Refused, format!("nothing listens on port {port} any more")));
    };
    // A connection that is still in the accept queue has no owner yet; it dies with its listener.
    let accepted = sockets::connected(theirs, ours).map_err(unreadable)?.filter(|socket| socket.inode != 0);
    let stranger =
        [Some(listener), accepted].into_iter().flatten().find(|socket| !uids.contains(&socket.uid));
    match stranger {
        None => Ok(()),
        Some(stranger) => Err(Failure::new(
            Reason::WrongOwner,
            format!(
                "port {port} belongs to uid {}, not to {}; nothing was sent to it",
                stranger.uid,
                uids.iter().map(|uid| format!("uid {uid}")).collect::<Vec<_>>().join(" or ")
            ),
        )),
    }
}

/// The uid of the process at the far end of a loopback connection that we accepted; `None` for a peer that is not on
/// this host, or is gone already.
pub fn of_peer(ours: SocketAddr, theirs: SocketAddr) -> io::Result<Option<u32>> {
    let peer = sockets::connected(theirs, ours)?;
    Ok(peer.filter(|socket| socket.inode != 0).map(|socket| socket.uid))
}

/// How long the process behind each socket has been running, by inode; without those whose files may not be looked at.
/// Every open file of the machine is gone through, so it is asked for all sockets at once.
pub fn ages() -> HashMap<u32, Duration> {
    let mut ages = HashMap::new();
    let uptime = procfs::Uptime::current().map(|uptime| uptime.uptime).unwrap_or_default();
    for process in procfs::process::all_processes().into_iter().flatten().flatten() {
        let (Ok(stat), Ok(files)) = (process.stat(), process.fd()) else { continue };
        let started = stat.starttime as f64 / procfs::ticks_per_second() as f64;
        let age = Duration::from_secs_f64((uptime - started).max(0.0));
        for file in files.flatten() {
            if let FDTarget::Socket(inode) = file.target
                && let Ok(inode) = u32::try_from(inode)
            {
                // Where several processes hold it, the one that opened it is the oldest.
                let known = ages.entry(inode).or_insert(age);
                *known = age.max(*known);
            }
        }
    }
    ages
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
        let found = super::listener(port).expect("asked").expect("a listener");
        assert_eq!(found.uid, own_uid());
        let age = ages().remove(&found.inode).expect("our own process may be looked at");
        assert!(age < Duration::from_secs(24 * 3600), "{age:?}");
    }

    #[test]
    fn a_connection_to_our_own_listener_is_confirmed_and_to_anybody_elses_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let stream = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        let (ours, theirs) = (stream.local_addr().expect("ours"), stream.peer_addr().expect("theirs"));
        confirm(ours, theirs, &[own_uid()]).expect("our own");
        let refused = confirm(ours, theirs, &[own_uid() + 1]).expect_err("somebody else's");
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
        assert_eq!(confirm(ours, theirs, &[own_uid()]).expect_err("no listener").reason, Reason::Refused);
    }
}

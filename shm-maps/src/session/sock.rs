//! Sequenced-packet sockets with descriptors: one message is one packet.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use std::mem::MaybeUninit;
use std::path::Path;

/// Longest message, well below the default socket buffer of 208 KiB.
pub const MESSAGE_MAX: usize = 160 * 1024;
/// Most descriptors in one message (the kernel's SCM_MAX_FD is 253).
pub const FDS_MAX: usize = 8;

/// A message as received.
pub struct Received {
    /// The packet.
    pub bytes: Vec<u8>,
    /// The descriptors that came with it, close-on-exec.
    pub fds: Vec<OwnedFd>,
}

fn new_socket() -> Result<OwnedFd, Errno> {
    net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// A listening socket at `path`. It appears there only once it listens: whoever finds it can connect, so a refused
/// connection means that the listener is gone.
pub fn listen(path: &Path) -> Result<OwnedFd, Errno> {
    let unready = path.with_extension("unready");
    let sock = new_socket()?;
    net::bind(&sock, &SocketAddrUnix::new(&unready)?)?;
    net::listen(&sock, 128)?;
    rustix::fs::rename(&unready, path)?;
    Ok(sock)
}

/// An abstract name that goes with its process and that [`present`] finds.
fn presence_name(dir: &Path, pid: u32) -> Result<String, Errno> {
    let st = rustix::fs::stat(dir)?;
    Ok(format!("bpftime-agent/{:x}-{:x}/{pid}", st.st_dev, st.st_ino))
}

/// Announces that this process's agent looks for sessions in `dir`, as long as the socket is open.
pub fn announce(dir: &Path) -> Result<OwnedFd, Errno> {
    let sock = new_socket()?;
    let name = presence_name(dir, std::process::id())?;
    net::bind(&sock, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
    Ok(sock)
}

/// Pids of the agents that look for sessions in `dir`. A name is no proof of anything: it only says whom to expect.
pub fn present(dir: &Path) -> Vec<i32> {
    let Ok(any) = presence_name(dir, 0) else { return Vec::new() };
    let prefix = format!("@{}", any.trim_end_matches('0'));
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let names = sockets.lines().filter_map(|l| l.split_whitespace().next_back());
    names.filter_map(|n| n.strip_prefix(prefix.as_str())?.parse().ok()).collect()
}

/// A connection to the session at `path`, with a timeout of 250 ms. `ECONNREFUSED` means that its tool is gone.
pub fn connect(path: &Path) -> Result<OwnedFd, Errno> {
    let sock = new_socket()?;
    // A tool that is stopped does not accept: its backlog fills, and connecting would block.
    set_timeout(&sock, CONNECT_LIMIT)?;
    net::connect(&sock, &SocketAddrUnix::new(path)?)?;
    Ok(sock)
}

/// How long connecting, and the first answer, may take.
const CONNECT_LIMIT: std::time::Duration = std::time::Duration::from_millis(250);

/// The next connection of a listening socket.
pub fn accept(listener: BorrowedFd) -> Result<OwnedFd, Errno> {
    net::accept_with(listener, SocketFlags::CLOEXEC)
}

/// The process and user at the other end, as the kernel recorded them at connect or listen.
pub fn peer(sock: BorrowedFd) -> Result<(i32, u32), Errno> {
    let cred = net::sockopt::socket_peercred(sock)?;
    Ok((cred.pid.as_raw_nonzero().get(), cred.uid.as_raw()))
}

/// Sends one message; never raises SIGPIPE, never blocks longer than the socket's send timeout.
pub fn send(sock: BorrowedFd, bytes: &[u8], fds: &[BorrowedFd]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOBIG);
    }
    loop {
        match net::sendmsg(sock, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => continue,
            Err(e) => return Err(e),
            Ok(_) => return Ok(()),
        }
    }
}

/// How long the next message is, which stays where it is. 0 at the end.
fn next_len(sock: BorrowedFd, flags: RecvFlags) -> Result<usize, Errno> {
    loop {
        // With TRUNC the kernel tells the whole length, whatever there is room for.
        match net::recv(sock, &mut [0u8; 1], flags | RecvFlags::PEEK | RecvFlags::TRUNC) {
            Err(Errno::INTR) => continue,
            other => return other.map(|(_, len)| len),
        }
    }
}

/// Receives one message. `ECONNRESET` when the other end is gone.
pub fn recv(sock: BorrowedFd, dontwait: bool) -> Result<Received, Errno> {
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let wait = if dontwait { RecvFlags::DONTWAIT } else { RecvFlags::empty() };
    // As much memory as it takes: nearly all are short, and whose heap this is does not know us.
    let mut bytes = vec![0u8; next_len(sock, wait)?.clamp(1, MESSAGE_MAX)];
    let flags = RecvFlags::CMSG_CLOEXEC | wait;
    let len = loop {
        match net::recvmsg(sock, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags) {
            Err(Errno::INTR) => continue,
            Err(e) => return Err(e),
            Ok(msg) => break msg.bytes,
        }
    };
    let mut fds = Vec::new();
    for msg in control.drain() {
        if let RecvAncillaryMessage::ScmRights(list) = msg {
            fds.extend(list);
        }
    }
    if len == 0 {
        return Err(Errno::CONNRESET);
    }
    bytes.truncate(len);
    Ok(Received { bytes, fds })
}

/// Bounds how long [`send`] and [`recv`] may block.
pub fn set_timeout(sock: impl AsFd, timeout: std::time::Duration) -> Result<(), Errno> {
    net::sockopt::set_socket_timeout(&sock, net::sockopt::Timeout::Send, Some(timeout))?;
    net::sockopt::set_socket_timeout(&sock, net::sockopt::Timeout::Recv, Some(timeout))
}

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

/// A listening socket at `path`.
pub fn listen(path: &Path) -> Result<OwnedFd, Errno> {
    let sock = new_socket()?;
    net::bind(&sock, &SocketAddrUnix::new(path)?)?;
    net::listen(&sock, 128)?;
    Ok(sock)
}

/// A connection to the session at `path`. `ECONNREFUSED` means that its tool is gone.
pub fn connect(path: &Path) -> Result<OwnedFd, Errno> {
    let sock = new_socket()?;
    net::connect(&sock, &SocketAddrUnix::new(path)?)?;
    Ok(sock)
}

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

/// Receives one message. `ECONNRESET` when the other end is gone.
pub fn recv(sock: BorrowedFd, dontwait: bool) -> Result<Received, Errno> {
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0u8; MESSAGE_MAX];
    let mut flags = RecvFlags::CMSG_CLOEXEC;
    flags.set(RecvFlags::DONTWAIT, dontwait);
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

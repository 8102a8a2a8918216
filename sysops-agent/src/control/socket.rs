//! The socket's place in the file system: made so that nobody else can ever connect, put in the place of a dead agent's
//! but never of a living one's, and taken away at the end.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with};

use crate::host::Files;

/// `sun_path` of unix(7) has 108 bytes: the path, `.` and a process id for the time until it is in its place, and a NUL.
pub(super) const PATH_BYTES_MAX: usize = 96;

/// Connections that wait in the kernel to be taken.
const BACKLOG: i32 = 64;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// Another agent has it.
    #[error("{}: another agent (pid {pid}) listens there", path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
        /// The other agent.
        pid: i32,
    },
    /// Something else stands there.
    #[error("{}: expected a socket or nothing, found another file", path.display())]
    NoSocket {
        /// What stands there.
        path: PathBuf,
    },
    /// The system refuses it.
    #[error("{}: {what}", path.display())]
    System {
        /// The socket.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// The socket's name; it goes with the agent.
#[derive(Debug)]
pub(super) struct Name {
    files: Files,
    path: PathBuf,
    inode: Option<u64>,
}

impl Name {
    /// Makes the socket at `path`.
    pub(super) fn take(files: &Files, path: &Path) -> Result<(OwnedFd, Self), Unavailable> {
        let system =
            |what| move |errno: Errno| Unavailable::System { path: path.to_owned(), what, source: errno.into() };
        vacate(path)?;
        let new = with_pid(path);
        // Left over by an agent of the same number that was killed in between.
        _ = std::fs::remove_file(&new);
        let kind = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, kind, None).map_err(system("cannot make a socket"))?;
        // Linux gives the file the socket's own mode: there is no moment at which it has another.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(system("cannot set the mode"))?;
        let address = SocketAddrUnix::new(&new).map_err(system("no path for a socket"))?;
        bind(&socket, &address).map_err(system("cannot make the socket"))?;
        let inode = files.inode(&new);
        let placed = listen(&socket, BACKLOG).map_err(system("cannot listen")).and_then(|()| {
            std::fs::rename(&new, path).map_err(|source| Unavailable::System {
                path: path.to_owned(),
                what: "cannot put the socket in its place",
                source,
            })
        });
        if let Err(error) = placed {
            _ = std::fs::remove_file(&new);
            return Err(error);
        }
        Ok((socket, Self { files: files.clone(), path: path.to_owned(), inode }))
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        // Another agent may have put its own there.
        if self.inode.is_some() && self.files.inode(&self.path) == self.inode {
            _ = std::fs::remove_file(&self.path);
        }
    }
}

fn with_pid(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    name.into()
}

/// Makes sure that the place is free, or held by an agent that is dead.
fn vacate(path: &Path) -> Result<(), Unavailable> {
    let system = |what, source: io::Error| Unavailable::System { path: path.to_owned(), what, source };
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(system("cannot look", error)),
        Ok(found) if !found.file_type().is_socket() => return Err(Unavailable::NoSocket { path: path.to_owned() }),
        Ok(_) => {}
    }
    let asked = SocketAddrUnix::new(path).and_then(|address| {
        // Without waiting: an agent that has stopped in its tracks takes no connections.
        let kind = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let probe = socket_with(AddressFamily::UNIX, SocketType::STREAM, kind, None)?;
        connect(&probe, &address)?;
        Ok(socket_peercred(&probe)?.pid.as_raw_nonzero().get())
    });
    match asked {
        Ok(pid) => Err(Unavailable::Taken { path: path.to_owned(), pid }),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(()),
        Err(Errno::AGAIN) => Err(system("another agent listens there and takes no connections", Errno::AGAIN.into())),
        Err(errno) => Err(system("cannot see whether another agent listens there", errno.into())),
    }
}

//! Alerts to a syslog daemon: this machine's by its datagram socket, or another machine's by UDP or TCP. There is no
//! acknowledgement: an alert is delivered when the socket took it. How a record is written is `record`'s.

mod record;

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::RecvFlags;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UdpSocket, lookup_host};
use tokio::time::timeout;

use crate::model::{Notice, Severity};
use crate::spec::{Key, Values};

use super::{Channel, Entry, Receipt, SendError, Sending};
use record::{Format, Writer};

/// The channel as the list knows it.
pub static ENTRY: Entry = Entry {
    name: "syslog",
    keys: &[
        ENABLED.spec(),
        FACILITY.spec(),
        TAG.spec(),
        FORMAT.spec(),
        PATH.spec(),
        ADDRESS.spec(),
        MIN_SEVERITY.spec(),
    ],
    min_severity: &MIN_SEVERITY,
    grouped: false,
    durable: true,
    build,
};

static ENABLED: Key<bool> = Key::switch("alerting.syslog.enabled", false, "Alerts to a syslog daemon.");
static FACILITY: Key<String> = Key::choice("alerting.syslog.facility", &FACILITIES, "daemon", "The facility.");
static TAG: Key<String> = Key::text("alerting.syslog.tag", "sysops-agent", "The name under which alerts are logged.");
static FORMAT: Key<String> = Key::choice(
    "alerting.syslog.format",
    &["rfc5424", "rfc3164"],
    "rfc5424",
    "How a record is written: rfc5424 with what is known in fields, or rfc3164, which old daemons know, as one line of at most \
     1024 bytes.",
);
static PATH: Key<String> = Key::text(
    "alerting.syslog.path",
    "/dev/log",
    "The datagram socket of this machine's daemon. Not used when `address` is set.",
);
static ADDRESS: Key<Option<String>> = Key::optional(
    "alerting.syslog.address",
    "Another machine's daemon: `udp://host:514`, or `tcp://host:514` with octet counting (RFC 6587). Neither is encrypted.",
)
.example("\"tcp://logs.example.com:514\"");
static MIN_SEVERITY: Key<String> =
    Key::choice("alerting.syslog.min_severity", Severity::NAMES, "info", "The least severity that is sent to syslog.");

/// How long another machine may take to be found, to be connected to and to take a record.
const REMOTE: Duration = Duration::from_secs(10);

/// Where daemons listen.
const PORT: u16 = 514;

/// RFC 5424 table 1 with the names of syslog(3); a facility's code is its place. Codes 12 to 15 have no name there.
static FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "ntp",
    "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
];

struct Syslog {
    writer: Writer,
    way: Way,
}

enum Way {
    Local(Local),
    Udp { host: String, port: u16 },
    Tcp { host: String, port: u16, stream: Option<TcpStream> },
}

fn build(values: &Values) -> Result<Option<Box<dyn Channel>>, String> {
    if !values.get(&ENABLED) {
        return Ok(None);
    }
    let facility = values.get(&FACILITY);
    let facility = FACILITIES.iter().position(|name| *name == facility);
    let facility = facility.ok_or("alerting.syslog.facility: not one of the facilities of syslog(3)")?;
    let way = match values.get(&ADDRESS) {
        Some(address) => remote(&address)?,
        // The daemon may start after the agent, and restart under it: the socket is opened when it is needed.
        None => Way::Local(Local { path: PathBuf::from(values.get(&PATH)), socket: None }),
    };
    let format = match (values.get(&FORMAT).as_str(), &way) {
        ("rfc3164", Way::Local(_)) => Format::Rfc3164Local,
        ("rfc3164", _) => Format::Rfc3164,
        _ => Format::Rfc5424,
    };
    Ok(Some(Box::new(Syslog { writer: Writer { format, facility, tag: values.get(&TAG) }, way })))
}

/// `tcp://host:514`, `udp://[::1]`.
fn remote(address: &str) -> Result<Way, String> {
    let wrong = || format!("alerting.syslog.address: expected udp://host:port or tcp://host:port, found {address:?}");
    let (scheme, place) = address.split_once("://").ok_or_else(wrong)?;
    let (host, port) = match place.strip_prefix('[') {
        Some(place) => place.split_once(']').ok_or_else(wrong)?,
        None => place.split_at(place.find(':').unwrap_or(place.len())),
    };
    let port = match port.strip_prefix(':') {
        Some(port) => port.parse().map_err(|_| wrong())?,
        None if port.is_empty() => PORT,
        None => return Err(wrong()),
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if host.is_empty() || !host.chars().all(is_name) {
        return Err(wrong());
    }
    let host = host.to_owned();
    match scheme {
        "udp" => Ok(Way::Udp { host, port }),
        "tcp" => Ok(Way::Tcp { host, port, stream: None }),
        _ => Err(wrong()),
    }
}

impl Channel for Syslog {
    fn send<'a>(&'a mut self, notice: &'a Notice) -> Sending<'a> {
        let record = self.writer.record(notice.head());
        Box::pin(async move {
            match &mut self.way {
                Way::Local(local) => local.write(&record),
                Way::Udp { host, port } => {
                    let sent = in_time(udp(host, *port, record.as_bytes())).await;
                    receipt(sent, &format!("udp://{host}:{port}"), "sent; UDP acknowledges nothing")
                }
                Way::Tcp { host, port, stream } => {
                    let sent = in_time(tcp(host, *port, stream, &record)).await;
                    receipt(sent, &format!("tcp://{host}:{port}"), "written to the connection; nothing acknowledges it")
                }
            }
        })
    }
}

fn receipt(sent: io::Result<()>, place: &str, words: &str) -> Result<Receipt, SendError> {
    sent.map(|()| Receipt::new(words))
        .map_err(|error| SendError::Retry { reason: format!("{place}: {error}"), after: None })
}

async fn in_time(work: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    timeout(REMOTE, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The name is looked up each time: alerts are rare, and addresses change.
async fn udp(host: &str, port: u16, record: &[u8]) -> io::Result<()> {
    let to = lookup_host((host, port)).await?.next().ok_or(io::ErrorKind::NotFound)?;
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(to).await?;
    socket.send(record).await.map(|_| ())
}

/// A connection that the daemon has closed since takes bytes all the same, and loses them; so it is looked at first.
async fn tcp(host: &str, port: u16, held: &mut Option<TcpStream>, record: &str) -> io::Result<()> {
    let mut stream = match held.take().filter(is_open) {
        Some(stream) => stream,
        None => TcpStream::connect((host, port)).await?,
    };
    stream.write_all(format!("{} {record}", record.len()).as_bytes()).await?;
    *held = Some(stream);
    Ok(())
}

/// False when the far end has ended it; asked of the kernel, as the runtime may not have heard of it yet.
fn is_open(stream: &TcpStream) -> bool {
    let mut said = [0; 1];
    let asked = rustix::net::recv(stream, &mut said, RecvFlags::PEEK | RecvFlags::DONTWAIT);
    asked.map_or_else(|error| error == Errno::AGAIN, |(read, _)| read > 0)
}

/// This machine's daemon.
struct Local {
    path: PathBuf,
    socket: Option<UnixDatagram>,
}

impl Local {
    fn write(&mut self, frame: &str) -> Result<Receipt, SendError> {
        let fresh = self.socket.is_none();
        match self.try_write(frame) {
            // The daemon may have restarted since the last alert: the old socket is dead and the new one is there.
            Err(error) if !fresh && !is_full(&error) && error.raw_os_error() != Some(EMSGSIZE) => self.try_write(frame),
            other => other,
        }
        .map(|()| Receipt::new("written to the socket"))
        .map_err(|error| {
            let reason = format!("{}: {error}", self.path.display());
            if error.raw_os_error() == Some(EMSGSIZE) {
                SendError::Permanent { reason }
            } else {
                SendError::Retry { reason, after: None }
            }
        })
    }

    fn try_write(&mut self, frame: &str) -> io::Result<()> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => connect(&self.path)?,
        };
        let sent = socket.send(frame.as_bytes());
        // A full socket is a daemon that is slow, not one that is gone.
        if sent.as_ref().map_or_else(is_full, |_| true) {
            self.socket = Some(socket);
        }
        sent.map(|_| ())
    }
}

const EMSGSIZE: i32 = Errno::MSGSIZE.raw_os_error();

fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error())
}

fn connect(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect(path)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_udp_or_tcp() {
        let is = |text: &str| match remote(text) {
            Ok(Way::Udp { host, port }) => format!("udp {host} {port}"),
            Ok(Way::Tcp { host, port, .. }) => format!("tcp {host} {port}"),
            Ok(Way::Local(_)) => "local".to_owned(),
            Err(error) => error,
        };
        assert_eq!(is("udp://logs.example.com"), "udp logs.example.com 514");
        assert_eq!(is("tcp://[::1]:6514"), "tcp ::1 6514");
        for wrong in ["logs.example.com:514", "http://h", "tcp://", "tcp://u:p@h", "udp://h/x", "tcp://h:99999"] {
            assert!(
                is(wrong).starts_with("alerting.syslog.address: expected udp://host:port"),
                "{wrong}: {}",
                is(wrong)
            );
        }
    }

    #[test]
    fn facilities_have_their_codes() {
        let code = |name: &str| FACILITIES.iter().position(|facility| *facility == name);
        assert_eq!(
            (code("daemon"), code("authpriv"), code("local0"), code("local7")),
            (Some(3), Some(10), Some(16), Some(23))
        );
    }
}

//! A mail server that misbehaves where it is told to, written on bare TCP so that what it sees is the wire itself. It encrypts
//! nothing; what it took it keeps.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Where in a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Before the client has said anything.
    Greeting,
    /// EHLO.
    Hello,
    /// AUTH, and what follows it.
    Auth,
    /// MAIL FROM.
    Sender,
    /// RCPT TO.
    Recipient,
    /// DATA.
    Data,
    /// After the mail, when all waits for the 250.
    Body,
    /// QUIT.
    Quit,
}

impl Stage {
    /// All of them, in the order of a conversation.
    pub const ALL: [Self; 8] =
        [Self::Greeting, Self::Hello, Self::Auth, Self::Sender, Self::Recipient, Self::Data, Self::Body, Self::Quit];
}

/// What one connection meets.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Nothing bad.
    None,
    /// This answer at this place.
    Answer(Stage, &'static str),
    /// This answer to this recipient.
    Recipient(&'static str, &'static str),
    /// No answer from here on.
    Hang(Stage),
    /// The connection ends instead of an answer.
    Drop(Stage),
    /// The wrong password; the answer repeats what was sent.
    EchoedAuth,
}

/// One mail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mail {
    /// Recipients that it was taken for.
    pub to: Vec<String>,
    /// As it was sent, without the final dot.
    pub data: String,
}

#[derive(Default)]
struct Seen {
    lines: Vec<String>,
    mails: Vec<Mail>,
}

/// The server. It ends with the runtime.
pub struct FarEnd {
    /// On 127.0.0.1.
    pub port: u16,
    seen: Arc<Mutex<Seen>>,
}

impl FarEnd {
    /// One fault for each connection, then none.
    ///
    /// # Panics
    /// When there is no free port.
    pub async fn start(faults: impl IntoIterator<Item = Fault>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let seen = Arc::<Mutex<Seen>>::default();
        let theirs = Arc::clone(&seen);
        let mut faults: VecDeque<Fault> = faults.into_iter().collect();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let fault = faults.pop_front().unwrap_or(Fault::None);
                tokio::spawn(serve(BufReader::new(socket), fault, Arc::clone(&theirs)));
            }
        });
        Self { port, seen }
    }

    /// Every line that any client has sent outside of mails.
    ///
    /// # Panics
    /// When a holder of the lock has.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.seen.lock().expect("no holder panics").lines.clone()
    }

    /// Every mail that came whole, taken or not.
    ///
    /// # Panics
    /// When a holder of the lock has.
    #[must_use]
    pub fn mails(&self) -> Vec<Mail> {
        self.seen.lock().expect("no holder panics").mails.clone()
    }
}

async fn serve(mut socket: BufReader<TcpStream>, fault: Fault, seen: Arc<Mutex<Seen>>) {
    let mut to = Vec::new();
    if !answer(&mut socket, &fault, Stage::Greeting, "220 far.example ESMTP").await {
        return;
    }
    while let Some(line) = line(&mut socket).await {
        seen.lock().expect("no holder panics").lines.push(line.clone());
        let verb = line.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
        let goes_on = match verb.as_str() {
            "EHLO" => {
                let hello = "250-far.example\r\n250-AUTH PLAIN LOGIN\r\n250 8BITMIME";
                answer(&mut socket, &fault, Stage::Hello, hello).await
            }
            "AUTH" if matches!(fault, Fault::EchoedAuth) => {
                let sent = line.rsplit(' ').next().unwrap_or_default().to_owned();
                say(&mut socket, &format!("535 5.7.8 no such user or password: {sent} hunter2")).await
            }
            "AUTH" => answer(&mut socket, &fault, Stage::Auth, "235 2.7.0 welcome").await,
            "MAIL" => answer(&mut socket, &fault, Stage::Sender, "250 2.1.0 ok").await,
            "RCPT" => {
                let one = line.trim_start_matches("RCPT TO:<").trim_end_matches('>').to_owned();
                match &fault {
                    Fault::Recipient(refused, words) if *refused == one => say(&mut socket, words).await,
                    _ => {
                        to.push(one);
                        answer(&mut socket, &fault, Stage::Recipient, "250 2.1.5 ok").await
                    }
                }
            }
            "DATA" => {
                let go = answer(&mut socket, &fault, Stage::Data, "354 go on").await;
                if go && !matches!(fault, Fault::Answer(Stage::Data, _)) {
                    let Some(data) = mail(&mut socket).await else { return };
                    seen.lock().expect("no holder panics").mails.push(Mail { to: std::mem::take(&mut to), data });
                    answer(&mut socket, &fault, Stage::Body, "250 2.0.0 queued as F4R").await
                } else {
                    go
                }
            }
            "QUIT" => {
                answer(&mut socket, &fault, Stage::Quit, "221 2.0.0 bye").await;
                false
            }
            _ => say(&mut socket, "502 5.5.1 what?").await,
        };
        if !goes_on {
            return;
        }
    }
}

/// False when the connection is over.
async fn answer(socket: &mut BufReader<TcpStream>, fault: &Fault, stage: Stage, usual: &str) -> bool {
    match fault {
        Fault::Answer(at, words) if *at == stage => say(socket, words).await,
        Fault::Hang(at) if *at == stage => std::future::pending().await,
        Fault::Drop(at) if *at == stage => false,
        _ => say(socket, usual).await,
    }
}

async fn say(socket: &mut BufReader<TcpStream>, words: &str) -> bool {
    socket.get_mut().write_all(format!("{words}\r\n").as_bytes()).await.is_ok() && !words.starts_with("421")
}

async fn line(socket: &mut BufReader<TcpStream>) -> Option<String> {
    // A client that sends a mail in pieces would wait 40 ms for the kernel's acknowledgement of each.
    rustix::net::sockopt::set_tcp_quickack(socket.get_ref(), true).ok()?;
    let mut line = String::new();
    let read = socket.read_line(&mut line).await.ok()?;
    (read > 0).then(|| line.trim_end_matches(['\r', '\n']).to_owned())
}

/// The mail up to its final dot, dots undone.
async fn mail(socket: &mut BufReader<TcpStream>) -> Option<String> {
    let mut data = String::new();
    loop {
        let line = line(socket).await?;
        if line == "." {
            return Some(data);
        }
        data.push_str(line.strip_prefix('.').unwrap_or(&line));
        data.push_str("\r\n");
    }
}

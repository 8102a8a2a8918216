//! A real Postfix with a certificate of a private authority and one user who may send, unpacked or installed, with all that it
//! writes in a folder of its own. It needs root, as it changes users.

#![expect(clippy::disallowed_methods, reason = "tests run programs and read files as they like")]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::require::{programs, require, root};
use crate::servers::{Scratch, Server, find_program, free_port};

/// The user who may send, and the password.
pub const LOGIN: (&str, &str) = ("alerts@mail.example", "hunter2");

/// Debian's ids of `mail`, the same everywhere.
const MAIL: u32 = 8;

/// Folders of the queue; Postfix does not make them.
const QUEUE: [&str; 14] = [
    "active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "maildrop", "pid", "private",
    "public", "saved", "trace",
];

/// The running server.
pub struct Postfix {
    /// Ends with it.
    pub server: Server,
    /// STARTTLS, and AUTH only after it.
    pub port: u16,
    /// TLS from the first byte on.
    pub implicit_port: u16,
    /// The authority's certificate.
    pub ca_file: PathBuf,
    folder: PathBuf,
}

impl Postfix {
    /// Starts it, or says why this machine cannot.
    ///
    /// # Panics
    /// When it does not start though it could.
    #[must_use]
    pub fn start() -> Option<Self> {
        if !require(root().or_else(|| programs(&["openssl"]))) {
            return None;
        }
        let (postfix, saslpasswd) = (find_program("postfix")?, find_program("saslpasswd2")?);
        // …/usr/sbin/postfix
        let usr = postfix.parent().and_then(Path::parent).expect("programs stand in /usr/sbin");
        let below_usr = format!("lib/{}-linux-gnu", std::env::consts::ARCH);
        let libraries = usr.join(&below_usr);
        // What the machine has is not unpacked again.
        let own = Path::new("/usr").join(below_usr).join("sasl2");
        let environment = [
            format!("LD_LIBRARY_PATH={}:{}", libraries.display(), usr.join("lib/postfix").display()),
            format!("SASL_PATH={}:{}", libraries.join("sasl2").display(), own.display()),
        ];
        let scratch = Scratch::new();
        let folder = scratch.path().to_owned();
        certificates(&folder);
        let (port, implicit_port) = (free_port(), free_port());
        configure(&folder, usr, [port, implicit_port]);
        password(&saslpasswd, &environment, &folder);
        let master = usr.join("lib/postfix/sbin/master").display().to_string();
        let configuration = folder.join("conf").display().to_string();
        let mut arguments = environment.to_vec();
        arguments.extend([
            format!("MAIL_CONFIG={configuration}"),
            master,
            "-c".to_owned(),
            configuration,
            "-d".to_owned(),
        ]);
        let server = Server::start(Path::new("/usr/bin/env"), &arguments, port, scratch);
        Some(Self { server, port, implicit_port, ca_file: folder.join("ca.pem"), folder })
    }

    /// The certificate of an authority that the server's does not come from.
    #[must_use]
    pub fn other_authority(&self) -> PathBuf {
        authority(&self.folder, "other");
        self.folder.join("other.pem")
    }

    /// What was delivered to `user`@example.com, once it is `count` mails.
    ///
    /// # Panics
    /// When they do not come; the server's log is shown.
    #[must_use]
    pub fn delivered(&self, user: &str, count: usize) -> Vec<String> {
        let folder = self.folder.join("mail").join(user).join("new");
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let mut paths: Vec<_> =
                fs::read_dir(&folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
            if paths.len() >= count {
                paths.sort();
                return paths.iter().map(|path| fs::read_to_string(path).expect("a mail")).collect();
            }
            let log = || fs::read_to_string(self.folder.join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "{} of {count} mails came\n{}", paths.len(), log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// An authority, and a server's certificate of it for localhost.
fn certificates(folder: &Path) {
    authority(folder, "ca");
    openssl(folder, "req -newkey rsa:2048 -nodes -keyout key.pem -out request.pem -subj /CN=localhost");
    fs::write(folder.join("names"), "subjectAltName=DNS:localhost\n").expect("written");
    let signed = "-CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -extfile names -out cert.pem";
    openssl(folder, &format!("x509 -req -in request.pem {signed}"));
}

fn authority(folder: &Path, name: &str) {
    let more = "-days 30 -subj /CN=authority -addext basicConstraints=critical,CA:TRUE";
    openssl(folder, &format!("req -x509 -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.pem {more}"));
}

fn openssl(folder: &Path, arguments: &str) {
    let output = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output().expect("it runs");
    assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn configure(folder: &Path, usr: &Path, [port, implicit_port]: [u16; 2]) {
    for name in ["conf", "conf/sasl", "data", "mail", "queue"] {
        fs::create_dir(folder.join(name)).expect("the folder is new");
    }
    let give = |path: PathBuf| std::os::unix::fs::chown(path, Some(MAIL), Some(MAIL)).expect("root may");
    for name in QUEUE {
        fs::create_dir(folder.join("queue").join(name)).expect("the folder is new");
        if name != "pid" {
            give(folder.join("queue").join(name));
        }
    }
    give(folder.join("data"));
    give(folder.join("mail"));
    let (here, usr) = (folder.display(), usr.display());
    let main = format!(
        "compatibility_level = 3.6\nqueue_directory = {here}/queue\ndata_directory = {here}/data\n\
         command_directory = {usr}/sbin\ndaemon_directory = {usr}/lib/postfix/sbin\n\
         shlib_directory = {usr}/lib/postfix\nmeta_directory = {here}/conf\n\
         mail_owner = mail\nsetgid_group = news\ndefault_privs = nobody\nmyhostname = mail.example\nmydestination =\n\
         inet_interfaces = loopback-only\ninet_protocols = ipv4\nalias_maps =\n\
         import_environment = LD_LIBRARY_PATH SASL_PATH MAIL_CONFIG PATH\n\
         export_environment = LD_LIBRARY_PATH SASL_PATH PATH\n\
         maillog_file = {here}/log\nmaillog_file_prefixes = {here}\n\
         virtual_mailbox_domains = example.com\nvirtual_mailbox_base = {here}/mail\n\
         virtual_mailbox_maps = inline:{{ oncall@example.com=oncall/, devops@example.com=devops/ }}\n\
         virtual_uid_maps = static:{MAIL}\nvirtual_gid_maps = static:{MAIL}\nvirtual_minimum_uid = 1\n\
         smtpd_tls_cert_file = {here}/cert.pem\nsmtpd_tls_key_file = {here}/key.pem\n\
         smtpd_tls_security_level = may\nsmtpd_tls_auth_only = yes\nsmtpd_sasl_auth_enable = yes\n\
         smtpd_sasl_path = smtpd\nsmtpd_sasl_local_domain = mail.example\n\
         smtpd_recipient_restrictions = reject_unauth_destination, permit_sasl_authenticated, reject\n"
    );
    fs::write(folder.join("conf/main.cf"), main).expect("written");
    let mut master = format!(
        "{port} inet n - n - - smtpd\n{implicit_port} inet n - n - - smtpd -o smtpd_tls_wrappermode=yes\n\
         postlog unix-dgram n - n - 1 postlogd\nqmgr unix n - n 300 1 qmgr\nvirtual unix - n n - - virtual\n\
         rewrite unix - - n - - trivial-rewrite\n"
    );
    for (name, program) in [("bounce", "bounce"), ("defer", "bounce"), ("trace", "bounce"), ("error", "error")] {
        master.extend([name, " unix - - n - 0 ", program, "\n"]);
    }
    master.push_str("cleanup unix n - n - 0 cleanup\nproxymap unix - - n - - proxymap\n");
    master.push_str("anvil unix - - n - 1 anvil\ntlsmgr unix - - n 1000? 1 tlsmgr\n");
    fs::write(folder.join("conf/master.cf"), master).expect("written");
    let sasl = format!(
        "pwcheck_method: auxprop\nauxprop_plugin: sasldb\nmech_list: PLAIN LOGIN\nsasldb_path: {here}/sasldb2\n"
    );
    fs::write(folder.join("conf/sasl/smtpd.conf"), sasl).expect("written");
}

fn password(saslpasswd: &Path, environment: &[String], folder: &Path) {
    let (user, domain) = LOGIN.0.split_once('@').expect("an address");
    let file = folder.join("sasldb2");
    let mut child = Command::new("/usr/bin/env")
        .args(environment)
        .arg(saslpasswd)
        .args(["-p", "-c", "-u", domain, "-f"])
        .arg(&file)
        .arg(user)
        .stdin(Stdio::piped())
        .spawn()
        .expect("it runs");
    child.stdin.take().expect("piped").write_all(LOGIN.1.as_bytes()).expect("it reads");
    assert!(child.wait().expect("it ends").success(), "saslpasswd2");
    std::os::unix::fs::chown(&file, Some(MAIL), Some(MAIL)).expect("root may");
}

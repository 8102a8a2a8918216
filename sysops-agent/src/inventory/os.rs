//! Reads os-release and /proc/sys/kernel: which distribution and which kernel.

use std::path::PathBuf;

use serde::Serialize;

use super::read::{said, text};
use crate::host::{Host, bytes};

/// The operating system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Os {
    /// `Ubuntu`, as os-release calls itself by NAME.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distro: Option<String>,
    /// `22.04.4 LTS`: VERSION without the code name; VERSION_ID where that is all there is. Rolling ones have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// `ubuntu`: ID, for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `22.04`: VERSION_ID, for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version_id: Option<String>,
    /// `5.15.0-91-generic`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// `x86_64`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arch: Option<String>,
}

pub(super) fn collect(host: &Host) -> Os {
    let release = ["/etc/os-release", "/usr/lib/os-release"]
        .into_iter()
        .find_map(|path| host.files.read(&below_root(host, path)).ok())
        .map(|text| parse(&text))
        .unwrap_or_default();
    // The files of /proc/sys tell of the kernel that is watched. Before Linux 6.1 there is none for the machine; a
    // foreign root is then a container's host, whose machine is ours.
    let machine = || said(crate::host::os::uname().machine().to_bytes());
    Os {
        kernel: text(host, &host.files.proc("sys/kernel/osrelease")),
        arch: text(host, &host.files.proc("sys/kernel/arch")).or_else(machine),
        ..release
    }
}

/// `path` below the root, through one link: an absolute target means the watched machine's file, not ours.
fn below_root(host: &Host, path: &str) -> PathBuf {
    let path = host.files.root(path);
    match host.files.link(&path) {
        Ok(target) if target.is_absolute() => target.to_str().map_or(path, |target| host.files.root(target)),
        _ => path,
    }
}

/// Reads `KEY=value` lines (os-release(5)). Of a key that comes twice the last one holds.
fn parse(release: &[u8]) -> Os {
    let mut os = Os::default();
    let mut version = None;
    for line in bytes::lines(release) {
        let Some((key, value)) = bytes::split_once(bytes::trim(line), b'=') else { continue };
        let value = unquote(value);
        match key {
            b"NAME" => os.distro = said(&value),
            b"ID" => os.id = said(&value),
            b"VERSION_ID" => os.version_id = said(&value),
            b"VERSION" => version = said(without_code_name(&value)),
            _ => {}
        }
    }
    os.version = version.or_else(|| os.version_id.clone());
    os
}

/// A value without its quotes and backslashes, as a shell reads it.
fn unquote(value: &[u8]) -> Vec<u8> {
    let inner = [b'"', b'\''].iter().find_map(|quote| value.strip_prefix(&[*quote])?.strip_suffix(&[*quote]));
    if value.starts_with(b"'") {
        return inner.unwrap_or(value).to_vec();
    }
    let mut plain = Vec::with_capacity(value.len());
    let mut rest = inner.unwrap_or(value).iter();
    while let Some(&byte) = rest.next() {
        let escaped = if byte == b'\\' { rest.next() } else { None };
        plain.push(*escaped.unwrap_or(&byte));
    }
    plain
}

/// `22.04.4 LTS` of `22.04.4 LTS (Jammy Jellyfish)`.
fn without_code_name(version: &[u8]) -> &[u8] {
    match version.iter().position(|&byte| byte == b'(') {
        Some(at) if version.ends_with(b")") => &version[..at],
        _ => version,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(release: &str) -> [Option<String>; 4] {
        let Os { distro, version, id, version_id, .. } = parse(release.as_bytes());
        [distro, version, id, version_id]
    }

    fn expected(values: [&str; 4]) -> [Option<String>; 4] {
        values.map(|value| (!value.is_empty()).then(|| value.to_owned()))
    }

    #[test]
    fn distributions_as_they_call_themselves() {
        let ubuntu = "PRETTY_NAME=\"Ubuntu 22.04.4 LTS\"\nNAME=\"Ubuntu\"\nVERSION_ID=\"22.04\"\n\
                      VERSION=\"22.04.4 LTS (Jammy Jellyfish)\"\nID=ubuntu\n";
        assert_eq!(shown(ubuntu), expected(["Ubuntu", "22.04.4 LTS", "ubuntu", "22.04"]));
        let arch = "NAME=\"Arch Linux\"\nID=arch\nBUILD_ID=rolling\n";
        assert_eq!(shown(arch), expected(["Arch Linux", "", "arch", ""]));
        let alpine = "NAME='Alpine Linux'\nID=alpine\nVERSION_ID=3.20.1\n";
        assert_eq!(shown(alpine), expected(["Alpine Linux", "3.20.1", "alpine", "3.20.1"]));
    }

    #[test]
    fn odd_lines_are_met() {
        let odd = "# NAME=no\nNAME=\"a\\\"b\\\\ \u{1b}[31m\"\nNAME\n=x\nID=\"\"\nVERSION=\"(all\nVERSION_ID=\"7\n";
        assert_eq!(shown(odd), expected(["a\"b\\ \u{1b}[31m", "\"(all", "", "\"7"]));
        assert_eq!(shown("VERSION=\"(Core)\"\nNAME=\\"), expected(["\\", "", "", ""]));
        assert_eq!(shown(""), expected([""; 4]));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_met(release: Vec<u8>) {
            parse(&release);
        }
    }
}

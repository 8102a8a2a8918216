//! Which container and which systemd unit the path of a cgroup belongs to, as far as the path tells. Pure; the shapes are
//! those that container runtimes and systemd give to their cgroups.

/// What a path tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place<'a> {
    /// Id of the container: 64 hexadecimal digits, or the name that LXC and nspawn give.
    pub container: Option<&'a str>,
    /// The innermost service or scope.
    pub unit: Option<&'a str>,
}

/// What runtimes put before an id: with systemd as cgroup driver in the name of a scope, without it in that of the cgroup.
const RUNTIMES: [&str; 5] = ["docker-", "cri-containerd-", "crio-", "libpod-", "containerd-"];
/// Digits of a container's id.
const ID_LEN: usize = 64;

/// Reads a path.
#[must_use]
pub fn place(cgroup: &str) -> Place<'_> {
    let mut place = Place::default();
    let mut above = "";
    for name in cgroup.split('/').filter(|name| !name.is_empty()) {
        // The innermost counts: containers run in containers, and services in them.
        if let Some(id) = container(name, above) {
            place.container = Some(id);
        }
        if [".service", ".scope"].iter().any(|kind| name.len() > kind.len() && name.ends_with(kind)) {
            place.unit = Some(name);
        }
        above = name;
    }
    place
}

fn container<'a>(name: &'a str, above: &str) -> Option<&'a str> {
    let bare = name.strip_suffix(".scope").unwrap_or(name);
    // Where the driver of kubelet and runtime differ: `kubepods-pod….slice:cri-containerd:<id>`.
    let bare = bare.rsplit_once(':').map_or(bare, |(_, id)| id);
    let id = RUNTIMES.iter().find_map(|runtime| bare.strip_prefix(runtime)).unwrap_or(bare);
    if is_id(id) {
        return Some(id);
    }
    if let Some(lxc) = name.strip_prefix("lxc.payload.") {
        return Some(lxc).filter(|lxc| !lxc.is_empty());
    }
    if above == "lxc" {
        return Some(name);
    }
    // systemd-nspawn's machines; other machines are virtual ones: `machine-qemu\x2d1\x2dweb.scope`.
    let nspawn = name.strip_prefix("systemd-nspawn@").and_then(|rest| rest.strip_suffix(".service"));
    let machine = (above == "machine.slice" && !name.starts_with("machine-qemu"))
        .then(|| bare.strip_prefix("machine-"))
        .flatten();
    nspawn.or(machine).filter(|name| !name.is_empty())
}

fn is_id(text: &str) -> bool {
    text.len() == ID_LEN && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4c01db0b339c4b7a1f2a6a3a0e3e9a8ab16d8e2b9a0f7d6c5b4a392817060504";

    /// Paths as the runtimes make them; `ID` stands for the id.
    #[test]
    fn real_paths_tell_container_and_unit() {
        let scope = |runtime: &str| format!("{runtime}-{ID}.scope");
        let cases: &[(&str, Option<&str>, Option<&str>)] = &[
            // Docker with the drivers systemd and cgroupfs, and in v1's hierarchies.
            ("/system.slice/docker-ID.scope", Some(ID), Some("docker-ID.scope")),
            ("/docker/ID", Some(ID), None),
            ("/docker/ID/system.slice/nginx.service", Some(ID), Some("nginx.service")),
            // Docker in Docker: the inner one.
            ("/docker/0000000000000000000000000000000000000000000000000000000000000000/docker/ID", Some(ID), None),
            // Kubernetes with containerd and CRI-O, by either driver, and with drivers that differ.
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod12345678_1234_1234_1234_123456789012.slice/cri-containerd-ID.scope",
                Some(ID),
                Some("cri-containerd-ID.scope"),
            ),
            ("/kubepods/besteffort/pod12345678-1234-1234-1234-123456789012/ID", Some(ID), None),
            ("/kubepods.slice/kubepods-podaaaa.slice/crio-ID.scope", Some(ID), Some("crio-ID.scope")),
            ("/kubepods.slice/kubepods-podaaaa.slice/crio-ID.scope/container", Some(ID), Some("crio-ID.scope")),
            ("/kubepods/burstable/podaaaa/crio-ID", Some(ID), None),
            (
                "/system.slice/containerd.service/kubepods-besteffort-podaaaa.slice:cri-containerd:ID",
                Some(ID),
                Some("containerd.service"),
            ),
            // The process that watches a container is outside of it.
            ("/kubepods.slice/kubepods-podaaaa.slice/crio-conmon-ID.scope", None, Some("crio-conmon-ID.scope")),
            // Podman as root, as a user, and without systemd.
            ("/machine.slice/libpod-ID.scope/container", Some(ID), Some("libpod-ID.scope")),
            (
                "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope",
                Some(ID),
                Some("libpod-ID.scope"),
            ),
            ("/libpod_parent/libpod-ID", Some(ID), None),
            ("/machine.slice/libpod-conmon-ID.scope", None, Some("libpod-conmon-ID.scope")),
            // nerdctl, ECS.
            ("/default/ID", Some(ID), None),
            ("/ecs/0123456789abcdef0123456789abcdef/ID", Some(ID), None),
            // LXC, nspawn, a virtual machine.
            ("/lxc.payload.web/system.slice/nginx.service", Some("web"), Some("nginx.service")),
            ("/lxc/web", Some("web"), None),
            ("/machine.slice/systemd-nspawn@web.service/payload", Some("web"), Some("systemd-nspawn@web.service")),
            ("/machine.slice/machine-web.scope", Some("web"), Some("machine-web.scope")),
            (r"/machine.slice/machine-qemu\x2d1\x2dweb.scope", None, Some(r"machine-qemu\x2d1\x2dweb.scope")),
            // No container.
            ("/system.slice/postgresql@15-main.service", None, Some("postgresql@15-main.service")),
            ("/user.slice/user-0.slice/session-3.scope", None, Some("session-3.scope")),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/app-firefox.service",
                None,
                Some("app-firefox.service"),
            ),
            ("/init.scope", None, Some("init.scope")),
            ("/system.slice", None, None),
            ("/", None, None),
            ("", None, None),
            ("/.service/.scope", None, None),
            // Not quite an id: one digit less, and a letter that is none.
            ("/docker/4c01db0b339c4b7a1f2a6a3a0e3e9a8ab16d8e2b9a0f7d6c5b4a39281706050", None, None),
            ("/docker/xc01db0b339c4b7a1f2a6a3a0e3e9a8ab16d8e2b9a0f7d6c5b4a392817060504", None, None),
        ];
        for (path, container, unit) in cases {
            let path = path.replace("ID", ID);
            let unit = unit.map(|unit| unit.replace("ID", ID));
            assert_eq!(place(&path), Place { container: *container, unit: unit.as_deref() }, "{path}");
        }
        assert_eq!(place(&format!("/{}", scope("cri-containerd"))).container, Some(ID));
    }

    proptest::proptest! {
        /// Names of cgroups are anyone's to choose.
        #[test]
        fn any_path_is_read_without_a_panic(path: String, names in "(/[a-z.:@-]{0,12}){0,6}") {
            for path in [&path, &names] {
                let place = place(path);
                proptest::prop_assert!(place.container.is_none_or(|id| !id.is_empty() && path.contains(id)));
            }
        }
    }
}

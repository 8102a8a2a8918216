//! Everything a developer or CI runs, one file per command. Nothing is decided in shell or YAML.

mod apt;
mod bench;
mod build;
mod build_ebpf;
mod ci;
mod docs;
mod program;
mod run;
mod setup;
mod test;
mod toolchain;
mod vm_test;
mod workspace;

use std::process::ExitCode;

use anyhow::{Result, bail};

/// A command as the table knows it.
struct Command {
    name: &'static str,
    args: &'static str,
    about: &'static str,
    run: fn(&[String]) -> Result<()>,
}

static COMMANDS: &[Command] = &[
    Command { name: "run", args: "[-- ARGS]", about: "set up, build, run the agent in the foreground", run: run::main },
    Command {
        name: "build",
        args: "",
        about: "set up, build target/release/sysops-agent with its probes",
        run: build::main,
    },
    Command { name: "test", args: "[-- ARGS]", about: "install what the tests need, run them", run: test::main },
    Command {
        name: "ci",
        args: "",
        about: "format, lint, feature sets, generated documents, tests, guests",
        run: ci::main,
    },
    Command { name: "lints", args: "", about: "clippy on the workspace and on each feature set", run: ci::lints },
    Command {
        name: "setup",
        args: "",
        about: "get the BPF toolchain by the route this machine offers",
        run: setup::main,
    },
    Command { name: "build-ebpf", args: "", about: "build the probes to target/bpf/*.o", run: build_ebpf::main },
    Command { name: "docs", args: "[--check]", about: "write, or check, the generated documents", run: docs::main },
    Command {
        name: "bench",
        args: "[PART…]",
        about: "cost beside node_exporter, delays, forks, block I/O, table of processes, probes, delivery",
        run: bench::main,
    },
    Command {
        name: "vm-test",
        args: "[KERNEL…|all]",
        about: "each probe on each rung in Debian kernels under QEMU",
        run: vm_test::main,
    },
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: &[String]) -> Result<()> {
    let Some((name, rest)) = args.split_first() else {
        print!("{}", usage());
        return Ok(());
    };
    if matches!(name.as_str(), "help" | "--help" | "-h") {
        print!("{}", usage());
        return Ok(());
    }
    if name == bench::victim::COMMAND {
        return bench::victim::main();
    }
    if name == bench::fd_load::COMMAND {
        return bench::fd_load::main(rest);
    }
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        bail!("no command {name:?}\n{}", usage());
    };
    (command.run)(rest)
}

fn usage() -> String {
    let lines = COMMANDS.iter().map(|command| {
        let call = format!("{} {}", command.name, command.args);
        format!("  {call:<22} {}\n", command.about)
    });
    std::iter::once("cargo xtask COMMAND\n".to_owned()).chain(lines).collect()
}

/// Commands without arguments say so instead of ignoring one.
fn no_args(command: &str, args: &[String]) -> Result<()> {
    if let Some(arg) = args.first() {
        bail!("{command} takes no arguments, found {arg:?}");
    }
    Ok(())
}

/// What stands behind a leading `--`, which cargo leaves in place.
fn after_dashes(args: &[String]) -> &[String] {
    match args.split_first() {
        Some((dashes, rest)) if dashes == "--" => rest,
        _ => args,
    }
}

//! The binary as people meet it: its help, its errors, and (privileged) what it says about real pinned maps.

#![expect(clippy::unwrap_used, reason = "a test panics where it cannot go on")]

#[path = "cli/matrix.rs"]
mod matrix;
#[path = "cli/node.rs"]
mod node;
#[path = "cli/pinned.rs"]
mod pinned;

use std::path::{Path, PathBuf};
use std::process::Command;

/// What a run of the binary gave.
struct Run {
    code: i32,
    out: String,
    err: String,
}

/// Runs the binary without anything of this environment that changes its output.
fn portcullis(args: &[&str]) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    let ours = |name: &str| {
        name.starts_with("PORTCULLIS_") || ["KUBECONFIG", "KUBERNETES_SERVICE_HOST"].contains(&name)
    };
    for (name, _) in std::env::vars().filter(|(name, _)| ours(name)) {
        command.env_remove(name);
    }
    let output = node::finish(command.args(args).env_remove("COLUMNS"));
    Run {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Compares with `tests/snapshots/<name>.txt`; `UPDATE_SNAPSHOTS=1` writes it anew.
fn snapshot(name: &str, found: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots").join(format!("{name}.txt"));
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, found).unwrap();
        return;
    }
    let wanted = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        found,
        wanted,
        "{} differs; if that is meant, run the test with UPDATE_SNAPSHOTS=1 and say so in the change log",
        path.display()
    );
}

#[test]
fn help_is_as_it_was() {
    for command in ["", "agent", "dump", "monitor", "status", "check", "matrix", "mode", "cleanup"] {
        let args: Vec<&str> = [command, "--help"].into_iter().filter(|arg| !arg.is_empty()).collect();
        let run = portcullis(&args);
        assert_eq!((run.code, run.err.as_str()), (0, ""));
        let name = if command.is_empty() { "help".to_owned() } else { format!("help-{command}") };
        snapshot(&name, &run.out);
    }
}

#[test]
fn wrong_usage_is_told_with_exit_code_2() {
    for (args, told) in [
        (&["--no-such-flag"][..], "--no-such-flag"),
        (&[], "Usage:"),
        (&["dump", "identites"], "a similar value exists: 'identities'"),
        (&["status", "-o", "yaml"], "possible values: table, json"),
        (&["agent"], "say --manifests DIR for a folder, or --kubeconfig FILE (or KUBECONFIG)"),
        (&["agent", "--manifests", "x", "--kubeconfig", "y"], "cannot be used with"),
        (&["agent", "--manifests", "x", "--mode", "strict"], "possible values: enforce, audit, off"),
        (&["agent", "--manifests", "x", "--pod-cidr", "10.0.0.0/33"], "10.0.0.0/33"),
        (&["agent", "--manifests", "x", "--ipcache-size", "many"], "--ipcache-size"),
        (&["monitor", "--verdict", "denied"], "possible values: allow, deny, audit"),
        (&["monitor", "--direction", "in"], "possible values: ingress, egress"),
        (&["monitor", "--identity", "api"], "write NAMESPACE/ACCOUNT, such as shop/api, or one of"),
        (&["monitor", "--from", "everyone"], "host, node, world, unmanaged"),
        (&["monitor", "--port", "http"], "write a port from 1 to 65535"),
        (&["monitor", "--reason", "because"], "no-flow"),
        (&["monitor", "--count", "0"], "0 is not in 1.."),
        (&["matrix"], "--manifests <DIR>"),
        (
            &["matrix", "--manifests", "x", "--port", "80"],
            "write a protocol (TCP, UDP or SCTP) and a port from 1 to 65535",
        ),
        (&["matrix", "--manifests", "x", "--by", "label"], "possible values: pod, principal"),
    ] {
        let run = portcullis(args);
        assert_eq!(run.code, 2, "{args:?}: {}", run.err);
        assert!(run.err.contains(told), "{args:?}: {}", run.err);
    }
}

#[test]
fn without_pinned_maps_commands_say_what_that_means() {
    let run_dir = std::env::temp_dir().join(format!("pccli-none-{}", std::process::id()));
    let run_dir = run_dir.to_str().unwrap();
    let folders = ["--bpffs", "/sys/fs/bpf/pccli-none", "--run-dir", run_dir];
    assert!(!Path::new(folders[1]).exists());
    for command in [&["dump"][..], &["mode", "off"], &["mode"], &["monitor"]] {
        let run = portcullis(&[command, &folders].concat());
        assert_eq!(run.code, 1, "{command:?}");
        assert_eq!(run.out, "", "{command:?}");
        assert!(run.err.contains("no maps of version 1 are pinned there"), "{command:?}: {}", run.err);
        assert!(run.err.contains("/sys/fs/bpf/pccli-none/v1"), "{command:?}: {}", run.err);
    }
    let run = portcullis(&[&["status"][..], &folders].concat());
    assert_eq!(run.code, 1);
    assert!(run.out.contains("agent:         not running"), "{}", run.out);
    assert!(run.err.contains("cannot read the names file"), "{}", run.err);
    let run = portcullis(&[&["cleanup"][..], &folders].concat());
    assert_eq!((run.code, run.out.starts_with("nothing to remove")), (0, true), "{}{}", run.out, run.err);
}

#[test]
fn metric_names_are_as_they_were() {
    let metrics = portcullis::metrics::AgentMetrics::new("/proc/no-maps-here".into()).unwrap();
    let text = metrics.render().unwrap();
    let mut names: Vec<String> = portcullis::metrics::FAMILIES
        .iter()
        .chain(portcullis::metrics::SOURCE_FAMILIES)
        .map(|family| {
            let kind = if family.counter { "counter" } else { "gauge" };
            format!("{} {kind} {{{}}}\n", family.name, family.labels.join(","))
        })
        .collect();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        if !names.iter().any(|name| name.split(' ').next() == line.split(' ').next()) {
            names.push(format!("{line} {{}}\n"));
        }
    }
    names.sort();
    snapshot("metrics", &names.concat());
}

//! The agent with the rights of its DaemonSet and no others: four capabilities, a root file system that it cannot write.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use portcullis_tests::agent::binary;
use portcullis_tests::shop::{DB_ISOLATED, api_and_db};
use portcullis_tests::{Agent, Node, TempDir, deploy, eventually, privileged_test};
use serde_json::Value;

/// The capabilities that the DaemonSet adds.
fn granted() -> Result<Vec<String>> {
    let yaml = fs::read_to_string(deploy::folder().join("base/daemonset.yaml"))?;
    let (_, list) = yaml.split_once("            add:\n").context("daemonset.yaml adds capabilities")?;
    let lines = list.lines().map(str::trim).take_while(|line| line.starts_with(['-', '#']));
    Ok(lines.filter_map(|line| line.strip_prefix("- ")).map(str::to_owned).collect())
}

/// Numbers of capabilities (include/uapi/linux/capability.h), as a set.
fn bits(names: &[String]) -> Result<u64> {
    let number = |name: &String| match name.as_str() {
        "NET_BROADCAST" => Ok(11),
        "NET_ADMIN" => Ok(12),
        "PERFMON" => Ok(38),
        "BPF" => Ok(39),
        other => Err(anyhow::anyhow!("the number of {other} is not known here")),
    };
    names.iter().map(|name| Ok(1u64 << number(name)?)).sum()
}

/// A program that becomes the agent with these capabilities, on a root file system that is read-only but for the
/// folder of temporary files, where the test's own are.
fn confined(folder: &TempDir, capabilities: &[String]) -> Result<PathBuf> {
    let set = ["-all".to_owned()]
        .into_iter()
        .chain(capabilities.iter().map(|name| format!("+{}", name.to_lowercase())));
    let set = set.collect::<Vec<_>>().join(",");
    let script = format!(
        "#!/bin/sh\nexec unshare --mount --propagation private sh -c '\n\
         mount --bind {tmp} {tmp} && mount -o remount,bind,ro / &&\n\
         exec setpriv --bounding-set={set} --no-new-privs -- {agent} \"$@\"' sh \"$@\"\n",
        tmp = std::env::temp_dir().display(),
        agent = binary()?.display(),
    );
    folder.write("confined", &script)?;
    let path = folder.path().join("confined");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// Runs `portcullis monitor`, as `kubectl exec` would in the agent's container, until it has shown a denied packet; returns
/// what it says on standard error.
fn denial_shown(agent: &Agent<'_>, node: &Node) -> Result<String> {
    let mut monitor = agent.start_command(["monitor", "--verdict", "deny", "--count", "1"])?;
    let ended = eventually("the monitor to show a denied packet", || {
        let sent = node.pods[0].ns.udp_send((node.pods[1].v4, 5353).into(), b"x");
        sent.is_ok() && !matches!(monitor.try_wait(), Ok(None))
    });
    // One that shows nothing goes on for ever.
    monitor.kill()?;
    let output = monitor.wait_with_output()?;
    let (shown, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ended.with_context(|| said.to_string())?;
    ensure!(
        output.status.success() && shown.contains(" -> shop/db 10.77.0.3:5353 (shop/db) "),
        "{shown}{said}"
    );
    Ok(said.into_owned())
}

#[test]
fn four_capabilities_and_a_read_only_root_are_enough() -> Result<()> {
    privileged_test(|| {
        let folder = TempDir::new()?;
        let granted = granted()?;
        let (node, manifests) = api_and_db(DB_ISOLATED)?;
        let confined = confined(&folder, &granted)?;
        let mut agent = Agent::on(&node.ns).binary(confined).manifests(manifests.path()).start()?;

        let pid = agent.pid().context("the agent runs")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            let line =
                status.lines().find_map(|line| line.strip_prefix(&format!("{set}:"))).context("a set")?;
            ensure!(u64::from_str_radix(line.trim(), 16)? == bits(&granted)?, "{set} is {line}");
        }
        let mounts = fs::read_to_string(format!("/proc/{pid}/mounts"))?;
        let root = mounts.lines().find(|line| line.split(' ').nth(1) == Some("/")).context("a root")?;
        ensure!(root.split(' ').nth(3).is_some_and(|options| options.starts_with("ro")), "{root}");

        let status: Value = serde_json::from_str(&agent.cli(["status", "-o", "json"])?)?;
        ensure!(status["endpoints"]["hooks_first"] == 4, "two pods have four hooks: {status:#}");
        let said = denial_shown(&agent, &node)?;
        ensure!(said.contains("events of the agent"), "{said}");
        agent.terminate()?;
        agent.restart()?;
        agent.kill()?;
        let said = denial_shown(&agent, &node)?;
        ensure!(said.contains("reading the events of"), "{said}");
        // With the same rights everything is taken off again.
        let removed = agent.cli(["cleanup"])?;
        ensure!(removed.contains("nothing is enforced on this node any more"), "{removed}");
        ensure!(!agent.run_dir().exists(), "a killed agent's socket is removed, too");
        Ok(())
    })
}

#[test]
fn a_capability_that_is_missing_is_named() -> Result<()> {
    privileged_test(|| {
        let granted = granted()?;
        for missing in ["NET_ADMIN", "BPF", "PERFMON"] {
            let folder = TempDir::new()?;
            let rest: Vec<String> = granted.iter().filter(|name| *name != missing).cloned().collect();
            let bpffs = format!("/sys/fs/bpf/{}", folder.path().file_name().unwrap().display());
            let output = Command::new(confined(&folder, &rest)?)
                .args(["agent", "--manifests"])
                .arg(folder.path())
                .args(["--bpffs", &bpffs, "--run-dir"])
                .arg(folder.path().join("run"))
                .output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.code() == Some(1), "without {missing}: {}: {said}", output.status);
            ensure!(
                said.contains(&format!("this process lacks CAP_{missing} (")),
                "without {missing}: {said}"
            );
            ensure!(said.contains("securityContext.capabilities"), "without {missing}: {said}");
            ensure!(!fs::exists(&bpffs)?, "something was made before: {bpffs}");
        }
        Ok(())
    })
}

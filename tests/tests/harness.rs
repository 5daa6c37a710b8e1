//! The harness itself: nodes whose pods really reach each other, and a residue check that really finds something.

use std::fs::{self, Permissions};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portcullis_tests::command::run;
use portcullis_tests::netns;
use portcullis_tests::node::{NODE, OUTSIDE};
use portcullis_tests::privileged::privileged_test_within;
use portcullis_tests::residue::Snapshot;
use portcullis_tests::{Agent, Namespace, Network, Node, TempDir, eventually, privileged_test};

const SOON: Duration = Duration::from_secs(5);

/// Both ends of every pair talk over TCP, UDP and ICMP.
fn everyone_reaches_everyone(network: Network) -> Result<()> {
    let node = Node::with(network).pods(2).outside().build()?;
    let outside = node.outside.as_ref().context("an outside was asked for")?;
    let places: Vec<(&Namespace, [IpAddr; 2])> = vec![
        (&node.pods[0].ns, [node.pods[0].v4.into(), node.pods[0].v6.into()]),
        (&node.pods[1].ns, [node.pods[1].v4.into(), node.pods[1].v6.into()]),
        (&node.ns, [NODE.0.into(), NODE.1.into()]),
        (outside, [OUTSIDE.0.into(), OUTSIDE.1.into()]),
    ];
    for (to, addresses) in &places {
        for address in addresses {
            let at = SocketAddr::new(*address, 8080);
            let (tcp, udp) = (to.tcp_echo(at)?, to.udp_echo(at)?);
            for (from, _) in &places {
                let what = || format!("{} to {} ({address})", from.label(), to.label());
                from.ping(*address, SOON).unwrap_or_else(|error| panic!("ping {}: {error:#}", what()));
                from.tcp_exchange(at, SOON).unwrap_or_else(|error| panic!("tcp {}: {error:#}", what()));
                from.udp_exchange(at, SOON).unwrap_or_else(|error| panic!("udp {}: {error:#}", what()));
            }
            assert_eq!(tcp.connections(), places.len() as u64);
            assert_eq!(udp.received(), 10 * places.len() as u64);
        }
    }
    Ok(())
}

#[test]
fn routed_pods_node_and_outside_reach_each_other() -> Result<()> {
    privileged_test(|| everyone_reaches_everyone(Network::Routed))
}

#[test]
fn bridged_pods_node_and_outside_reach_each_other() -> Result<()> {
    privileged_test(|| everyone_reaches_everyone(Network::Bridged))
}

#[test]
fn a_connection_lives_on_and_notices_when_its_path_is_gone() -> Result<()> {
    privileged_test(|| {
        let node = Node::routed().pods(2).build()?;
        let at = SocketAddr::new(node.pods[1].v4.into(), 8080);
        let server = node.pods[1].ns.tcp_echo(at)?;
        let mut connection = node.pods[0].ns.tcp_connect(at, SOON)?;
        for _ in 0..3 {
            connection.exchange(SOON)?;
        }
        assert_eq!((server.connections(), server.received()), (1, 3));
        node.ns.ip(&format!("link set {} down", node.pods[1].veth))?;
        assert!(connection.exchange(Duration::from_millis(300)).is_err());
        Ok(())
    })
}

#[test]
fn an_address_moves_from_a_removed_pod_to_a_new_one() -> Result<()> {
    privileged_test(|| {
        let mut node = Node::bridged().pods(2).build()?;
        let (v4, v6) = (node.pods[1].v4, node.pods[1].v6);
        node.pods[0].ns.ping(v4.into(), SOON)?;
        node.remove_pod(1)?;
        assert_eq!(node.pods.len(), 1);
        node.add_pod_with(v4, v6)?;
        // Its neighbour entry names the removed pod's hardware address until the new pod's announcement arrives.
        eventually("the first pod to learn the new neighbour", || {
            node.pods[0].ns.ping(v4.into(), Duration::from_millis(500)).is_ok()
                && node.pods[0].ns.ping(v6.into(), Duration::from_millis(500)).is_ok()
        })
    })
}

#[test]
fn commands_in_a_namespace_see_its_interfaces_and_still_bpffs() -> Result<()> {
    privileged_test(|| {
        let node = Node::routed().pods(1).build()?;
        let output = node.ns.command("ip", ["-o", "link"]).output()?;
        let links = String::from_utf8(output.stdout)?;
        assert!(links.contains("veth0"), "{links}");
        let listed = node.ns.command("grep", ["-q", " /sys/fs/bpf ", "/proc/self/mounts"]).status()?;
        assert!(listed.success());
        Ok(())
    })
}

#[test]
fn a_test_that_leaves_something_behind_fails_and_the_thing_is_named() {
    let mut leaked = None;
    let error = privileged_test_within(Duration::from_millis(100), || {
        leaked = Some(Namespace::new("forgotten")?);
        Ok(())
    })
    .expect_err("a namespace was left behind");
    let name = leaked.as_ref().expect("it was made").name();
    assert!(error.to_string().contains(&format!("left behind: namespace {name}")), "{error:#}");
}

#[test]
fn a_panic_in_a_test_leaves_nothing_behind() -> Result<()> {
    let before = Snapshot::take();
    let outcome = std::panic::catch_unwind(|| {
        privileged_test(|| {
            let _node = Node::bridged().pods(2).outside().build()?;
            panic!("on purpose");
        })
    });
    assert!(outcome.is_err());
    // Other tests of this process make namespaces too, so this looks only when it is alone.
    privileged_test(|| {
        eventually("nothing of the panicked test", || Snapshot::take().since(&before).is_empty())
    })
}

#[test]
fn an_agent_that_ends_at_once_is_reported_with_its_log_and_cleaned_up_after() -> Result<()> {
    privileged_test(|| {
        let node = Node::routed().build()?;
        let folder = TempDir::new()?;
        // Writes what it was called with; `cleanup` has a line of its own.
        let script = folder.path().join("agent.sh");
        let calls = folder.path().join("calls");
        fs::write(
            &script,
            format!("#!/bin/sh\necho \"$@\" >> {}\necho refusing\nexit 3\n", calls.display()),
        )?;
        fs::set_permissions(&script, Permissions::from_mode(0o755))?;
        let started = Agent::on(&node.ns).binary(&script).manifests("/m").args(["--audit"]).start();
        let error = format!("{:#}", started.expect_err("a script that ends is no agent"));
        assert!(error.contains("exit status: 3") && error.contains("refusing"), "{error}");
        let calls = fs::read_to_string(calls)?;
        let calls: Vec<&str> = calls.lines().collect();
        assert!(calls[0].starts_with(
            "agent --node-name node --manifests /m --audit --bpffs /sys/fs/bpf/portcullis-pct-"
        ));
        assert!(calls[1].starts_with("cleanup --bpffs /sys/fs/bpf/portcullis-pct-"), "{calls:?}");
        assert_eq!(calls.len(), 2);
        Ok(())
    })
}

#[test]
fn an_agent_that_runs_is_stopped_by_kill_by_terminate_and_by_drop() -> Result<()> {
    privileged_test(|| {
        let node = Node::routed().build()?;
        let folder = TempDir::new()?;
        let script = folder.path().join("agent.sh");
        fs::write(&script, "#!/bin/sh\n[ \"$1\" = agent ] && exec sleep 1000\nexit 0\n")?;
        fs::set_permissions(&script, Permissions::from_mode(0o755))?;
        let runs = |pid: u32| Path::new("/proc").join(pid.to_string()).exists();

        let mut agent = Agent::on(&node.ns).binary(&script).spawn()?;
        let first = agent.pid().expect("it runs");
        assert!(runs(first));
        agent.kill()?;
        assert!(!runs(first));
        assert!(agent.terminate().is_err(), "there is nothing to terminate");

        let mut agent = Agent::on(&node.ns).binary(&script).spawn()?;
        assert_eq!(agent.terminate()?.signal(), Some(15));

        let agent = Agent::on(&node.ns).binary(&script).spawn()?;
        let last = agent.pid().expect("it runs");
        drop(agent);
        assert!(!runs(last));
        Ok(())
    })
}

/// As on a machine that has never had a namespace with a name: the first one makes a mount that nobody takes away.
#[test]
fn the_first_namespace_of_a_machine_leaves_no_mount() -> Result<()> {
    privileged_test(|| {
        let mounted =
            || anyhow::Ok(fs::read_to_string("/proc/thread-self/mountinfo")?.contains(" /run/netns "));
        let thread = std::thread::spawn(move || {
            // SAFETY: gives this thread mounts of its own.
            let entered = unsafe { libc::unshare(libc::CLONE_NEWNS) };
            ensure!(entered == 0, "mounts of an own: {}", std::io::Error::last_os_error());
            run(Command::new("mount").args(["--make-rprivate", "/"]))?;
            // With the names of the other tests, which go on in their own mounts.
            run(Command::new("umount").args(["--recursive", "--lazy", "/run/netns"]))?;
            assert!(!mounted()?);
            let folder = netns::Folder::open()?;
            assert!(mounted()?, "a namespace makes it");
            let inner = netns::Folder::open()?;
            let namespace = Namespace::new("pod")?;
            drop(inner);
            assert!(mounted()?, "it was there before");
            drop(namespace);
            drop(folder);
            assert!(!mounted()?);
            Ok(())
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

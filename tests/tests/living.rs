//! The agent beside others: the mode of the cluster, namespaces that are left out, programs of others, and pods that
//! nobody could judge.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portcullis_tests::shop::{DB_ISOLATED, api_and_db};
use portcullis_tests::{Agent, Manifests, Node, PodObject, eventually, eventually_within, privileged_test};

/// For what must work.
const SOON: Duration = Duration::from_secs(5);
/// For what must not: long enough for an answer, and for one retransmission of a SYN.
const NEVER: Duration = Duration::from_millis(1300);

fn config(mode: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: portcullis, namespace: portcullis-system}}\n\
         data: {{mode: {mode}}}\n"
    )
}

/// A node with the pods api and db, of which the database is closed.
fn shop() -> Result<(Node, Manifests)> {
    api_and_db(DB_ISOLATED)
}

/// Whether a line is among the metrics.
fn shows(agent: &Agent<'_>, line: &str) -> bool {
    agent.get("/metrics").is_ok_and(|(_, text)| text.lines().any(|found| found == line))
}

#[derive(serde::Deserialize)]
struct Status {
    ok: bool,
    findings: Vec<Finding>,
}

#[derive(serde::Deserialize)]
struct Finding {
    message: String,
}

/// What `portcullis status` says; its exit code says whether anything is wrong.
fn status(agent: &Agent<'_>) -> Result<Status> {
    let text = match agent.cli(["status", "-o", "json"]) {
        Ok(text) => text,
        Err(error) => {
            let text = format!("{error:#}");
            let start = text.find('{').with_context(|| text.clone())?;
            let end = text.rfind('}').with_context(|| text.clone())?;
            text[start..=end].to_owned()
        }
    };
    serde_json::from_str(&text).with_context(|| text)
}

fn says(agent: &Agent<'_>, words: &str) -> bool {
    status(agent).is_ok_and(|status| status.findings.iter().any(|f| f.message.contains(words)))
}

#[test]
fn the_mode_of_the_config_map_holds_at_once_and_enforcing_cuts_what_was_only_audited() -> Result<()> {
    privileged_test(|| {
        let (node, manifests) = shop()?;
        manifests.write("config.yaml", &config("Audit"))?;
        let mut agent = Agent::on(&node.ns).manifests(manifests.path()).start()?;
        let [api, db] = [&node.pods[0], &node.pods[1]];
        let at = SocketAddr::new(db.v4.into(), 5432);
        let _server = db.ns.tcp_echo(at)?;
        ensure!(shows(&agent, "portcullis_mode{mode=\"audit\"} 1"), "the ConfigMap wins over the flag");
        let mut audited = api.ns.tcp_connect(at, SOON).context("audit mode denies nobody")?;
        audited.exchange(SOON)?;

        manifests.write("config.yaml", &config("Enforce"))?;
        eventually("the mode to be enforce", || shows(&agent, "portcullis_mode{mode=\"enforce\"} 1"))?;
        ensure!(audited.exchange(NEVER).is_err(), "an audited connection outlived the audit");
        ensure!(api.ns.tcp_exchange(at, NEVER).is_err(), "a new connection was let in");

        manifests.write("config.yaml", &config("Off"))?;
        eventually("the mode to be off", || shows(&agent, "portcullis_mode{mode=\"off\"} 1"))?;
        api.ns.tcp_exchange(at, SOON).context("nothing is denied when it is off")?;

        // What cannot be read changes nothing, also over a restart, and is said.
        manifests.write("config.yaml", &config("Enfroce"))?;
        eventually("the mistake to be reported", || says(&agent, "\"Enfroce\" is no mode"))?;
        ensure!(shows(&agent, "portcullis_mode{mode=\"off\"} 1"), "the last good mode stays");
        agent.terminate()?;
        agent.restart()?;
        ensure!(shows(&agent, "portcullis_mode{mode=\"off\"} 1"), "the last good mode stays over a restart");

        manifests.remove("config.yaml")?;
        eventually("the flag to decide", || shows(&agent, "portcullis_mode{mode=\"enforce\"} 1"))?;
        ensure!(api.ns.tcp_exchange(at, NEVER).is_err(), "the flag says enforce");
        Ok(())
    })
}

#[test]
fn the_override_and_the_config_map_are_both_heard_and_the_milder_one_holds() -> Result<()> {
    privileged_test(|| {
        let (node, manifests) = shop()?;
        manifests.write("config.yaml", &config("Enforce"))?;
        let agent = Agent::on(&node.ns).manifests(manifests.path()).args(["--mode", "audit"]).start()?;
        let [api, db] = [&node.pods[0], &node.pods[1]];
        let at = SocketAddr::new(db.v4.into(), 5432);
        let _server = db.ns.tcp_echo(at)?;
        ensure!(api.ns.tcp_exchange(at, NEVER).is_err(), "the ConfigMap is stricter than the flag, and wins");
        agent.cli(["mode", "off"])?;
        api.ns.tcp_exchange(at, SOON).context("the override is milder")?;
        agent.cli(["mode", "clear"])?;
        ensure!(api.ns.tcp_exchange(at, NEVER).is_err());
        Ok(())
    })
}

#[test]
fn a_namespace_that_is_left_out_is_not_denied_anything_and_cannot_lend_its_identity() -> Result<()> {
    privileged_test(|| {
        let (node, manifests) = shop()?;
        let agent =
            Agent::on(&node.ns).manifests(manifests.path()).args(["--default-verdict", "deny"]).start()?;
        let [api, db] = [&node.pods[0], &node.pods[1]];
        let at = SocketAddr::new(db.v4.into(), 5432);
        let _server = db.ns.tcp_echo(at)?;
        ensure!(api.ns.tcp_exchange(at, NEVER).is_err());
        let label = |mode: &str| {
            // The same namespace is in the file with the pods, which is read later.
            let path = manifests.path().join("pods.yaml");
            let text = std::fs::read_to_string(&path)?;
            let plain = "metadata: {name: shop}";
            let left_out = format!("metadata: {{name: shop, labels: {{portcullis.dev/mode: '{mode}'}}}}");
            manifests.write("pods.yaml", &text.replacen(plain, &left_out, 1))
        };
        label("Off")?;
        eventually("the namespace to be left out", || {
            api.ns.tcp_exchange(at, Duration::from_millis(500)).is_ok()
        })?;
        // It does not send in the name of others all the same.
        api.ns.ip("addr add 10.77.0.200/32 dev eth0")?;
        let receiver = db.ns.udp_echo(SocketAddr::new(db.v4.into(), 5353))?;
        api.ns.udp_exchange(receiver.address(), SOON).context("by its own address it sends")?;
        let before = receiver.received();
        let spoofed = || {
            let (_, text) = agent.get("/metrics").unwrap_or_default();
            text.lines().any(|l| l.starts_with("portcullis_drops_total{") && l.contains("spoofed-source"))
        };
        ensure!(!spoofed());
        api.ns.run(|| {
            let socket = std::net::UdpSocket::bind("10.77.0.200:0")?;
            anyhow::Ok(socket.send_to(b"x", receiver.address())?)
        })?;
        eventually("the spoofed packet to be counted", spoofed)?;
        ensure!(receiver.received() == before, "a pod used an address that is not its own");
        Ok(())
    })
}

#[test]
fn network_policies_are_left_to_another_engine_when_told_so() -> Result<()> {
    privileged_test(|| {
        let (node, manifests) = shop()?;
        let mut agent = Agent::on(&node.ns).manifests(manifests.path()).start()?;
        let [api, db] = [&node.pods[0], &node.pods[1]];
        let at = SocketAddr::new(db.v4.into(), 5432);
        let _server = db.ns.tcp_echo(at)?;
        ensure!(api.ns.tcp_exchange(at, NEVER).is_err());
        agent.terminate()?;
        agent.restart_with(["--network-policies", "false"])?;
        api.ns.tcp_exchange(at, SOON).context("the NetworkPolicy is somebody else's")?;
        let closed = "
apiVersion: portcullis.dev/v1alpha1
kind: IdentityPolicy
metadata: {name: db, namespace: shop}
spec: {subject: {serviceAccounts: {names: [db]}}, ingress: {rules: []}}
";
        manifests.write("ours.yaml", closed)?;
        eventually("an IdentityPolicy to be enforced all the same", || {
            api.ns.tcp_exchange(at, Duration::from_millis(300)).is_err()
        })
    })
}

fn a_program_before_ours_is_named(args: &[&str]) -> Result<()> {
    let (node, manifests) = shop()?;
    let agent = Agent::on(&node.ns).manifests(manifests.path()).args(args.iter().copied()).start()?;
    let first = "portcullis_endpoints_foreign_first";
    ensure!(shows(&agent, &format!("{first} 0")));
    let ready = |wanted: u16| agent.get("/readyz").is_ok_and(|(status, _)| status == wanted);
    {
        // Another one, with maps of its own, puts its programs to the head of the hooks.
        let other = Agent::on(&node.ns).manifests(manifests.path());
        let other = other.args(["--attach", "tcx", "--metrics-address", "127.0.0.1:9479"]).spawn()?;
        eventually("the other's programs to be noticed", || shows(&agent, &format!("{first} 2")))?;
        eventually("the agent to be unready", || ready(503))?;
        for program in ["to_pod (id ", "from_pod (id "] {
            ensure!(says(&agent, program), "the program is named: {program}");
        }
        drop(other);
    }
    eventually("the agent to be ready again", || ready(200))?;
    ensure!(shows(&agent, &format!("{first} 0")));
    Ok(())
}

#[test]
fn a_program_before_our_links_is_named_and_makes_the_agent_unready() -> Result<()> {
    privileged_test(|| a_program_before_ours_is_named(&[]))
}

#[test]
fn a_program_before_our_filters_is_named_and_makes_the_agent_unready() -> Result<()> {
    privileged_test(|| a_program_before_ours_is_named(&["--attach", "clsact"]))
}

#[test]
fn an_interface_whose_answers_go_past_our_programs_is_named() -> Result<()> {
    privileged_test(|| {
        let (node, manifests) = shop()?;
        manifests.write("db.yaml", "")?;
        let agent = Agent::on(&node.ns).manifests(manifests.path()).start()?;
        let [api, db] = [&node.pods[0], &node.pods[1]];
        let at = SocketAddr::new(db.v4.into(), 5432);
        let _server = db.ns.tcp_echo(at)?;
        api.ns.tcp_exchange(at, SOON)?;
        eventually("nothing to be wrong", || status(&agent).is_ok_and(|status| status.ok))?;
        // What comes for the pod takes another way, as by a dataplane that redirects into pods.
        node.ns.ip(&format!("link add side type veth peer name side0 netns {}", api.ns.name()))?;
        api.ns.ip("link set side0 up")?;
        node.ns.ip(&format!(
            "link set side up\nroute replace {}/32 dev side src {}",
            api.v4,
            portcullis_tests::node::NODE.0
        ))?;
        api.ns.tcp_exchange(at, SOON).context("by the other way")?;
        let sided = format!("{} has connections that were seen in one direction only", api.veth);
        eventually("status to name the interface", || says(&agent, &sided))?;
        let counted = || shows(&agent, "portcullis_endpoints_one_sided 1");
        // The tables are read for it twice a minute at most.
        eventually_within(Duration::from_secs(90), "the interface to be counted", counted)
    })
}

#[test]
fn a_running_pod_without_an_interface_is_named_and_makes_the_agent_unready() -> Result<()> {
    privileged_test(|| {
        let (node, manifests) = shop()?;
        let agent = Agent::on(&node.ns).manifests(manifests.path()).start()?;
        ensure!(status(&agent)?.ok, "{:?}", agent.cli(["status"]));
        let fast = |namespace, label: &str| {
            let addresses = ("10.77.0.99".parse()?, "fd77::99".parse()?);
            let pod = PodObject { namespace, name: "fast", account: "fast", addresses, started: 1 };
            manifests.pods("fast.yaml", &[pod])?;
            let text = std::fs::read_to_string(manifests.path().join("fast.yaml"))?;
            let text = text.replacen("metadata: {name: nic}", &format!("metadata: {{name: nic{label}}}"), 1);
            manifests.write("fast.yaml", &text)
        };
        fast("nic", "")?;
        let count = |n: u32| shows(&agent, &format!("portcullis_pods_without_endpoint {n}"));
        eventually("the pod to be counted", || count(1))?;
        eventually("the agent to be unready", || {
            agent.get("/readyz").is_ok_and(|(status, text)| status == 503 && text.contains("nic/fast"))
        })?;
        ensure!(says(&agent, "pod nic/fast (10.77.0.99, fd77::99) has no interface"), "status names it");
        fast("nic", ", labels: {portcullis.dev/mode: 'Off'}")?;
        eventually("a pod that is left out to be nobody's loss", || count(0))?;
        eventually("the agent to be ready", || agent.get("/readyz").is_ok_and(|(status, _)| status == 200))
    })
}

//! `portcullis status`: is everything in force? What is wrong comes with what to do about it, and exit code 1.
//!
//! The kernel is asked for what it can tell (hooks, modes, counters); the names file says the rest, and its age.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use portcullis_common::Direction;
use portcullis_common::abi::{ABI, endpoint_flags};
use serde::Serialize;

use super::dump::endpoints::{hook_name, hook_state, interface};
use super::findings::{self, Finding};
use super::mode::Modes;
use super::names::Names;
use super::output::{self, Format};
use super::table::Table;
use super::{Outcome, Paths};
use crate::datapath::inspect::Usage;
use crate::datapath::{Reader, sys};
use crate::state::{ProblemState, SourceState};

/// From this share of its capacity on a map is reported.
const FULL_PERCENT: u64 = 90;

/// The status of a node.
#[derive(Debug, Serialize)]
struct Report {
    /// Nothing is wrong.
    ok: bool,
    node: String,
    /// Version of the agent that wrote the names file.
    version: String,
    abi: u32,
    agent: Agent,
    mode: Option<Modes>,
    /// What says the agent's mode.
    mode_source: String,
    endpoints: Endpoints,
    source: SourceState,
    /// What in the objects was not understood.
    problems: Vec<ProblemState>,
    /// What could not be programmed.
    errors: Vec<String>,
    maps: Vec<Map>,
    missed_events: Option<u64>,
    /// Why the status of policies is not written, if this agent should.
    status_error: Option<String>,
    /// Running pods of the node that no interface was found for.
    uncovered: BTreeMap<String, Vec<IpAddr>>,
    /// Interfaces that are no endpoints, and why.
    ignored: BTreeMap<String, String>,
    findings: Vec<Finding>,
}

#[derive(Debug, Serialize)]
struct Agent {
    /// Whether one holds the lock of the folder in bpffs.
    alive: bool,
    /// Its process id, if it can be seen from here.
    pid: Option<u32>,
    attach: String,
    last_success: u64,
    last_success_age_seconds: Option<u64>,
}

/// Endpoints and hooks; every endpoint has two hooks.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Endpoints {
    count: usize,
    unknown: usize,
    hooks_expected: usize,
    hooks_attached: usize,
    hooks_first: usize,
}

#[derive(Debug, Serialize)]
struct Map {
    name: &'static str,
    entries: u64,
    capacity: u64,
}

/// Runs the command.
pub fn run(format: Format, paths: &Paths) -> anyhow::Result<Outcome> {
    let report = collect(paths);
    match format {
        Format::Json => output::write_json(&report)?,
        Format::Table => output::write(&render(&report))?,
    }
    Ok(if report.ok { Outcome::Good } else { Outcome::Bad })
}

fn collect(paths: &Paths) -> Report {
    let names = Names::load(&paths.run_dir);
    let state = names.state();
    let mut findings = Vec::new();
    let alive = agent_alive(&paths.bpffs, &mut findings);
    let reader = match Reader::open(&paths.bpffs) {
        Ok(reader) => Some(reader),
        Err(error) => {
            findings.push(Finding::fail(
                "maps",
                error.to_string(),
                "start the agent; nothing is enforced on this node",
            ));
            None
        }
    };
    let mut report = Report {
        ok: false,
        node: state.node.clone(),
        version: state.version.clone(),
        abi: ABI,
        agent: Agent {
            alive,
            pid: Some(state.pid).filter(|pid| alive && is_agent(*pid)),
            attach: state.attach.clone(),
            last_success: state.last_success,
            last_success_age_seconds: age(state.last_success),
        },
        mode: None,
        mode_source: state.mode_source.clone(),
        endpoints: Endpoints::default(),
        source: state.source.clone(),
        problems: state.problems.clone(),
        errors: state.errors.clone(),
        maps: Vec::new(),
        missed_events: None,
        status_error: state.status_error.clone(),
        uncovered: state.uncovered.clone(),
        ignored: state.ignored.clone(),
        findings: Vec::new(),
    };
    let asked = reader.as_ref().map(|reader| kernel(reader, &names, &mut report, &mut findings));
    if let Some(Err(error)) = asked {
        findings.push(Finding::fail("maps", error.to_string(), "run as root on the node itself"));
    }
    written(&report, &mut findings);
    report.ok = !findings::broken(&findings);
    report.findings = findings;
    report
}

/// Whether an agent holds the lock.
fn agent_alive(bpffs: &Path, findings: &mut Vec<Finding>) -> bool {
    if !bpffs.exists() {
        findings.push(Finding::fail(
            "agent",
            "no agent runs, and none has since the boot",
            "start `portcullis agent`",
        ));
        return false;
    }
    match sys::lock(bpffs) {
        Ok(None) => true,
        Ok(Some(_)) => {
            findings.push(Finding::fail(
                "agent",
                "the agent is dead: what it wrote last stays enforced, but changes and new pods are not seen",
                "start it again, and look at its last log lines for why it stopped",
            ));
            false
        }
        Err(error) => {
            let message = format!("cannot tell whether the agent runs: {error}");
            findings.push(Finding::fail("agent", message, "run as root on the node itself"));
            false
        }
    }
}

/// Whether a process is an agent, as far as it can be seen from this process namespace.
fn is_agent(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_end() == "portcullis")
}

fn age(since: u64) -> Option<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
    (since > 0).then(|| now.saturating_sub(since))
}

/// What the kernel says.
fn kernel(
    reader: &Reader,
    names: &Names,
    report: &mut Report,
    findings: &mut Vec<Finding>,
) -> anyhow::Result<()> {
    let modes = Modes::of(reader.modes()?);
    if let Some(warning) = modes.warning() {
        findings.push(Finding::warn("mode", warning, "portcullis mode clear"));
    }
    report.mode = Some(modes);
    for (_, endpoint) in reader.endpoints()? {
        report.endpoints.count += 1;
        if endpoint.flags & endpoint_flags::KNOWN == 0 {
            report.endpoints.unknown += 1;
        }
        for &direction in Direction::ALL {
            report.endpoints.hooks_expected += 1;
            let hook = || format!("{} of {}", hook_name(direction), interface(names, endpoint.ifindex));
            match hook_state(reader, names, endpoint.ifindex, direction).as_str() {
                "attached" => {
                    report.endpoints.hooks_attached += 1;
                    report.endpoints.hooks_first += 1;
                }
                "not-first" => {
                    report.endpoints.hooks_attached += 1;
                    let programs = reader.before_ours(endpoint.ifindex, direction).join(", ");
                    findings.push(Finding::fail(
                        "hooks",
                        format!("{programs} runs before ours on {}: it can decide alone", hook()),
                        "find out with `bpftool net` whose it is, and restart the agent after it is gone",
                    ));
                }
                "unknown" => findings.push(Finding::warn(
                    "hooks",
                    format!("whether our program is attached is not known on {}", hook()),
                    "start the agent: it says how programs are attached",
                )),
                other => findings.push(Finding::fail(
                    "hooks",
                    format!("our program is {other} on {}: that direction is not judged", hook()),
                    "a running agent puts it back within seconds; if it does not, its log says why",
                )),
            }
        }
    }
    for ifindex in reader.one_sided()? {
        findings.push(Finding::warn(
            "hooks",
            format!(
                "{} has connections that were seen in one direction only: packets go past one of our programs",
                interface(names, ifindex)
            ),
            "look for a dataplane that redirects into pods (bpf_redirect_peer), and switch that off",
        ));
    }
    if report.endpoints.unknown > 0 {
        findings.push(Finding::warn(
            "endpoints",
            format!("{} of {} endpoints have no known pod", report.endpoints.unknown, report.endpoints.count),
            "see `portcullis dump endpoints`; --unknown-endpoint says what they get",
        ));
    }
    if reader.overflow()? {
        findings.push(Finding::fail(
            "maps",
            "some addresses found no room, so addresses that no map knows are denied",
            "restart the agent with a larger --ipcache-size or --cidrs-size",
        ));
    }
    if reader.services_overflow()? {
        findings.push(Finding::fail(
            "maps",
            "some addresses or ports of services found no room, so what may be one of them is denied",
            "restart the agent with a larger --services-size",
        ));
    }
    for Usage { map, entries, capacity } in reader.census()?.usage {
        if capacity > 0 && entries * 100 >= capacity * FULL_PERCENT {
            findings.push(Finding::warn(
                "maps",
                format!("map {map} is nearly full: {entries} of {capacity}"),
                "restart the agent with a larger size for it (`portcullis agent --help`, map sizes)",
            ));
        }
        report.maps.push(Map { name: map, entries, capacity });
    }
    report.missed_events = Some(reader.missed_events()?);
    Ok(())
}

/// What the agent wrote.
fn written(report: &Report, findings: &mut Vec<Finding>) {
    let Report { source, errors, problems, agent, node, uncovered, .. } = report;
    if node.is_empty() {
        if agent.alive {
            let action = "wait a moment; if it stays so, compare its --run-dir with this one";
            findings.push(Finding::warn("names", "the agent has not written its names file yet", action));
        }
        return;
    }
    if !source.synced {
        findings.push(Finding::fail(
            "source",
            format!("{}: not every kind of object has been read yet", source.name),
            "wait, or see the errors of the source",
        ));
    }
    for error in &source.errors {
        findings.push(Finding::fail(
            "source",
            error.clone(),
            "correct it; its last good state stays in force",
        ));
    }
    for error in errors {
        findings.push(Finding::fail(
            "programming",
            error.clone(),
            "what could not be programmed is denied, and retried",
        ));
    }
    if let Some(error) = &report.status_error {
        findings.push(Finding::warn("status", error.clone(), "nothing that is enforced is touched by it"));
    }
    for (pod, addresses) in uncovered {
        let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
        findings.push(Finding::fail(
            "coverage",
            format!("pod {pod} ({}) has no interface that was found: it is not judged", addresses.join(", ")),
            "give it a veth; or take its namespace out with the label portcullis.dev/mode=Off",
        ));
    }
    for ProblemState { object, field, message } in problems {
        let place = if field.is_empty() { object.clone() } else { format!("{object}: {field}") };
        findings.push(Finding::warn("problem", format!("{place}: {message}"), ""));
    }
}

fn render(report: &Report) -> String {
    let mut text = String::new();
    if let Some(warning) = report.mode.as_ref().and_then(Modes::warning) {
        let _ = writeln!(text, "*** {warning} ***\n");
    }
    let Report { agent, endpoints, source, .. } = report;
    let unknown = |text: &str| if text.is_empty() { "unknown".to_owned() } else { text.to_owned() };
    let alive = match (agent.alive, agent.pid) {
        (true, Some(pid)) => format!("alive (pid {pid})"),
        (true, None) => "alive".to_owned(),
        (false, _) => "not running".to_owned(),
    };
    let success = match agent.last_success_age_seconds {
        Some(seconds) => format!("{seconds} s ago"),
        None => "never".to_owned(),
    };
    let silence = age(source.silent_since).map_or_else(String::new, |age| format!(" (silent for {age} s)"));
    let objects: Vec<String> = source.objects.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let mode = match &report.mode {
        None => "unknown".to_owned(),
        Some(Modes { effective, forced: Some(_), .. }) => format!("{effective} (see the override)"),
        Some(Modes { effective, .. }) if report.mode_source.is_empty() => (*effective).to_owned(),
        Some(Modes { effective, .. }) => format!("{effective} ({})", report.mode_source),
    };
    let Endpoints { count, unknown: no_pod, hooks_expected, hooks_attached, hooks_first } = endpoints;
    for (name, value) in [
        ("node", unknown(&report.node)),
        ("agent", format!("{alive}, version {}, maps v{}", unknown(&report.version), report.abi)),
        ("mode", mode),
        ("endpoints", format!("{count} ({no_pod} without a known pod)")),
        (
            "hooks",
            format!(
                "{hooks_expected} expected, {hooks_attached} attached, {hooks_first} first ({})",
                unknown(&agent.attach)
            ),
        ),
        ("source", format!("{}{silence}: {}", unknown(&source.name), unknown(&objects.join(", ")))),
        ("last success", success),
        (
            "missed events",
            report.missed_events.map_or_else(|| "unknown".to_owned(), |count| count.to_string()),
        ),
    ] {
        let _ = writeln!(text, "{:<15}{value}", format!("{name}:"));
    }
    if !report.maps.is_empty() {
        text.push('\n');
        text.push_str(
            &Table::of(&["MAP", "ENTRIES", "CAPACITY"], &report.maps, |map| {
                vec![map.name.to_owned(), map.entries.to_string(), map.capacity.to_string()]
            })
            .render(),
        );
    }
    if !report.ignored.is_empty() {
        let ignored: Vec<_> = report.ignored.iter().collect();
        let table =
            Table::of(&["IGNORED", "WHY"], &ignored, |(name, why)| vec![(*name).clone(), (*why).clone()]);
        text.push('\n');
        text.push_str(&table.render());
    }
    text.push('\n');
    text.push_str(&findings::render(&report.findings));
    let overridden = report.mode.as_ref().is_some_and(|mode| mode.forced.is_some());
    text.push_str(match (report.ok, overridden) {
        (true, false) => "everything is in force\n",
        (true, true) => "everything works, but the override at the top holds\n",
        (false, _) => "something is wrong: see above\n",
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::findings::Level;

    fn report() -> Report {
        Report {
            ok: true,
            node: "n1".into(),
            version: "1".into(),
            abi: ABI,
            agent: Agent {
                alive: true,
                pid: Some(7),
                attach: "tcx".into(),
                last_success: 1,
                last_success_age_seconds: Some(3),
            },
            mode: None,
            endpoints: Endpoints::default(),
            source: SourceState { name: "manifests /m".into(), synced: true, ..SourceState::default() },
            problems: Vec::new(),
            errors: Vec::new(),
            maps: Vec::new(),
            missed_events: Some(0),
            mode_source: "--mode".to_owned(),
            status_error: None,
            uncovered: BTreeMap::new(),
            ignored: BTreeMap::new(),
            findings: Vec::new(),
        }
    }

    fn levels(report: &Report) -> Vec<Level> {
        let mut findings = Vec::new();
        written(report, &mut findings);
        findings.iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn errors_are_wrong_and_problems_are_worth_knowing() {
        assert_eq!(levels(&report()), []);
        let problems = vec![ProblemState::default()];
        assert_eq!(levels(&Report { problems, ..report() }), [Level::Warn]);
        assert_eq!(levels(&Report { errors: vec!["x".into()], ..report() }), [Level::Fail]);
        let uncovered = BTreeMap::from([("shop/fast".to_owned(), vec![IpAddr::from([10, 0, 0, 1])])]);
        assert_eq!(levels(&Report { uncovered, ..report() }), [Level::Fail]);
        let source = SourceState { synced: true, errors: vec!["db.yaml".into()], ..SourceState::default() };
        assert_eq!(levels(&Report { source, ..report() }), [Level::Fail]);
        assert_eq!(levels(&Report { source: SourceState::default(), ..report() }), [Level::Fail]);
    }

    #[test]
    fn an_override_stands_on_the_first_line() {
        let mode = Some(Modes { agent: Some("enforce"), forced: Some("off"), effective: "off" });
        let text = render(&Report { mode, ..report() });
        assert!(text.starts_with("*** OVERRIDE off: NOTHING IS ENFORCED"), "{text}");
        assert!(text.contains("\nmode:          off (see the override)\n"), "{text}");
        assert!(text.ends_with("\neverything works, but the override at the top holds\n"), "{text}");
        assert!(render(&report()).ends_with("\neverything is in force\n"));
    }
}

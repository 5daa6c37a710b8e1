//! The golden table: every case through the loaded programs and through the walk on the host. What a case does not say
//! does not change.

use std::collections::BTreeSet;

use portcullis_checks::targets;
use portcullis_common::{Direction, Reason, Verdict};
use portcullis_tests::fixture::with_fixture;
use portcullis_tests::golden::frame::ETHERNET;
use portcullis_tests::golden::outcome::{HostSubject, Kernel, Subject, outcome};
use portcullis_tests::golden::{Case, Step, Version, cases, seeds};

/// Reasons that no case can have: nothing gives them to a packet, or no table of the kernel can be brought to it.
const OUT_OF_REACH: &[(Reason, &str)] = &[
    (Reason::ModeOff, "packets that the mode lets pass keep the reason of their verdict"),
    (Reason::FlowTable, "a table takes every flow, unless other processors are writing all of its places"),
    (Reason::FlowBudget, "nothing is limited here: see tests/tests/floods.rs"),
];

#[test]
fn every_case_does_what_the_table_says_in_the_kernel_and_on_the_host() {
    with_fixture(|f| {
        let cases = cases();
        let mut kernel = Kernel::new(f);
        let mut host = kernel.host(cases.iter().flat_map(setups));
        let mut wrong = Vec::new();
        let mut tried = 0;
        for case in &cases {
            for version in case.versions() {
                tried += 1;
                wrong.extend(difference(case, version, &mut kernel, &mut host));
            }
        }
        println!("{} cases, {tried} with both IP versions", cases.len());
        assert!(wrong.is_empty(), "{} of {tried}:\n{}", wrong.len(), wrong.join("\n"));
    });
}

fn setups(case: &Case) -> impl Iterator<Item = &str> {
    let changes = case.before.iter().filter_map(|step| match step {
        Step::Setup { setup } => Some(setup.as_str()),
        _ => None,
    });
    changes.chain([case.setup.as_str()])
}

/// What is not as the table says.
fn difference(
    case: &Case,
    version: Version,
    kernel: &mut Kernel<'_>,
    host: &mut HostSubject,
) -> Option<String> {
    let expected = case.expected();
    let hook = case.hook.direction();
    // The kernel's test run refuses packets without a whole IP header; on a wire they are in `wire.rs`.
    let least = ETHERNET + if version == Version::V4 { 20 } else { 40 };
    case.prepare(kernel, version);
    case.prepare(host, version);
    for frame in case.frames(version) {
        let title = format!("`{}` ({version:?}, {} bytes)", case.name, frame.len());
        if frame.len() >= least {
            let found = outcome(kernel, hook, &frame, case.by);
            if found != expected {
                return Some(format!("{title} in the kernel:\n  {found:?}\n  {expected:?}"));
            }
        }
        let found = outcome(host, hook, &frame, case.by);
        if found != expected {
            return Some(format!("{title} on the host:\n  {found:?}\n  {expected:?}"));
        }
        if let Some(reason) = reason(case, host)
            && reason != case.reason
        {
            return Some(format!("{title}: {reason}, and not {}", case.reason));
        }
        if kernel.snapshot().flows != host.snapshot().flows {
            let (kernel, host) = (kernel.snapshot().flows, host.snapshot().flows);
            return Some(format!(
                "{title}: other flows in the kernel than on the host:\n  {kernel:?}\n  {host:?}"
            ));
        }
    }
    None
}

/// The reason of the last packet, as the walk reports it or as what it counted tells. A flow that is judged again is no
/// event, and then only the table says why.
fn reason(case: &Case, host: &HostSubject) -> Option<Reason> {
    if let Some(event) = host.host.event() {
        return Reason::from_number(event.reason);
    }
    match (case.verdict, case.counts.as_str()) {
        (Verdict::Deny, _) => None,
        // What the mode lets pass is not counted either; it has no reason.
        (_, "") => (case.reason != Reason::None).then_some(Reason::Link),
        (_, counts) if counts.ends_with(" decision") => None,
        _ if case.packet.is_error() => Some(Reason::Related),
        _ => Some(Reason::Established),
    }
}

/// With `PORTCULLIS_SEEDS` in the environment they are written there: what the fuzzers begin with.
#[test]
fn what_the_fuzzers_check_holds_for_every_packet_of_the_table() {
    let folder = std::env::var_os("PORTCULLIS_SEEDS").map(std::path::PathBuf::from);
    let check = |target: &str, name: String, input: &[u8]| {
        targets::named(target)(input);
        if let Some(folder) = &folder {
            std::fs::create_dir_all(folder.join(target)).expect("a folder");
            std::fs::write(folder.join(target).join(name), input).expect("a file");
        }
    };
    for (index, seed) in seeds().iter().enumerate() {
        check("parser", format!("seed-{index}"), &[&[0][..], &seed.frame].concat());
    }
    for (index, case) in cases().iter().enumerate() {
        for version in case.versions() {
            let mut input = Vec::new();
            let steps = case.before.iter().filter_map(|step| match step {
                Step::Packet { hook, packet, .. } => Some((hook, packet)),
                _ => None,
            });
            for (hook, packet) in steps.chain([(&case.hook, &case.packet)]) {
                // Jumbo frames are too long for an input.
                let _ = targets::append(&mut input, hook.direction(), &packet.frame(version));
            }
            check("walk", format!("case-{index}-{version:?}"), &input);
        }
    }
}

#[test]
fn every_reason_has_a_case() {
    let had: BTreeSet<Reason> = cases().iter().map(|case| case.reason).collect();
    for reason in Reason::ALL {
        let out_of_reach = OUT_OF_REACH.iter().any(|(known, _)| known == reason);
        assert_ne!(had.contains(reason), out_of_reach, "{reason}");
    }
}

#[test]
fn names_of_cases_are_theirs_alone_and_both_hooks_are_tried() {
    let cases = cases();
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), cases.len());
    for &direction in Direction::ALL {
        assert!(cases.iter().filter(|case| case.hook.direction() == direction).count() > 30, "{direction}");
    }
}

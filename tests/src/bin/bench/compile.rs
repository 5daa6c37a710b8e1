//! What the compiler costs: compiling everything, one change of each sort, memory; and what hard worlds take of the maps.
//! Times are of the processor.

use std::collections::BTreeSet;

use portcullis::datapath::Sizes;
use portcullis::identity::Numbers;
use portcullis::model::{Changes, Object, World};
use portcullis::policy::{Compiler, Delta, Desired};
use portcullis_common::policy::{Row, RowKey};
use portcullis_common::service::{Service, ServiceKey};
use portcullis_tests::fixture::Fixture;
use portcullis_tests::worlds::{self, Scale};
use serde_json::{Map, Value, json};

use super::{kernel, process};

/// The word that makes a process write to the kernel, too.
const KERNEL: &str = "kernel";
/// Policies of the sizes that are compared.
const SIZES: [usize; 3] = [100, 1000, 10_000];
/// The cluster of the budgets.
const LARGE: Scale = Scale { pods: 100_000, accounts: 5000, policies: 10_000, services: 5000 };

fn small(policies: usize) -> Scale {
    Scale { pods: 10_000, accounts: 500, policies, services: 500 }
}

/// Measures one world, in a process of its own, and prints the figures.
pub fn child(arguments: &[String]) {
    let number = |at: usize| arguments.get(at).and_then(|text| text.parse().ok()).expect("a number");
    let scale = Scale { pods: number(0), accounts: number(1), policies: number(2), services: number(3) };
    let figures = if arguments.get(4).is_some_and(|word| word == KERNEL) {
        kernel::own_network();
        let mut fixture = Fixture::new(Sizes::default());
        figures(scale, &mut |compiler, delta, numbers| kernel::write(&mut fixture, compiler, delta, numbers))
    } else {
        figures(scale, &mut |_, _, _| ())
    };
    println!("{figures}");
}

/// What else is to be done, and measured, when something was compiled.
type Then<'a> = &'a mut dyn FnMut(&Compiler, &Delta, &mut Numbers);

fn figures(scale: Scale, then: Then<'_>) -> Value {
    let (before, _) = process::resident();
    let mut world = scale.world();
    process::trim();
    let (with_world, _) = process::resident();
    let mut numbers = Numbers::default();
    let mut compiler = Compiler::default();
    let started = process::seconds();
    let delta = compiler.update(&world, &Changes::everything(), &mut numbers);
    then(&compiler, &delta, &mut numbers);
    let full = process::seconds() - started;
    numbers.take_changed();
    let (_, peak) = process::resident();
    process::trim();
    let (live, _) = process::resident();
    let sizes = sizes(compiler.desired());
    let mut changes = Map::new();
    for (name, times, change) in cases() {
        let mut taken: Vec<f64> = (0..times)
            .map(|i| {
                let object = change(scale, i, &world);
                let started = process::seconds();
                let mut noted = Changes::default();
                noted.apply(&mut world, object);
                let delta = compiler.update(&world, &noted, &mut numbers);
                then(&compiler, &delta, &mut numbers);
                (process::seconds() - started) * 1e3
            })
            .collect();
        taken.sort_by(f64::total_cmp);
        let at = |percent: usize| taken[(taken.len() * percent / 100).min(taken.len() - 1)];
        changes.insert(name.to_owned(), json!({"median_ms": at(50), "p99_ms": at(99)}));
    }
    json!({
        "full_s": full,
        "changes": changes,
        "memory": {"base": before, "world": with_world - before, "compiled": live - with_world, "peak": peak},
        "maps": sizes,
    })
}

type Case = (&'static str, usize, fn(Scale, usize, &World) -> Object);

/// Changes of one object each; in turn they are made and undone.
fn cases() -> [Case; 7] {
    [
        ("pod relabelled", 400, |scale, i, _| {
            let mut pod = scale.pod(i * 37 % scale.pods);
            pod.labels.insert("app".to_owned(), format!("app-{}", i / 200 + i % 10));
            Object::Pod(pod)
        }),
        ("pod here gets another address", 400, |scale, i, _| {
            let mut pod = scale.pod(i % 100);
            pod.addresses = vec![worlds::address(scale.pods + i % 200)];
            Object::Pod(pod)
        }),
        ("pod added", 400, |scale, i, _| Object::Pod(scale.pod(scale.pods + 1000 + i))),
        ("slice", 200, |scale, i, world| {
            let [_, slice] = scale.service(i % scale.services);
            let Object::EndpointSlice(mut slice) = slice else { unreachable!("the second one is the slice") };
            let known = world.endpoint_slices.get(&(slice.namespace.clone(), slice.name.clone()));
            if known == Some(&slice) {
                slice.addresses.pop();
            }
            Object::EndpointSlice(slice)
        }),
        ("account", 40, |scale, i, world| {
            let account = world.service_accounts.values().nth(i % scale.accounts).expect("an account");
            let mut account = account.clone();
            account.labels.insert("tier".to_owned(), format!("tier-{}", i % 5));
            Object::ServiceAccount(account)
        }),
        ("namespace", 20, |scale, i, _| {
            let mut namespace = scale.namespace(i / 2);
            if i.is_multiple_of(2) {
                namespace.labels.insert("team".to_owned(), "t19".to_owned());
            }
            Object::Namespace(namespace)
        }),
        ("policy", 10, |scale, i, _| {
            let policy = worlds::policy(scale, i / 2 * 3);
            let Object::NetworkPolicy(mut policy) = policy else { unreachable!("the first of three is one") };
            if i.is_multiple_of(2) {
                policy.spec.ingress = None;
            }
            Object::NetworkPolicy(policy)
        }),
    ]
}

/// Elements of the maps, and the bytes that hash elements and port tables take.
fn sizes(desired: &Desired) -> Value {
    let rows: usize = desired.subjects.values().map(|rows| rows.len()).sum();
    let functions: BTreeSet<_> = desired.subjects.values().flat_map(|rows| rows.values()).collect();
    let tables: Vec<usize> =
        functions.iter().map(|function| function.steps().len()).filter(|steps| *steps > 1).collect();
    let steps: usize = tables.iter().sum();
    let peers = desired.names.peers.len();
    let bytes = rows * (size_of::<RowKey>() + size_of::<Row>())
        + steps * 8
        + desired.services.len() * (size_of::<ServiceKey>() + size_of::<Service>())
        + (desired.ipcache.len() + desired.cidrs.len()) * 20;
    json!({
        "addresses": desired.ipcache.len(), "prefixes": desired.cidrs.len(), "peer_classes": peers,
        "subject_classes": desired.subjects.len(), "rows": rows, "port_tables": tables.len(),
        "port_steps": steps, "frontends": desired.services.len(), "bytes": bytes,
    })
}

fn measured(scale: Scale, kernel: bool) -> Value {
    let Scale { pods, accounts, policies, services } = scale;
    let mut arguments: Vec<String> =
        [pods, accounts, policies, services].iter().map(ToString::to_string).collect();
    arguments.extend(kernel.then(|| KERNEL.to_owned()));
    process::measure(&arguments)
}

/// The sizes that are compared, and the hard worlds.
pub fn run(json: bool, report: &mut Map<String, Value>) {
    let mut found: Vec<(String, Value)> = Vec::new();
    for policies in SIZES {
        found.push((format!("{policies} policies"), measured(small(policies), false)));
    }
    let hard: Vec<(&str, World)> = vec![
        ("one label on 500 namespaces", worlds::one_label_everywhere()),
        ("10,000 services", worlds::many_services()),
        ("10,000 policies, one port", worlds::one_port()),
    ];
    let hard: Vec<(String, Value)> = hard
        .into_iter()
        .map(|(name, world)| {
            let started = process::seconds();
            let mut compiler = Compiler::default();
            compiler.update(&world, &Changes::everything(), &mut Numbers::default());
            let full = process::seconds() - started;
            (name.to_owned(), json!({"full_s": full, "maps": sizes(compiler.desired())}))
        })
        .collect();
    if json {
        report.insert("compile".to_owned(), found.into_iter().collect::<Map<_, _>>().into());
        report.insert("hard".to_owned(), hard.into_iter().collect::<Map<_, _>>().into());
        return;
    }
    println!("\nCOMPILER: 10,000 pods, 500 service accounts");
    table(&found);
    println!("\nHARD WORLDS");
    for (name, figures) in &hard {
        println!(
            "{name:<32} {:>7.0} ms  {}",
            figures["full_s"].as_f64().unwrap_or_default() * 1e3,
            figures["maps"]
        );
    }
}

/// The cluster of the budgets, compiled, and with root written to the maps of the kernel too.
pub fn run_large(json: bool, report: &mut Map<String, Value>) {
    let mut found = vec![("compiled".to_owned(), measured(LARGE, false))];
    // SAFETY: the call has no arguments and cannot fail.
    if unsafe { libc::geteuid() } == 0 {
        found.push(("and written".to_owned(), measured(LARGE, true)));
    }
    if json {
        report.insert("large".to_owned(), found.into_iter().collect::<Map<_, _>>().into());
        return;
    }
    println!("\nCOMPILER: 100,000 pods, 5,000 service accounts, 10,000 policies, 5,000 services");
    table(&found);
}

/// A column for each world; then what the last one is of the one before it.
fn table(found: &[(String, Value)]) {
    let mut rows: Vec<(String, Vec<f64>)> = Vec::new();
    let mut row = |name: &str, of: &dyn Fn(&Value) -> Option<f64>| {
        let values = found.iter().map(|(_, value)| of(value).unwrap_or_default()).collect();
        rows.push((name.to_owned(), values));
    };
    row("everything, ms", &|value| Some(value["full_s"].as_f64()? * 1e3));
    for (name, ..) in cases() {
        row(&format!("{name}, median ms"), &|value| value["changes"][name]["median_ms"].as_f64());
        row(&format!("{name}, p99 ms"), &|value| value["changes"][name]["p99_ms"].as_f64());
    }
    for part in ["world", "compiled", "peak"] {
        row(&format!("memory, {part}, MiB"), &|value| Some(value["memory"][part].as_f64()? / 1_048_576.0));
    }
    for part in ["peer_classes", "subject_classes", "rows", "port_tables", "bytes"] {
        row(&part.replace('_', " "), &|value| value["maps"][part].as_f64());
    }
    let names: Vec<String> = found.iter().map(|(name, _)| format!("{name:>16}")).collect();
    println!("{:<42} {}  RATIOS", "", names.join(" "));
    for (name, values) in rows {
        let shown: Vec<String> = values.iter().map(|value| format!("{value:>16.2}")).collect();
        let ratios: Vec<String> =
            values.windows(2).map(|pair| format!("{:.1}", pair[1] / pair[0].max(0.001))).collect();
        println!("{name:<42} {}  {}", shown.join(" "), ratios.join(" "));
    }
}

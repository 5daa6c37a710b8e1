//! What the programs cost real traffic between two pods of a node: request and response over one connection (`RR`), a
//! connection for each (`CRR`), and bulk, with and without the programs, in turn.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use portcullis::datapath::{EndpointSpec, Sizes};
use portcullis::policy::{Desired, PodIdentity};
use portcullis_common::abi::{Mode, config};
use portcullis_common::{Identity, Kind, Verdict};
use portcullis_tests::fixture::{Fixture, SUBJECT, WEB, only, rows};
use portcullis_tests::netns::interface_index;
use portcullis_tests::node::{Node, Pod};
use serde_json::{Map, Value, json};

/// Rounds, each with and without; the medians are compared.
const ROUNDS: usize = 11;
/// How long each measurement of a round takes.
const TIME: Duration = Duration::from_millis(600);
/// Port of the servers.
const PORT: u16 = 80;
/// What is written at once in bulk.
const CHUNK: usize = 128 * 1024;
/// `--new-flow-rate` if nothing else is said.
const NEW_FLOW_RATE: u32 = 1000;

/// A measurement: its name, its budget, and what it does for a while; how much it did in a second.
type Case = (&'static str, f64, fn(&Pod, &Pod) -> Result<f64>);
const CASES: [Case; 3] = [("TCP_RR", 0.97, exchanges), ("TCP_CRR", 0.93, connections), ("bulk", 0.98, bulk)];

/// Measures and shows; the figures of `json` go into the report.
pub fn run(json: bool, report: &mut Map<String, Value>) {
    let figures = measure().expect("the traffic");
    if !json {
        println!("\n{:<10} {:>12} {:>12} {:>8} {:>8}", "TRAFFIC", "WITHOUT", "WITH", "RATIO", "BUDGET");
    }
    for ((name, budget, _), [without, with]) in CASES.iter().zip(figures) {
        let ratio = with / without;
        if json {
            report.insert((*name).to_owned(), json!({"without": without, "with": with, "ratio": ratio}));
        } else {
            println!("{name:<10} {without:>12.0} {with:>12.0} {ratio:>8.3} {budget:>8.2}");
        }
    }
}

/// The medians of each case, without the programs and with them.
fn measure() -> Result<Vec<[f64; 2]>> {
    let node = Node::routed().pods(2).build()?;
    let (client, server) = (&node.pods[0], &node.pods[1]);
    let specs = [spec(&node, client)?, spec(&node, server)?];
    node.ns.run(|| {
        let mut fixture = Fixture::new(Sizes::default());
        fixture.desired = desired(client, server);
        fixture.set_config(config::NEW_FLOW_RATE, NEW_FLOW_RATE);
        let mut samples = CASES.map(|_| [Vec::new(), Vec::new()]);
        for _ in 0..ROUNDS {
            for (with, endpoints) in [&[][..], &specs].into_iter().enumerate() {
                fixture.apply_with(endpoints, Mode::Enforce);
                for ((_, _, case), samples) in CASES.iter().zip(&mut samples) {
                    samples[with].push(case(client, server)?);
                }
            }
        }
        let median = |mut values: Vec<f64>| {
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        Ok(samples.into_iter().map(|pair| pair.map(median)).collect())
    })
}

/// The server takes connections of the client to its port, and nobody else's.
fn desired(client: &Pod, server: &Pod) -> Desired {
    let mut desired = Desired::default();
    for (uid, pod, number, subject) in
        [("client", client, WEB, SUBJECT), ("server", server, WEB + 1, SUBJECT + 1)]
    {
        let addresses = vec![pod.v4.into(), pod.v6.into()];
        for &address in &addresses {
            let identity = Identity { subject, ..Identity::new(number, number, Kind::Pod) };
            desired.ipcache.insert(address, identity);
        }
        let name = format!("bench/{uid}");
        desired.pods.insert(
            uid.to_owned(),
            PodIdentity { name, principal: number, subject, addresses, routes: false },
        );
    }
    for net in ["0.0.0.0/0", "::/0"] {
        desired.cidrs.insert(net.parse().expect("a prefix"), Identity::WORLD);
    }
    let port = only(&[(6, PORT, PORT)]);
    desired.subjects.insert(SUBJECT, rows(Verdict::Allow, &port));
    let mut set = (*rows(Verdict::Deny, &port)).clone();
    set.insert((portcullis_common::Direction::Ingress, WEB), port);
    desired.subjects.insert(SUBJECT + 1, set.into());
    desired
}

/// The endpoint of a pod.
fn spec(node: &Node, pod: &Pod) -> Result<EndpointSpec> {
    let ifindex = node.ns.run(|| interface_index(&pod.veth))?;
    let uid = if pod.veth == "veth0" { "client" } else { "server" };
    Ok(EndpointSpec {
        ifindex,
        name: pod.veth.clone(),
        master: None,
        mac: Some(pod.ns.mac("eth0")?),
        pod: Some(uid.to_owned()),
        addresses: Vec::new(),
        unknown: Verdict::Deny,
    })
}

/// Runs `client` in its pod while `serve` has each connection to the server, one after the other; what the client counted in
/// the time that it says, a second. That begins behind the handshake, where there is one connection only: a lost SYN takes
/// longer than all the rest.
fn between(
    client: &Pod,
    server: &Pod,
    serve: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync,
    work: impl FnOnce(SocketAddr) -> Result<(u64, Duration)> + Send,
) -> Result<f64> {
    let at = SocketAddr::from((server.v4, PORT));
    let listener = server.ns.run(|| Ok(TcpListener::bind(at)?))?;
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        let serving = scope.spawn(|| {
            for stream in listener.incoming() {
                if end.load(Ordering::SeqCst) {
                    break;
                }
                // A client that is done leaves in the middle.
                let _ = stream.and_then(&serve);
            }
        });
        let counted = client.ns.run(|| {
            let (count, time) = work(at)?;
            ensure!(count > 0, "nothing was done in {time:?}");
            #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
            Ok(count as f64 / time.as_secs_f64())
        });
        end.store(true, Ordering::SeqCst);
        // Whoever waits for one more connection gets it.
        let woken = client.ns.run(|| Ok(TcpStream::connect(at)?));
        serving.join().ok().context("the server panicked")?;
        drop(woken);
        counted
    })
}

/// Repeats a step; the sum of what the steps count, and how long they took.
fn for_a_while(mut step: impl FnMut() -> Result<u64>) -> Result<(u64, Duration)> {
    let (mut count, start) = (0, Instant::now());
    while start.elapsed() < TIME {
        count += step()?;
    }
    Ok((count, start.elapsed()))
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut byte = [0];
    while stream.read(&mut byte)? > 0 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

/// Exchanges of a byte over one connection.
fn exchanges(client: &Pod, server: &Pod) -> Result<f64> {
    between(client, server, echo, |at| {
        let mut stream = TcpStream::connect(at)?;
        stream.set_nodelay(true)?;
        let mut byte = [7];
        for_a_while(|| {
            stream.write_all(&byte)?;
            stream.read_exact(&mut byte)?;
            Ok(1)
        })
    })
}

/// Connections with one exchange each. The server closes first, so that the client's ports do not have to wait.
fn connections(client: &Pod, server: &Pod) -> Result<f64> {
    let once = |mut stream: TcpStream| {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        stream.write_all(&byte)
    };
    between(client, server, once, |at| {
        for_a_while(|| {
            let mut stream = TcpStream::connect(at)?;
            stream.write_all(&[7])?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(u64::from(answer == [7]))
        })
    })
}

/// Bytes that arrive.
fn bulk(client: &Pod, server: &Pod) -> Result<f64> {
    let received = AtomicU64::new(0);
    let sink = |mut stream: TcpStream| {
        let mut buffer = vec![0; CHUNK];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(length) => drop(received.fetch_add(length as u64, Ordering::Relaxed)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    };
    between(client, server, sink, |at| {
        let mut stream = TcpStream::connect(at)?;
        let chunk = vec![7; CHUNK];
        let (_, time) = for_a_while(|| Ok(stream.write_all(&chunk).map(|()| 1)?))?;
        Ok((received.load(Ordering::Relaxed), time))
    })
}

//! What the agent costs real traffic between two pods of a node: request and response over one connection (`RR`), a
//! connection for each (`CRR`), and bulk.
//!
//! There are three nodes of two pods each, with the connection tracking of every node of Kubernetes, and an agent on one of
//! them. They take turns of some milliseconds, so that whatever the machine does meanwhile is done to all; what lies between
//! the two without an agent is what the figures are good for.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use portcullis_tests::agent::Agent;
use portcullis_tests::manifests::Manifests;
use portcullis_tests::netns::Folder;
use portcullis_tests::node::Node;
use portcullis_tests::processors::stay_on;
use portcullis_tests::shop::{DB_OPEN_TO_API, api_and_db};
use serde_json::{Map, Value, json};
use socket2::SockRef;

use super::budgets::{Bound, Budget};
use super::figures::median;

/// Rounds, in which each node has a turn; the medians over them count.
const ROUNDS: usize = 151;
/// After so many of them all connections are opened anew: two nodes alike differ by a few percent for as long as their
/// memory lies where it does.
const ROUNDS_A_SESSION: usize = 10;
/// A node's turn.
const TURN: Duration = Duration::from_millis(20);
/// The port that the policy opens.
const PORT: u16 = 5432;
/// A rule that kube-proxy has on every node, by which the kernel tracks all connections.
const TRACKED: &str = "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
/// What is written at once in bulk.
const CHUNK: usize = 128 * 1024;

/// The processors of client and server. On one, nothing is measured but work. On two, each is woken by the other for every
/// exchange, which on a virtual machine takes longer than all the rest.
const PLACES: [(&str, [usize; 2]); 2] = [("one", [0, 0]), ("two", [0, 1])];

/// What a client does for a turn: how much of it was done.
type Turn = Box<dyn FnMut(Duration) -> Result<usize>>;
/// A measurement: its name, its budget, what the server does with a connection, and what makes the client, once it is in its
/// pod.
struct Case {
    name: &'static str,
    budget: f64,
    serve: fn(TcpStream) -> std::io::Result<()>,
    client: fn(SocketAddr) -> Result<Turn>,
}
const CASES: [Case; 3] = [
    Case { name: "TCP_RR", budget: 0.97, serve: echo, client: exchanges },
    Case { name: "TCP_CRR", budget: 0.93, serve: answer_once, client: connections },
    Case { name: "bulk", budget: 0.98, serve: take_all, client: bulk },
];

/// How much each node did in a second: one without an agent, the one with, another one without.
type Round = [f64; 3];

/// Measures and shows; the figures of `json` go into the report.
pub fn run(json: bool, report: &mut Map<String, Value>) -> Vec<Budget> {
    let mut budgets = Vec::new();
    if !json {
        println!(
            "\n{:<10} {:>10} {:>14} {:>14} {:>8} {:>8} {:>8}",
            "TRAFFIC", "PROCESSORS", "WITHOUT", "WITH", "RATIO", "BUDGET", "NOISE"
        );
    }
    let _folder = Folder::open().expect("the folder of namespaces");
    let nodes = [(); 3].map(|()| node().expect("a node"));
    let [_, (node, manifests), _] = &nodes;
    let _agent = Agent::on(&node.ns).manifests(manifests.path()).start().expect("the agent");
    for case in &CASES {
        for (place, processors) in PLACES {
            let rounds = measure(&nodes, case, processors).expect("the traffic");
            let of = |figure: fn(&Round) -> f64| median(rounds.iter().map(figure).collect());
            let without = of(|[one, _, other]| f64::midpoint(*one, *other));
            let with = of(|[_, with, _]| *with);
            let ratio = of(|[one, with, other]| with / f64::midpoint(*one, *other));
            let noise = of(|[one, _, other]| other / one);
            let Case { name, budget, .. } = case;
            let what = format!("{name} with the agent / without, processors: {place}");
            budgets.push(Budget { what, ratio, bound: Bound::AtLeast(*budget) });
            if json {
                let figures = json!({"without": without, "with": with, "ratio": ratio, "noise": noise});
                report.insert(format!("{name}-{place}"), figures);
            } else {
                println!(
                    "{name:<10} {place:>10} {without:>14.0} {with:>14.0} {ratio:>8.3} {budget:>8.2} {noise:>8.3}"
                );
            }
        }
    }
    budgets
}

fn node() -> Result<(Node, Manifests)> {
    let (node, manifests) = api_and_db(DB_OPEN_TO_API)?;
    node.ns.firewall("iptables", TRACKED)?;
    Ok((node, manifests))
}

/// The rounds of a case.
fn measure(nodes: &[(Node, Manifests); 3], case: &Case, processors: [usize; 2]) -> Result<Vec<Round>> {
    thread::scope(|scope| {
        let mut sessions: Vec<Session> = Vec::new();
        let mut rounds = Vec::new();
        for round in 0..ROUNDS {
            if round % ROUNDS_A_SESSION == 0 {
                sessions.clear();
                for (node, _) in nodes {
                    sessions.push(Session::open(scope, node, case, processors)?);
                }
                // A connection has to find out first how much it may have on its way.
                sessions.iter().try_for_each(|session| session.turn().map(drop))?;
            }
            let mut figures = Round::default();
            // Each is as often behind each other one.
            for turn in 0..figures.len() {
                let at = if round % 2 == 0 { turn } else { figures.len() - 1 - turn };
                let at = (at + round / 2) % figures.len();
                figures[at] = sessions[at].turn()?;
            }
            rounds.push(figures);
        }
        Ok(rounds)
    })
}

/// A client and a server in the pods of a node, each a thread; dropped, they end.
struct Session {
    begin: Sender<()>,
    done: Receiver<Result<f64>>,
    listener: TcpListener,
}

impl Session {
    fn open<'scope>(
        scope: &'scope Scope<'scope, '_>,
        node: &'scope Node,
        case: &'scope Case,
        [here, there]: [usize; 2],
    ) -> Result<Self> {
        let (client, server) = (&node.pods[0], &node.pods[1]);
        let at = SocketAddr::from((server.v4, PORT));
        let listener = server.ns.run(|| Ok(TcpListener::bind(at)?))?;
        let accepting = listener.try_clone()?;
        scope.spawn(move || {
            stay_on(there).expect("the server's processor");
            // Until nobody listens any more. A client that is done leaves in the middle.
            for stream in accepting.incoming().map_while(Result::ok) {
                let _ = (case.serve)(stream);
            }
        });
        let (begin, turns) = channel::<()>();
        let (tell, done) = channel();
        scope.spawn(move || {
            let ended = client.ns.run(|| {
                stay_on(here)?;
                let mut turn = (case.client)(at)?;
                for () in turns {
                    let start = Instant::now();
                    let count = turn(TURN)?;
                    ensure!(count > 0, "nothing was done in {:?}", start.elapsed());
                    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
                    let _ = tell.send(Ok(count as f64 / start.elapsed().as_secs_f64()));
                }
                Ok(())
            });
            let _ = ended.map_err(|error| tell.send(Err(error)));
        });
        Ok(Self { begin, done, listener })
    }

    /// How much the client does in a second, by one turn.
    fn turn(&self) -> Result<f64> {
        // One that has ended said why.
        let _ = self.begin.send(());
        self.done.recv().context("the client ended without a word")?
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Wakes the thread that accepts.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
    }
}

/// Repeats a step for a turn; the sum of what the steps count.
fn repeat(time: Duration, mut step: impl FnMut() -> Result<usize>) -> Result<usize> {
    let (mut count, start) = (0, Instant::now());
    while start.elapsed() < time {
        count += step()?;
    }
    Ok(count)
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
fn exchanges(at: SocketAddr) -> Result<Turn> {
    let mut stream = TcpStream::connect(at)?;
    stream.set_nodelay(true)?;
    let mut byte = [7];
    Ok(Box::new(move |time| {
        repeat(time, || {
            stream.write_all(&byte)?;
            stream.read_exact(&mut byte)?;
            Ok(1)
        })
    }))
}

/// The server closes first, so that the client's ports do not have to wait.
fn answer_once(mut stream: TcpStream) -> std::io::Result<()> {
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    stream.write_all(&byte)
}

/// A connection with one exchange.
fn connection(at: SocketAddr) -> Result<usize> {
    let mut stream = TcpStream::connect(at)?;
    stream.write_all(&[7])?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    ensure!(answer == [7], "another answer than the byte sent: {answer:?}");
    Ok(1)
}

fn connections(at: SocketAddr) -> Result<Turn> {
    // The first one is not counted, as the connection of the other cases is not.
    connection(at)?;
    Ok(Box::new(move |time| repeat(time, || connection(at))))
}

fn take_all(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
    }
}

/// Bytes that the connection takes, which are as many as arrive while what lies in between is full.
fn bulk(at: SocketAddr) -> Result<Turn> {
    let mut stream = TcpStream::connect(at)?;
    let chunk = vec![7; CHUNK];
    Ok(Box::new(move |time| repeat(time, || Ok(stream.write_all(&chunk).map(|()| chunk.len())?))))
}

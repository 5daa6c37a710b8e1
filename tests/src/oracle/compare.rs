//! Each cell of the truth, compared with three answers: of the plain reference, of the compiled maps on the host, and of
//! the loaded programs, which get a packet for each hook.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use portcullis::identity::Numbers;
use portcullis::model::World;
use portcullis::policy::{Desired, HostMaps, compile};
use portcullis_common::policy::PortKey;
use portcullis_common::{Direction, Verdict};

use super::file::{Accounts, Asked, Cell, Step};
use crate::loaded::{Judged, Loaded, Opening};
use crate::reference::{self, End, Owner, Question};

/// How many differences are told one by one.
const TOLD: usize = 20;

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// The evaluator written from the specification.
    Reference,
    /// The compiled maps, asked on the host.
    Compiled,
    /// The loaded programs, with packets.
    Loaded,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Reference, Self::Compiled, Self::Loaded];
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Reference => "the plain reference",
            Self::Compiled => "the compiled maps",
            Self::Loaded => "the loaded programs",
        })
    }
}

/// What came of one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Cells compared.
    pub cells: u64,
    /// Those that are otherwise.
    pub differences: u64,
    /// Time that it took.
    pub time: Duration,
}

/// What came of the comparison.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// Steps read.
    pub steps: usize,
    /// By way, in the order of [`Way::ALL`].
    pub tallies: [Tally; 3],
    /// Packets sent through the loaded programs.
    pub packets: u64,
    /// The first differences.
    pub told: Vec<String>,
}

impl Comparison {
    /// Cells that are otherwise, over all ways.
    pub fn differences(&self) -> u64 {
        self.tallies.iter().map(|tally| tally.differences).sum()
    }

    fn note(&mut self, way: Way, step: &Step, asked: &Asked, found: Cell) {
        let tally = &mut self.tallies[way as usize];
        tally.cells += found.len() as u64;
        let wrong = found.iter().zip(asked.wanted).filter(|(found, wanted)| **found != *wanted).count();
        tally.differences += wrong as u64;
        if wrong > 0 && self.told.len() < TOLD {
            let place = describe(step, asked);
            let text =
                |cell: Cell| cell.map(|allowed| if allowed { '.' } else { 'X' }).iter().collect::<String>();
            self.told.push(format!("{place}: {way}: {}, the truth: {}", text(found), text(asked.wanted)));
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} steps; cells compared (ingress, egress and combined are one each):", self.steps)?;
        for (way, tally) in Way::ALL.into_iter().zip(&self.tallies) {
            let Tally { cells, differences, time } = tally;
            write!(
                f,
                "  {way:<20} {cells:>9} cells, {differences} differences, {:.1} s",
                time.as_secs_f64()
            )?;
            if way == Way::Loaded {
                write!(f, ", {} packets", self.packets)?;
            }
            writeln!(f)?;
        }
        if !self.told.is_empty() {
            writeln!(f, "differences (ingress, egress, combined; . allowed, X denied):")?;
        }
        for line in &self.told {
            writeln!(f, "  {line}")?;
        }
        let rest = self.differences();
        if rest > 0 {
            writeln!(f, "  {rest} cells differ in all; at most {TOLD} pairs are told")?;
        }
        Ok(())
    }
}

fn describe(step: &Step, asked: &Asked) -> String {
    let Asked { from, to, port, .. } = asked;
    format!("{}: {} -> {} {port}", step.title, step.pods[*from], step.pods[*to])
}

/// Compares every cell of every step, in the three ways.
///
/// # Errors
/// If a step means nothing, or the programs cannot be asked.
pub fn compare(steps: &[Step], loaded: &mut Loaded) -> Result<Comparison> {
    let mut comparison = Comparison { steps: steps.len(), ..Comparison::default() };
    for step in steps {
        let on_paper =
            on_paper(step, &mut comparison).and_then(|()| by_packets(step, loaded, &mut comparison));
        on_paper.with_context(|| step.title.clone())?;
    }
    Ok(comparison)
}

/// A compiled world on the host, asked by pod.
pub struct Compiled {
    /// What was compiled.
    pub desired: Desired,
    /// The same, lowered.
    pub maps: HostMaps,
}

impl Compiled {
    /// Compiles a world.
    pub fn new(world: &World) -> Self {
        let desired = compile(world, &mut Numbers::default());
        Self { maps: HostMaps::new(&desired), desired }
    }

    /// The verdict of a pod's policies for a direction; of a pod that is not compiled there is none.
    pub fn verdict(&self, question: &Question<'_>) -> Option<Verdict> {
        let Question { direction, subject, peer, protocol, port, .. } = question;
        let subject = self.desired.pods.get(&subject.uid)?.subject;
        Some(self.maps.decide(subject, *direction, peer.address, PortKey::new(*protocol, *port)).verdict)
    }
}

/// The reference and the compiled maps.
fn on_paper(step: &Step, comparison: &mut Comparison) -> Result<()> {
    let world = step.world(Accounts::Default)?;
    let start = Instant::now();
    let compiled = Compiled::new(&world);
    let problems = &compiled.desired.problems;
    ensure!(problems.is_empty(), "the compiler does not understand everything: {problems:?}");
    let mut spent = [Duration::ZERO, start.elapsed()];
    for asked in step.questions() {
        let (source, destination) = step.addresses(asked.from, asked.to)?;
        let (from, to) = (&world.pods[&step.uid(asked.from)], &world.pods[&step.uid(asked.to)]);
        let question = |direction| {
            let (subject, peer, address) =
                if direction == Direction::Ingress { (to, from, source) } else { (from, to, destination) };
            let peer = End { address, owner: Owner::Pod(peer) };
            let (protocol, port) = (asked.port.protocol, asked.port.number);
            Question { world: &world, direction, subject, peer, protocol, port }
        };
        let questions = [question(Direction::Ingress), question(Direction::Egress)];
        let start = Instant::now();
        let [ingress, egress] = questions.map(|question| reference::allowed(&question));
        comparison.note(Way::Reference, step, &asked, [ingress, egress, ingress && egress]);
        let middle = Instant::now();
        let verdicts = questions.map(|question| compiled.verdict(&question));
        ensure!(verdicts.iter().flatten().count() == 2, "{}: not compiled", describe(step, &asked));
        let [ingress, egress] = verdicts.map(|verdict| verdict == Some(Verdict::Allow));
        comparison.note(Way::Compiled, step, &asked, [ingress, egress, ingress && egress]);
        spent[0] += middle - start;
        spent[1] += middle.elapsed();
    }
    for (tally, spent) in comparison.tallies.iter_mut().zip(spent) {
        tally.time += spent;
    }
    Ok(())
}

/// The loaded programs: the first packet of each flow at the sender's hook, and at the receiver's whatever came of it.
///
/// The receiver's hook decides about both directions and counts for the one that denies, so that a cell of ingress is read
/// from what was counted, and the other two from what passed.
fn by_packets(step: &Step, loaded: &mut Loaded, comparison: &mut Comparison) -> Result<()> {
    let start = Instant::now();
    let world = step.world(Accounts::PerPod)?;
    let places: Vec<String> = (0..step.pods.len()).map(|pod| step.uid(pod)).collect();
    loaded.program(&world, &places)?;
    let before = (loaded.totals()?, loaded.drops()?);
    let mut expected = [[0u64; 3]; 2];
    for asked in step.questions() {
        let (source, destination) = step.addresses(asked.from, asked.to)?;
        let principal = |address| loaded.desired.identity(address).principal;
        let pair = (principal(source), principal(destination));
        let opening = Opening { source, destination, protocol: asked.port.protocol, port: asked.port.number };
        let sender = loaded.interface(asked.from);
        let sent = loaded.open(Direction::Egress, asked.from, &opening, pair, 0)?;
        let received = loaded.open(Direction::Ingress, asked.to, &opening, pair, sender)?;
        let egress = sent.verdict == Verdict::Allow;
        let deny = |direction| Judged { verdict: Verdict::Deny, direction };
        let ingress = received != deny(Direction::Ingress);
        let passes = received == Judged { verdict: Verdict::Allow, direction: Direction::Ingress };
        // The receiver's hook alone must come to the combined verdict: it asks the sender's policies again.
        ensure!(
            passes == (ingress && egress) && (passes || received.verdict == Verdict::Deny),
            "{}: {sent:?} at the sender's hook, {received:?} at the receiver's",
            describe(step, &asked)
        );
        comparison.note(Way::Loaded, step, &asked, [ingress, egress, egress && passes]);
        for Judged { verdict, direction } in [wanted_sent(asked.wanted), wanted_received(asked.wanted)] {
            expected[direction as usize][verdict as usize] += 1;
        }
        comparison.packets += 2;
    }
    let tally = &mut comparison.tallies[Way::Loaded as usize];
    tally.time += start.elapsed();
    if tally.differences > 0 {
        return Ok(());
    }
    // Read anew, from every pair there is: nothing else was counted, and every denial is a drop by policy.
    let after = (loaded.totals()?, loaded.drops()?);
    let mut counted = after.0;
    for (counted, before) in counted.iter_mut().flatten().zip(before.0.iter().flatten()) {
        *counted -= before;
    }
    ensure!(counted == expected, "decisions counted: {counted:?}, the truth: {expected:?}");
    let drops = (after.1.0 - before.1.0, after.1.1 - before.1.1);
    let denied: u64 = expected.iter().map(|verdicts| verdicts[Verdict::Deny as usize]).sum();
    ensure!(drops == (denied, 0), "packets dropped by policy and otherwise: {drops:?}, the truth: {denied}");
    Ok(())
}

/// What the sender's hook counts.
const fn wanted_sent([_, egress, _]: Cell) -> Judged {
    let verdict = if egress { Verdict::Allow } else { Verdict::Deny };
    Judged { verdict, direction: Direction::Egress }
}

/// What the receiver's hook counts: the receiver's policies come first.
const fn wanted_received([ingress, egress, _]: Cell) -> Judged {
    match (ingress, egress) {
        (false, _) => Judged { verdict: Verdict::Deny, direction: Direction::Ingress },
        (true, false) => Judged { verdict: Verdict::Deny, direction: Direction::Egress },
        (true, true) => Judged { verdict: Verdict::Allow, direction: Direction::Ingress },
    }
}

//! The cells: what the rows of one pod's egress and of the other's ingress say about the pair, over each IP version that
//! both have.

use std::collections::{BTreeMap, BTreeSet};

use portcullis_common::Direction::{Egress, Ingress};
use portcullis_common::policy::{PortKey, evaluate};
use portcullis_common::{Direction, Identity, Verdict};

use super::cast::{Member, count};
use super::{By, Port};
use crate::policy::{Desired, HostMaps};

/// Who can reach whom on a port. A line for each sender, in it a character for each receiver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// What the receiver's policies say: `.` passes, `X` does not, `~` is not the same for all pods of a principal.
    pub ingress: Vec<String>,
    /// What the sender's policies say.
    pub egress: Vec<String>,
    /// Both.
    pub combined: Vec<String>,
    /// Both, for people: why it does not pass, and what passes but is not simply allowed. See [`MEANINGS`].
    pub shown: Vec<String>,
}

/// The characters of [`Tables::shown`] and what they mean.
pub const MEANINGS: [(char, &str); 9] = [
    ('.', "allowed"),
    ('X', "denied"),
    ('I', "denied by the receiver's ingress alone"),
    ('E', "denied by the sender's egress alone"),
    ('a', "audited: passes, and would be denied"),
    ('4', "passes over IPv4 only"),
    ('6', "passes over IPv6 only"),
    ('-', "no IP version in common"),
    ('~', "some pods can, others cannot"),
];

/// The answers.
#[derive(Debug, Default)]
pub(super) struct Judged {
    /// The rows and columns.
    pub names: Vec<String>,
    /// The tables of the ports.
    pub tables: Vec<(Port, Tables)>,
    /// What is to be said about them.
    pub notes: Vec<String>,
}

/// A pod as the maps know it.
struct Known<'a> {
    member: &'a Member,
    subject: u32,
    /// What its address is to others, over IPv4 and IPv6.
    identities: [Option<Identity>; 2],
}

/// Judges every pair on every port.
pub(super) fn judge(
    members: &[Member],
    desired: &Desired,
    maps: &HostMaps,
    by: By,
    ports: &BTreeSet<Port>,
) -> Judged {
    let mut judged = Judged::default();
    let mut nobody = Vec::new();
    let mut known = Vec::new();
    for member in members {
        match desired.pods.get(&member.uid) {
            Some(pod) => {
                let of = |is4| pod.addresses.iter().find(|a| a.is_ipv4() == is4).map(|a| maps.identity(*a));
                known.push(Known { member, subject: pod.subject, identities: [of(true), of(false)] });
            }
            None => nobody.push(format!("{}/{}", member.namespace, member.name)),
        }
    }
    if !nobody.is_empty() {
        judged.notes.push(format!("left out (another pod or a node has the address): {}", nobody.join(", ")));
    }
    let places = places(&known, by, &mut judged.names);
    let alike = alike(&known);
    let kinds = alike.iter().max().map_or(0, |last| last + 1);
    let mut versions = Versions::default();
    for &port in ports {
        let mut answers = vec![None; kinds * kinds];
        let mut grid = vec![vec![None; judged.names.len()]; judged.names.len()];
        for (i, from) in known.iter().enumerate() {
            for (j, to) in known.iter().enumerate() {
                let itself = by == By::Pod && i == j && !from.member.several;
                let answer = &mut answers[alike[i] * kinds + alike[j]];
                // A policy cannot keep a pod from itself.
                let cell = if itself {
                    Cell::SAME
                } else {
                    *answer.get_or_insert_with(|| Cell::new(maps, from, to, port.key()))
                };
                versions.note(cell, from, to, port);
                let place: &mut Option<Cell> = &mut grid[places[i]][places[j]];
                *place = Some(place.map_or(cell, |before| before.and(cell)));
            }
        }
        judged.tables.push((port, tables(&grid)));
    }
    judged.notes.extend(versions.notes());
    judged
}

/// For each pod a number that those have in common who look the same to the maps.
fn alike(known: &[Known<'_>]) -> Vec<usize> {
    let mut numbers = BTreeMap::new();
    let looks = known.iter().map(|known| {
        (
            known.subject,
            known.identities.map(|identity| identity.map(|identity| (identity.peer, identity.kind))),
        )
    });
    looks
        .map(|looks| {
            let next = numbers.len();
            *numbers.entry(looks).or_insert(next)
        })
        .collect()
}

/// The row and column of each pod; `names` are those of the rows.
fn places(known: &[Known<'_>], by: By, names: &mut Vec<String>) -> Vec<usize> {
    if by == By::Pod {
        names.extend(known.iter().map(|k| format!("{}/{}", k.member.namespace, k.member.name)));
        return (0..known.len()).collect();
    }
    let principal = |known: &Known<'_>| (known.member.namespace.clone(), known.member.account.clone());
    let principals: BTreeSet<_> = known.iter().map(principal).collect();
    names.extend(principals.iter().map(|(namespace, account)| format!("{namespace}/{account}")));
    let index: BTreeMap<_, usize> = principals.into_iter().zip(0..).collect();
    known.iter().map(|known| index[&principal(known)]).collect()
}

fn tables(grid: &[Vec<Option<Cell>>]) -> Tables {
    let lines = |of: fn(&Cell) -> char| -> Vec<String> {
        grid.iter().map(|row| row.iter().map(|cell| cell.as_ref().map_or('X', of)).collect()).collect()
    };
    Tables {
        ingress: lines(|cell| cell.ingress),
        egress: lines(|cell| cell.egress),
        combined: lines(|cell| cell.combined),
        shown: lines(|cell| cell.shown),
    }
}

/// A cell of each table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cell {
    ingress: char,
    egress: char,
    combined: char,
    shown: char,
}

impl Cell {
    /// Of a pod and itself.
    const SAME: Self = Self { ingress: '.', egress: '.', combined: '.', shown: '.' };

    fn new(maps: &HostMaps, from: &Known<'_>, to: &Known<'_>, key: PortKey) -> Self {
        let ask = |subject: u32, direction: Direction, peer: Identity| {
            evaluate(maps, subject, direction, peer.peer, peer.kind, key).verdict
        };
        let over = |version: usize| {
            let (source, destination) = (from.identities[version]?, to.identities[version]?);
            Some((ask(from.subject, Egress, destination), ask(to.subject, Ingress, source)))
        };
        Self::of([over(0), over(1)])
    }

    /// From the verdicts of egress and ingress over IPv4 and IPv6. What passes over one of them passes.
    fn of(versions: [Option<(Verdict, Verdict)>; 2]) -> Self {
        let passes = |verdict: Verdict| verdict != Verdict::Deny;
        let both = |(egress, ingress): (Verdict, Verdict)| passes(egress) && passes(ingress);
        let any = |of: &dyn Fn((Verdict, Verdict)) -> bool| {
            if versions.iter().flatten().any(|verdicts| of(*verdicts)) { '.' } else { 'X' }
        };
        let all =
            |of: &dyn Fn((Verdict, Verdict)) -> bool| versions.iter().flatten().all(|verdicts| of(*verdicts));
        let shown = match versions.map(|verdicts| verdicts.map(both)) {
            [None, None] => '-',
            [Some(true), Some(false)] => '4',
            [Some(false), Some(true)] => '6',
            [Some(true), _] | [_, Some(true)] => {
                let audits = |(egress, ingress)| egress == Verdict::Audit || ingress == Verdict::Audit;
                if all(&|verdicts| !audits(verdicts)) { '.' } else { 'a' }
            }
            _ if all(&|(_, ingress)| passes(ingress)) => 'E',
            _ if all(&|(egress, _)| passes(egress)) => 'I',
            _ => 'X',
        };
        Self {
            ingress: any(&|(_, v)| passes(v)),
            egress: any(&|(v, _)| passes(v)),
            combined: any(&both),
            shown,
        }
    }

    /// Of two pairs of pods of the same principals.
    fn and(self, other: Self) -> Self {
        let plain = |a: char, b: char| if a == b { a } else { '~' };
        let denied = |shown: char| matches!(shown, 'X' | 'I' | 'E');
        Self {
            ingress: plain(self.ingress, other.ingress),
            egress: plain(self.egress, other.egress),
            combined: plain(self.combined, other.combined),
            shown: match (self.shown, other.shown) {
                (a, b) if a != b && denied(a) && denied(b) => 'X',
                (a, b) => plain(a, b),
            },
        }
    }
}

/// Pairs that the IP versions do not agree about, and the first of each kind.
#[derive(Default)]
struct Versions {
    found: BTreeMap<char, (usize, String)>,
}

impl Versions {
    fn note(&mut self, cell: Cell, from: &Known<'_>, to: &Known<'_>, port: Port) {
        if matches!(cell.shown, '4' | '6' | '-') {
            let name = |known: &Known<'_>| format!("{}/{}", known.member.namespace, known.member.name);
            let first = || (0, format!("{} to {} on {port}", name(from), name(to)));
            self.found.entry(cell.shown).or_insert_with(first).0 += 1;
        }
    }

    fn notes(&self) -> impl Iterator<Item = String> {
        let note = |(shown, (number, first)): (&char, &(usize, String))| {
            let what = match shown {
                '4' => "pass over IPv4 and not over IPv6, which counts as allowed",
                '6' => "pass over IPv6 and not over IPv4, which counts as allowed",
                _ => "have no IP version in common, which counts as denied",
            };
            format!("{} {what}; the first: {first}", count(*number, "cell"))
        };
        self.found.iter().map(note)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_common::Verdict::{Allow, Audit, Deny};

    fn text(versions: [Option<(Verdict, Verdict)>; 2]) -> String {
        let Cell { ingress, egress, combined, shown } = Cell::of(versions);
        [ingress, egress, combined, shown].into_iter().collect()
    }

    #[test]
    fn a_cell_says_what_passes_and_which_end_denies() {
        for (egress, ingress, wanted) in [
            (Allow, Allow, "...."),
            (Allow, Deny, "X.XI"),
            (Deny, Allow, ".XXE"),
            (Deny, Deny, "XXXX"),
            (Allow, Audit, "...a"),
            (Audit, Allow, "...a"),
            (Audit, Deny, "X.XI"),
        ] {
            let verdicts = Some((egress, ingress));
            for versions in [[verdicts, None], [None, verdicts], [verdicts, verdicts]] {
                assert_eq!(text(versions), wanted, "{versions:?}");
            }
        }
    }

    #[test]
    fn ip_versions_that_do_not_agree_are_told_apart() {
        let (pass, denied) = (Some((Allow, Allow)), Some((Deny, Allow)));
        for (versions, wanted) in [
            ([pass, denied], "...4"),
            ([denied, pass], "...6"),
            ([None, None], "XXX-"),
            // Each direction passes over one of them, both over none.
            ([Some((Allow, Deny)), Some((Deny, Allow))], "..XX"),
            ([pass, Some((Allow, Audit))], "...a"),
        ] {
            assert_eq!(text(versions), wanted, "{versions:?}");
        }
    }

    #[test]
    fn pods_of_a_principal_that_differ_are_neither_allowed_nor_denied() {
        let cell = |egress, ingress| Cell::of([Some((egress, ingress)), None]);
        let mixed = cell(Allow, Allow).and(cell(Allow, Deny));
        assert_eq!(mixed, Cell { ingress: '~', egress: '.', combined: '~', shown: '~' });
        let denied = cell(Deny, Allow).and(cell(Allow, Deny));
        assert_eq!(denied, Cell { ingress: '~', egress: '~', combined: 'X', shown: 'X' });
        assert_eq!(mixed.and(cell(Allow, Allow)), mixed);
    }
}

//! Tables and pictures for people; everything in them comes from the manifests, the expectations and what was seen.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::expectations::{Expect, Expectations, Port};
use super::manifests::Manifests;
use super::traffic::{Seen, Try};

/// How the shop is built. Who is where is in the table below it.
pub const PICTURE: &str = r"
    office   guest                                      outside
       \      /
   =====\====/================================================== uplink
         |  |
   +-----|--|------ node ---------------------------------------+
   |     v  v                                                   |
   |   [ web ] -----> [ api ] x2 -----> [ db ]        shop      |
   |     |              ^  \              /                     |
   |     +--- names ----+---\---- names -+                      |
   |                         \                                  |
   |   [ intruder ]       [ monitor ]                elsewhere  |
   |                                                            |
   |   one portcullis agent: a program at each pod's interface  |
   +------------------------------------------------------------+
";

/// One expectation and what became of it.
#[derive(Debug)]
pub struct Check {
    pub what: String,
    pub expected: String,
    pub seen: String,
    pub held: bool,
    pub why: String,
}

impl Check {
    /// `ok`, or what cannot be overlooked.
    pub const fn mark(&self) -> &'static str {
        if self.held { "ok" } else { "FAILED" }
    }

    /// For the tables of the later steps.
    pub fn row(&self) -> Vec<String> {
        [&self.what, &self.expected, &self.seen, self.mark(), &self.why].map(str::to_owned).to_vec()
    }

    /// One line that says what is wrong.
    pub fn failure(&self) -> String {
        format!("{}: expected {}, seen {} ({})", self.what, self.expected, self.seen, self.why)
    }
}

/// The header of [`Check::row`].
pub const CHECK_HEADER: [&str; 5] = ["what", "expected", "seen", "", "why"];

/// Lays out rows in columns, two spaces in.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let header: Vec<String> = header.iter().map(|cell| cell.to_uppercase()).collect();
    let width = |column: usize| {
        let cells = rows.iter().chain([&header]).filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("  {}", cells.join("  ")).trim_end().to_owned()
    };
    [&header].into_iter().chain(rows).map(|row| line(row) + "\n").collect()
}

/// The pods.
pub fn pods(manifests: &Manifests) -> String {
    let rows = manifests.pods.iter().map(|pod| {
        let addresses: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
        vec![format!("{}/{}", pod.namespace, pod.name), pod.account.clone(), addresses.join("  ")]
    });
    table(&["pod", "service account", "addresses"], &rows.collect::<Vec<_>>())
}

/// The policies and what they are for.
pub fn policies(manifests: &Manifests, without: Option<&str>) -> String {
    let rows = manifests.policies.iter().map(|policy| {
        let left_out = without == Some(policy.file.as_str());
        let sentence = policy.comment.split_inclusive(". ").next().unwrap_or_default().trim();
        let what = if left_out { "(left out: --without)" } else { sentence };
        vec![policy.file.clone(), policy.object.clone(), what.to_owned()]
    });
    table(&["file", "object", "what for"], &rows.collect::<Vec<_>>())
}

/// Who may talk to whom, as the expectations say.
pub fn who_may(expectations: &Expectations) -> String {
    let mut names: Vec<&str> = Vec::new();
    for line in &expectations.traffic {
        for name in [line.from.as_str(), line.to.as_str()] {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    let sweepers = expectations.sweeps.iter().map(|sweep| sweep.from.as_str());
    names.extend(sweepers.filter(|name| !names.contains(name)).take(1).collect::<Vec<_>>());
    let mut cells: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
    for line in &expectations.traffic {
        let text = match line.expect {
            Expect::Allow => line.port.to_string(),
            Expect::Audit => format!("{} (audit)", line.port),
            Expect::Deny => continue,
        };
        cells.entry((&line.from, &line.to)).or_default().push(text);
    }
    let header: Vec<&str> = ["from \\ to"].into_iter().chain(names.iter().copied()).collect();
    let rows = names.iter().map(|from| {
        let cell = |to: &&str| cells.get(&(from, to)).map_or_else(|| ".".to_owned(), |texts| texts.join(" "));
        [(*from).to_owned()].into_iter().chain(names.iter().map(cell)).collect()
    });
    table(&header, &rows.collect::<Vec<_>>())
}

/// A sweep's tries: an address a line, a port a column.
pub fn matrix(ports: &[Port], tries: &[(&Try<'_>, &Seen)]) -> String {
    let header: Vec<String> = ["target".to_owned(), "address".to_owned()]
        .into_iter()
        .chain(ports.iter().map(Port::to_string))
        .collect();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut current = None;
    for (one, seen) in tries {
        if current != Some(one.probe.to) {
            current = Some(one.probe.to);
            rows.push(vec![one.target.name.clone(), one.probe.to.to_string()]);
        }
        let cell = if **seen == Seen::Deny { ".".to_owned() } else { seen.to_string() };
        if let Some(row) = rows.last_mut() {
            row.push(cell);
        }
    }
    table(&header, &rows)
}

/// A text, two spaces in.
pub fn indented(text: &str) -> String {
    excerpt(text, usize::MAX, |_| true)
}

/// What `portcullis dump policies` prints, in short: the first rows from their second column on, as the first, with
/// every policy that acts on the subject, is very wide; then the table of the policies.
pub fn policy_lines(dump: &str) -> String {
    let (rows, policies) = dump.split_once("\n\n").unwrap_or((dump, ""));
    let second = rows.find("DIRECTION").unwrap_or(0);
    let narrow: Vec<String> = rows.lines().map(|line| line.chars().skip(second).collect()).collect();
    format!("{}\n{}", excerpt(&narrow.join("\n"), 10, |_| true), indented(policies))
}

/// The first lines of a text that are wanted, two spaces in, and how many more there are.
pub fn excerpt(text: &str, limit: usize, wanted: impl Fn(&str) -> bool) -> String {
    let lines: Vec<String> =
        text.lines().filter(|line| wanted(line)).map(|line| format!("  {line}\n")).collect();
    let mut shown = lines[..limit.min(lines.len())].concat();
    if lines.len() > limit {
        let _ = writeln!(shown, "  .. and {} more lines", lines.len() - limit);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_lines_do_not_end_in_spaces() {
        let rows = [vec!["a".to_owned(), "long cell".to_owned()], vec!["abc".to_owned(), String::new()]];
        assert_eq!(table(&["x", "y"], &rows), "  X    Y\n  a    long cell\n  abc\n");
    }

    #[test]
    fn of_the_policies_the_first_column_is_left_out_and_the_second_table_is_whole() {
        let dump = "SUBJECT  DIRECTION  PEER\nlong     ingress    web\n\nPOLICY  NAME\nx       y\n";
        assert_eq!(
            policy_lines(dump),
            "  DIRECTION  PEER\n  ingress    web\n\n  POLICY  NAME\n  x       y\n"
        );
    }

    #[test]
    fn an_excerpt_says_how_much_it_leaves_out() {
        assert_eq!(excerpt("a\nb\n#\nc\n", 2, |line| line != "#"), "  a\n  b\n  .. and 1 more lines\n");
    }
}

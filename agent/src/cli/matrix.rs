//! `portcullis matrix`: who can reach whom by the policies in a folder, for people and for the CI of a policy repository.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use ipnet::IpNet;
use serde::Serialize;

use super::Outcome;
use super::agent::DefaultVerdict;
use super::output::{self, Format};
use crate::matrix::{self, By, MEANINGS, Matrix, Options, Port, Tables};
use crate::sources::manifests;

/// What `matrix` is asked.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct MatrixArgs {
    /// Folder with the manifests of pods or workloads and of policies
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
    /// What the rows and columns are
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = ByArg::Pod)]
    by: ByArg,
    /// Port to ask about, such as TCP/80; can be repeated. Default: the ports that policies or containers name
    #[arg(long = "port", value_name = "PROTOCOL/PORT")]
    ports: Vec<Port>,
    /// Range for addresses of pods that the manifests give none; can be repeated. Default: those of the Nodes, else
    /// 10.244.0.0/16
    #[arg(long = "pod-cidr", value_name = "CIDR", value_delimiter = ',')]
    pod_cidrs: Vec<IpNet>,
    /// Verdict where no policy has a say
    #[arg(long, value_enum, value_name = "VERDICT", default_value_t = DefaultVerdict::Allow)]
    default_verdict: DefaultVerdict,
}

const EXAMPLES: &str = "\
Rows send, columns receive. Policies of a folder that are not understood are narrowed as those of an API server are.

Exit codes: 0 in order, 1 something in the folder is not understood or there is nobody in it, 2 wrong usage.";

/// What the rows and columns are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ByArg {
    /// Pods; a workload stands for its pods
    Pod,
    /// Service accounts: what holds for all pods of one
    Principal,
}

/// Runs the command.
pub fn run(args: &MatrixArgs, format: Format) -> anyhow::Result<Outcome> {
    let by = match args.by {
        ByArg::Pod => By::Pod,
        ByArg::Principal => By::Principal,
    };
    let options = Options {
        by,
        ports: args.ports.clone(),
        pod_cidrs: args.pod_cidrs.clone(),
        default_verdict: args.default_verdict.into(),
    };
    let reading = manifests::read(&args.manifests)?;
    let found = matrix::ask(&reading, &options);
    match format {
        Format::Json => output::write_json(&Json::new(&found, by))?,
        Format::Table => output::write(&render(&found))?,
    }
    for note in &found.notes {
        output::note(&format!("note: {note}"));
    }
    for problem in &found.problems {
        output::note(&problem.to_string());
    }
    if found.names.is_empty() {
        let files = reading.files;
        output::note(&format!(
            "no pod and no workload to judge in the {files} files (.yaml, .yml, .json) of {}",
            args.manifests.display()
        ));
    }
    let good = found.problems.is_empty() && !found.names.is_empty();
    Ok(if good { Outcome::Good } else { Outcome::Bad })
}

#[derive(Serialize)]
struct Json<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pods: Option<&'a [String]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    principals: Option<&'a [String]>,
    tables: BTreeMap<String, JsonTables<'a>>,
}

#[derive(Serialize)]
struct JsonTables<'a> {
    ingress: &'a [String],
    egress: &'a [String],
    combined: &'a [String],
}

impl<'a> Json<'a> {
    fn new(found: &'a Matrix, by: By) -> Self {
        let names = |of| (by == of).then_some(found.names.as_slice());
        let tables = found.tables.iter().map(|(port, tables)| {
            let Tables { ingress, egress, combined, shown: _ } = tables;
            (port.to_string(), JsonTables { ingress, egress, combined })
        });
        Self { pods: names(By::Pod), principals: names(By::Principal), tables: tables.collect() }
    }
}

/// The tables for people. Ports on which everything is the same have one together.
fn render(found: &Matrix) -> String {
    let mut alike: Vec<(Vec<String>, &[String])> = Vec::new();
    for (port, tables) in &found.tables {
        match alike.iter_mut().find(|(_, shown)| *shown == tables.shown.as_slice()) {
            Some((ports, _)) => ports.push(port.to_string()),
            None => alike.push((vec![port.to_string()], &tables.shown)),
        }
    }
    let number = found.names.len().to_string().len();
    let name = found.names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for (ports, shown) in &alike {
        let _ = writeln!(text, "{}", ports.join(", "));
        let _ = write!(text, "{:number$}  {:name$} ", "", "");
        for column in 1..=found.names.len() {
            let _ = write!(text, " {column:>number$}");
        }
        text.push('\n');
        for ((row, label), cells) in (1..).zip(&found.names).zip(*shown) {
            let _ = write!(text, "{row:>number$}  {label:name$} ");
            for cell in cells.chars() {
                let _ = write!(text, " {cell:>number$}");
            }
            text.push('\n');
        }
        text.push('\n');
    }
    let occurs = |of: char| alike.iter().any(|(_, shown)| shown.iter().any(|row| row.contains(of)));
    let legend: Vec<String> = MEANINGS
        .iter()
        .filter(|(of, _)| occurs(*of))
        .map(|(of, meaning)| format!("{of} {meaning}"))
        .collect();
    if !legend.is_empty() {
        let _ = writeln!(text, "rows send, columns receive: {}", legend.join("; "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Matrix {
        let tables = |shown: [&str; 2]| {
            let shown = shown.map(str::to_owned).to_vec();
            Tables { shown: shown.clone(), ingress: shown.clone(), egress: shown.clone(), combined: shown }
        };
        let port = |text: &str| text.parse().unwrap();
        Matrix {
            names: vec!["shop/api".to_owned(), "shop/deployment/web".to_owned()],
            tables: vec![
                (port("TCP/80"), tables([".X", ".."])),
                (port("TCP/443"), tables([".X", "a."])),
                (port("UDP/53"), tables([".X", ".."])),
            ],
            ..Matrix::default()
        }
    }

    #[test]
    fn ports_that_are_alike_share_a_table_and_the_legend_has_what_occurs() {
        let wanted = "\
TCP/80, UDP/53
                        1 2
1  shop/api             . X
2  shop/deployment/web  . .

TCP/443
                        1 2
1  shop/api             . X
2  shop/deployment/web  a .

rows send, columns receive: . allowed; X denied; a audited: passes, and would be denied
";
        assert_eq!(render(&found()), wanted);
        assert_eq!(render(&Matrix::default()), "");
    }

    #[test]
    fn the_json_has_no_other_keys() {
        let json = serde_json::to_value(Json::new(&found(), By::Pod)).unwrap();
        assert_eq!(json.as_object().unwrap().keys().collect::<Vec<_>>(), ["pods", "tables"]);
        let tables = &json["tables"]["TCP/443"];
        assert_eq!(tables.as_object().unwrap().keys().collect::<Vec<_>>(), ["combined", "egress", "ingress"]);
        let json = serde_json::to_value(Json::new(&found(), By::Principal)).unwrap();
        assert_eq!(json["principals"][1], "shop/deployment/web");
        assert_eq!(json.get("pods"), None);
    }
}

//! The commands of the binary. Flags are defined once; every command returns whether it found everything in order, and
//! `main` turns that into the exit code: 0 in order, 1 not, 2 wrong usage.

mod agent;
mod check;
mod cleanup;
mod dump;
mod findings;
mod logging;
mod matrix;
mod mode;
mod monitor;
mod names;
mod output;
mod status;
mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::kubernetes::ConfigError;

pub use agent::{AgentArgs, DefaultVerdict, ModeArg, UnknownEndpoint};
pub use dump::endpoints::hook_name;
pub use logging::LogFormat;
pub use output::Format;

/// Whether a command found everything in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0.
    Good,
    /// Exit code 1; what is wrong has been said.
    Bad,
}

/// Judges every packet of a pod by the service accounts at both ends
///
/// Portcullis is a Kubernetes node agent. `portcullis agent` runs on every node, `portcullis matrix` anywhere; the other
/// commands look at what the agent left in the kernel and work whether it is alive or not.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: GlobalArgs,
}

const EXAMPLES: &str = "\
Examples:
  portcullis check                          what this node lacks, and what follows from it
  portcullis agent                          judge by the objects of the cluster that this pod runs in
  portcullis agent --manifests /etc/shop    judge by the objects in a folder
  portcullis status                         is everything in force? (exit code 1 if not)
  portcullis dump counters                  who talked to whom, allowed and denied
  portcullis monitor --verdict deny         who is denied now, and by which rule
  portcullis matrix --manifests policies    who can reach whom, pod by pod
  portcullis mode off                       the emergency switch; `mode clear` undoes it
  portcullis --root /host dump              with the agent dead, from anywhere:
      kubectl debug node/NAME --profile=sysadmin --image=IMAGE --attach -- \\
          /portcullis --root /host dump

Exit codes: 0 in order, 1 something failed or is wrong, 2 wrong usage.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent of this node
    Agent(Box<AgentArgs>),
    /// Print what is in the kernel, with names: identities, endpoints, policies, services, flows, counters, drops
    Dump(dump::DumpArgs),
    /// Print verdicts as they happen, with names: who was denied, by which rule
    Monitor(monitor::MonitorArgs),
    /// Say whether the agent works and everything is in force
    Status,
    /// Try out what the kernel and this process's rights allow, and say what is missing
    Check,
    /// Switch enforcement off or to audit on this node, or back
    Mode(mode::ModeArgs),
    /// Say who can reach whom by the policies in a folder of manifests; needs no privileges and no cluster
    Matrix(matrix::MatrixArgs),
    /// Take every trace of Portcullis off this node: programs, maps, files
    Cleanup(cleanup::CleanupArgs),
}

/// What every command knows.
#[derive(Clone, Debug, Args)]
struct GlobalArgs {
    /// Form of the output
    #[arg(short, long, global = true, value_enum, value_name = "FORM", default_value_t = Format::Table,
          help_heading = "Global options")]
    output: Format,
    /// Folder in the BPF file system for maps and links
    #[arg(long, global = true, value_name = "DIR", default_value = DEFAULT_BPFFS, env = "PORTCULLIS_BPFFS",
          hide_env_values = true, help_heading = "Global options")]
    bpffs: PathBuf,
    /// Folder for the names file and the socket of monitors
    #[arg(long, global = true, value_name = "DIR", default_value = DEFAULT_RUN_DIR, env = "PORTCULLIS_RUN_DIR",
          hide_env_values = true, help_heading = "Global options")]
    run_dir: PathBuf,
    /// Where the node's file system is mounted; goes before --bpffs and --run-dir
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "PORTCULLIS_ROOT",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    root: Option<PathBuf>,
}

const DEFAULT_BPFFS: &str = "/sys/fs/bpf/portcullis";
const DEFAULT_RUN_DIR: &str = "/run/portcullis";

/// Where the agent keeps things.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Folder in bpffs.
    pub bpffs: PathBuf,
    /// Folder of the names file.
    pub run_dir: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self { bpffs: DEFAULT_BPFFS.into(), run_dir: DEFAULT_RUN_DIR.into() }
    }
}

impl GlobalArgs {
    fn paths(&self) -> Paths {
        let below = |path: &Path| match &self.root {
            Some(root) => root.join(path.strip_prefix("/").unwrap_or(path)),
            None => path.to_owned(),
        };
        Paths { bpffs: below(&self.bpffs), run_dir: below(&self.run_dir) }
    }
}

/// Runs the command of the command line.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match run(cli) {
        Ok(Outcome::Good) => ExitCode::SUCCESS,
        Ok(Outcome::Bad) => ExitCode::FAILURE,
        Err(error) => {
            output::note(&format!("{error:#}"));
            match error.downcast_ref::<ConfigError>() {
                Some(ConfigError::Nothing) => ExitCode::from(2),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<Outcome> {
    let Cli { command, global } = cli;
    let (format, paths) = (global.output, global.paths());
    match command {
        Command::Agent(mut args) => {
            args.paths = paths;
            logging::init(args.log_format, &args.log_level)?;
            check::require_capabilities()?;
            crate::controller::run(&args).map(|()| Outcome::Good)
        }
        Command::Dump(args) => dump::run(&args, format, &paths),
        Command::Monitor(args) => monitor::run(&args, format, &paths),
        Command::Status => status::run(format, &paths),
        Command::Check => check::run(format, &paths),
        Command::Matrix(args) => matrix::run(&args, format),
        Command::Mode(args) => mode::run(&args, format, &paths),
        Command::Cleanup(args) => cleanup::run(&args, format, &paths),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_of_the_flags_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_is_no_table_may_be_called_text() {
        let cli = Cli::try_parse_from(["portcullis", "monitor", "-o", "text"]).unwrap();
        assert_eq!(cli.global.output, Format::Table);
    }

    #[test]
    fn the_root_goes_before_both_folders_wherever_the_flag_stands() {
        for line in [
            ["portcullis", "--root", "/host", "-o", "json", "status"],
            ["portcullis", "status", "--root", "/host", "-o", "json"],
        ] {
            let cli = Cli::try_parse_from(line).unwrap();
            assert_eq!(cli.global.output, Format::Json);
            let Paths { bpffs, run_dir } = cli.global.paths();
            assert_eq!(bpffs, Path::new("/host/sys/fs/bpf/portcullis"));
            assert_eq!(run_dir, Path::new("/host/run/portcullis"));
        }
    }
}

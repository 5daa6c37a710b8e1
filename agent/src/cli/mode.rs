//! `portcullis mode`: the switch of a node, in the pinned map, so that it works with the agent dead and outlives its
//! restarts.

use clap::{Args, ValueEnum};
use portcullis_common::abi::Mode;
use serde::Serialize;

use super::output::{self, Format};
use super::{Outcome, Paths};
use crate::datapath::{self, Reader};

/// Flags of `mode`.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ModeArgs {
    /// What to do
    #[arg(value_enum, default_value_t = Action::Show)]
    action: Action,
}

const EXAMPLES: &str = "\
The override holds for every pod of this node, at once, whether the agent is alive or not, and
survives its restarts until `portcullis mode clear`. Of the agent's own mode and the override the
more lenient one holds.

Examples:
  portcullis mode off       something is badly wrong: let everything pass now
  portcullis mode clear     enforce again
  with the agent dead, from anywhere:
      kubectl debug node/NAME --profile=sysadmin --image=IMAGE --attach -- \\
          /portcullis --root /host mode off
  with the API server away as well, on the node:
      ctr -n k8s.io run --rm --privileged --mount \\
          type=bind,src=/sys/fs/bpf,dst=/sys/fs/bpf,options=rbind:rw IMAGE off /portcullis mode off";

/// What `mode` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Action {
    /// Let everything pass
    Off,
    /// Let denied packets pass, and count them as audited
    Audit,
    /// Take the override back: what the agent says holds
    Clear,
    /// Print the agent's mode and the override
    Show,
}

/// The modes of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Modes {
    /// What the agent set; `None` before its first start is complete.
    pub agent: Option<&'static str>,
    /// What `portcullis mode` set.
    #[serde(rename = "override")]
    pub forced: Option<&'static str>,
    /// What holds: the more lenient of both.
    pub effective: &'static str,
}

impl Modes {
    /// From the words of the map.
    pub fn of((agent, forced): (Option<Mode>, Option<Mode>)) -> Self {
        Self {
            agent: agent.map(Mode::name),
            forced: forced.map(Mode::name),
            // Where nothing is set yet, the kernel applies verdicts as they are.
            effective: agent.max(forced).unwrap_or(Mode::Enforce).name(),
        }
    }

    /// The loud line; `None` while no override is set.
    pub fn warning(&self) -> Option<String> {
        let forced = self.forced?;
        let meaning = match forced {
            "off" => "NOTHING IS ENFORCED on this node: every packet passes",
            "audit" => {
                "NOTHING IS DROPPED BY POLICY on this node: denied packets pass and are counted as audited"
            }
            _ => "it is no milder than the agent's own mode, so it changes nothing",
        };
        Some(format!("OVERRIDE {forced}: {meaning}; it survives restarts until `portcullis mode clear`"))
    }
}

/// Runs the command.
pub fn run(args: &ModeArgs, format: Format, paths: &Paths) -> anyhow::Result<Outcome> {
    let done = match args.action {
        Action::Show => None,
        Action::Off => {
            Some((datapath::set_override(&paths.bpffs, Some(Mode::Off))?, "the override is now off"))
        }
        Action::Audit => {
            Some((datapath::set_override(&paths.bpffs, Some(Mode::Audit))?, "the override is now audit"))
        }
        Action::Clear => Some((datapath::set_override(&paths.bpffs, None)?, "the override is cleared")),
    };
    let modes = Modes::of(Reader::open(&paths.bpffs)?.modes()?);
    if format == Format::Json {
        output::write_json(&modes)?;
        return Ok(Outcome::Good);
    }
    let mut text = String::new();
    if let Some((before, what)) = done {
        text = format!("{what} (it was {})\n", before.map_or("not set", Mode::name));
    }
    text.push_str(&describe(&modes));
    output::write(&text)?;
    Ok(Outcome::Good)
}

fn describe(modes: &Modes) -> String {
    let Modes { agent, forced, effective } = modes;
    let mut text = format!(
        "agent:     {}\noverride:  {}\neffective: {}\n",
        agent.unwrap_or("not set yet"),
        forced.unwrap_or("not set"),
        effective,
    );
    if let Some(warning) = modes.warning() {
        text.push_str(&warning);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_lenient_mode_holds_and_an_override_is_loud() {
        let modes = Modes::of((Some(Mode::Enforce), Some(Mode::Off)));
        assert_eq!(modes.effective, "off");
        assert!(modes.warning().unwrap().contains("NOTHING IS ENFORCED"));
        assert_eq!(Modes::of((Some(Mode::Off), Some(Mode::Audit))).effective, "off");
        let clear = Modes::of((Some(Mode::Enforce), None));
        assert_eq!((clear.effective, clear.warning()), ("enforce", None));
        let json = serde_json::to_string(&modes).unwrap();
        assert_eq!(json, r#"{"agent":"enforce","override":"off","effective":"off"}"#);
    }
}

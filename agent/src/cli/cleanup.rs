//! `portcullis cleanup`: takes every trace of an agent off this node. Done twice it does nothing the second time.

use std::io;
use std::path::Path;

use anyhow::{Context as _, bail};
use serde::Serialize;

use super::output::{self, Format};
use super::{Outcome, Paths};
use crate::datapath::{self, Pins};
use crate::monitor;
use crate::state::State;

/// What `cleanup` takes.
#[derive(Clone, Debug, clap::Args)]
pub struct CleanupArgs {
    /// Then wait to be stopped, as the pods of a DaemonSet must
    #[arg(long)]
    stay: bool,
}

/// What was removed.
#[derive(Clone, Debug, Serialize)]
struct Report {
    /// Folders and files that were removed, and interfaces whose programs were taken off.
    removed: Vec<String>,
}

/// Runs the command.
pub fn run(args: &CleanupArgs, format: Format, paths: &Paths) -> anyhow::Result<Outcome> {
    refuse_foreign(&paths.bpffs)?;
    let mut removed = datapath::cleanup(&paths.bpffs)?;
    let state = State::path(&paths.run_dir);
    if remove_file(&state)? {
        removed.push(state.display().to_string());
    }
    // An unfinished write of a killed agent, and its socket.
    remove_file(&paths.run_dir.join("state.json.new"))?;
    for socket in monitor::socket::files(&paths.run_dir) {
        remove_file(&socket)?;
    }
    // The folder itself goes if nobody else uses it.
    if std::fs::remove_dir(&paths.run_dir).is_ok() {
        removed.push(paths.run_dir.display().to_string());
    }
    match format {
        Format::Json => output::write_json(&Report { removed })?,
        Format::Table if removed.is_empty() => {
            output::write(&format!(
                "nothing to remove: no trace of Portcullis in {}\n",
                paths.bpffs.display()
            ))?;
        }
        Format::Table => {
            let removed = removed.join("\nremoved ");
            output::write(&format!("removed {removed}\nnothing is enforced on this node any more\n"))?;
        }
    }
    if args.stay {
        stopped()?;
    }
    Ok(Outcome::Good)
}

/// Returns when the process is told to stop. The first process of a container has no default for that.
fn stopped() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            _ = terminate.recv() => Ok(()),
            interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
        }
    })
}

/// A mistyped --bpffs must not cost others their pins.
fn refuse_foreign(bpffs: &Path) -> anyhow::Result<()> {
    if bpffs.exists()
        && !datapath::sys::is_bpffs(bpffs).with_context(|| format!("cannot look at {}", bpffs.display()))?
    {
        bail!("{} is not on a BPF file system: nothing is removed", bpffs.display());
    }
    let version = |name: &str| {
        name.strip_prefix('v').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    if let Some(foreign) = Pins::list(bpffs).into_iter().find(|name| !version(name)) {
        bail!(
            "{} holds {foreign}, which is not of Portcullis: nothing is removed; name the agent's own folder with --bpffs",
            bpffs.display()
        );
    }
    Ok(())
}

fn remove_file(path: &Path) -> anyhow::Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_others_is_left_alone() {
        let folder = std::env::temp_dir().join(format!("portcullis-cleanup-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("v1")).unwrap();
        let refused = refuse_foreign(&folder).unwrap_err().to_string();
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(refused.contains("not on a BPF file system"), "{refused}");
        assert!(refuse_foreign(&folder).is_ok(), "a folder that is not there");
    }
}

//! `cargo xtask setup`: says what this machine lacks and why it is needed, then installs that and nothing else.
//!
//! Run again it finds nothing to do. Where it cannot install, it names the command that gets the missing piece.

mod cluster;
mod kernels;
mod line;
mod needs;

use std::process::ExitCode;

use anyhow::{Result, ensure};

use crate::progress;
pub use needs::Purpose;
use needs::{Need, Remedy};

/// What `setup` takes.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Only say what is missing; exit code 1 if something is
    #[arg(long)]
    check: bool,
    /// Also what only `cargo xtask ci` needs
    #[arg(long)]
    ci: bool,
}

/// Installs what is missing.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    install(if arguments.ci { Purpose::Ci } else { Purpose::Test }, arguments.check)
}

fn install(purpose: Purpose, check: bool) -> Result<ExitCode> {
    let missing = needs::missing(purpose);
    if missing.is_empty() {
        println!("Everything is here; nothing to install.");
        return Ok(ExitCode::SUCCESS);
    }
    println!("Missing on this machine:");
    for Need { what, why, remedy } in &missing {
        println!("  {what}: {why}");
        match remedy {
            Remedy::Run(commands) => {
                for command in commands {
                    println!("      {}", command.shown());
                }
            }
            Remedy::Advise(advice) => println!("      not installed by this command; {advice}"),
        }
    }
    if check {
        return Ok(ExitCode::FAILURE);
    }
    println!();
    let mut left = 0;
    for need in missing {
        match need.remedy {
            Remedy::Run(commands) => {
                for command in commands {
                    ensure!(
                        !command.needs_root() || is_root(),
                        "`{}` needs root: run this again as root",
                        command.shown()
                    );
                    progress::run(&format!("{}: {}", need.what, command.shown()), &mut command.build())?;
                }
            }
            Remedy::Advise(_) => left += 1,
        }
    }
    let still = needs::missing(purpose);
    if still.is_empty() {
        println!("Everything is here now.");
        return Ok(ExitCode::SUCCESS);
    }
    let names: Vec<&str> = still.iter().map(|need| need.what).collect();
    ensure!(left > 0, "installed, but still missing: {}", names.join(", "));
    eprintln!("error: install these by hand, as said above, then run this again: {}", names.join(", "));
    Ok(ExitCode::FAILURE)
}

/// Installs what is missing before a command that needs it, saying so first; silent where nothing is.
pub fn ensure_ready(purpose: Purpose) -> Result<()> {
    if needs::missing(purpose).is_empty() {
        return Ok(());
    }
    let done = install(purpose, false)?;
    ensure!(done == ExitCode::SUCCESS, "this machine lacks what is named above");
    Ok(())
}

fn is_root() -> bool {
    // SAFETY: a system call without arguments that cannot fail.
    unsafe { libc::geteuid() == 0 }
}

//! Writes the definitions of our kinds into a folder; `cargo xtask manifests` calls it, because it needs the agent's
//! library.

use std::path::Path;

use anyhow::{Context, Result};

fn main() -> Result<()> {
    let folder = std::env::args_os().nth(1).context("name the folder to write to")?;
    for (name, text) in portcullis_tests::deploy::definitions()? {
        let path = Path::new(&folder).join(name);
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

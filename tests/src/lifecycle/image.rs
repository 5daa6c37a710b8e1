//! Another image of Portcullis: what a rolling update goes to.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cluster::archive::{Entry, Image};
use crate::command::run;

/// Its name.
pub const NEXT: &str = "portcullis:next";

/// Makes an archive of the same program in an image of its own: another layer, and so another digest, than the archive
/// `of` has. Files go to `folder`.
pub fn another(of: &Path, folder: &Path) -> Result<PathBuf> {
    let out = folder.join("image");
    fs::create_dir_all(&out).with_context(|| format!("making {}", out.display()))?;
    run(Command::new("tar").arg("-xf").arg(of).arg("-C").arg(&out))?;
    let manifest = fs::read(out.join("manifest.json")).context("the manifest of the image")?;
    let manifest: Value = serde_json::from_slice(&manifest).context("the manifest of the image")?;
    let layer = manifest[0]["Layers"][0].as_str().context("an image without a layer")?;
    run(Command::new("tar").arg("-xf").arg(out.join(layer)).arg("-C").arg(&out).arg("portcullis"))?;
    let release = out.join("release");
    fs::write(&release, "the next one\n").with_context(|| format!("writing {}", release.display()))?;
    let image = Image {
        reference: NEXT.to_owned(),
        entrypoint: vec!["/portcullis".to_owned()],
        command: vec!["agent".to_owned()],
        entries: vec![
            Entry::File { name: "portcullis".to_owned(), path: out.join("portcullis") },
            Entry::File { name: "etc/portcullis-release".to_owned(), path: release },
        ],
    };
    let archive = folder.join("next.tar");
    image.write(&archive)?;
    Ok(archive)
}

//! The files in `deploy/` that are made from others: the definitions of our kinds, from the Rust types, and the one file
//! to install, from the kustomize base. `cargo xtask manifests` writes them; a test says when they are stale.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cluster::binaries;

/// The folder of the manifests.
pub fn folder() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).join("deploy")
}

/// The definitions of our kinds: file names within `deploy/crds`, and what is to be in them.
///
/// # Errors
/// If a type has no schema.
#[cfg(feature = "agent")]
pub fn definitions() -> Result<Vec<(String, String)>> {
    let file = |definition: serde_json::Value| {
        let name = definition["metadata"]["name"].as_str().context("a definition without a name")?;
        let name = format!("{name}.yaml");
        let yaml = serde_saphyr::to_string(&definition).context("writing YAML")?;
        Ok((name, format!("# Generated from agent/src/api by `cargo xtask manifests`; do not edit.\n{yaml}")))
    };
    portcullis::api::definitions().context("the types do not give a schema")?.into_iter().map(file).collect()
}

/// A kustomize folder below `deploy`, rendered.
///
/// # Errors
/// What `kubectl` says.
pub fn render(kustomization: &str) -> Result<String> {
    let output = Command::new(binaries::find("kubectl")?)
        .arg("kustomize")
        .arg(folder().join(kustomization))
        .output()
        .context("starting kubectl")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "kubectl kustomize {kustomization}: {error}");
    String::from_utf8(output.stdout).context("what kubectl rendered")
}

/// The one file to install, `deploy/portcullis.yaml`.
///
/// # Errors
/// As [`render`].
pub fn install() -> Result<String> {
    let comment = "# Everything to install Portcullis in Audit mode. Rendered from deploy/base by `cargo xtask manifests`; do\n\
                   # not edit. The reasons are in the comments there.\n";
    Ok(format!("{comment}{}", render("base")?))
}

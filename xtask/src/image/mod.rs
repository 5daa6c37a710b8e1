//! `cargo xtask image`: the container image, without a container engine.

mod archive;
pub mod target;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};

use crate::cargo::root;
use archive::Image;
use target::{Target, path_of_this_machine};

/// What the archive may weigh.
const LIMIT: usize = 30 * 1000 * 1000;

/// What `image` takes.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Architecture of the image; the other one needs a compiler for it, which is named if it is missing
    #[arg(long, value_enum, default_value_t = Target::native())]
    arch: Target,
    /// Name of the image; may be repeated [default: portcullis:dev and portcullis:VERSION, which the files in
    /// deploy/ name]
    #[arg(long = "tag", value_name = "NAME:TAG", value_parser = tag)]
    tags: Vec<String>,
    /// Where to write the archive
    #[arg(long, value_name = "FILE", default_value = "target/image/portcullis.tar")]
    output: PathBuf,
}

/// Builds the archive and says where it is.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    crate::setup::ensure_ready(crate::setup::Purpose::Image)?;
    let tags = if arguments.tags.is_empty() { default_tags().to_vec() } else { arguments.tags.clone() };
    let path = build(arguments.arch, &tags, &root().join(&arguments.output))?;
    println!("{}", path.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds the image that the tests install: of this machine's architecture, with the names and at the place that
/// `cargo xtask image` gives it.
pub fn build_default() -> Result<PathBuf> {
    let output = root().join("target/image/portcullis.tar");
    build(Target::native(), &default_tags(), &output)
}

/// The names in `deploy/overlays/dev`, and in `deploy/portcullis.yaml` and `deploy/cleanup.yaml`.
fn default_tags() -> [String; 2] {
    ["portcullis:dev".to_owned(), format!("portcullis:{}", env!("CARGO_PKG_VERSION"))]
}

/// Builds the binary and writes the archive.
fn build(arch: Target, tags: &[String], output: &Path) -> Result<PathBuf> {
    let binary = arch.build()?;
    let content = fs::read(&binary).with_context(|| format!("reading {}", binary.display()))?;
    if let Some(path) = path_of_this_machine(&content) {
        bail!(
            "{} has the path {} of this machine in it: it must be the same on each",
            binary.display(),
            path.display()
        );
    }
    let mut labels = vec![
        ("org.opencontainers.image.title", "portcullis".to_owned()),
        (
            "org.opencontainers.image.description",
            "Kubernetes node agent that judges pod traffic by service account".to_owned(),
        ),
        // The programs in the kernel have a licence of their own.
        ("org.opencontainers.image.licenses", "Apache-2.0 AND (MIT OR GPL-2.0-only)".to_owned()),
        ("org.opencontainers.image.version", env!("CARGO_PKG_VERSION").to_owned()),
    ];
    if let Some(source) = Some(env!("CARGO_PKG_REPOSITORY")).filter(|source| !source.is_empty()) {
        labels.push(("org.opencontainers.image.source", source.to_owned()));
    }
    let image = Image { arch: arch.go_name(), tags, binary: &content, labels: &labels, created: CREATED };
    let archive = image.archive()?;
    ensure!(
        archive.len() <= LIMIT,
        "the image has {} bytes, more than the {LIMIT} that are allowed: what made the binary ({} bytes) grow?",
        archive.len(),
        content.len()
    );
    if let Some(folder) = output.parent() {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    // Renamed, so that nobody loads half an archive.
    let unfinished = output.with_extension("tar.new");
    fs::write(&unfinished, &archive).with_context(|| format!("writing {}", unfinished.display()))?;
    fs::rename(&unfinished, output).with_context(|| format!("writing {}", output.display()))?;
    eprintln!("{}: {:.1} MB for linux/{}", tags.join(", "), megabytes(archive.len()), arch.go_name());
    Ok(output.to_owned())
}

/// The same for every build, so that the same source is the same image.
const CREATED: &str = "1970-01-01T00:00:00Z";

#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn megabytes(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

/// A name with a tag.
fn tag(text: &str) -> Result<String, String> {
    let (path, version) = text.rsplit_once(':').unwrap_or((text, ""));
    let letters = |text: &str, also: &[char]| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || also.contains(&c))
    };
    let valid = letters(path, &['.', '_', '-', '/', ':'])
        && !path.contains(char::is_uppercase)
        && letters(version, &['.', '_', '-']);
    if valid {
        Ok(text.to_owned())
    } else {
        Err("write a name in small letters and a tag, such as portcullis:dev".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_tag_the_image_has_every_name_that_the_manifests_use() {
        let deploy = root().join("deploy");
        for (file, name) in
            [("portcullis.yaml", 1), ("cleanup.yaml", 1), ("overlays/dev/kustomization.yaml", 0)]
        {
            let text = fs::read_to_string(deploy.join(file)).unwrap();
            let name = &default_tags()[name];
            let (_, tag) = name.rsplit_once(':').unwrap();
            assert!(
                text.contains(&format!("image: {name}\n")) || text.contains(&format!("newTag: {tag}}}")),
                "{file}"
            );
        }
    }

    #[test]
    fn a_name_has_a_tag() {
        for good in ["portcullis:dev", "localhost:5000/me/portcullis:v1.0-rc_1"] {
            assert_eq!(tag(good).as_deref(), Ok(good));
        }
        for bad in
            ["portcullis", "portcullis:", ":dev", "localhost:5000/portcullis", "Portcullis:dev", "a b:c", ""]
        {
            assert!(tag(bad).is_err(), "{bad}");
        }
    }
}

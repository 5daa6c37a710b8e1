//! An image as an archive that `ctr images import` and `docker load` take: one layer, its configuration and a manifest,
//! in a tar file.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sha2::{Digest, Sha256};

/// The unit of a tar file.
const BLOCK: usize = 512;

/// What an image consists of.
#[derive(Debug)]
pub struct Image {
    /// Its name and tag.
    pub reference: String,
    /// The program, with arguments that stay.
    pub entrypoint: Vec<String>,
    /// Arguments, or the program, that a pod may replace.
    pub command: Vec<String>,
    /// The files; the folders they are in are made.
    pub entries: Vec<Entry>,
}

/// Something in an image.
#[derive(Debug)]
pub enum Entry {
    /// A program, copied from this machine.
    File {
        /// Where in the image.
        name: String,
        /// Where here.
        path: PathBuf,
    },
    /// A symbolic link.
    Link {
        /// Where in the image.
        name: String,
        /// What it leads to.
        to: String,
    },
    /// A folder.
    Folder {
        /// Where in the image.
        name: String,
        /// Its permissions.
        mode: u32,
    },
}

impl Image {
    /// Writes the archive, whole or not at all.
    pub fn write(&self, to: &Path) -> Result<()> {
        let layer = self.layer()?;
        let digest = hex(&layer);
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint,
                "Cmd": self.command,
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
        })
        .to_string();
        let (config_name, layer_name) =
            (format!("{}.json", hex(config.as_bytes())), format!("{digest}/layer.tar"));
        let manifest = json!([{"Config": config_name, "RepoTags": [self.reference], "Layers": [layer_name]}])
            .to_string();
        // Two clusters may come up at the same time.
        let unfinished = to.with_extension(format!("{}.tmp", std::process::id()));
        let file = File::create(&unfinished).with_context(|| format!("making {}", unfinished.display()))?;
        let mut tar = Tar(io::BufWriter::new(file));
        tar.file(&config_name, config.as_bytes())?;
        tar.file(&layer_name, &layer)?;
        tar.file("manifest.json", manifest.as_bytes())?;
        tar.finish()?.flush()?;
        fs::rename(&unfinished, to).with_context(|| format!("writing {}", to.display()))
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut tar = Tar(Vec::new());
        let mut folders = BTreeSet::new();
        for entry in &self.entries {
            let (Entry::File { name, .. } | Entry::Link { name, .. } | Entry::Folder { name, .. }) = entry;
            for (end, _) in name.match_indices('/') {
                if folders.insert(&name[..end]) {
                    tar.header(&name[..end], Kind::Folder, 0o755, 0, "")?;
                }
            }
            match entry {
                Entry::File { name, path } => {
                    let content = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
                    tar.file(name, &content)?;
                }
                Entry::Link { name, to } => tar.header(name, Kind::Link, 0o777, 0, to)?,
                Entry::Folder { name, mode } => tar.header(name, Kind::Folder, *mode, 0, "")?,
            }
        }
        tar.finish()
    }
}

/// What images call this machine's processor.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn hex(content: &[u8]) -> String {
    Sha256::digest(content).iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    File = b'0' as isize,
    Link = b'2' as isize,
    Folder = b'5' as isize,
}

/// A tar file in the format that POSIX calls ustar. Times are zero, so the same files make the same archive.
struct Tar<W>(W);

impl<W: Write> Tar<W> {
    fn file(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.header(name, Kind::File, 0o755, content.len(), "")?;
        self.0.write_all(content)?;
        let rest = content.len().next_multiple_of(BLOCK) - content.len();
        Ok(self.0.write_all(&[0; BLOCK][..rest])?)
    }

    fn header(&mut self, name: &str, kind: Kind, mode: u32, size: usize, link: &str) -> Result<()> {
        ensure!(name.len() < 100 && link.len() < 100, "the name {name} is too long for an image");
        let mut block = [0; BLOCK];
        let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
        put(0, name.as_bytes());
        put(100, format!("{mode:07o}\0").as_bytes());
        put(108, b"0000000\x000000000\0");
        put(124, format!("{size:011o}\0").as_bytes());
        put(136, b"00000000000\0");
        // The checksum counts itself as blanks.
        put(148, b"        ");
        put(156, &[kind as u8]);
        put(157, link.as_bytes());
        put(257, b"ustar\x0000");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        Ok(self.0.write_all(&block)?)
    }

    fn finish(mut self) -> Result<W> {
        self.0.write_all(&[0; 2 * BLOCK])?;
        Ok(self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::TempDir;
    use crate::command::run;

    #[test]
    fn the_system_s_tar_reads_what_was_written() {
        let folder = TempDir::new().unwrap();
        folder.write("program", "#!/bin/sh\necho it works\n").unwrap();
        let image = Image {
            reference: "example.org/x:1".to_owned(),
            entrypoint: vec!["/bin/program".to_owned()],
            command: vec![],
            entries: vec![
                Entry::File { name: "bin/program".to_owned(), path: folder.path().join("program") },
                Entry::Link { name: "bin/other".to_owned(), to: "program".to_owned() },
                Entry::Folder { name: "tmp".to_owned(), mode: 0o1777 },
            ],
        };
        let (archive, out) = (folder.path().join("image.tar"), folder.path().join("out"));
        image.write(&archive).unwrap();
        fs::create_dir(&out).unwrap();
        run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&out)).unwrap();
        let manifest: serde_json::Value =
            serde_json::from_slice(&fs::read(out.join("manifest.json")).unwrap()).unwrap();
        assert_eq!(manifest[0]["RepoTags"][0], "example.org/x:1");
        let config = fs::read(out.join(manifest[0]["Config"].as_str().unwrap())).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        let layer = out.join(manifest[0]["Layers"][0].as_str().unwrap());
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", hex(&fs::read(&layer).unwrap())));
        run(Command::new("tar").arg("-xf").arg(&layer).arg("-C").arg(&out)).unwrap();
        assert_eq!(run(&mut Command::new(out.join("bin/other"))).unwrap(), "it works\n");
        assert!(out.join("tmp").is_dir());
    }
}

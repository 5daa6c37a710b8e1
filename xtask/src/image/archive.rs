//! An image as one archive, made from files alone. It is an OCI layout and, for older readers, a Docker archive as well:
//! `manifest.json` names the same blobs. The same files give the same bytes: no times, owners or orders of this machine.

use std::fmt::Write as _;

use anyhow::Result;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// What is in the image.
pub struct Image<'a> {
    /// Architecture as Go names it: `amd64`, `arm64`.
    pub arch: &'a str,
    /// Its names: `portcullis:dev`.
    pub tags: &'a [String],
    /// The binary.
    pub binary: &'a [u8],
    /// Labels, by name.
    pub labels: &'a [(&'a str, String)],
    /// When it was made, in the form of RFC 3339.
    pub created: &'a str,
}

/// Content and the name by which manifests speak of it.
struct Blob {
    digest: String,
    content: Vec<u8>,
}

impl Blob {
    fn new(content: Vec<u8>) -> Self {
        let mut digest = String::new();
        for byte in Sha256::digest(&content) {
            // Writing into a string cannot fail.
            let _ = write!(digest, "{byte:02x}");
        }
        Self { digest, content }
    }

    fn json(value: &Value) -> Self {
        Self::new(value.to_string().into_bytes())
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.digest)
    }

    fn descriptor(&self, media_type: &str) -> Value {
        let Self { digest, content } = self;
        json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": content.len()})
    }
}

impl Image<'_> {
    /// The archive.
    ///
    /// # Errors
    /// If the archive cannot be put together.
    pub fn archive(&self) -> Result<Vec<u8>> {
        let layer = Blob::new(self.layer()?);
        let config = Blob::json(&self.config(&layer));
        let manifest = Blob::json(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor(CONFIG),
            "layers": [layer.descriptor(LAYER)],
        }));
        let manifests: Vec<Value> = self.tags.iter().map(|tag| named(&manifest, tag)).collect();
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        let docker = json!([{"Config": config.path(), "RepoTags": self.tags, "Layers": [layer.path()]}]);

        let mut files = vec![
            ("oci-layout".to_owned(), json!({"imageLayoutVersion": "1.0.0"}).to_string().into_bytes()),
            ("index.json".to_owned(), index.to_string().into_bytes()),
            ("manifest.json".to_owned(), docker.to_string().into_bytes()),
        ];
        files.extend([layer, config, manifest].map(|blob| (blob.path(), blob.content)));
        files.sort();
        let mut archive = Builder::new(Vec::new());
        for folder in ["blobs/", "blobs/sha256/"] {
            put(&mut archive, EntryType::Directory, 0o755, folder, &[])?;
        }
        for (path, content) in &files {
            put(&mut archive, EntryType::Regular, 0o644, path, content)?;
        }
        Ok(archive.into_inner()?)
    }

    /// The file system: the binary, and a link to it where shells and `kubectl exec` look.
    fn layer(&self) -> Result<Vec<u8>> {
        let mut layer = Builder::new(Vec::new());
        put(&mut layer, EntryType::Regular, 0o755, "portcullis", self.binary)?;
        for folder in ["usr/", "usr/bin/"] {
            put(&mut layer, EntryType::Directory, 0o755, folder, &[])?;
        }
        let mut link = header(EntryType::Symlink, 0o777);
        layer.append_link(&mut link, "usr/bin/portcullis", "/portcullis")?;
        Ok(layer.into_inner()?)
    }

    fn config(&self, layer: &Blob) -> Value {
        let labels: serde_json::Map<String, Value> =
            self.labels.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        json!({
            "created": self.created,
            "architecture": self.arch,
            "os": "linux",
            "config": {
                "Entrypoint": ["/portcullis"],
                "Cmd": ["agent"],
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "WorkingDir": "/",
                "Labels": labels,
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", layer.digest)]},
            "history": [{"created": self.created, "created_by": "cargo xtask image"}],
        })
    }
}

/// The manifest's entry in the index. containerd reads the whole name, others the tag.
fn named(manifest: &Blob, tag: &str) -> Value {
    let mut entry = manifest.descriptor(MANIFEST);
    entry["annotations"] = json!({
        "io.containerd.image.name": full_name(tag),
        "org.opencontainers.image.ref.name": tag.rsplit_once(':').map_or(tag, |(_, version)| version),
    });
    entry
}

/// The name as runtimes keep it: names without a registry are Docker's, and those without a path its library's.
fn full_name(tag: &str) -> String {
    match tag.split_once('/') {
        None => format!("docker.io/library/{tag}"),
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => tag.to_owned(),
        Some(_) => format!("docker.io/{tag}"),
    }
}

/// A header that says nothing about who made the entry and when.
fn header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    header
}

fn put(archive: &mut Builder<Vec<u8>>, kind: EntryType, mode: u32, path: &str, content: &[u8]) -> Result<()> {
    let mut header = header(kind, mode);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, path, content)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read as _;

    use super::*;

    fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(archive);
        let read = |entry: std::io::Result<tar::Entry<'_, _>>| {
            let mut entry = entry.unwrap();
            assert_eq!(entry.header().mtime().unwrap(), 0);
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.path().unwrap().to_str().unwrap().to_owned(), content)
        };
        archive.entries().unwrap().map(read).collect()
    }

    fn image<'a>(tags: &'a [String], labels: &'a [(&'a str, String)]) -> Image<'a> {
        Image { arch: "amd64", tags, binary: b"the binary", labels, created: "1970-01-01T00:00:00Z" }
    }

    fn blob(files: &BTreeMap<String, Vec<u8>>, descriptor: &Value) -> Vec<u8> {
        let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let content = files[&format!("blobs/sha256/{digest}")].clone();
        assert_eq!(Blob::new(content.clone()).digest, digest, "the name of a blob is its digest");
        assert_eq!(descriptor["size"], json!(content.len()));
        content
    }

    fn parse(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).unwrap()
    }

    #[test]
    fn both_kinds_of_readers_find_the_same_image() {
        let tags = ["portcullis:dev".to_owned(), "example.com/portcullis:1".to_owned()];
        let labels = [("org.opencontainers.image.licenses", "Apache-2.0".to_owned())];
        let files = files(&image(&tags, &labels).archive().unwrap());

        let index = parse(&files["index.json"]);
        let names: Vec<&Value> = index["manifests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| &entry["annotations"]["io.containerd.image.name"])
            .collect();
        assert_eq!(names, ["docker.io/library/portcullis:dev", "example.com/portcullis:1"]);
        let manifest = parse(&blob(&files, &index["manifests"][0]));
        let config = blob(&files, &manifest["config"]);
        let layer = blob(&files, &manifest["layers"][0]);

        let docker = parse(&files["manifest.json"]);
        assert_eq!(docker[0]["RepoTags"], json!(tags));
        assert_eq!(files[docker[0]["Config"].as_str().unwrap()], config);
        assert_eq!(files[docker[0]["Layers"][0].as_str().unwrap()], layer);

        let config = parse(&config);
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"], "a layer is not packed");
        assert_eq!(config["config"]["Labels"]["org.opencontainers.image.licenses"], "Apache-2.0");
        assert_eq!(config["config"]["Entrypoint"], json!(["/portcullis"]));
    }

    #[test]
    fn the_layer_has_the_binary_and_a_link_in_the_path() {
        let layer = image(&[], &[]).layer().unwrap();
        assert_eq!(files(&layer)["portcullis"], b"the binary");
        let mut archive = tar::Archive::new(&layer[..]);
        let link =
            archive.entries().unwrap().map(Result::unwrap).find(|e| e.header().entry_type().is_symlink());
        let link = link.unwrap();
        assert_eq!(link.path().unwrap().to_str(), Some("usr/bin/portcullis"));
        assert_eq!(link.link_name().unwrap().unwrap().to_str(), Some("/portcullis"));
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let tags = ["portcullis:dev".to_owned()];
        assert_eq!(image(&tags, &[]).archive().unwrap(), image(&tags, &[]).archive().unwrap());
    }

    #[test]
    fn names_are_completed_as_runtimes_do() {
        for (tag, whole) in [
            ("portcullis:dev", "docker.io/library/portcullis:dev"),
            ("me/portcullis:dev", "docker.io/me/portcullis:dev"),
            ("localhost:5000/portcullis:dev", "localhost:5000/portcullis:dev"),
            ("localhost/portcullis:dev", "localhost/portcullis:dev"),
        ] {
            assert_eq!(full_name(tag), whole);
        }
    }
}

//! A cpio archive of the kind that the kernel unpacks when it boots (`Documentation/driver-api/early-userspace/buffer-format.rst`:
//! "newc").

use std::collections::BTreeMap;
use std::io::{self, Write};

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Folder,
    Link(String),
    Program(Vec<u8>),
}

/// Folders, links and programs, by path. Folders above come by themselves.
#[derive(Debug, Clone, Default)]
pub struct Archive {
    entries: BTreeMap<String, Entry>,
}

impl Archive {
    /// An empty folder.
    pub fn folder(&mut self, path: &str) {
        self.put(path, Entry::Folder);
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.put(path, Entry::Link(target.to_owned()));
    }

    /// A file that anybody may run.
    pub fn program(&mut self, path: &str, content: Vec<u8>) {
        self.put(path, Entry::Program(content));
    }

    /// Whether there is something at a path.
    pub fn has(&self, path: &str) -> bool {
        self.entries.contains_key(path.trim_matches('/'))
    }

    fn put(&mut self, path: &str, entry: Entry) {
        let path = path.trim_matches('/');
        if path.is_empty() {
            return;
        }
        if let Some((above, _)) = path.rsplit_once('/')
            && !self.has(above)
        {
            self.folder(above);
        }
        self.entries.insert(path.to_owned(), entry);
    }

    /// Writes it. In the order of paths a folder comes before what is in it.
    ///
    /// # Errors
    /// What the writer says.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        for (number, (path, entry)) in (1..).zip(&self.entries) {
            let (mode, content): (u32, &[u8]) = match entry {
                Entry::Folder => (0o40_755, &[]),
                Entry::Link(target) => (0o120_777, target.as_bytes()),
                Entry::Program(content) => (0o100_755, content),
            };
            member(to, number, mode, path, content)?;
        }
        member(to, 0, 0, "TRAILER!!!", &[])
    }
}

/// Header, name and content, the latter two filled up to words.
fn member(to: &mut impl Write, number: u32, mode: u32, name: &str, content: &[u8]) -> io::Result<()> {
    let size = u32::try_from(content.len()).map_err(io::Error::other)?;
    let name_size = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
    // inode, mode, user, group, links, time, size, two device numbers of each kind, length of the name, no checksum
    let fields = [number, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
    let mut header = String::from("070701");
    header.extend(fields.map(|field| format!("{field:08X}")));
    let padding = |length: usize| &[0; 3][..length.next_multiple_of(4) - length];
    to.write_all(header.as_bytes())?;
    to.write_all(name.as_bytes())?;
    to.write_all(&[0])?;
    to.write_all(padding(header.len() + name.len() + 1))?;
    to.write_all(content)?;
    to.write_all(padding(content.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_folders_first_and_everything_at_words() {
        let mut archive = Archive::default();
        archive.program("/bin/a", b"hello".to_vec());
        archive.link("bin/b", "a");
        let mut bytes = Vec::new();
        archive.write(&mut bytes).unwrap();
        assert!(bytes.len().is_multiple_of(4));
        let text = String::from_utf8_lossy(&bytes);
        let order =
            ["bin\0", "bin/a\0", "hello", "bin/b\0", "TRAILER!!!"].map(|part| text.find(part).unwrap());
        assert!(order.is_sorted(), "{order:?}");
        assert!(text.starts_with("07070100000001000041ED"), "{text}");
        let content = order[2];
        assert!(content.is_multiple_of(4) && text.matches("070701").count() == 4);
    }
}

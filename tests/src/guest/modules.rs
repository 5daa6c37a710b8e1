//! The kernel modules that the tests need, in the order in which they can be loaded.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// What the tests' networks are made of: interfaces, filters, and conntrack with rules of iptables, which need it.
const WANTED: [&str; 16] = [
    "veth",
    "bridge",
    "dummy",
    "sch_ingress",
    "cls_bpf",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_nat",
    "nf_tables",
    "nft_compat",
    "nft_chain_nat",
    "xt_conntrack",
    "xt_nat",
    "xt_tcpudp",
    "br_netfilter",
    "inet_diag",
];

/// Name and content of each module, those that others need first. What is built into the kernel is left out.
pub fn ordered(folder: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let built_in = fs::read_to_string(folder.join("modules.builtin"))
        .with_context(|| format!("reading the list of modules in {}", folder.display()))?;
    let mut found =
        Found { paths: HashMap::new(), built_in: built_in.lines().map(name_of).collect(), order: Vec::new() };
    found.survey(&folder.join("kernel"))?;
    for name in WANTED {
        found.add(name)?;
    }
    Ok(found.order)
}

struct Found {
    paths: HashMap<String, PathBuf>,
    built_in: Vec<String>,
    order: Vec<(String, Vec<u8>)>,
}

impl Found {
    fn survey(&mut self, folder: &Path) -> Result<()> {
        for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                self.survey(&path)?;
            } else if path.to_string_lossy().contains(".ko") {
                self.paths.insert(name_of(&path.to_string_lossy()), path);
            }
        }
        Ok(())
    }

    fn add(&mut self, name: &str) -> Result<()> {
        if self.built_in.iter().any(|known| known == name)
            || self.order.iter().any(|(known, _)| known == name)
        {
            return Ok(());
        }
        let path = self.paths.get(name).with_context(|| format!("the kernel has no module {name}"))?;
        let content = read(path)?;
        for needed in needs(&content) {
            self.add(&needed)?;
        }
        self.order.push((name.to_owned(), content));
        Ok(())
    }
}

/// `kernel/net/sched/cls-bpf.ko.xz` is called `cls_bpf`.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// A module, unpacked.
fn read(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(path).with_context(|| format!("reading {}", path.display()));
    }
    let output =
        Command::new("busybox").args(["xz", "-dc"]).arg(path).output().context("starting busybox")?;
    ensure!(
        output.status.success(),
        "unpacking {}: {}",
        path.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}

/// The modules that one says it needs (`depends=a,b` in its section `.modinfo`).
fn needs(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let list = &module[at + KEY.len()..];
    let list = list.split(|byte| *byte == 0).next().unwrap_or_default();
    let list = String::from_utf8_lossy(list);
    list.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_needs_are_read() {
        assert_eq!(name_of("kernel/net/nft-compat.ko.xz"), "nft_compat");
        assert_eq!(needs(b"x\0license=GPL\0depends=nf_tables,x-tables\0name=y\0"), ["nf_tables", "x_tables"]);
        assert_eq!(needs(b"x\0depends=\0name=y\0"), [""; 0]);
    }
}

//! What a cluster needs: daemons of the system, and the programs of Kubernetes, which are built once from pinned
//! sources into the cache folder.

use std::path::{Path, PathBuf};

use portcullis_tests::cluster::binaries::{self, KUBERNETES, PACKAGES};

use super::line::Line;
use super::needs::{Need, Remedy, apt_lines, installed, works};

/// Debian's packages, by the program that says whether it is there; other systems have the same under similar names.
const PROGRAMS: &[(&str, &str)] = &[
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("iptables", "iptables"),
    ("nft", "nftables"),
    ("conntrack", "conntrack"),
    ("ethtool", "ethtool"),
    ("socat", "socat"),
    ("busybox", "busybox-static"),
];

/// Packages whose daemon would start with the machine.
const DAEMONS: &[&str] = &["etcd-server", "containerd"];

/// Adds what is missing.
pub fn needs(apt: bool, needs: &mut Vec<Need>) {
    let mut packages: Vec<&str> = Vec::new();
    if binaries::find("etcd").is_err() {
        packages.push("etcd-server");
    }
    packages.extend(
        PROGRAMS
            .iter()
            .filter(|(program, _)| binaries::in_path(program).is_none())
            .map(|(_, package)| *package),
    );
    if binaries::cni().is_none() {
        packages.push("containernetworking-plugins");
    }
    packages.dedup();
    if !packages.is_empty() {
        needs.push(Need {
            what: "programs of a cluster",
            why: "etcd, containers and networks of the test clusters",
            remedy: system(apt, &packages),
        });
    }
    if binaries::find(binaries::DNS_SERVER).is_err() {
        needs.push(Need {
            what: "CoreDNS",
            why: "names in the test clusters (compiles for 2 minutes on 2 cores, once)",
            remedy: go(|| built(&binaries::coredns(), "coredns", &[], &[".".to_owned()])),
        });
    }
    let unbuilt = binaries::missing_kubernetes();
    if !unbuilt.is_empty() {
        needs.push(Need {
            what: "Kubernetes",
            why: "API server, kubelets and clients of the test clusters (compiles for 7 minutes on 2 cores, once)",
            remedy: go(|| kubernetes(&unbuilt)),
        });
    }
}

fn system(apt: bool, packages: &[&str]) -> Remedy {
    if !apt {
        return Remedy::Advise(format!(
            "install with your package manager what Debian calls {}",
            packages.join(", ")
        ));
    }
    let mut lines: Vec<Line> = apt_lines(packages).into_iter().map(quiet_install).collect();
    // A daemon that was there before is somebody's; one that comes for the tests shall not start with the machine.
    let daemons: Vec<&str> = DAEMONS
        .iter()
        .filter(|package| packages.contains(package) && !installed(package))
        .map(|package| package.trim_end_matches("-server"))
        .collect();
    if !daemons.is_empty() && works("systemctl", &["--version"]) {
        lines.push(Line::new(["systemctl", "--quiet", "disable"].into_iter().chain(daemons)));
    }
    Remedy::Run(lines)
}

fn quiet_install(line: Line) -> Line {
    if line.shown().contains("apt-get install") { line.quiet() } else { line }
}

/// What is built with Go, if there is Go.
fn go(lines: impl FnOnce() -> Vec<Line>) -> Remedy {
    if works("go", &["version"]) {
        return Remedy::Run(lines());
    }
    Remedy::Advise(
        "get Go 1.24 or later from https://go.dev/dl or your package manager, or, for etcd and kube-apiserver alone, \
         set KUBEBUILDER_ASSETS to a folder that has them"
            .to_owned(),
    )
}

/// Builds in a folder of its own and then moves that into place: a build that was cut off is never taken for done.
fn built(folder: &Path, module: &str, version: &[String], packages: &[String]) -> Vec<Line> {
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    let unfinished = text(folder.join("bin.unfinished"));
    let finished = text(folder.join("bin"));
    let sources = text(crate::cargo::root().join("xtask").join(module));
    let linker = [vec!["-s".to_owned(), "-w".to_owned()], version.to_vec()].concat().join(" ");
    let output = format!("{unfinished}/");
    let mut build = vec!["go", "build", "-C", &sources, "-v", "-mod=readonly", "-trimpath"];
    build.extend(["-ldflags", &linker, "-o", &output]);
    build.extend(packages.iter().map(String::as_str));
    vec![
        Line::new(["mkdir", "-p", &output]),
        Line::new(build).with("CGO_ENABLED", "0"),
        Line::new(["rm", "-rf", &finished]),
        Line::new(["mv", "-T", &unfinished, &finished]),
    ]
}

fn kubernetes(unbuilt: &[&str]) -> Vec<Line> {
    let version = ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"]
        .map(|package| format!("-X {package}.gitVersion=v{KUBERNETES}"));
    let kept = binaries::kubernetes().join("bin");
    let packages: Vec<String> = PACKAGES
        .iter()
        .filter(|package| {
            let program = package.rsplit('/').next().unwrap_or(package);
            // What the folder has is built again, so that the new one is complete.
            unbuilt.contains(&program) || kept.join(program).exists()
        })
        .map(|package| format!("k8s.io/kubernetes/{package}"))
        .collect();
    built(&binaries::kubernetes(), "kubernetes", &version, &packages)
}

#[cfg(test)]
mod tests {
    use portcullis_tests::cluster::binaries::COREDNS;
    use portcullis_tests::cluster::images;

    use super::*;

    #[test]
    fn the_pinned_sources_are_those_of_the_release() {
        let module = include_str!("../../kubernetes/go.mod");
        assert!(module.contains(&format!("k8s.io/kubernetes v{KUBERNETES}")));
        let tools = include_str!("../../kubernetes/tools.go");
        for package in PACKAGES {
            assert!(tools.contains(&format!("\"k8s.io/kubernetes/{package}\"")), "{package}");
        }
    }

    #[test]
    fn the_pinned_dns_server_is_that_of_the_image() {
        let module = include_str!("../../coredns/go.mod");
        assert!(module.contains(&format!("github.com/coredns/coredns v{COREDNS}")));
        assert!(images::COREDNS.ends_with(&format!(":v{COREDNS}")));
    }

    #[test]
    fn a_build_is_moved_into_place_when_it_is_done() {
        let lines = built(Path::new("/cache/x"), "x", &[], &["a/b".to_owned()]);
        let shown: Vec<String> = lines.iter().map(Line::shown).collect();
        assert!(
            shown[1].starts_with("CGO_ENABLED=0 go build")
                && shown[1].ends_with("/cache/x/bin.unfinished/ a/b")
        );
        assert_eq!(shown.last().unwrap(), "mv -T /cache/x/bin.unfinished /cache/x/bin");
    }

    #[test]
    fn only_the_daemons_that_come_are_kept_from_starting() {
        let Remedy::Run(lines) = system(true, &["socat"]) else { panic!("apt is there") };
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[1].shown().contains("starts no daemon"));
        assert!(matches!(system(false, &["socat"]), Remedy::Advise(advice) if advice.contains("socat")));
    }
}

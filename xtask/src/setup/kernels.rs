//! What the tests on other kernels need: an emulator, and Debian's kernels, unpacked into the cache folder. They are not
//! installed: nothing of them is ever booted here but by the emulator.

use portcullis_tests::guest::{EMULATOR, KERNELS, Kernel};

use super::line::Line;
use super::needs::{Need, Remedy, packages, works};

/// Adds what is missing.
pub fn needs(apt: bool, needs: &mut Vec<Need>) {
    if !works(EMULATOR, &["--version"]) {
        let remedy = packages(apt, &["qemu-system-x86"], "install QEMU for x86-64");
        needs.push(Need { what: EMULATOR, why: "boots older kernels for the tests", remedy });
    }
    if !works("setpriv", &["--version"]) || !works("strip", &["--version"]) {
        let remedy = packages(apt, &["util-linux", "binutils"], "install util-linux and binutils");
        needs.push(Need { what: "setpriv, strip", why: "prepare and guard those kernels", remedy });
    }
    for kernel in &KERNELS {
        if kernel.release().is_ok() {
            continue;
        }
        let remedy = if apt {
            Remedy::Run(vec![Line::new(["apt-get", "update"]), Line::new(["sh", "-c", &fetch(kernel)])])
        } else {
            Remedy::Advise(format!(
                "unpack Debian's package of a kernel {} for the cloud ({}, bookworm) into {}",
                kernel.series,
                kernel.package,
                kernel.folder().display()
            ))
        };
        let what = if kernel.series == "6.1" { "Linux 6.1" } else { "Linux 6.12" };
        needs.push(Need { what, why: "an older kernel for the tests (unpacked, not installed)", remedy });
    }
}

/// Gets the newest kernel of a series and unpacks it in a folder of its own, which is then moved into place: one that was
/// cut off is never taken for done. The name of the package is that of the release, so it is asked for.
fn fetch(Kernel { series, package }: &Kernel) -> String {
    let kernel = Kernel { series, package };
    let folder = kernel.folder().display().to_string();
    format!(
        "set -e; rm -rf \"{folder}.unfinished\"; mkdir -p \"{folder}.unfinished\"; cd \"{folder}.unfinished\"; \
         name=$(apt-cache depends --important {package} | sed -n \"s/^ *Depends: \\(linux-image-{series}\\.\\)/\\1/p\"); \
         apt-get download \"${{name:?of a kernel {series} was not found by {package}}}\"; \
         dpkg-deb -x ./*.deb .; rm -f ./*.deb; rm -rf \"{folder}\"; mv -T \"{folder}.unfinished\" \"{folder}\""
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_of_another_series_is_not_taken() {
        let script = fetch(&KERNELS[0]);
        // `linux-image-6.1.` and not `linux-image-6.12.`, which the same package means in later releases of Debian.
        assert!(script.contains(r"Depends: \(linux-image-6.1\.\)"), "{script}");
        assert!(script.contains("${name:?"), "an empty name ends it: {script}");
    }
}

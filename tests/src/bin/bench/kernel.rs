//! From compiled to written: the maps of the kernel, in a network namespace and a folder of their own.

use portcullis::identity::Numbers;
use portcullis::policy::{Compiler, Delta};
use portcullis_common::abi::Mode;
use portcullis_tests::fixture::{Fixture, endpoint};

/// Puts this process into a network namespace of its own, whose loopback interface is the endpoint.
pub fn own_network() {
    // SAFETY: changes the network namespace of this thread only.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        eprintln!(
            "the kernel's part needs root (CAP_SYS_ADMIN and CAP_BPF): {}; `bench compile` does not",
            std::io::Error::last_os_error()
        );
        std::process::exit(1);
    }
}

/// Writes what was compiled.
pub fn write(fixture: &mut Fixture, compiler: &Compiler, delta: &Delta, numbers: &mut Numbers) {
    let (desired, changed) = (compiler.desired(), numbers.take_changed());
    let endpoints = [endpoint()];
    let datapath = &mut fixture.datapath;
    let applied = if delta.everything {
        datapath.apply(desired, &endpoints, Mode::Enforce, numbers.entries())
    } else {
        datapath.apply_delta(desired, delta, &endpoints, Mode::Enforce, changed)
    };
    let applied = applied.expect("the maps are written");
    assert!(applied.errors.is_empty(), "{:?}", applied.errors);
}

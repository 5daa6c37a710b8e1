//! Compiles the eBPF programs, which the binary embeds.

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

use portcullis_ebpf_build::{Options, build, inputs};

fn main() -> ExitCode {
    for input in inputs() {
        println!("cargo::rerun-if-changed={}", input.display());
    }
    match objects() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Cargo shows each of these lines as an error of this package, without a backtrace.
            for line in error.to_string().lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn objects() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    // OUT_DIR is <target>/<profile>/build/<package>/out; intermediate results are shared by all profiles.
    let target_dir = out.ancestors().nth(4).unwrap_or(&out).join("ebpf");
    let options = |name: &str| Options { arch: arch.clone(), ..Options::new(&target_dir, out.join(name)) };
    let plain = options("portcullis.o");
    build(&if env::var_os("CARGO_FEATURE_LOG").is_some() { plain.feature("log") } else { plain })?;
    if env::var_os("CARGO_FEATURE_BENCH").is_some() {
        build(&options("portcullis-bench.o").feature("bench"))?;
        build(&options("witness.o").object("witness"))?;
    }
    Ok(())
}

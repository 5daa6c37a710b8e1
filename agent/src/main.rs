//! The `portcullis` binary; everything is in the library.

fn main() -> std::process::ExitCode {
    portcullis::cli::main()
}

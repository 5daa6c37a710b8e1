//! Writing results: as a table for people or as JSON for programs. A reader that goes away (`| head`) is no error.

use std::io::{self, Write as _};

use clap::ValueEnum;
use serde::Serialize;

/// Form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns for people
    #[value(alias = "text")]
    Table,
    /// JSON with names and numbers; fields are added, never renamed
    Json,
}

/// Writes text to standard output.
///
/// # Errors
/// What the system says, unless nobody reads any more.
pub fn write(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes a value as JSON.
///
/// # Errors
/// As [`write`].
pub fn write_json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    write(&text)
}

/// Says something beside the result, on standard error.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "portcullis: {text}");
}

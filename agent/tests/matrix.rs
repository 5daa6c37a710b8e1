//! `portcullis matrix` on folders of manifests: against truth that nobody here wrote, in worlds that leave out what a policy
//! repository leaves out, and with what the API server would refuse.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

#[path = "matrix/bad_input.rs"]
mod bad_input;
#[path = "matrix/folder.rs"]
mod folder;
#[path = "matrix/truth.rs"]
mod truth;
#[path = "matrix/worlds.rs"]
mod worlds;

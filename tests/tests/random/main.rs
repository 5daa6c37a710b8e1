//! Random worlds in which rare fields and mistakes are frequent: the plain reference, the compiled maps and the loaded
//! programs must say the same about them, and whatever changes come in whatever order, the maps must be those of the world
//! that results. What differs is shrunk, and printed as manifests that `regressions` can keep.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod changes;
mod host;
mod incremental;
mod loaded;
mod regressions;
mod shrinking;

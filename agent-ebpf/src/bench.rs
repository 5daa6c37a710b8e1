//! programs for the benchmark

//! Finds the eBPF toolchain and builds the programs.

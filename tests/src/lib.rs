//! Network namespaces and tools for the privileged tests.

//! Principals, classes and who owns an address.

//! Host-side interfaces of pods, from rtnetlink.

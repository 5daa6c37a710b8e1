//! The only place that names aya: loads programs, adopts pinned maps, writes desired state.

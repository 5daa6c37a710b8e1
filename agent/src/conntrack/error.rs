//! What can go wrong between the agent and the kernel's connection tracking.

use std::io;

/// An error of a conversation with conntrack.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A socket call failed.
    #[error("{call} for a netfilter netlink socket failed: {source}")]
    Socket {
        /// The call.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel answered a question with an error.
    #[error("the kernel answered {request} with: {source}")]
    Refused {
        /// The question.
        request: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
}

impl Error {
    /// Whether it only says that this kernel tracks no connections, or that a part for asking about them is missing.
    pub fn is_absence(&self) -> bool {
        let (Self::Socket { source, .. } | Self::Refused { source, .. }) = self;
        matches!(
            source.raw_os_error(),
            Some(libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::ENOENT | libc::EINVAL | libc::EAFNOSUPPORT)
        )
    }
}

//! What can go wrong between the watcher and the kernel.

use std::io;

/// An error of the netlink watcher.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A capability is missing.
    #[error(
        "{call} for a netlink route socket was refused ({source}): pods' interfaces cannot be found without the \
         capability CAP_NET_ADMIN in the node's network namespace; run the agent as root, or give its container \
         `securityContext.capabilities.add: [NET_ADMIN]` and `hostNetwork: true`"
    )]
    Permission {
        /// The call that was refused.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A socket call failed.
    #[error("{call} for a netlink route socket failed: {source}")]
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
        request: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// A dump was cut by a change, several times in a row.
    #[error("{request} was interrupted by changes {times} times in a row; it is tried again")]
    Interrupted {
        /// The question.
        request: String,
        /// How often it was tried.
        times: u32,
    },
    /// The watcher's task ended without an error of its own: it panicked or its runtime was shut down.
    #[error("the task that follows the node's interfaces ended: {0}")]
    Ended(String),
}

impl Error {
    /// A failed socket call; a refused one names the capability.
    pub(super) fn socket(call: &'static str, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::PermissionDenied {
            Self::Permission { call, source }
        } else {
            Self::Socket { call, source }
        }
    }
}

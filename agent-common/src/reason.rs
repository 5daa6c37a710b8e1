//! Directions, verdicts and reasons. The numbers are frozen: they are stored in pinned maps and named in metrics.
//! A retired number stays reserved.

/// Defines a `#[repr(u8)]` enum with frozen numbers, its names for people, and the way back from a number.
macro_rules! numbered {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $number:literal, $text:literal;)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$vmeta])* $variant = $number,)* }

        impl $name {
            /// Every value, in the order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name that people read in metrics, events and dumps.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// The value behind a stored number; `None` for one that this version does not know.
            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.pad(self.name())
            }
        }
    };
}

numbered! {
    /// Which way a packet goes, seen from the pod.
    Direction {
        /// Towards the pod: the `to-pod` hook.
        Ingress = 0, "ingress";
        /// From the pod: the `from-pod` hook.
        Egress = 1, "egress";
    }
}

impl Direction {
    /// The other direction.
    #[inline(always)]
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Ingress => Self::Egress,
            Self::Egress => Self::Ingress,
        }
    }
}

numbered! {
    /// What is done with a packet.
    Verdict {
        /// It passes.
        Allow = 0, "allow";
        /// It is dropped.
        Deny = 1, "deny";
        /// It would be dropped, and passes because the policy is only audited.
        Audit = 2, "audit";
    }
}

numbered! {
    /// Why a verdict was given.
    Reason {
        /// No reason was recorded.
        None = 0, "none";
        /// A rule of a policy, or the isolation that a policy brings, decided.
        Policy = 1, "policy";
        /// No policy has a say: the default verdict.
        Default = 2, "default";
        /// A packet of a flow that was allowed before.
        Established = 3, "established";
        /// The node itself talks to its own pod.
        Host = 4, "host";
        /// The pod talks to itself.
        SelfTraffic = 5, "self";
        /// ARP, neighbour discovery, multicast listener reports: what the link needs to work.
        Link = 6, "link";
        /// An ICMP error about an allowed flow.
        Related = 7, "related";
        /// Enforcement is switched off.
        ModeOff = 8, "mode-off";
        /// A service without endpoints: the node's proxy rejects it.
        NoBackend = 9, "no-backend";

        /// The packet ends before its headers do.
        Truncated = 16, "truncated";
        /// A header contradicts itself.
        Malformed = 17, "malformed";
        /// Neither IPv4, IPv6 nor ARP.
        UnknownEthertype = 18, "unknown-ethertype";
        /// More IPv6 extension headers than are followed.
        TooManyHeaders = 19, "too-many-headers";
        /// A later fragment whose first fragment was not allowed or was not seen.
        FragmentUnknown = 20, "fragment-unknown";
        /// A first fragment too small for the transport header.
        FragmentTiny = 21, "fragment-tiny";
        /// The agent does not know yet which pod is behind this interface.
        UnknownEndpoint = 22, "unknown-endpoint";
        /// The program runs on an interface that has no entry among the endpoints.
        NoEndpoint = 23, "no-endpoint";
        /// The pod sent from an address (IP or MAC) that is not its own.
        SpoofedSource = 24, "spoofed-source";
        /// A TCP packet without SYN that belongs to no known flow.
        NoFlow = 25, "no-flow";
        /// The policy of this endpoint is not (completely) in the maps.
        NoPolicy = 26, "no-policy";
        /// An ICMP message that pods may not send, or that belongs to no flow.
        ForbiddenIcmp = 27, "forbidden-icmp";
        /// A pod sent encapsulated packets to a node.
        Encapsulation = 28, "encapsulation";
        /// The packet on its way into a pod is not addressed to that pod.
        NotForPod = 29, "not-for-pod";
        /// The flow table did not take the flow.
        FlowTable = 30, "flow-table";
        /// More new flows a second at this endpoint than may wait for their first answer.
        FlowBudget = 31, "flow-budget";
    }
}

/// How many counters a table indexed by reason needs.
pub const REASONS: usize = 32;

const _: () = {
    let mut i = 0;
    while i < Reason::ALL.len() {
        assert!((Reason::ALL[i] as usize) < REASONS);
        i += 1;
    }
};

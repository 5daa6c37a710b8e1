//! The flags of the agent.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};
use ipnet::IpNet;
use portcullis_common::Verdict;
use portcullis_common::abi::Mode;

use super::{LogFormat, Paths};
use crate::datapath::{AttachMode, Sizes};

/// What the operator chose for this agent.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct AgentArgs {
    /// Folder of YAML manifests to read pods, namespaces, service accounts, nodes and policies from; watched for changes
    ///
    /// Without it, objects are read from the Kubernetes API.
    #[arg(
        long,
        value_name = "DIR",
        env = "PORTCULLIS_MANIFESTS",
        hide_env_values = true,
        help_heading = "Source"
    )]
    pub manifests: Option<PathBuf>,
    /// How to reach the Kubernetes API; if not given, the files that KUBECONFIG names, else what a pod of a cluster has
    #[arg(long, value_name = "FILE", conflicts_with = "manifests", help_heading = "Source")]
    pub kubeconfig: Option<PathBuf>,
    /// Name of this node; the host name if not given
    #[arg(
        long,
        value_name = "NAME",
        env = "PORTCULLIS_NODE_NAME",
        hide_env_values = true,
        help_heading = "Source"
    )]
    node_name: Option<String>,
    /// Namespace that Portcullis runs in: its ConfigMap `portcullis` sets the mode of the cluster
    #[arg(
        long,
        value_name = "NAME",
        default_value = "portcullis-system",
        env = "PORTCULLIS_NAMESPACE",
        hide_env_values = true,
        help_heading = "Source"
    )]
    pub namespace: String,
    /// Range of pod addresses on this node, beside those of its Node object; may be repeated
    #[arg(
        long,
        value_name = "CIDR",
        env = "PORTCULLIS_POD_CIDR",
        hide_env_values = true,
        value_delimiter = ',',
        help_heading = "Source"
    )]
    pub pod_cidr: Vec<IpNet>,
    /// Range of the services' cluster addresses, beside those of `ServiceCIDR` objects; may be repeated
    #[arg(
        long,
        value_name = "CIDR",
        env = "PORTCULLIS_SERVICE_CIDR",
        hide_env_values = true,
        value_delimiter = ',',
        help_heading = "Source"
    )]
    pub service_cidr: Vec<IpNet>,
    /// Folder of libcni's result cache: tells a new pod's addresses before the API server does; need not exist
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/cni/results",
        env = "PORTCULLIS_CNI_CACHE",
        hide_env_values = true,
        help_heading = "Source"
    )]
    pub cni_cache: PathBuf,

    /// How strictly verdicts are applied where the ConfigMap `portcullis` does not say
    #[arg(long, value_enum, default_value_t = ModeArg::Enforce, env = "PORTCULLIS_MODE", hide_env_values = true,
          help_heading = "Policy")]
    pub mode: ModeArg,
    /// Verdict where no policy has a say
    #[arg(long, value_enum, value_name = "VERDICT", default_value_t = DefaultVerdict::Allow,
          env = "PORTCULLIS_DEFAULT_VERDICT", hide_env_values = true, help_heading = "Policy")]
    pub default_verdict: DefaultVerdict,
    /// Verdict for an interface whose pod is not known (yet)
    #[arg(long, value_enum, value_name = "VERDICT", default_value_t = UnknownEndpoint::Deny,
          env = "PORTCULLIS_UNKNOWN_ENDPOINT", hide_env_values = true, help_heading = "Policy")]
    pub unknown_endpoint: UnknownEndpoint,
    /// Whether network policies are enforced here (say `false` where the CNI plugin does it)
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set,
          env = "PORTCULLIS_NETWORK_POLICIES", hide_env_values = true, help_heading = "Policy")]
    pub network_policies: bool,

    /// How programs are attached
    #[arg(long, value_enum, value_name = "HOW", default_value_t = AttachMode::Auto, env = "PORTCULLIS_ATTACH",
          hide_env_values = true, help_heading = "Datapath")]
    pub attach: AttachMode,
    /// Report one in N allowed new flows as an event; 0: none
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        env = "PORTCULLIS_SAMPLE",
        hide_env_values = true,
        help_heading = "Datapath"
    )]
    pub sample: u32,
    /// Events a second and CPU at most; what is beyond is counted, not sent
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1000,
        env = "PORTCULLIS_EVENT_RATE",
        hide_env_values = true,
        help_heading = "Datapath"
    )]
    pub event_rate: u32,
    /// New flows a second that wait for their first answer, for each pod and direction; what is beyond is dropped;
    /// 0: any number
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1000,
        env = "PORTCULLIS_NEW_FLOW_RATE",
        hide_env_values = true,
        help_heading = "Datapath"
    )]
    pub new_flow_rate: u32,

    /// Address to serve /metrics, /healthz and /readyz on; `[::]` takes IPv4 as well
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "[::]:9478",
        env = "PORTCULLIS_METRICS_ADDRESS",
        hide_env_values = true,
        help_heading = "Metrics and logs"
    )]
    pub metrics_address: SocketAddr,
    /// Form of the logs on standard error
    #[arg(long, value_enum, value_name = "FORM", default_value_t = LogFormat::Text, env = "PORTCULLIS_LOG_FORMAT",
          hide_env_values = true, help_heading = "Metrics and logs")]
    pub log_format: LogFormat,
    /// What is logged: error, warn, info, debug or trace, also by module (`info,portcullis::datapath=debug`)
    #[arg(
        long,
        value_name = "FILTER",
        default_value = "info",
        env = "PORTCULLIS_LOG_LEVEL",
        hide_env_values = true,
        help_heading = "Metrics and logs"
    )]
    pub log_level: String,

    /// Map sizes.
    #[command(flatten)]
    pub sizes: Sizes,
    /// Where maps and names are kept; from the global flags.
    #[arg(skip)]
    pub paths: Paths,
}

const EXAMPLES: &str = "\
Examples:
  portcullis agent                                       in a pod of the cluster
  portcullis agent --kubeconfig admin.conf --node-name node-1
  portcullis agent --manifests deploy/demo --node-name node-1
  portcullis agent --manifests /etc/portcullis --mode audit --log-format json
  portcullis agent --manifests /etc/portcullis --pod-cidr 10.0.1.0/24 --pod-cidr fd00:1::/64

Enforcement outlives the agent: stopping it changes nothing. `portcullis cleanup` ends it.";

impl AgentArgs {
    /// The name of this node: what was given, else the host's.
    ///
    /// # Errors
    /// If the host's name cannot be read.
    pub fn node_name(&self) -> anyhow::Result<String> {
        use anyhow::Context as _;
        if let Some(name) = &self.node_name {
            return Ok(name.clone());
        }
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
            .context("cannot read the host name; name the node with --node-name")?;
        Ok(name.trim().to_owned())
    }
}

/// A [`Mode`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModeArg {
    /// Denied packets are dropped
    Enforce,
    /// Denied packets pass and are counted
    Audit,
    /// Everything passes
    Off,
}

impl From<ModeArg> for Mode {
    fn from(arg: ModeArg) -> Self {
        match arg {
            ModeArg::Enforce => Self::Enforce,
            ModeArg::Audit => Self::Audit,
            ModeArg::Off => Self::Off,
        }
    }
}

/// The verdict where no policy has a say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DefaultVerdict {
    /// Let it pass
    Allow,
    /// Drop it
    Deny,
}

impl From<DefaultVerdict> for Verdict {
    fn from(arg: DefaultVerdict) -> Self {
        match arg {
            DefaultVerdict::Allow => Self::Allow,
            DefaultVerdict::Deny => Self::Deny,
        }
    }
}

/// The verdict for endpoints whose pod is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UnknownEndpoint {
    /// Drop their packets
    Deny,
    /// Let them pass and count them
    Audit,
    /// Let them pass
    Allow,
}

impl From<UnknownEndpoint> for Verdict {
    fn from(arg: UnknownEndpoint) -> Self {
        match arg {
            UnknownEndpoint::Deny => Self::Deny,
            UnknownEndpoint::Audit => Self::Audit,
            UnknownEndpoint::Allow => Self::Allow,
        }
    }
}

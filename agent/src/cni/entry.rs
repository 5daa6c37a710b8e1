//! One file of libcni's result cache.
//!
//! libcni writes it as root, in place and not atomically, when the last plugin of a network has succeeded: before the
//! containers start. So a file may be met half-written, and what it says is believed only where an interface bears it
//! out.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::SystemTime;

use ipnet::IpNet;
use serde::Deserialize;

/// The kind of file that is understood.
const KIND: &str = "cniCacheV1";

/// What a network's plugins gave to a pod's sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniEntry {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// UID of the pod, if the runtime says it.
    pub uid: Option<String>,
    /// Names of interfaces on the host's side; plugins need not name any.
    pub host_interfaces: BTreeSet<String>,
    /// The pod's addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// When it was written.
    pub written: SystemTime,
}

/// Why a file says nothing to us.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// No JSON of the expected form; perhaps it is still being written.
    #[error("not understood: {0}")]
    Form(#[from] serde_json::Error),
    /// It is understood, and of no use.
    #[error("{0}")]
    Useless(&'static str),
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    kind: String,
    #[serde(default, rename = "cniArgs")]
    arguments: Option<Vec<(String, String)>>,
    #[serde(default)]
    result: Option<PluginResult>,
}

#[derive(Default, Deserialize)]
struct PluginResult {
    #[serde(default)]
    interfaces: Option<Vec<Interface>>,
    #[serde(default)]
    ips: Option<Vec<Address>>,
    /// Before version 0.3 of the specification.
    #[serde(default)]
    ip4: Option<OldAddress>,
    #[serde(default)]
    ip6: Option<OldAddress>,
}

#[derive(Deserialize)]
struct Interface {
    #[serde(default)]
    name: String,
    /// Where it is in the pod.
    #[serde(default)]
    sandbox: Option<String>,
}

#[derive(Deserialize)]
struct Address {
    address: String,
}

#[derive(Deserialize)]
struct OldAddress {
    ip: String,
}

impl CniEntry {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// If it is not complete, or tells of no pod or no address.
    pub fn parse(text: &[u8], written: SystemTime) -> Result<Self, EntryError> {
        let File { kind, arguments, result } = serde_json::from_slice(text)?;
        if kind != KIND {
            return Err(EntryError::Useless("not of the kind cniCacheV1"));
        }
        // A runtime may pass an argument twice; the last one is what plugins heed.
        let argument = |key: &str| {
            let all = arguments.iter().flatten().rev();
            all.into_iter().find(|(name, _)| name == key).map(|(_, value)| value.clone())
        };
        let wanted = |key| argument(key).filter(|value| !value.is_empty());
        let (Some(namespace), Some(pod)) = (wanted("K8S_POD_NAMESPACE"), wanted("K8S_POD_NAME")) else {
            return Err(EntryError::Useless("it names no pod"));
        };
        let result = result.unwrap_or_default();
        let new = result.ips.into_iter().flatten().map(|ip| ip.address);
        let old = [result.ip4, result.ip6].into_iter().flatten().map(|ip| ip.ip);
        let addresses: BTreeSet<IpAddr> = new.chain(old).filter_map(|text| address(&text)).collect();
        if addresses.is_empty() {
            return Err(EntryError::Useless("it has no address"));
        }
        let on_host = |interface: &Interface| interface.sandbox.as_deref().unwrap_or_default().is_empty();
        let interfaces = result.interfaces.into_iter().flatten();
        Ok(Self {
            namespace,
            pod,
            uid: wanted("K8S_POD_UID"),
            host_interfaces: interfaces.filter(on_host).map(|interface| interface.name).collect(),
            addresses,
            written,
        })
    }
}

/// An address, with or without the length of its prefix.
fn address(text: &str) -> Option<IpAddr> {
    let address = text.parse::<IpNet>().map(|net| net.addr()).or_else(|_| text.parse::<IpAddr>()).ok()?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parse(value: &Value) -> Result<CniEntry, EntryError> {
        CniEntry::parse(value.to_string().as_bytes(), SystemTime::UNIX_EPOCH)
    }

    /// As libcni writes it for containerd and the bridge plugin.
    fn file() -> Value {
        json!({
            "kind": "cniCacheV1", "containerId": "c0ffee", "config": "eyJ9", "ifName": "eth0",
            "networkName": "pods", "netns": "/var/run/netns/cni-1",
            "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_NAME", "db-0"],
                ["K8S_POD_INFRA_CONTAINER_ID", "c0ffee"], ["K8S_POD_UID", "u1"]],
            "capabilityArgs": {"io.kubernetes.cri.pod-annotations": {"a": "b"}},
            "result": {"cniVersion": "1.0.0", "dns": {},
                "interfaces": [{"mac": "aa:aa:aa:aa:aa:aa", "name": "cni0"}, {"name": "veth1"},
                    {"name": "eth0", "sandbox": "/var/run/netns/cni-1"}],
                "ips": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1", "interface": 2},
                    {"address": "fd00:1::5/64", "interface": 2}]},
        })
    }

    #[test]
    fn a_file_names_pod_interfaces_and_addresses() {
        let expected = CniEntry {
            namespace: "shop".into(),
            pod: "db-0".into(),
            uid: Some("u1".into()),
            host_interfaces: ["cni0", "veth1"].map(str::to_owned).into(),
            addresses: ["10.1.0.5", "fd00:1::5"].map(|a| a.parse().unwrap()).into(),
            written: SystemTime::UNIX_EPOCH,
        };
        assert_eq!(parse(&file()).unwrap(), expected);
    }

    #[test]
    fn old_results_have_addresses_and_no_interfaces() {
        let mut old = file();
        old["result"] =
            json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.1.0.5/24"}, "ip6": {"ip": "fd00:1::5/64"}});
        let entry = parse(&old).unwrap();
        assert_eq!((entry.addresses.len(), entry.host_interfaces.len()), (2, 0));
    }

    #[test]
    fn half_a_file_and_what_tells_of_no_pod_are_errors() {
        let text = file().to_string();
        for length in 0..text.len() {
            let cut = CniEntry::parse(&text.as_bytes()[..length], SystemTime::UNIX_EPOCH);
            assert!(matches!(cut, Err(EntryError::Form(_))), "{length}");
        }
        for (field, value) in [
            ("kind", json!("cniCacheV2")),
            ("cniArgs", json!(null)),
            ("cniArgs", json!([["K8S_POD_NAME", "db-0"]])),
            ("result", json!({"ips": []})),
            ("result", json!({"ips": [{"address": "10.1.0.500/24"}]})),
        ] {
            let mut useless = file();
            useless[field] = value;
            assert!(matches!(parse(&useless), Err(EntryError::Useless(_))), "{useless}");
        }
    }

    #[test]
    fn an_empty_uid_is_none_and_of_two_arguments_the_last_one_counts() {
        let mut twice = file();
        twice["cniArgs"] = json!([
            ["K8S_POD_NAMESPACE", "x"],
            ["K8S_POD_NAME", "y"],
            ["K8S_POD_UID", ""],
            ["K8S_POD_NAMESPACE", "shop"]
        ]);
        let entry = parse(&twice).unwrap();
        assert_eq!((entry.namespace.as_str(), entry.uid), ("shop", None));
    }
}

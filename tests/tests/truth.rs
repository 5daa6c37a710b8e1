//! A sample of the truth tables with real sockets: the pods are network namespaces with the addresses of the file, the agent
//! runs on the step's objects as manifests, and every cell that a socket can try is tried.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use portcullis::state::State;
use portcullis_tests::cluster_probe::Protocol;
use portcullis_tests::oracle::{self, Port, Step, live};
use portcullis_tests::traffic::Echo;
use portcullis_tests::{Agent, Manifests, Network, Node, Pod, eventually, privileged_test};
use serde_json::{Value, json};

/// For what must work.
const SOON: Duration = Duration::from_secs(5);
/// For what must not: an answer between namespaces takes a millisecond.
const NEVER: Duration = Duration::from_millis(700);
/// Connections that are tried at the same time.
const AT_ONCE: usize = 48;

#[test]
fn real_sockets_find_what_the_truth_tables_say() -> Result<()> {
    let steps = oracle::read(&oracle::bundled())?;
    privileged_test(|| {
        let mut picked = live::picks(&steps, &live::ANYWHERE, false)?;
        picked.extend(live::picks(&steps, &live::BY_ADDRESS, true)?);
        let node = node(picked[0])?;
        let manifests = Manifests::new()?;
        manifests.write("node.yaml", NODE)?;
        let _servers = serve(&node, picked[0])?;
        let mut agent: Option<Agent<'_>> = None;
        for step in picked {
            ensure!(placed(&node, step), "{}: other pods than in the steps before", step.title);
            // One file, so that there is no time at which half of a step holds.
            manifests.write(
                "step.json",
                &json!({"apiVersion": "v1", "kind": "List", "items": objects(step, &node)?}).to_string(),
            )?;
            if agent.is_none() {
                agent = Some(Agent::on(&node.ns).manifests(manifests.path()).start()?);
            }
            let running = agent.as_ref().context("the agent that was just started")?;
            eventually(&format!("the policies of {} to be programmed", step.title), || {
                in_force(running, step)
            })?;
            let start = Instant::now();
            let [answered, silent] = try_all(&node, step)?;
            println!(
                "{}: {answered} answered and {silent} did not, as they should, in {:.1} s",
                step.title,
                start.elapsed().as_secs_f64()
            );
        }
        Ok(())
    })
}

/// The pod range of the file's addresses, and of the IPv6 ones that the pods get beside them.
const NODE: &str =
    "apiVersion: v1\nkind: Node\nmetadata: {name: node}\nspec: {podCIDRs: [192.168.1.0/24, 'fd77::/64']}\n";

/// A node with the pods of a step, each with the address that it has there and one of IPv6.
fn node(step: &Step) -> Result<Node> {
    let mut node = Node::with(Network::Routed).build()?;
    for (index, pod) in (1..).zip(&step.pods) {
        let [IpAddr::V4(v4)] = pod.addresses[..] else {
            anyhow::bail!("{pod} has another address than one of IPv4")
        };
        node.add_pod_with(v4, Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, index))?;
    }
    Ok(node)
}

/// Whether the pods of a step are those of the node.
fn placed(node: &Node, step: &Step) -> bool {
    let addresses = step.pods.iter().map(|pod| pod.addresses[0]);
    addresses.eq(node.pods.iter().map(|pod| IpAddr::from(pod.v4)))
}

fn families(pod: &Pod) -> [IpAddr; 2] {
    [pod.v4.into(), pod.v6.into()]
}

/// Echo servers on every port of every pod that a socket can try, over both families.
fn serve(node: &Node, step: &Step) -> Result<Vec<Echo>> {
    let mut servers = Vec::new();
    for pod in &node.pods {
        for address in families(pod) {
            for Port { protocol, number } in step.served() {
                let at = SocketAddr::new(address, number);
                match protocol {
                    6 => servers.push(pod.ns.tcp_echo(at)?),
                    17 => servers.push(pod.ns.udp_echo(at)?),
                    _ => {}
                }
            }
        }
    }
    Ok(servers)
}

/// Everything that the agent is told about a step.
fn objects(step: &Step, node: &Node) -> Result<Vec<Value>> {
    let mut objects = live::namespaces(step);
    for name in step.namespaces.keys() {
        objects.push(json!({"apiVersion": "v1", "kind": "ServiceAccount",
                            "metadata": {"namespace": name, "name": "default"}}));
    }
    let ports: Vec<Value> = step
        .served()
        .into_iter()
        .map(|port| {
            json!({"name": port.container_name(), "protocol": port.protocol_name(), "containerPort": port.number})
        })
        .collect();
    for (pod, place) in step.pods.iter().zip(&node.pods) {
        let ips: Vec<Value> = families(place).iter().map(|ip| json!({"ip": ip})).collect();
        objects.push(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": pod.namespace, "name": pod.name, "labels": pod.labels},
            "spec": {"nodeName": "node", "containers": [{"name": "c", "image": "none", "ports": ports}]},
            "status": {"phase": "Running", "podIPs": ips},
        }));
    }
    objects.extend(live::policies(step)?);
    Ok(objects)
}

/// Whether the agent has programmed the policies of a step and no others.
fn in_force(agent: &Agent<'_>, step: &Step) -> bool {
    let text = std::fs::read_to_string(agent.run_dir().join("state.json")).unwrap_or_default();
    let Ok(state) = serde_json::from_str::<State>(&text) else { return false };
    let found: Vec<_> = state.policies.into_iter().map(|policy| (policy.namespace, policy.name)).collect();
    let wanted = live::policy_names(step);
    state.errors.is_empty() && found.len() == wanted.len() && wanted.iter().all(|name| found.contains(name))
}

/// Tries every cell, over both families where the policies know no addresses; returns how many answered and how many did
/// not.
fn try_all(node: &Node, step: &Step) -> Result<[usize; 2]> {
    let by_address = live::knows_addresses(step);
    let mut tries = Vec::new();
    for (asked, protocol) in live::cells(step, None) {
        for (family, address) in families(&node.pods[asked.to]).into_iter().enumerate() {
            // The truth knows the IPv4 addresses alone.
            if family == 0 || !by_address {
                tries.push((asked, protocol, SocketAddr::new(address, asked.port.number)));
            }
        }
    }
    let next = std::sync::atomic::AtomicUsize::new(0);
    let wrong = Mutex::new(Vec::new());
    let work = || {
        while let Some((asked, protocol, to)) =
            tries.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
        {
            let from = &node.pods[asked.from].ns;
            let wanted = asked.wanted[2];
            let deadline = if wanted { SOON } else { NEVER };
            let answer = match protocol {
                Protocol::Tcp => from.tcp_exchange(*to, deadline),
                Protocol::Udp => from.udp_exchange(*to, deadline),
            };
            if answer.is_ok() != wanted {
                let (sender, receiver) = (&step.pods[asked.from], &step.pods[asked.to]);
                let found = answer.map_or_else(|error| format!("{error:#}"), |()| "answered".to_owned());
                wrong
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(format!("{sender} -> {receiver} {protocol} {to}: {found}"));
            }
        }
    };
    std::thread::scope(|scope| (0..AT_ONCE).for_each(|_| drop(scope.spawn(work))));
    let wrong = wrong.into_inner().unwrap_or_else(PoisonError::into_inner);
    ensure!(wrong.is_empty(), "{}: {} are wrong:\n{}", step.title, wrong.len(), wrong.join("\n"));
    let answered = tries.iter().filter(|(asked, ..)| asked.wanted[2]).count();
    Ok([answered, tries.len() - answered])
}

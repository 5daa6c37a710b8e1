//! Path MTU discovery under default deny: a connection that stalls unless the pod is told that its segments are too big.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;

use anyhow::{Context, Result, ensure};
use portcullis_tests::command::run;
use portcullis_tests::node::OUTSIDE;
use portcullis_tests::poll::PATIENCE;
use portcullis_tests::{Agent, Manifests, Node, Pod, PodObject, privileged_test};

/// MTU of the way out; both ends have 1500, and so agree on segments that do not fit.
const NARROW: u32 = 1280;
/// More than what is under way before the first answer.
const BYTES: usize = 1 << 20;

const NOTHING_BUT_THE_SERVER: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server, namespace: shop}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress:
  - to: [{ipBlock: {cidr: 192.0.2.2/32}}, {ipBlock: {cidr: '2001:db8::2/128'}}]
    ports: [{protocol: TCP, port: 80}]
";

#[test]
fn a_pod_that_may_reach_one_server_only_is_told_when_its_segments_are_too_big() -> Result<()> {
    privileged_test(|| {
        let node = Node::routed().pods(1).outside().build()?;
        node.ns.ip(&format!("link set uplink mtu {NARROW}"))?;
        let manifests = Manifests::new()?;
        let pod = &node.pods[0];
        manifests.pods("pods.yaml", &[PodObject::of("shop", "api", pod)])?;
        manifests.write("policies.yaml", NOTHING_BUT_THE_SERVER)?;
        let agent = Agent::on(&node.ns).manifests(manifests.path()).start()?;
        for server in [IpAddr::from(OUTSIDE.0), OUTSIDE.1.into()] {
            ensure!(path_mtu(pod, server)?.is_none(), "the way to {server} is known to be narrow already");
            upload(&node, pod, (server, 80).into()).with_context(|| format!("uploading to {server}"))?;
            let found = path_mtu(pod, server)?;
            ensure!(found == Some(NARROW), "the pod was not told: the MTU to {server} is {found:?}");
        }
        ensure!(agent.dropped("forbidden-icmp")? == 0, "an error about a flow was dropped");
        Ok(())
    })
}

/// Sends a lot of data to a server outside, which says at the end that it has it.
fn upload(node: &Node, pod: &Pod, at: SocketAddr) -> Result<()> {
    let outside = node.outside.as_ref().context("an outside")?;
    let listener = outside.run(|| Ok(TcpListener::bind(at)?))?;
    thread::scope(|scope| {
        let served = scope.spawn(|| -> Result<()> {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut data = vec![0; BYTES];
            stream.read_exact(&mut data).context("the data")?;
            Ok(stream.write_all(b"!")?)
        });
        pod.ns.run(|| {
            let mut stream = TcpStream::connect_timeout(&at, PATIENCE)?;
            stream.set_write_timeout(Some(PATIENCE))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(&vec![7; BYTES])?;
            stream.read_exact(&mut [0]).context("the answer")
        })?;
        served.join().map_err(|_| anyhow::anyhow!("the server panicked"))?
    })
}

/// What the pod has been told about the way to an address.
fn path_mtu(pod: &Pod, to: IpAddr) -> Result<Option<u32>> {
    let text = run(&mut pod.ns.command("ip", ["route", "get", &to.to_string()]))?;
    let mut words = text.split_whitespace().skip_while(|word| *word != "mtu");
    Ok(words.nth(1).and_then(|mtu| mtu.parse().ok()))
}

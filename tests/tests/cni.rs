//! New pods are known by libcni's result cache, before the API server tells their address; and nobody gets another's
//! identity by it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portcullis_tests::{Agent, Manifests, Node, Pod, PodObject, TempDir, eventually, privileged_test};

/// For what must not: long enough for an answer, and for one retransmission of a SYN.
const NEVER: Duration = Duration::from_millis(1300);

/// The database is open to the API's pods only.
const DB_POLICY: &str = "
apiVersion: portcullis.dev/v1alpha1
kind: IdentityPolicy
metadata: {name: db, namespace: shop}
spec:
  subject: {serviceAccounts: {names: [db]}}
  ingress: {rules: [{action: Accept, from: [{serviceAccounts: {names: [api]}}]}]}
";

/// The accounts api, db and intruder, the policy, and a database that the API server knows.
struct Shop {
    node: Node,
    manifests: Manifests,
    cache: TempDir,
}

impl Shop {
    fn new() -> Result<Self> {
        let node = Node::routed().pods(2).build()?;
        let manifests = Manifests::new()?;
        let addresses = (node.pods[0].v4, node.pods[0].v6);
        let db = PodObject { namespace: "shop", name: "db", account: "db", addresses, started: 1 };
        manifests.pods("db.yaml", &[db])?;
        let account = |name: &str| {
            format!(
                "---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, namespace: shop}}\n"
            )
        };
        manifests.write("accounts.yaml", &(account("api") + &account("intruder")))?;
        manifests.write("policy.yaml", DB_POLICY)?;
        Ok(Self { node, manifests, cache: TempDir::new()? })
    }

    fn agent(&self) -> Result<Agent<'_>> {
        let folder = self.cache.path().to_str().context("a path of text")?;
        Agent::on(&self.node.ns).manifests(self.manifests.path()).args(["--cni-cache", folder]).start()
    }

    /// A pod of the API that is scheduled here and has no address yet.
    fn scheduled(&self, account: &str) -> Result<()> {
        self.manifests.write(
            &format!("{account}.yaml"),
            &format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {account}, namespace: shop, uid: u-{account}}}\n\
                 spec: {{serviceAccountName: {account}, nodeName: node, containers: [{{name: c, image: none}}]}}\n\
                 status: {{phase: Pending, startTime: '2026-01-01T01:00:00Z'}}\n"
            ),
        )
    }

    /// What libcni writes when the pod's interface is done, in place as it does.
    fn cached(&self, account: &str, pod: &Pod) -> Result<()> {
        let Pod { v4, v6, veth, .. } = pod;
        let text = format!(
            r#"{{"kind":"cniCacheV1","containerId":"{account}","config":"e30=","ifName":"eth0","networkName":"pods",
            "netns":"/run/netns/{account}","cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","shop"],
            ["K8S_POD_NAME","{account}"],["K8S_POD_INFRA_CONTAINER_ID","{account}"],["K8S_POD_UID","u-{account}"]],
            "result":{{"cniVersion":"1.0.0","interfaces":[{{"name":"{veth}"}},
            {{"name":"eth0","sandbox":"/run/netns/{account}"}}],"ips":[{{"address":"{v4}/32","interface":1}},
            {{"address":"{v6}/128","interface":1}}]}}}}"#
        );
        Ok(std::fs::write(self.cache.path().join(format!("pods-{account}-eth0")), text)?)
    }
}

/// Waits until the pod is behind its interface, by the agent's own word.
fn bound(agent: &Agent<'_>, account: &str) -> Result<()> {
    eventually(&format!("the interface to be {account}'s"), || {
        agent.cli(["dump", "endpoints"]).is_ok_and(|dump| dump.contains(&format!("shop/{account}")))
    })
}

#[test]
fn a_pod_is_known_by_the_cache_before_the_api_tells_its_address_in_either_order() -> Result<()> {
    privileged_test(|| {
        for cache_first in [true, false] {
            let shop = Shop::new()?;
            let agent = shop.agent()?;
            let [db, api] = [&shop.node.pods[0], &shop.node.pods[1]];
            let at = [SocketAddr::new(db.v4.into(), 5432), SocketAddr::new(db.v6.into(), 5432)];
            let _servers = [db.ns.tcp_echo(at[0])?, db.ns.tcp_echo(at[1])?];
            ensure!(api.ns.tcp_exchange(at[0], NEVER).is_err(), "nobody knows it yet");
            if cache_first {
                shop.cached("api", api)?;
                ensure!(api.ns.tcp_exchange(at[0], NEVER).is_err(), "the cache alone makes nobody known");
                shop.scheduled("api")?;
            } else {
                shop.scheduled("api")?;
                ensure!(api.ns.tcp_exchange(at[0], NEVER).is_err(), "the API does not tell the address");
                shop.cached("api", api)?;
            }
            bound(&agent, "api")?;
            for at in at {
                api.ns.tcp_exchange(at, NEVER).context("the API's pod, by the cache")?;
            }
            // The API server tells the same at last, and nothing changes but who says it.
            let addresses = (api.v4, api.v6);
            let known = PodObject { namespace: "shop", name: "api", account: "api", addresses, started: 2 };
            shop.manifests.pods("api.yaml", &[known])?;
            std::fs::remove_file(shop.cache.path().join("pods-api-eth0"))?;
            eventually("the API's pod to go on", || api.ns.tcp_exchange(at[0], NEVER).is_ok())?;
        }
        Ok(())
    })
}

#[test]
fn an_account_that_is_not_permitted_is_known_by_the_cache_and_denied_by_policy() -> Result<()> {
    privileged_test(|| {
        let shop = Shop::new()?;
        let agent = shop.agent()?;
        let [db, intruder] = [&shop.node.pods[0], &shop.node.pods[1]];
        let at = SocketAddr::new(db.v4.into(), 5432);
        let server = db.ns.tcp_echo(at)?;
        shop.scheduled("intruder")?;
        shop.cached("intruder", intruder)?;
        bound(&agent, "intruder")?;
        ensure!(intruder.ns.tcp_exchange(at, NEVER).is_err(), "the intruder got in");
        ensure!(server.connections() == 0);
        let (_, metrics) = agent.get("/metrics")?;
        let denied = |line: &&str| {
            line.starts_with("portcullis_decisions_total{")
                && line.contains("source_service_account=\"intruder\"")
                && line.contains("verdict=\"deny\"")
        };
        ensure!(metrics.lines().any(|line| denied(&line)), "it is denied under its own name:\n{metrics}");
        Ok(())
    })
}

#[test]
fn an_entry_of_a_container_that_is_gone_lends_its_identity_to_nobody() -> Result<()> {
    privileged_test(|| {
        let mut shop = Shop::new()?;
        // The API's pod was here; its file and its object are left behind, its interface and address are not.
        let (v4, v6) = (shop.node.pods[1].v4, shop.node.pods[1].v6);
        shop.scheduled("api")?;
        shop.cached("api", &shop.node.pods[1])?;
        shop.node.remove_pod(1)?;
        shop.node.add_pod_with(v4, v6)?;
        let agent = shop.agent()?;
        let [db, next] = [&shop.node.pods[0], &shop.node.pods[1]];
        let at = SocketAddr::new(db.v4.into(), 5432);
        let _server = db.ns.tcp_echo(at)?;
        ensure!(next.ns.tcp_exchange(at, NEVER).is_err(), "the next pod passed for the one that is gone");
        ensure!(!agent.cli(["dump", "endpoints"])?.contains("shop/api"));
        // Whose it is now is told by its own file, and by nothing else.
        shop.scheduled("intruder")?;
        shop.cached("intruder", next)?;
        bound(&agent, "intruder")?;
        ensure!(next.ns.tcp_exchange(at, NEVER).is_err());
        ensure!(!agent.cli(["dump", "endpoints"])?.contains("shop/api"));
        Ok(())
    })
}

//! The shop: databases that the API's pods may reach, and nobody else, on both nodes.

use anyhow::Result;
use portcullis_tests::cluster::names;
use portcullis_tests::cluster_probe::{Check, Protocol};
use serde_json::{Value, json};

use crate::objects::{
    World, accept, accounts, at, checks, checks_of, from_pod, pod, policy, server, service,
};

/// Its namespace.
pub const SHOP: &str = "shop";
/// Another one, with an account that is called like the API's.
pub const OTHER: &str = "other";
/// Where the databases listen.
pub const PORT: u16 = 5432;

const NODES: [usize; 2] = [0, 1];
const COPIES: [&str; 2] = ["a", "b"];

/// Everything but policies.
pub fn workloads() -> Vec<Value> {
    let mut objects = accounts(SHOP, &["database", "api", "intruder", "late"]);
    objects.extend(accounts(OTHER, &["api"]));
    let database = json!({"app": "database"});
    objects.push(service(SHOP, "database", &database, PORT));
    for node in NODES {
        for copy in COPIES {
            let name = |what: &str| format!("{what}-{node}{copy}");
            objects.push(server(SHOP, &name("database"), "database", node, PORT));
            objects.push(pod(SHOP, &name("api"), "api", node, &["pause"]));
        }
        objects.push(pod(SHOP, &format!("intruder-{node}"), "intruder", node, &["pause"]));
        objects.push(pod(OTHER, &format!("api-{node}"), "api", node, &["pause"]));
        // One for each node, so that both are reached for certain through a cluster IP.
        let selector = json!({"app": "database", "on": names::node(node)});
        objects.push(service(SHOP, &format!("database-{node}"), &selector, PORT));
    }
    // Its connection is made while it is only audited.
    objects.push(pod(SHOP, "late", "late", 1, &["pause"]));
    objects
}

/// The database is for the API, and the API is for the database.
pub fn policies() -> Vec<Value> {
    let only = |account: &str| json!([{"serviceAccounts": {"names": [account]}}]);
    vec![
        policy(SHOP, "database", "ingress", &accept("ingress", &only("api"))),
        policy(SHOP, "api", "egress", &accept("egress", &only("database"))),
    ]
}

/// The namespaces and names of the policies.
pub fn policy_names() -> Vec<(String, String)> {
    [(SHOP, "database"), (SHOP, "api")].map(|(a, b)| (a.to_owned(), b.to_owned())).into()
}

/// Everyone to every database, directly and through services; the intruders are let in only if `audited`.
pub fn reach(world: &World, audited: bool) -> Result<Vec<Check>> {
    let mut all = Vec::new();
    for node in NODES {
        let apis = COPIES.map(|copy| (SHOP, format!("api-{node}{copy}"), true));
        let intruders =
            [(SHOP, format!("intruder-{node}"), audited), (OTHER, format!("api-{node}"), audited)];
        for (namespace, name, answered) in apis.into_iter().chain(intruders) {
            let from = from_pod(namespace, &name);
            for other in NODES {
                for copy in COPIES {
                    let to = at(&world.pod(SHOP, &format!("database-{other}{copy}"))?, PORT);
                    all.extend(checks(&from, &to, answered, "a database, directly"));
                }
                let to = world.service(SHOP, &format!("database-{other}"))?;
                all.extend(checks(&from, &to, answered, "the databases of a node, through a cluster IP"));
                let udp = at(&world.pod(SHOP, &format!("database-{other}a"))?, PORT);
                all.extend(checks_of(Protocol::Udp, &from, &udp, answered, "a database over UDP"));
            }
            let to = world.service(SHOP, "database")?;
            all.extend(checks(&from, &to, answered, "all databases, through a cluster IP"));
        }
    }
    Ok(all)
}

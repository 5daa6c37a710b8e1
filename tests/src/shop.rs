//! The shop that many tests play in: an API, its database, and policies of the database.

use anyhow::Result;

use crate::manifests::{Manifests, PodObject};
use crate::node::Node;

/// The database is open to the API's pods on TCP 5432, and to nobody else.
pub const DB_OPEN_TO_API: &str = "
apiVersion: portcullis.dev/v1alpha1
kind: IdentityPolicy
metadata: {name: db, namespace: shop}
spec:
  subject: {serviceAccounts: {names: [db]}}
  ingress:
    rules:
    - name: api
      action: Accept
      from: [{serviceAccounts: {names: [api]}}]
      protocols: [{tcp: {destinationPort: {number: 5432}}}]
";

/// The same, closed to everybody.
pub const DB_CLOSED: &str = "
apiVersion: portcullis.dev/v1alpha1
kind: IdentityPolicy
metadata: {name: db, namespace: shop}
spec:
  subject: {serviceAccounts: {names: [db]}}
  ingress: {rules: []}
";

/// Nobody may reach the database, by the standard kind.
pub const DB_ISOLATED: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}
";

/// A node that routes to the pods api and db of the namespace shop, with these policies.
pub fn api_and_db(policies: &str) -> Result<(Node, Manifests)> {
    let node = Node::routed().pods(2).build()?;
    let manifests = Manifests::new()?;
    let [api, db] = [("api", 0), ("db", 1)].map(|(name, i)| PodObject::of("shop", name, &node.pods[i]));
    manifests.pods("pods.yaml", &[api, db])?;
    manifests.write("db.yaml", policies)?;
    Ok((node, manifests))
}

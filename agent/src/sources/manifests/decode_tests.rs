use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::*;

fn keys(text: &str) -> Vec<String> {
    decode(text, false).unwrap().objects.iter().map(|object| object.key().to_string()).collect()
}

/// The only mistake in a text.
fn mistake(text: &str) -> String {
    let errors = decode(text, false).unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors[0].to_string()
}

#[test]
fn every_kind_is_read() {
    let text = "\
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: shop}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: db}
---
apiVersion: v1
kind: Node
metadata: {name: n1}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop}
addressType: IPv4
endpoints: [{addresses: [10.0.0.1]}]
---
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: kubernetes}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: shop}
spec: {podSelector: {}}
---
apiVersion: portcullis.dev/v1alpha1
kind: IdentityPolicy
metadata: {name: p, namespace: shop}
spec: {subject: {}}
status: {conditions: [{type: Accepted}]}
---
apiVersion: portcullis.dev/v1alpha1
kind: ClusterIdentityPolicy
metadata: {name: p}
spec: {tier: Admin, priority: 0, subject: {namespaces: {}}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: portcullis, namespace: portcullis-system}
data: {mode: Audit}
";
    let expected = [
        "Pod shop/a",
        "Namespace shop",
        "ServiceAccount default/db",
        "Node n1",
        "Service shop/web",
        "EndpointSlice shop/web-1",
        "ServiceCIDR kubernetes",
        "NetworkPolicy shop/p",
        "IdentityPolicy shop/p",
        "ClusterIdentityPolicy p",
        "ConfigMap portcullis-system/portcullis",
    ];
    assert_eq!(keys(text), expected);
}

#[test]
fn configuration_of_others_is_ignored() {
    let text = "\
apiVersion: v1
kind: ConfigMapList
items:
- metadata: {name: coredns, namespace: kube-system}
  data: {Corefile: x}
- metadata: {name: portcullis, namespace: portcullis-system}
";
    assert_eq!(keys(text), ["ConfigMap portcullis-system/portcullis"]);
    assert_eq!(decode(text, false).unwrap().ignored, ["v1 ConfigMap kube-system/coredns"]);
}

#[test]
fn lists_are_their_items() {
    let text = "\
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: a}}
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicyList
  items:
  - {metadata: {name: p, namespace: a}, spec: {podSelector: {}}}
- {apiVersion: apps/v1, kind: Deployment, metadata: {name: d, namespace: a}}
- {apiVersion: v1, kind: PodList, items: null}
";
    assert_eq!(keys(text), ["Namespace a", "NetworkPolicy a/p"]);
    assert_eq!(decode(text, false).unwrap().ignored, ["apps/v1 Deployment a/d"]);
    assert_eq!(
        mistake("{apiVersion: v1, kind: List, itmes: []}"),
        "document 1 (List), line 1, field `items`: a list has its objects here, as a sequence; correct it"
    );
    let bad = "kind: List\napiVersion: v1\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: x}\n  status:\n    podIP: 1.2.3\n";
    assert_eq!(
        mistake(bad),
        "document 1 (Pod x), line 8, field `items[0].status.podIP`: `1.2.3` is not an IP address; correct it"
    );
}

#[test]
fn json_means_the_same_as_yaml() {
    let text = r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}}"#;
    let (json, yaml) = (decode(text, true).unwrap(), decode(text, false).unwrap());
    assert_eq!(json.objects, yaml.objects);
    assert_eq!(json.objects.len(), 1);
    let errors = decode("{\n\"kind\": ,", true).unwrap_err();
    assert_eq!(
        errors[0].to_string(),
        "document 1, line 2: not valid JSON: expected value; correct the syntax"
    );
}

#[test]
fn a_port_is_a_number_or_a_name_as_it_was_written() {
    let text = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p}
spec:
  podSelector: {}
  ingress: [{ports: [{port: 80}, {port: \"80\"}, {port: http}]}]
";
    let decoded = decode(text, false).unwrap();
    let Object::NetworkPolicy(policy) = &decoded.objects[0] else { panic!("{decoded:?}") };
    let ports: Vec<_> = policy.spec.ingress.as_ref().unwrap()[0].ports.as_ref().unwrap().iter().collect();
    let ports: Vec<_> = ports.into_iter().map(|p| p.port.clone().unwrap()).collect();
    assert_eq!(
        ports,
        [IntOrString::Int(80), IntOrString::String("80".into()), IntOrString::String("http".into())]
    );
}

#[test]
fn a_misspelt_field_of_a_policy_is_a_mistake_wherever_it_is() {
    let unknown = "unknown field; a policy is not used without a part that is not understood: correct the name or \
                   remove the field";
    let network = |rest: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: s}}\n{rest}"
        )
    };
    for (rest, place) in [
        ("spec:\n  podSelectr: {}\n", "line 5, field `spec.podSelectr`"),
        ("spec:\n  podSelector:\n    matchLabel: {a: b}\n", "line 6, field `spec.podSelector.matchLabel`"),
        (
            "spec:\n  ingress:\n  - from:\n    - podSelector: {}\n      nsSelector: {}\n",
            "line 8, field `spec.ingress[0].from[0].nsSelector`",
        ),
        ("sepc: {}\n", "line 4, field `sepc`"),
    ] {
        assert_eq!(mistake(&network(rest)), format!("document 1 (NetworkPolicy s/p), {place}: {unknown}"));
    }

    let identity = |rest: &str| {
        format!(
            "apiVersion: portcullis.dev/v1alpha1\nkind: IdentityPolicy\nmetadata: {{name: p}}\nspec:\n  {rest}\n"
        )
    };
    let text = mistake(&identity("subject: {}\n  ingress: {rules: [{action: Accept, form: [], from: []}]}"));
    let start =
        "document 1 (IdentityPolicy p), line 6, field `spec.ingress.rules[0].form`: unknown field `form`";
    assert!(text.starts_with(start), "{text}");
    let selector = "subject: {serviceAccounts: {selector: {matchLabel: {a: b}}}}";
    assert_eq!(
        mistake(&identity(selector)),
        format!(
            "document 1 (IdentityPolicy p), line 5, field `spec.subject.serviceAccounts.selector.matchLabel`: {unknown}"
        )
    );
    let text = mistake(&identity("subject: {}\n  mode: enforce"));
    assert!(text.contains("line 6, field `spec.mode`: unknown variant `enforce`, expected one of"), "{text}");
}

#[test]
fn unknown_fields_of_other_kinds_are_fine() {
    let text =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a, new: 1}\nspec: {containers: [], soon: {x: 1}}\n";
    assert_eq!(keys(text), ["Pod default/a"]);
}

#[test]
fn a_wrong_type_is_named_with_field_and_line() {
    let text = "\
apiVersion: v1
kind: Namespace
metadata: {name: a}
---
apiVersion: v1
kind: Pod
metadata:
  name: b
  namespace: shop
spec:
  containers:
  - name: c
    ports:
    - containerPort: http
";
    let text = mistake(text);
    let start = "document 2 (Pod shop/b), line 14, field `spec.containers[0].ports[0].containerPort`: invalid type: \
                 string \"http\"";
    assert!(text.starts_with(start), "{text}");
    let text = mistake("apiVersion: v1\nkind: Pod\nmetadata:\n  name: b\n  labels: {version: 1.5}\n");
    assert!(text.contains("line 5, field `metadata.labels.version`: invalid type"), "{text}");
}

#[test]
fn every_mistake_of_a_file_is_reported() {
    let text = "kind: Pod\n---\napiVersion: v1\nkind: Node\nmetadata: {}\n---\njust text\n---\nkind: 5\napiVersion: v1\n";
    let errors: Vec<_> = decode(text, false).unwrap_err().iter().map(ToString::to_string).collect();
    let expected = [
        "document 1 (Pod), line 1, field `apiVersion`: is missing; every object says its apiVersion and kind: add it",
        "document 2 (Node), line 5, field `metadata.name`: is missing; add it",
        "document 3, line 7: not a Kubernetes object; each document must be a mapping with a kind",
        "document 4, line 9, field `kind`: must be a text that is not empty; correct it",
    ];
    assert_eq!(errors, expected);
}

#[test]
fn other_kinds_are_ignored_but_not_those_of_our_group() {
    let text = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n---\napiVersion: projectcalico.org/v3\nkind: \
                NetworkPolicy\n---\napiVersion: x.io/v1\nkind: AllowList\nitems: [1]\n";
    let decoded = decode(text, false).unwrap();
    assert!(decoded.objects.is_empty());
    assert_eq!(
        decoded.ignored,
        ["apps/v1 Deployment d", "projectcalico.org/v3 NetworkPolicy", "x.io/v1 AllowList"]
    );
    for (version, kind, field) in [
        ("portcullis.dev/v1alpha1", "IdentityPolicyy", "kind"),
        ("portcullis.dev/v1alpha1", "NetworkPolicy", "kind"),
        ("portcullis.dev/v2", "IdentityPolicy", "apiVersion"),
        ("portcullis.dev/v2", "ClusterIdentityPolicy", "apiVersion"),
        ("networking.k8s.io/v1beta1", "NetworkPolicy", "apiVersion"),
        ("v1", "NetworkPolicy", "apiVersion"),
        ("v1", "ClusterIdentityPolicy", "apiVersion"),
    ] {
        let text = mistake(&format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x}}\n"));
        assert!(text.contains(&format!("({kind} x), line ")), "{text}");
        assert!(text.contains(&format!("field `{field}`: ")), "{text}");
    }
}

#[test]
fn an_object_or_a_uid_that_is_there_twice_is_a_mistake() {
    let pod = |name: &str, uid: &str| {
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, uid: \"{uid}\"}}\n---\n")
    };
    let text = mistake(&(pod("a", "1") + &pod("b", "2") + &pod("a", "3")));
    assert_eq!(
        text,
        "document 3 (Pod a), line 11, field `metadata.name`: Pod default/a is already defined in this file; remove \
         one of the two"
    );
    let text = mistake(&(pod("a", "1") + &pod("b", "1")));
    assert!(text.contains("document 2 (Pod b), line 7, field `metadata.uid`: another pod"), "{text}");
}

#[test]
fn a_policy_of_the_cluster_is_read_strictly() {
    let text = "\
apiVersion: portcullis.dev/v1alpha1
kind: ClusterIdentityPolicy
metadata: {name: guardrails}
spec:
  tier: Admin
  priority: 10
  subject: {namespaces: {}}
  ingress:
    rules: [{action: Deny, from: [{entities: [world]}]}]
";
    assert_eq!(keys(text), ["ClusterIdentityPolicy guardrails"]);
    for (from, to, field) in [
        ("tier: Admin", "tier: Cluster", "spec.tier"),
        ("priority: 10", "priority: high", "spec.priority"),
        ("action: Deny", "action: Allow", "spec.ingress.rules[0].action"),
        ("    rules:", "    isolate: true\n    rules:", "spec.ingress.isolate"),
        ("  subject: {namespaces: {}}\n", "", "spec"),
    ] {
        assert!(text.contains(from));
        let mistake = mistake(&text.replacen(from, to, 1));
        assert!(mistake.contains("(ClusterIdentityPolicy guardrails), line "), "{mistake}");
        assert!(mistake.contains(&format!("field `{field}`: ")), "{mistake}");
    }
}

//! The test clusters themselves: pods that reach each other in every way, nodes that share nothing, and nothing left.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portcullis_tests::cluster::archive::{Entry, Image};
use portcullis_tests::cluster::names::{Name, OUTSIDE, OUTSIDE_FURTHER};
use portcullis_tests::cluster::{Cluster, Options, Pods, Proxy, images, teardown};
use portcullis_tests::command::run;
use portcullis_tests::residue::Snapshot;
use portcullis_tests::{TempDir, eventually, privileged_test};

/// A server on every node, a client on the first, and a service with a port on the nodes.
fn workload() -> String {
    format!(
        r"
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {{app: web}}
  ports: [{{port: 80, targetPort: 8080, nodePort: 30080}}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: web}}
spec:
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      containers:
      - name: web
        image: {agnhost}
        args: [netexec, --http-port=8080]
        ports: [{{containerPort: 8080, hostPort: 18080}}]
        env: [{{name: NODE, valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}}}]
        readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 1}}
        livenessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}
        startupProbe: {{exec: {{command: [/bin/true]}}, periodSeconds: 1}}
",
        agnhost = images::AGNHOST
    )
}

/// One pod of the daemon set, with what it is reached by.
struct Web {
    name: String,
    addresses: Vec<String>,
}

fn web_on(cluster: &Cluster, node: &str) -> Result<Web> {
    let of_node = format!("--field-selector=spec.nodeName={node}");
    let path = "--output=jsonpath={.items[0].metadata.name} {.items[0].status.podIPs[*].ip}";
    let line = cluster.kubectl(["get", "pods", "--selector=app=web", &of_node, path])?;
    let mut words = line.split(' ').map(str::to_owned);
    let name =
        words.next().filter(|name| !name.is_empty()).with_context(|| format!("no server on {node}"))?;
    Ok(Web { name, addresses: words.collect() })
}

/// Asks for a name over HTTP from inside a pod.
fn ask(cluster: &Cluster, from: &str, to: &str) -> Result<String> {
    let url = if to.contains(':') { format!("http://[{to}]") } else { format!("http://{to}") };
    let port = if to.starts_with("10.96.") || to.starts_with("fd96:") { 80 } else { 8080 };
    let args = ["timeout", "5", "wget", "-q", "-O", "-", &format!("{url}:{port}/hostname")];
    cluster.exec("default", from, args).with_context(|| format!("{from} asks {to}"))
}

/// Everything that the tests of the agent rely on.
fn everyone_reaches_everyone(cluster: &Cluster) -> Result<()> {
    cluster.apply(&workload())?;
    cluster.wait_rollout("default", "daemonset/web")?;
    let (here, there) = (web_on(cluster, "node0")?, web_on(cluster, "node1")?);
    assert_eq!((here.addresses.len(), there.addresses.len()), (2, 2), "both families");
    for address in &there.addresses {
        assert_eq!(ask(cluster, &here.name, address)?, there.name, "directly, {address}");
        assert!(address.starts_with("10.244.1.") || address.starts_with("fd24:0:0:1:"), "{address}");
    }
    // Which pod answers for the service is chance: until both have, so that also the one of the same node has.
    let services = cluster.value("default", "service/web", "{.spec.clusterIPs[*]}")?;
    assert_eq!(services.split(' ').count(), 2, "{services}");
    for service in services.split(' ') {
        for wanted in [&here.name, &there.name] {
            eventually(&format!("{wanted} to answer for {service}"), || {
                ask(cluster, &here.name, service).is_ok_and(|name| name == *wanted)
            })?;
        }
    }
    for name in ["web", "web.default.svc.cluster.local"] {
        cluster.exec(
            "default",
            &here.name,
            ["/agnhost", "connect", "--timeout=5s", &format!("{name}:80")],
        )?;
    }
    // From outside: a port of the node, and the pod itself.
    let deadline = Duration::from_secs(5);
    for i in 0..2 {
        let (v4, v6) = cluster.node_addresses(i);
        for at in [
            SocketAddr::new(v4.into(), 30080),
            SocketAddr::new(v6.into(), 30080),
            SocketAddr::new(v4.into(), 18080),
        ] {
            eventually(&format!("{at} to answer the outside"), || {
                cluster.outside.tcp_connect(at, deadline).is_ok()
            })?;
        }
    }
    // To the outside, by every address that it has.
    for address in OUTSIDE_FURTHER.into_iter().chain([OUTSIDE.0.into(), OUTSIDE.1.into()]) {
        let server = cluster.outside.tcp_echo(SocketAddr::new(address, 8080))?;
        let at = server.address().to_string();
        cluster.exec("default", &here.name, ["/agnhost", "connect", "--timeout=5s", &at])?;
        assert_eq!(server.connections(), 1, "{at}");
    }
    // From a pod's own network, with the harness's own sockets.
    let pod = cluster.pod_namespace("default", &here.name)?;
    let at = SocketAddr::new(there.addresses[0].parse()?, 8080);
    assert_eq!(
        pod.tcp_connect(at, deadline)?.local_addr()?.ip(),
        here.addresses[0].parse::<std::net::IpAddr>()?
    );
    Ok(())
}

/// What a person does with pods goes through the kubelets, and so do a pod's own ways to the API server.
fn pods_are_reached_by_kubectl_and_reach_the_api_server(cluster: &Cluster) -> Result<()> {
    let here = web_on(cluster, "node0")?;
    assert_eq!(cluster.exec("default", &here.name, ["sh", "-c", "echo $NODE"])?.trim(), "node0");
    assert!(cluster.kubectl(["logs", &here.name])?.contains("Started HTTP server"));
    let script = "cd /var/run/secrets/kubernetes.io/serviceaccount && timeout 5 wget -q -O - --no-check-certificate \
                  --header \"Authorization: Bearer $(cat token)\" \
                  https://$KUBERNETES_SERVICE_HOST/api/v1/namespaces/default/pods 2>&1";
    // The account is known and has no rights: the token was checked.
    let answer = cluster.exec("default", &here.name, ["sh", "-c", &format!("{script} || true")])?;
    assert!(answer.contains("403"), "{answer}");
    let debug = [
        "debug",
        "node/node1",
        "--quiet",
        "--profile=sysadmin",
        "--image",
        images::BUSYBOX,
        "--",
        "ls",
        "/host/sys/fs/bpf",
    ];
    cluster.kubectl(debug)?;
    let pods = "--output=jsonpath={range .items[*]}{.metadata.name} {end}";
    let pods = cluster.kubectl(["get", "pods", pods])?;
    let debugger =
        pods.split(' ').find(|name| name.starts_with("node-debugger")).context("a debugging pod")?;
    cluster.wait_for("default", &format!("pod/{debugger}"), "jsonpath={.status.phase}=Succeeded")?;
    cluster.kubectl(["delete", "pod", debugger, "--now"])?;
    Ok(())
}

/// What is a node's alone is not seen on the other node, and not on the machine.
fn nodes_share_nothing(cluster: &Cluster) -> Result<()> {
    let on = |i: usize, script: &str| -> Result<String> {
        let output = cluster.node(i).place.command("sh", ["-c", script])?.output()?;
        ensure!(output.status.success(), "{script} on node{i}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    on(0, "mkdir /sys/fs/bpf/portcullis-try && touch /run/portcullis-try /var/lib/try /var/log/try")?;
    for path in ["/sys/fs/bpf/portcullis-try", "/run/portcullis-try", "/var/lib/try", "/var/log/try"] {
        assert_eq!(on(0, &format!("ls -d {path}"))?, path);
        assert_eq!(on(1, &format!("ls -d {path} 2> /dev/null || echo none"))?, "none", "node1 sees {path}");
        assert!(!Path::new(path).exists(), "the machine sees {path}");
    }
    for i in 0..2 {
        let results = on(i, "grep -ho '10[.]244[.][0-9]*' -r /var/lib/cni/results | sort -u")?;
        assert_eq!(results, format!("10.244.{i}"), "the CNI's record of node{i}");
        assert_eq!(on(i, "cat /proc/sys/kernel/hostname")?, format!("node{i}"));
    }
    assert_eq!(cluster.http_get(1, 10248, "/healthz")?.body, "ok");
    Ok(())
}

#[test]
fn routed_pods_with_iptables_reach_everyone_and_survive_an_outage_of_the_control_plane() -> Result<()> {
    privileged_test(|| {
        let cluster = Cluster::up(&Options::default())?;
        everyone_reaches_everyone(&cluster)?;
        pods_are_reached_by_kubectl_and_reach_the_api_server(&cluster)?;
        nodes_share_nothing(&cluster)?;
        let (here, there) = (web_on(&cluster, "node0")?, web_on(&cluster, "node1")?);
        cluster.stop_api_server()?;
        cluster.stop_etcd()?;
        cluster.stop_kubelet(0)?;
        assert_eq!(cluster.dead_daemons(), ["etcd", "kube-apiserver", "kubelet-node0"]);
        assert!(cluster.kubectl(["get", "--raw", "/readyz"]).is_err());
        let pod = "{.metadata.uid}";
        cluster.start_etcd()?;
        cluster.start_api_server()?;
        cluster.start_kubelet(0)?;
        assert!(cluster.dead_daemons().is_empty());
        assert!(
            !cluster.value("default", &format!("pod/{}", here.name), pod)?.is_empty(),
            "etcd kept its data"
        );
        // The kubelet has to find its pods again.
        eventually("the pods to talk as before", || {
            ask(&cluster, &here.name, &there.addresses[0]).is_ok_and(|name| name == there.name)
        })?;
        cluster.down()
    })
}

#[test]
fn bridged_pods_with_nftables_reach_everyone() -> Result<()> {
    privileged_test(|| {
        let options = Options { pods: Pods::Bridged, proxy: Proxy::Nftables, ..Options::default() };
        let cluster = Cluster::up(&options)?;
        let rules = cluster.node(1).place.command("nft", ["list", "table", "ip", "kube-proxy"])?.output()?;
        assert!(rules.status.success(), "kube-proxy uses nftables");
        let bridge = cluster.node(1).place.command("ip", ["link", "show", "cni0"])?;
        everyone_reaches_everyone(&cluster)?;
        assert!({ bridge }.output()?.status.success(), "pods are in a bridge");
        nodes_share_nothing(&cluster)
        // Dropping it removes it, with its pods still running.
    })
}

#[test]
fn two_clusters_live_side_by_side_and_one_goes_without_the_other() -> Result<()> {
    privileged_test(|| {
        let options = Options { nodes: 1, ..Options::default() };
        let (first, second) = thread::scope(|scope| {
            let other = scope.spawn(|| Cluster::up(&options));
            let first = Cluster::up(&options);
            (first, other.join().expect("no panic"))
        });
        let (first, second) = (first?, second?);
        first.kubectl(["create", "namespace", "only-here"])?;
        assert!(second.kubectl(["get", "namespace", "only-here"]).is_err());
        let again = Cluster::up_as(first.name(), &options, || false).expect_err("it is up");
        assert!(again.to_string().contains("there is a cluster"), "{again:#}");
        let name = first.name().clone();
        first.down()?;
        assert!(Cluster::open(&name)?.is_none());
        second.kubectl(["get", "--raw", "/readyz"])?;
        second.down()
    })
}

#[test]
fn what_is_left_of_a_cluster_is_removed_whatever_it_is() -> Result<()> {
    privileged_test(|| {
        let before = Snapshot::take();
        let options = Options { nodes: 1, ..Options::default() };
        // Interrupted halfway: it removes itself.
        let name = Name::fresh();
        let error =
            Cluster::up_as(&name, &options, || name.folder().join("etcd").exists()).expect_err("interrupted");
        assert!(error.is::<portcullis_tests::cluster::Interrupted>(), "{error:#}");
        assert!(!teardown::clusters().contains(&name));
        // As after a power failure: files and namespaces without processes, or processes without files.
        let cluster = Cluster::up_as(&Name::fresh(), &options, || false)?;
        let name = cluster.name().clone();
        cluster.keep();
        fs::remove_dir_all(name.folder().join("daemons"))?;
        fs::remove_file(name.folder().join("cluster.json"))?;
        assert!(teardown::clusters().contains(&name) && Cluster::open(&name)?.is_none());
        let found = Snapshot::take().since(&before);
        for kind in ["namespace", "process", "cgroup", "folder"] {
            assert!(found.iter().any(|thing| thing.kind == kind), "no {kind} was seen in {found:?}");
        }
        teardown::destroy(&name)?;
        teardown::destroy(&name)?;
        assert!(!teardown::clusters().contains(&name));
        Ok(())
    })
}

/// A cluster that is removed with it, also by a failed test.
struct Made(Name);

impl Drop for Made {
    fn drop(&mut self) {
        if let Err(error) = teardown::destroy(&self.0) {
            eprintln!("{error:#}");
        }
    }
}

#[test]
fn a_person_starts_looks_at_fills_and_removes_a_cluster_by_the_command() -> Result<()> {
    privileged_test(|| {
        let xtask = std::env::var_os("PORTCULLIS_XTASK");
        let xtask = xtask.context("PORTCULLIS_XTASK is not set: run this by `cargo xtask test`")?;
        let made = Made(Name::fresh());
        let output = |words: &[&str]| {
            let mut command = Command::new(&xtask);
            command.args(["cluster", "--name", made.0.as_str()]).args(words);
            command.output().with_context(|| format!("starting {command:?}"))
        };
        let text = |output: &Output| {
            [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
        };
        let said = |words: &[&str]| {
            let output = output(words)?;
            ensure!(output.status.success(), "cluster {words:?}: {}", text(&output));
            Ok(text(&output))
        };
        let missing = output(&["status"])?;
        ensure!(
            !missing.status.success() && text(&missing).contains("there is no cluster"),
            "{}",
            text(&missing)
        );

        let wanted = ["--pods", "bridged", "--between", "vxlan", "--proxy", "nftables"];
        let up = said(&[&["up", "--nodes", "1", "--no-dns"][..], &wanted].concat())?;
        ensure!(up.contains("1 nodes joined by vxlan, bridged pods, kube-proxy with nftables"), "{up}");
        // The line that people copy works as it is.
        let export = up
            .lines()
            .map(str::trim)
            .find(|line| line.starts_with("export KUBECONFIG="))
            .context("no export")?;
        let script = format!("{export} && kubectl get nodes --output=name");
        let nodes = run(Command::new("sh").args(["-c", &script]))?;
        ensure!(nodes == "node/node0\n", "{nodes}");
        let twice = output(&["up", "--nodes", "1"])?;
        ensure!(!twice.status.success() && text(&twice).contains("there is a cluster"), "{}", text(&twice));

        let folder = TempDir::new()?;
        let archive = folder.path().join("own.tar");
        folder.write("program", "of an image")?;
        let program = Entry::File { name: "program".to_owned(), path: folder.path().join("program") };
        let own = Image {
            reference: "example.org/own:1".to_owned(),
            entrypoint: vec!["/program".to_owned()],
            command: vec![],
            entries: vec![program],
        };
        own.write(&archive)?;
        let archive = archive.display().to_string();
        ensure!(said(&["load", &archive])?.contains("is on every node"), "load says nothing");
        let images = Cluster::open(&made.0)?.context("it is up")?.node(0).ctr(["images", "list"])?;
        ensure!(images.contains("example.org/own:1"), "the image is not there: {images}");
        let nothing = output(&["load", "/no/such/file"])?;
        ensure!(!nothing.status.success() && text(&nothing).contains("/no/such/file"), "{}", text(&nothing));

        let status = said(&["status"])?;
        for part in ["1 nodes joined by vxlan, bridged pods", "export KUBECONFIG=", "node0   Ready"] {
            ensure!(status.contains(part), "status lacks `{part}`: {status}");
        }
        ensure!(said(&["kubectl", "--", "get", "nodes", "--output=name"])? == "node/node0\n", "kubectl");
        // What a command ends with is what it ended with.
        ensure!(output(&["node", "0", "--", "sh", "-c", "exit 7"])?.status.code() == Some(7), "node");

        ensure!(said(&["down"])?.contains("is removed"), "down");
        ensure!(!teardown::clusters().contains(&made.0), "something is left");
        ensure!(said(&["down"])?.contains("nothing to remove"), "down, once more");
        Ok(())
    })
}

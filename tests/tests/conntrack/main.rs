//! Connections that are older than their flows: what the kernel's conntrack knows of them is judged, and nothing is guessed
//! where it knows nothing.

mod pair;
mod raw;
mod scene;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portcullis::datapath::sys;
use portcullis_tests::command::run;
use portcullis_tests::node::OUTSIDE;
use portcullis_tests::packets::flags;
use portcullis_tests::shop::DB_CLOSED;
use portcullis_tests::{Agent, Network, PodObject, eventually, privileged_test};
use socket2::SockRef;

use pair::{Pair, Speaker};
use raw::Raw;
use scene::{MASQUERADED, Shop, VIP, both, forget_flows, outside_at, policies};

/// For what must work, if need be by a retransmission.
const SOON: Duration = Duration::from_secs(5);
/// For what must work without one: TCP sends again after 200 ms.
const AT_ONCE: Duration = Duration::from_millis(150);
/// For what must not work: long enough for some retransmissions.
const NEVER: Duration = Duration::from_millis(1500);

#[test]
fn permitted_connections_that_were_open_before_the_first_start_live_on_and_forbidden_ones_are_cut()
-> Result<()> {
    privileged_test(|| {
        let shop = Shop::tracked(Network::Routed)?;
        let [api, db, intruder, hermit] = shop.pods();
        let (node, outside) = (&shop.node.ns, shop.outside()?);
        let (mut permitted, mut forbidden) = (Vec::new(), Vec::new());
        for (index, at) in both(db, 5432).into_iter().enumerate() {
            let vip = SocketAddr::new([IpAddr::from(VIP.0), IpAddr::from(VIP.1)][index], 80);
            permitted.push(Pair::open(&api.ns, at, &db.ns, at)?);
            permitted.push(Pair::open(&api.ns, vip, &db.ns, at)?);
            permitted.push(Pair::open(node, at, &db.ns, at)?);
            forbidden.push(Pair::open(&intruder.ns, at, &db.ns, at)?);
            forbidden.push(Pair::open(&intruder.ns, vip, &db.ns, at)?);
            forbidden.push(Pair::open(outside, at, &db.ns, at)?);
        }
        let masqueraded = SocketAddr::new(MASQUERADED.into(), 80);
        permitted.push(Pair::open(&api.ns, masqueraded, &db.ns, both(db, 5432)[0])?);
        forbidden.push(Pair::open(&intruder.ns, masqueraded, &db.ns, both(db, 5432)[0])?);
        for at in outside_at(80) {
            permitted.push(Pair::open(&db.ns, at, outside, at)?);
            forbidden.push(Pair::open(&hermit.ns, at, outside, at)?);
        }
        for at in both(hermit, 80) {
            permitted.push(Pair::open(outside, at, &hermit.ns, at)?);
        }

        let agent = shop.agent(&[])?;
        for pair in &mut permitted {
            pair.talk(AT_ONCE)?;
        }
        ensure!(agent.dropped("no-flow")? == 0, "a permitted connection had to send again");
        for pair in &mut forbidden {
            pair.is_cut()?;
        }
        for pair in &mut permitted {
            pair.talk(AT_ONCE).context("after the others were cut")?;
        }
        let log = agent.logs();
        ensure!(log.contains("connections that were open before have been judged"), "the log says it");
        Ok(())
    })
}

#[test]
fn a_bridge_whose_traffic_is_not_tracked_is_not_guessed_about_and_what_is_routed_lives_on() -> Result<()> {
    privileged_test(|| {
        let shop = Shop::tracked(Network::Bridged)?;
        let [api, db, _, hermit] = shop.pods();
        shop.node.ns.filter_bridged(false)?;
        let outside = shop.outside()?;
        let (mut permitted, mut untracked, mut forbidden) = (Vec::new(), Vec::new(), Vec::new());
        for at in both(db, 5432) {
            untracked.push(Pair::open(&api.ns, at, &db.ns, at)?);
        }
        for at in outside_at(80) {
            permitted.push(Pair::open(&db.ns, at, outside, at)?);
            forbidden.push(Pair::open(&hermit.ns, at, outside, at)?);
        }
        let agent = shop.agent(&[])?;
        for pair in &mut permitted {
            pair.talk(AT_ONCE)?;
        }
        for pair in untracked.iter_mut().chain(&mut forbidden) {
            pair.is_cut()?;
        }
        drop(agent);
        Ok(())
    })
}

#[test]
fn without_conntrack_nothing_is_guessed() -> Result<()> {
    privileged_test(|| {
        let shop = Shop::new(Network::Routed)?;
        let [api, db, ..] = shop.pods();
        let mut older = Vec::new();
        for at in both(db, 5432) {
            older.push(Pair::open(&api.ns, at, &db.ns, at)?);
        }
        let agent = shop.agent(&[])?;
        for pair in &mut older {
            pair.is_cut()?;
        }
        for at in both(db, 5432) {
            let mut pair = Pair::open(&api.ns, at, &db.ns, at).context("a new one is let in")?;
            forget_flows(&agent, db)?;
            pair.is_cut()?;
        }
        Ok(())
    })
}

#[test]
fn a_permitted_connection_survives_the_loss_of_its_flow_whoever_speaks_first() -> Result<()> {
    privileged_test(|| {
        let shop = Shop::tracked(Network::Routed)?;
        let [api, db, _, hermit] = shop.pods();
        let outside = shop.outside()?;
        let agent = shop.agent(&["--log-level", "info,portcullis::controller=debug"])?;
        let masqueraded = SocketAddr::new(MASQUERADED.into(), 80);
        let [db4, db6] = both(db, 5432);
        let vips = [SocketAddr::new(VIP.0.into(), 80), SocketAddr::new(VIP.1.into(), 80)];
        let [hermit4, _] = both(hermit, 80);
        let [_, outside6] = outside_at(80);
        let mut pairs = [
            (Pair::open(&api.ns, masqueraded, &db.ns, db4)?, vec![api, db]),
            (Pair::open(&api.ns, vips[0], &db.ns, db4)?, vec![api, db]),
            (Pair::open(&api.ns, vips[1], &db.ns, db6)?, vec![api, db]),
            (Pair::open(&api.ns, db6, &db.ns, db6)?, vec![api, db]),
            (Pair::open(outside, hermit4, &hermit.ns, hermit4)?, vec![hermit]),
            (Pair::open(&db.ns, outside6, outside, outside6)?, vec![db]),
        ];
        if !sys::has_exclusive_test_runs() {
            // The programs are not asked beside live packets, and nobody else judges.
            for pod in [api, db, hermit] {
                forget_flows(&agent, pod)?;
            }
            for (pair, _) in &mut pairs {
                pair.is_cut()?;
            }
            let mut new = Pair::open(&api.ns, db6, &db.ns, db6).context("a new connection is let in")?;
            return new.talk(SOON);
        }
        for (pair, pods) in &mut pairs {
            for speaker in [Speaker::Client, Speaker::Server] {
                // At either end, and at both.
                for lost in pods.chunks(1).chain(pods.windows(2)) {
                    for pod in lost {
                        forget_flows(&agent, pod)?;
                    }
                    let before = agent.dropped("no-flow")?;
                    pair.say(speaker, SOON).with_context(|| agent.logs())?;
                    ensure!(agent.dropped("no-flow")? > before, "it was not lost: {}", pair.what);
                    pair.talk(AT_ONCE).context("once its flow is there again")?;
                }
            }
        }
        Ok(())
    })
}

#[test]
fn a_connection_that_lost_its_flow_is_judged_under_the_policy_of_now() -> Result<()> {
    privileged_test(|| {
        let shop = Shop::tracked(Network::Routed)?;
        let [api, db, ..] = shop.pods();
        let agent = shop.agent(&[])?;
        for at in both(db, 5432) {
            let mut pair = Pair::open(&api.ns, at, &db.ns, at)?;
            shop.manifests.write("policies.yaml", DB_CLOSED)?;
            eventually("the database to be closed", || pair.say(Speaker::Client, AT_ONCE).is_err())?;
            forget_flows(&agent, db)?;
            pair.is_cut()?;
            shop.manifests.write("policies.yaml", &policies())?;
            // What waited is sent again.
            eventually("the connection to go on", || {
                let _ = pair.server.set_read_timeout(Some(SOON));
                pair.server.read(&mut [0; 16]).is_ok_and(|length| length > 0)
            })?;
        }
        Ok(())
    })
}

#[test]
fn a_connection_that_loses_its_flow_in_the_middle_of_its_handshake_lives_on() -> Result<()> {
    privileged_test(|| {
        let shop = Shop::tracked(Network::Routed)?;
        let [api, db, ..] = shop.pods();
        let agent = shop.agent(&[])?;
        for (at, tool) in both(db, 5432).into_iter().zip(["iptables", "ip6tables"]) {
            let listener = db.ns.run(|| Ok(TcpListener::bind(at)?))?;
            // The answer to its SYN arrives, and what it says to that does not: as when the programs of a new pod come between.
            let rule = "OUTPUT -p tcp --tcp-flags SYN,ACK ACK -j DROP";
            api.ns.firewall(tool, &format!("-A {rule}"))?;
            let mut client = api.ns.run(|| Ok(TcpStream::connect(at)?))?;
            for pod in [api, db] {
                forget_flows(&agent, pod)?;
            }
            api.ns.firewall(tool, &format!("-D {rule}"))?;
            client.write_all(b"x")?;
            SockRef::from(&listener).set_read_timeout(Some(SOON))?;
            let (server, _) = listener.accept().context("accepting what lost its flow")?;
            Pair { client, server, what: format!("to {at}") }.talk(SOON)?;
        }
        Ok(())
    })
}

#[test]
fn what_was_open_before_the_audit_is_judged_when_the_mode_becomes_enforce() -> Result<()> {
    privileged_test(|| {
        let shop = Shop::tracked(Network::Routed)?;
        let [api, db, intruder, _] = shop.pods();
        let (mut permitted, mut forbidden) = (Vec::new(), Vec::new());
        for at in both(db, 5432) {
            permitted.push(Pair::open(&api.ns, at, &db.ns, at)?);
            forbidden.push(Pair::open(&intruder.ns, at, &db.ns, at)?);
        }
        let config = |mode: &str| {
            format!(
                "apiVersion: v1\nkind: ConfigMap\n\
                 metadata: {{name: portcullis, namespace: portcullis-system}}\ndata: {{mode: {mode}}}\n"
            )
        };
        shop.manifests.write("config.yaml", &config("Audit"))?;
        let agent = shop.agent(&[])?;
        for pair in permitted.iter_mut().chain(&mut forbidden) {
            pair.talk(AT_ONCE)?;
        }
        // In audit they pass without a flow, too.
        forget_flows(&agent, db)?;
        shop.manifests.write("config.yaml", &config("Enforce"))?;
        let enforced = "portcullis_mode{mode=\"enforce\"} 1";
        eventually("the mode to be enforced", || {
            agent.get("/metrics").is_ok_and(|(_, text)| text.lines().any(|line| line == enforced))
        })?;
        for pair in &mut permitted {
            pair.talk(SOON)?;
        }
        for pair in &mut forbidden {
            pair.is_cut()?;
        }
        Ok(())
    })
}

#[test]
fn a_pod_that_came_while_the_agent_was_dead_keeps_its_permitted_connections() -> Result<()> {
    privileged_test(|| {
        let mut shop = Shop::tracked(Network::Routed)?;
        let ns = Arc::clone(&shop.node.ns);
        let mut agent = Agent::on(&ns).manifests(shop.manifests.path()).start()?;
        agent.kill()?;
        let (v4, v6) = {
            let late = shop.node.add_pod()?;
            (late.v4, late.v6)
        };
        let object =
            PodObject { namespace: "shop", name: "late", account: "api", addresses: (v4, v6), started: 2 };
        shop.manifests.pods("late.yaml", &[object])?;
        let (late, outside) = (&shop.node.pods[4], shop.outside()?);
        let mut pairs = Vec::new();
        for at in outside_at(80) {
            pairs.push(Pair::open(&late.ns, at, outside, at)?);
        }
        for at in both(late, 80) {
            pairs.push(Pair::open(outside, at, &late.ns, at)?);
        }
        agent.restart()?;
        for pair in &mut pairs {
            pair.talk(AT_ONCE)?;
        }
        Ok(())
    })
}

#[test]
fn acknowledgements_alone_get_an_egress_denied_pod_nowhere_with_conntrack_at_work() -> Result<()> {
    privileged_test(|| {
        let shop = Shop::tracked(Network::Routed)?;
        let [.., hermit] = shop.pods();
        let agent = shop.agent(&[])?;
        let inside = Raw::new(&hermit.ns, hermit.v4)?;
        let outside = Raw::new(shop.outside()?, OUTSIDE.0)?;
        let before = agent.dropped("no-flow")?;
        for round in 0..3 {
            for _ in 0..5 {
                inside.send(7000, (OUTSIDE.0, 80), flags::ACK)?;
                // A friend outside helps: it is let in by a SYN, but these are none.
                outside.send(80, (hermit.v4, 7000), flags::ACK)?;
                inside.send(7001, (OUTSIDE.0, 80), flags::ACK | flags::FIN)?;
            }
            ensure!(!outside.sees(7000, 80, NEVER)?, "an ACK got out in round {round}");
            ensure!(!inside.sees(80, 7000, Duration::from_millis(1))?, "an ACK got in in round {round}");
        }
        ensure!(agent.dropped("no-flow")? >= before + 45, "all of them were seen and dropped");

        // With the switch off they pass, and conntrack takes them for connections, which it has not seen begin.
        agent.cli(["mode", "off"])?;
        inside.send(7000, (OUTSIDE.0, 80), flags::ACK)?;
        ensure!(outside.sees(7000, 80, SOON)?, "the switch lets everything pass");
        outside.send(80, (hermit.v4, 7000), flags::ACK)?;
        outside.send(80, (hermit.v4, 7002), flags::ACK)?;
        ensure!(inside.sees(80, 7002, SOON)?, "the switch lets everything pass");
        inside.send(7002, (OUTSIDE.0, 80), flags::ACK)?;
        ensure!(outside.sees(7002, 80, SOON)?, "the switch lets everything pass");
        let tracked = run(&mut shop.node.ns.command("cat", ["/proc/net/nf_conntrack"]))?;
        for port in [7000, 7002] {
            let known =
                tracked.lines().any(|l| l.contains("ESTABLISHED") && l.contains(&format!("={port} ")));
            ensure!(known, "conntrack took no segment of port {port} for a connection:\n{tracked}");
        }
        agent.cli(["mode", "clear"])?;
        for _ in 0..5 {
            for port in [7000, 7002] {
                inside.send(port, (OUTSIDE.0, 80), flags::ACK)?;
                outside.send(80, (hermit.v4, port), flags::ACK)?;
            }
        }
        ensure!(!outside.sees(7000, 80, NEVER)?, "conntrack's guess was believed");
        for _ in 0..5 {
            inside.send(7002, (OUTSIDE.0, 80), flags::ACK)?;
        }
        ensure!(!outside.sees(7002, 80, NEVER)?, "conntrack's guess about the opener was believed");
        Ok(())
    })
}

//! Millions of packets, those of the golden table and what becomes of them by chance, through the loaded programs, through
//! the walk on the host, and past an independent model of the rules: the first two agree about every packet, and nothing
//! passes that the model refuses.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use portcullis::datapath::inspect::AnyKey;
use portcullis::datapath::testrun::ProbeMetadata;
use portcullis_checks::model::Model;
use portcullis_checks::mutate::Mutator;
use portcullis_checks::random::Random;
use portcullis_checks::shop;
use portcullis_common::flow::Flow;
use portcullis_common::{Direction, Reason};
use portcullis_tests::fixture::with_fixture;
use portcullis_tests::golden::{seeds, setups};
use portcullis_tests::host::host;

/// How many packets, if the environment does not say: among all other tests, and if somebody asks for this one.
const PACKETS: u64 = 3_000_000;
const PACKETS_IF_ASKED: u64 = 10_000_000;
/// After so many packets all flows are forgotten: fewer than a flow table holds, so that nothing is pushed out of it.
const EPISODE: u64 = 1000;

/// A number from the environment.
fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable}={text}")))
}

#[test]
fn no_packet_passes_that_the_model_refuses_and_the_walk_on_the_host_agrees_about_each() {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock");
    let seed = number("PORTCULLIS_SEED").unwrap_or(u64::from(clock.subsec_nanos()));
    let asked = std::env::var_os("PORTCULLIS_TEST_NAME").is_some();
    let packets = number("PORTCULLIS_PACKETS").unwrap_or(if asked { PACKETS_IF_ASKED } else { PACKETS });
    println!("seed {seed}: PORTCULLIS_SEED={seed} PORTCULLIS_PACKETS={packets} tries the same packets again");
    with_fixture(move |f| {
        let setups::Setup { desired, .. } = setups::named("shop-and-echo");
        f.desired = desired;
        f.apply();
        let host = host(f);
        let mut model = Model::new(shop::rules());
        let mut mutator = Mutator::new(seeds());
        let mut random = Random::new(seed);
        let (mut passed, mut refused_by_both) = (0, 0);
        for round in 0..packets {
            if round % EPISODE == 0 {
                f.forget();
                host.forget();
                model.forget();
            }
            let hook = mutator.next(&mut random);
            let ingress_ifindex = random.of(&[0, 1, 99, 99]);
            let frame = &mutator.frame;
            let by_kernel = f.run_with(hook, frame, ProbeMetadata { ingress_ifindex, ifindex: 0 });
            let by_host = host.run(hook, frame, ingress_ifindex);
            let by_model = model.may_pass(hook, frame, ingress_ifindex, by_kernel);
            let what = || {
                format!("seed {seed}, round {round}, {hook} from interface {ingress_ifindex}: {frame:02x?}")
            };
            assert_eq!(by_kernel, by_host, "kernel and host disagree: {}", what());
            assert!(by_model || !by_kernel, "passed and must not: {}", what());
            passed += u64::from(by_kernel);
            refused_by_both += u64::from(!by_kernel && !by_model);
        }
        let refused = packets - passed;
        println!(
            "{packets} packets: {passed} passed, {refused} refused, {refused_by_both} of them by the model, too"
        );
        // A model that permits everything, or packets that all look alike, would show nothing.
        assert!(passed > packets / 10 && refused > packets / 10, "{passed} of {packets} passed");
        assert!(refused_by_both > refused / 100 * 95, "the model refuses {refused_by_both} of {refused}");
        let counted: u64 = host.pairs().iter().map(|(_, counters)| counters.packets[0]).sum();
        let judged: u64 = host.pairs().iter().map(|(_, counters)| counters.decisions[0]).sum();
        assert!(counted - judged > packets / 100, "{} packets belonged to flows", counted - judged);
        for (pair, by_host) in host.pairs() {
            let direction = u8::try_from(pair.direction).ok().and_then(Direction::from_number);
            let direction = direction.expect("a direction");
            assert_eq!(f.counters(pair.source, pair.destination, direction), by_host, "{pair:?}");
        }
        // Those of the last packets.
        let told = |key: AnyKey, flow: Flow| {
            (format!("{key:?}"), [flow.state, flow.opener, flow.verdict], flow.origin)
        };
        let by_kernel: BTreeSet<_> = f.flows().into_iter().map(|(key, flow)| told(key, flow)).collect();
        let v4 = host.flows4().into_iter().map(|(key, flow)| told(AnyKey::V4(key), flow));
        let v6 = host.flows6().into_iter().map(|(key, flow)| told(AnyKey::V6(key), flow));
        assert_eq!(by_kernel, v4.chain(v6).collect());
        assert!(!by_kernel.is_empty(), "no flows at the end");
        for &reason in Reason::ALL {
            for &direction in Direction::ALL {
                assert_eq!(f.drops(reason, direction), host.drops(reason, direction), "{reason} {direction}");
            }
        }
    });
}

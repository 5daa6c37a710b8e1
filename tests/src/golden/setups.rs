//! The set-ups that cases name: what the maps hold, who is behind the interface, and the mode.

use std::collections::BTreeMap;
use std::sync::Arc;

use portcullis::datapath::EndpointSpec;
use portcullis::policy::{Desired, Function, RowSet};
use portcullis_common::abi::Mode;
use portcullis_common::policy::{Decision, PortKey};
use portcullis_common::{Direction, Kind, Reason, Verdict};

use crate::fixture::{API, INTRUDER, SUBJECT, WEB, add_frontend, always, desired, endpoint, only, rows};

/// A set-up.
pub struct Setup {
    /// What the maps hold.
    pub desired: Desired,
    /// The endpoints.
    pub endpoints: Vec<EndpointSpec>,
    /// The mode of the agent.
    pub mode: Mode,
}

/// Subject class of the web pods where their own egress is looked at.
const WEB_SUBJECT: u32 = 2;

/// The set-up of a name.
pub fn named(name: &str) -> Setup {
    let mut setup = Setup { desired: desired(), endpoints: vec![endpoint()], mode: Mode::Enforce };
    let default_deny = |web| rows(Verdict::Deny, &web);
    let subjects = &mut setup.desired.subjects;
    match name {
        // The pod talks with `web` on TCP and UDP 80 and 8000 to 8010, with nobody else.
        "shop" => {}
        // With `web` about everything.
        "open" => drop(subjects.insert(SUBJECT, default_deny(always(Verdict::Allow)))),
        // As `shop`, and with `web` about every protocol that has no ports: what random packets are tried with.
        "shop-and-echo" => {
            let shop = only(&[(6, 80, 80), (6, 8000, 8010), (17, 80, 80)]);
            let mut steps: BTreeMap<_, _> = shop.steps().iter().copied().collect();
            steps.insert(
                PortKey::OTHER,
                Decision { verdict: Verdict::Allow, reason: Reason::Policy, rule: 2 },
            );
            let function = std::sync::Arc::new(Function::new(steps).expect("sorted steps"));
            subjects.insert(SUBJECT, default_deny(function));
        }
        // With nobody.
        "closed" => drop(subjects.insert(SUBJECT, default_deny(always(Verdict::Deny)))),
        // With everybody.
        "everybody" => drop(subjects.insert(SUBJECT, rows(Verdict::Allow, &always(Verdict::Allow)))),
        // It may ask `web` about everything, and `web` may ask it nothing.
        "outwards" => {
            let mut set = (*default_deny(always(Verdict::Allow))).clone();
            set.insert((Direction::Ingress, WEB), always(Verdict::Deny));
            subjects.insert(SUBJECT, set.into());
        }
        // No policy has a say about anybody.
        "unpoliced" => {
            let decision = Decision::new(Verdict::Allow, Reason::Default);
            let function = std::sync::Arc::new(Function::constant(decision));
            let mut set = (*default_deny(function.clone())).clone();
            for row in set.values_mut() {
                *row = function.clone();
            }
            subjects.insert(SUBJECT, set.into());
        }
        // As `shop`, and what it does not allow is only audited.
        "audited" => {
            let web = always(Verdict::Audit);
            subjects.insert(SUBJECT, rows(Verdict::Audit, &web));
        }
        // The pod may be asked by `web`, whose own egress forbids it.
        "web-may-not" => {
            subject_of_web(&mut setup.desired, default_deny(always(Verdict::Deny)));
        }
        // The pod may be asked by `web`, which may send everywhere but to the pod.
        "web-may-not-ask-us" => {
            let mut set = (*rows(Verdict::Allow, &always(Verdict::Allow))).clone();
            set.insert((Direction::Egress, API), always(Verdict::Deny));
            subject_of_web(&mut setup.desired, set.into());
        }
        // The pod's subject class has no rows.
        "no-rows" => subjects.clear(),
        // As `shop`, with the whole agent in another mode.
        "mode-audit" => setup.mode = Mode::Audit,
        "mode-off" => setup.mode = Mode::Off,
        // Nobody knows which pod is behind the interface.
        "unknown-denied" => setup.endpoints = unknown(Verdict::Deny),
        "unknown-audited" => setup.endpoints = unknown(Verdict::Audit),
        // The interface has no entry.
        "no-endpoint" => setup.endpoints.clear(),
        // As `shop`, with services: of `web`; of `web` judged again and somebody forbidden who is not; of nobody; of
        // somebody forbidden and judged again alone.
        "services" => services(&mut setup.desired),
        _ => panic!("no set-up is called `{name}`"),
    }
    setup
}

/// Looks at the egress of the web pods, by these rows.
fn subject_of_web(desired: &mut Desired, rows: Arc<RowSet>) {
    desired.subjects.insert(WEB_SUBJECT, rows);
    for address in ["10.0.0.3", "fd00::3"] {
        desired.ipcache.get_mut(&address.parse().unwrap()).unwrap().subject = WEB_SUBJECT;
    }
}

fn unknown(verdict: Verdict) -> Vec<EndpointSpec> {
    let addresses = ["10.0.0.2", "fd00::2"].map(|address| address.parse().unwrap()).to_vec();
    vec![EndpointSpec { pod: None, addresses, unknown: verdict, ..endpoint() }]
}

fn services(desired: &mut Desired) {
    for net in ["10.96.0.", "fd96::"] {
        let mut add = |last, backends: &[_]| {
            for protocol in [6, 17] {
                add_frontend(desired, &format!("{net}{last}"), protocol, 443, backends);
            }
        };
        add(1, &[(WEB, 80, true)]);
        add(2, &[(WEB, 80, true), (Kind::World as u32, 80, false)]);
        add(3, &[]);
        add(4, &[(INTRUDER, 80, true)]);
    }
}

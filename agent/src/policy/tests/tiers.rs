//! The order of the tiers, with policies in the intermediate form, so that it does not depend on a kind of policy.

use portcullis_common::abi::Mode;
use portcullis_common::policy::Decision;

use super::super::ir::{
    Action, Peers, Policy, PolicyKind, PolicyName, PortMatch, Ports, Rule, Section, Tier,
};
use super::super::linked::{Linked, PeerView};
use super::super::selector::PodSelector;
use super::super::tiers::{Acting, Defaults, Question};
use super::*;
use portcullis_common::Kind;

const TCP: u8 = protocol::TCP;

fn policy(tier: Tier, priority: i32, isolates: bool, rules: &[(Action, Ports)]) -> Policy {
    let rule = |(action, ports): &(Action, Ports)| Rule {
        name: format!("{tier:?}{priority} {action:?}"),
        action: *action,
        peers: Peers::Everyone,
        ports: ports.clone(),
    };
    let section = Section {
        isolation: isolates.then(|| "isolation".to_owned()),
        rules: rules.iter().map(rule).collect(),
    };
    Policy {
        name: PolicyName {
            kind: PolicyKind::IdentityPolicy,
            namespace: "shop".into(),
            name: format!("{priority}"),
        },
        tier,
        priority,
        mode: Mode::Enforce,
        subject: PodSelector::namespace("shop"),
        ingress: Some(section),
        egress: None,
    }
}

fn port(number: u16) -> Ports {
    Ports::Any(vec![PortMatch::range(TCP, number, number)])
}

/// The verdict and the rule for a TCP port.
fn decide(policies: &[(Policy, bool)], number: u16) -> (Verdict, String) {
    let linked = Linked::new(policies.iter().map(|(policy, _)| policy.clone()).collect());
    let acting = linked.policies.iter().map(|policy| Acting {
        policy,
        section: policy.section(Ingress).unwrap(),
        audited: policies
            .iter()
            .any(|(p, audited)| (&p.name, p.tier) == (&policy.policy.name, policy.policy.tier) && *audited),
    });
    let rule_numbers: Vec<u32> = (1..).take(linked.rule_names.len()).collect();
    let question = Question {
        direction: Ingress,
        acting: acting.collect(),
        defaults: Defaults { enforced: Allow, audited: Allow },
        subject_ports: &[],
        rule_numbers: &rule_numbers,
    };
    let anybody = PeerView { kind: Kind::World, selectors: &[], blocks: &[], ports: &[] };
    let Decision { verdict, rule, .. } = question.answer(&anybody).decide(PortKey::new(TCP, number));
    let name = if rule == 0 { "" } else { &linked.rule_names[rule as usize - 1] };
    (verdict, name.to_owned())
}

#[test]
fn admin_then_namespace_then_baseline_then_default() {
    use Action::{Accept, Deny as Refuse, Pass};
    let policies = [
        (policy(Tier::Baseline, 0, false, &[(Refuse, Ports::Every)]), false),
        (policy(Tier::Namespace, 0, false, &[(Refuse, port(3)), (Accept, Ports::Every)]), false),
        (
            policy(
                Tier::Admin,
                20,
                false,
                &[(Refuse, port(1)), (Refuse, port(2)), (Refuse, port(3)), (Refuse, port(4))],
            ),
            false,
        ),
        (policy(Tier::Admin, 10, false, &[(Accept, port(1)), (Pass, port(2)), (Pass, port(3))]), false),
    ];
    let got = [1, 2, 3, 4, 5].map(|number| decide(&policies, number));
    let wanted = [
        (Allow, "Admin10 Accept"),
        (Deny, "Baseline0 Deny"), // passed by the Admin tier, and nothing isolates
        (Deny, "Namespace0 Deny"),
        (Deny, "Admin20 Deny"),
        (Deny, "Baseline0 Deny"),
    ];
    assert_eq!(got, wanted.map(|(verdict, rule)| (verdict, rule.to_owned())));
    assert_eq!(decide(&policies[1..], 5), (Allow, String::new()), "the default");
}

#[test]
fn isolation_ends_before_the_baseline() {
    use Action::{Accept, Deny as Refuse};
    let policies = [
        (policy(Tier::Baseline, 0, false, &[(Refuse, port(1)), (Accept, port(2))]), false),
        (policy(Tier::Namespace, 0, true, &[(Accept, port(1))]), false),
    ];
    assert_eq!(decide(&policies, 1), (Allow, "Namespace0 Accept".to_owned()));
    assert_eq!(decide(&policies, 2), (Deny, "isolation".to_owned()));
}

#[test]
fn an_audited_admin_policy_is_weighed_with_the_enforced_ones() {
    use Action::{Accept, Deny as Refuse, Pass};
    let policies = [
        (policy(Tier::Admin, 5, false, &[(Refuse, port(1)), (Pass, port(2))]), true),
        (policy(Tier::Admin, 10, false, &[(Accept, port(1)), (Accept, port(2)), (Refuse, port(3))]), false),
        (policy(Tier::Namespace, 0, true, &[]), false),
    ];
    assert_eq!(decide(&policies, 1), (Audit, "Admin5 Deny".to_owned()));
    assert_eq!(decide(&policies, 2), (Audit, "isolation".to_owned()), "without the Accept that it passes by");
    assert_eq!(decide(&policies, 3), (Deny, "Admin10 Deny".to_owned()));
}

//! What a hostile pod tries against its neighbours, with real sockets on a node with the real agent.
//!
//! Every attack is looked at from three sides: what was dropped, and why; that nothing came to the victim; that the
//! traffic beside it goes on. With the switch off the same frames do what the attacker wants, so none fails for
//! another reason than the agent. Most of the time of such a test goes into the start of the agent, so attacks on the same
//! kind of network share one.

mod acknowledgements;
mod addresses;
mod claims;
mod dumps;
mod fragments;
mod groups;
mod icmp;
mod neighbours;
mod origins;
mod resets;
mod reuse;
mod stage;
mod tunnels;

use anyhow::{Context, Result};
use portcullis_tests::Network;

use stage::{Stage, Wait, on_stage};

/// An attack, and what it is called: what holds against it.
type Attack = (&'static str, fn(&mut Stage<'_>) -> Result<()>);

macro_rules! attacks {
    ($($module:ident::$name:ident,)*) => { &[$((stringify!($name), $module::$name),)*] };
}

/// Those that do not depend on how pods are joined.
const ANYWHERE: &[Attack] = attacks![
    addresses::a_pod_that_sends_from_a_neighbours_address_reaches_nobody_and_touches_no_flow,
    addresses::a_pod_that_gives_itself_a_neighbours_address_can_neither_send_nor_be_sent_to,
    neighbours::a_pod_that_says_to_have_anothers_address_is_not_believed,
    fragments::fragments_bring_nothing_to_a_server_that_the_pod_may_not_reach,
    fragments::datagrams_that_the_kernel_cuts_arrive_whole_where_they_may_go,
    tunnels::nothing_that_a_pod_puts_into_a_tunnel_comes_out_of_it,
    resets::a_pod_that_forges_the_end_of_others_connection_does_not_cut_it,
    resets::a_reset_that_the_other_end_does_not_take_loses_no_flow,
    acknowledgements::segments_that_open_nothing_get_an_egress_denied_pod_nowhere,
    reuse::a_new_connection_on_the_ports_of_an_old_one_is_denied_once_it_is_forbidden,
    reuse::a_connection_that_both_ends_open_works_where_each_may_open_one,
    icmp::redirects_and_router_advertisements_of_a_pod_change_nobodys_routes,
    icmp::a_pod_narrows_no_path_of_others,
    origins::a_pod_behind_the_nodes_address_is_neither_the_node_nor_anybody_else,
];

/// Where the node forwards what pods say.
const ROUTED: &[Attack] =
    attacks![fragments::fragments_that_the_node_masquerades_and_cuts_anew_are_not_taken_for_its_own,];

/// Where pods share a link.
const BRIDGED: &[Attack] = attacks![groups::a_broadcast_reaches_only_those_that_the_pod_may_talk_with,];

/// One attack after the other.
fn none_succeeds(network: Network, attacks: &[&[Attack]]) -> Result<()> {
    on_stage(network, tunnels::prepare, Wait::UntilReady, |stage| {
        attacks.iter().copied().flatten().try_for_each(|(name, play)| {
            let played = stage.begin().and_then(|()| stage.goes_on()).and_then(|()| play(stage));
            played.with_context(|| format!("{network:?} pods, {name}"))
        })
    })
}

#[test]
fn no_attack_between_routed_pods_succeeds() -> Result<()> {
    none_succeeds(Network::Routed, &[ANYWHERE, ROUTED])
}

#[test]
fn no_attack_between_bridged_pods_succeeds() -> Result<()> {
    none_succeeds(Network::Bridged, &[ANYWHERE, BRIDGED])
}

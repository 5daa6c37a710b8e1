use super::*;

fn mk_veth(ifindex: u32) -> LinkRecord {
    LinkRecord {
        ifindex,
        name: format!("veth{ifindex}"),
        kind: LinkKind::Veth,
        master: None,
        up: true,
        mac: Some([2, 0, 0, 0, 0, 1]),
        linked_to: Some(2),
        netns_id: Some(0),
        carrier_changes: 3,
        tunnel_port: None,
    }
}

fn mk_address(ifindex: u32, address: &str) -> AddressRecord {
    AddressRecord { ifindex, address: address.parse().unwrap(), prefix: 24, also: [None; 2] }
}

fn mk_answer(ifindex: u32, addresses: &[&str]) -> Answer {
    Answer {
        linked_to: Some(ifindex),
        mac: Some([2, 0, 0, 0, 0, 2]),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
    }
}

fn peer_addresses(table: &Table, ifindex: u32) -> Vec<String> {
    let snapshot = table.snapshot();
    let peer = snapshot.links[&ifindex].peer.as_ref().unwrap();
    peer.addresses.iter().map(ToString::to_string).collect()
}

/// A table with link 7, bound to 10.0.0.5.
fn bound(now: Instant) -> Table {
    let mut table = Table::default();
    table.apply(Content::Link(mk_veth(7)), now);
    let [ask] = table.take_due(now)[..] else { panic!("nothing to ask") };
    assert_eq!(ask, Ask { ifindex: 7, netns_id: 0, peer_ifindex: 2 });
    table.answer(&ask, mk_answer(7, &["10.0.0.5"]));
    assert_eq!(peer_addresses(&table, 7), ["10.0.0.5"]);
    assert!(!table.is_waiting());
    table
}

#[test]
fn a_bound_link_is_never_asked_about_again_whatever_its_pod_does() {
    let now = Instant::now();
    let mut table = bound(now);
    let moved = LinkRecord { netns_id: Some(1), linked_to: Some(9), carrier_changes: 5, ..mk_veth(7) };
    table.apply(Content::Link(moved.clone()), now);
    table.hurry(Some((0, 2)), now);
    table.hurry(None, now);
    table.resync(vec![moved.clone()], vec![], now);
    table.reread(7, Some(moved), now);
    table.answer(&Ask { ifindex: 7, netns_id: 0, peer_ifindex: 2 }, mk_answer(7, &["10.0.0.6"]));
    assert_eq!(peer_addresses(&table, 7), ["10.0.0.5"]);
    assert_eq!(table.snapshot().links[&7].peer.as_ref().unwrap().netns_id, 0);
    assert_eq!(table.take_due(now + LONGEST_DELAY), []);
}

#[test]
fn a_link_that_took_a_deleted_ones_index_is_a_new_link() {
    let (now, later) = (Instant::now(), Instant::now() + LONGEST_DELAY);
    let mut table = bound(now);
    table.apply(Content::LinkGone(7), later);
    assert!(table.snapshot().links.is_empty());
    table.apply(Content::Link(mk_veth(7)), later);
    assert!(peer_addresses(&table, 7).is_empty());
    assert_eq!(table.snapshot().links[&7].appeared, later);
    assert_eq!(table.take_due(later).len(), 1);
}

#[test]
fn after_lost_notifications_a_dump_tells_a_new_link_from_the_old_one() {
    let now = Instant::now();
    let same = LinkRecord { master: Some(3), up: false, carrier_changes: 4, ..mk_veth(7) };
    let others = [
        LinkRecord { mac: Some([2, 0, 0, 0, 0, 9]), ..mk_veth(7) },
        LinkRecord { name: "other".to_owned(), ..mk_veth(7) },
        LinkRecord { carrier_changes: 1, ..mk_veth(7) },
    ];
    let mut table = bound(now);
    table.resync(vec![same], vec![], now);
    assert_eq!(peer_addresses(&table, 7), ["10.0.0.5"]);
    assert_eq!(table.snapshot().links[&7].master, Some(3));
    for other in others {
        let mut table = bound(now);
        table.resync(vec![other.clone()], vec![], now);
        assert!(peer_addresses(&table, 7).is_empty(), "{other:?}");
        assert!(table.is_waiting());
    }
    table.resync(vec![mk_veth(8)], vec![], now);
    assert_eq!(table.snapshot().links.into_keys().collect::<Vec<_>>(), [8], "swept");
}

#[test]
fn an_interface_without_address_is_looked_at_less_and_less_often_until_it_has_one() {
    let start = Instant::now();
    let mut table = Table::default();
    table.apply(Content::Link(mk_veth(7)), start);
    let mut now = start;
    let mut waits = Vec::new();
    for _ in 0..11 {
        let [ask] = table.take_due(now)[..] else { panic!("nothing due at {:?}", now - start) };
        table.answer(&ask, mk_answer(7, &["fe80::1"]));
        assert_eq!(peer_addresses(&table, 7), ["fe80::1"]);
        let next = table.next_look().unwrap();
        assert_eq!(table.take_due(next.checked_sub(Duration::from_micros(1)).unwrap()), []);
        waits.push((next - now).as_millis());
        now = next;
    }
    assert_eq!(waits, [5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000, 1000]);
    let [ask] = table.take_due(now)[..] else { panic!("nothing due") };
    table.answer(&ask, mk_answer(7, &["fe80::1", "fd00::5"]));
    assert_eq!(table.next_look(), None);
    assert_eq!(table.snapshot().links[&7].peer.as_ref().unwrap().mac, Some([2, 0, 0, 0, 0, 2]));
}

#[test]
fn a_hint_brings_the_look_forward_but_a_flood_of_them_does_not_multiply_it() {
    let now = Instant::now();
    let mut table = Table::default();
    table.apply(Content::Link(mk_veth(7)), now);
    assert_eq!(table.take_due(now).len(), 1);
    table.hurry(Some((0, 3)), now);
    table.hurry(Some((1, 2)), now);
    assert_eq!(table.next_look(), Some(now + FIRST_DELAY), "hints about other interfaces");
    for _ in 0..100 {
        table.hurry(Some((0, 2)), now);
    }
    assert_eq!(table.take_due(now), []);
    assert_eq!(table.next_look(), Some(now + SHORTEST_DELAY));
    assert_eq!(table.take_due(now + SHORTEST_DELAY).len(), 1);
}

#[test]
fn an_answer_of_another_namespace_with_the_same_id_is_not_taken() {
    let now = Instant::now();
    let mut table = Table::default();
    table.apply(Content::Link(mk_veth(7)), now);
    let [ask] = table.take_due(now)[..] else { panic!("nothing to ask") };
    for linked_to in [Some(8), None] {
        table.answer(&ask, Answer { linked_to, ..mk_answer(7, &["10.0.0.5"]) });
        assert!(peer_addresses(&table, 7).is_empty());
        assert_eq!(table.take_doubtful(), BTreeSet::from([7]), "to be read again");
    }
    assert!(table.is_waiting());
    // The peer has moved while it was being asked about.
    table.apply(Content::Link(LinkRecord { netns_id: Some(1), ..mk_veth(7) }), now);
    table.answer(&ask, mk_answer(7, &["10.0.0.5"]));
    assert!(peer_addresses(&table, 7).is_empty());
}

#[test]
fn a_veth_whose_peer_leaves_this_namespace_is_read_again() {
    let now = Instant::now();
    let mut table = Table::default();
    let here = |ifindex, other| LinkRecord { linked_to: Some(other), netns_id: None, ..mk_veth(ifindex) };
    table.apply(Content::Link(here(7, 8)), now);
    table.apply(Content::Link(here(8, 7)), now);
    assert_eq!(table.snapshot().links[&7].peer, None);
    assert!(!table.is_waiting());
    table.apply(Content::LinkGone(8), now);
    assert_eq!(table.take_doubtful(), BTreeSet::from([7]));
    table.reread(7, Some(mk_veth(7)), now);
    assert_eq!(table.take_due(now), [Ask { ifindex: 7, netns_id: 0, peer_ifindex: 2 }]);
    // Read again when it is gone itself: left to its notification.
    table.reread(7, None, now);
    assert!(table.snapshot().links.contains_key(&7));
    table.apply(Content::LinkGone(7), now);
    table.reread(7, Some(mk_veth(7)), now);
    assert!(table.snapshot().links.is_empty(), "brought back by a late answer");
}

#[test]
fn a_bound_link_keeps_its_pod_while_it_is_being_deleted_but_not_once_its_peer_is_here() {
    let now = Instant::now();
    let mut table = bound(now);
    table.apply(Content::Link(LinkRecord { linked_to: Some(0), netns_id: None, ..mk_veth(7) }), now);
    assert_eq!(peer_addresses(&table, 7), ["10.0.0.5"]);
    table.apply(Content::Link(LinkRecord { linked_to: Some(8), netns_id: None, ..mk_veth(7) }), now);
    assert_eq!(table.snapshot().links[&7].peer, None);
}

#[test]
fn only_pairs_have_a_peer() {
    let now = Instant::now();
    let mut table = Table::default();
    for (ifindex, kind) in
        (1..).zip([LinkKind::Netkit, LinkKind::Macvlan, LinkKind::Other("vxlan".to_owned())])
    {
        table.apply(Content::Link(LinkRecord { kind, ..mk_veth(ifindex) }), now);
    }
    let with_peer: Vec<u32> = table
        .snapshot()
        .links
        .into_values()
        .filter(|link| link.peer.is_some())
        .map(|link| link.ifindex)
        .collect();
    assert_eq!(with_peer, [1]);
}

#[test]
fn host_addresses_follow_every_interface() {
    let now = Instant::now();
    let mut table = Table::default();
    let addresses = |table: &Table| -> Vec<String> {
        table.snapshot().host_addresses.iter().map(ToString::to_string).collect()
    };
    for record in [mk_address(1, "127.0.0.1"), mk_address(2, "192.0.2.1"), mk_address(3, "192.0.2.1")] {
        table.apply(Content::Address(record), now);
    }
    table.apply(Content::Address(AddressRecord { prefix: 32, ..mk_address(2, "192.0.2.1") }), now);
    assert_eq!(addresses(&table), ["127.0.0.1", "192.0.2.1"]);
    table.apply(Content::AddressGone(mk_address(2, "192.0.2.1")), now);
    table.apply(Content::LinkGone(3), now);
    assert_eq!(addresses(&table), ["127.0.0.1", "192.0.2.1"], "still there with the other prefix");
    table.apply(Content::LinkGone(2), now);
    assert_eq!(addresses(&table), ["127.0.0.1"]);
    let also = [Some("fd00::".parse().unwrap()), None];
    table.resync(vec![], vec![AddressRecord { also, ..mk_address(4, "fd00::1") }], now);
    assert_eq!(addresses(&table), ["fd00::", "fd00::1"]);
}

use super::*;

/// The recorded datagram of that name.
fn recorded(name: &str) -> Vec<u8> {
    netlink::recorded::datagram(include_str!("recorded.txt"), name)
}

fn contents(name: &str) -> Vec<Content> {
    messages(&recorded(name)).map(|message| message.content).collect()
}

#[test]
fn a_recorded_veth_gives_its_master_and_its_peer_in_the_other_namespace() {
    let [Content::Link(record)] = &contents("veth-in-bridge")[..] else { panic!("not one link") };
    let LinkRecord {
        ifindex,
        name,
        kind,
        master,
        up,
        mac,
        linked_to,
        netns_id,
        carrier_changes,
        tunnel_port,
    } = record;
    assert_eq!((*ifindex, name.as_str(), kind), (3, "veth1a2b", &LinkKind::Veth));
    assert_eq!((*master, *up, *linked_to, *netns_id), (Some(2), true, Some(2), Some(0)));
    assert!(mac.is_some_and(|mac| mac != [0; 6]), "{mac:?}");
    assert!(*carrier_changes > 0);
    assert_eq!(*tunnel_port, None);
}

#[test]
fn a_port_that_leaves_its_bridge_is_not_a_deleted_link() {
    let datagram = recorded("port-left-bridge");
    assert_eq!(datagram.get(4..6), Some(&RTM_DELLINK.to_ne_bytes()[..]), "recorded as something else");
    assert_eq!(contents("port-left-bridge"), [Content::Nothing]);
    assert_eq!(contents("deleted-veth"), [Content::LinkGone(3)]);
}

#[test]
fn a_veth_whose_peer_is_being_deleted_has_neither_peer_nor_namespace() {
    let [Content::Link(record)] = &contents("dying-veth")[..] else { panic!("not one link") };
    assert_eq!((record.ifindex, record.linked_to, record.netns_id), (3, Some(0), None));
}

#[test]
fn recorded_addresses_are_the_interfaces_own() {
    let local =
        AddressRecord { ifindex: 3, address: "10.0.0.1".parse().unwrap(), prefix: 32, also: [None; 2] };
    assert_eq!(contents("point-to-point-address"), [Content::Address(local)]);
    assert_eq!(contents("address-dump"), [Content::Address(local)]);
    let also = [Some("fd00::".parse().unwrap()), None];
    let ipv6 = AddressRecord { ifindex: 3, address: "fd00::1".parse().unwrap(), prefix: 64, also };
    assert_eq!(contents("ipv6-address"), [Content::Address(ipv6)]);
}

#[test]
fn ends_and_errors_carry_their_code_and_the_request_they_answer() {
    let answer = |name| messages(&recorded(name)).map(|m| (m.sequence, m.content)).collect::<Vec<_>>();
    assert_eq!(answer("dump-end"), [(79, Content::End(0))]);
    assert_eq!(answer("dump-of-missing-link"), [(77, Content::End(libc::ENODEV))]);
    assert_eq!(answer("missing-link"), [(78, Content::End(libc::ENODEV))]);
}

#[test]
fn a_dump_that_a_change_cut_is_marked() {
    let mut datagram = recorded("address-dump");
    let [message] = &messages(&datagram).collect::<Vec<_>>()[..] else { panic!("not one message") };
    assert!(!message.interrupted);
    datagram[6] |= u8::try_from(NLM_F_DUMP_INTR).unwrap();
    assert!(messages(&datagram).all(|message| message.interrupted));
}

#[test]
fn several_messages_in_a_datagram_are_all_read() {
    let datagram =
        [recorded("point-to-point-address"), recorded("ipv6-address"), recorded("dump-end")].concat();
    let kinds: Vec<_> = messages(&datagram).map(|message| std::mem::discriminant(&message.content)).collect();
    assert_eq!(kinds.len(), 3);
    assert_eq!(kinds[0], kinds[1]);
    assert_ne!(kinds[1], kinds[2]);
}

#[test]
fn cut_and_damaged_messages_neither_panic_nor_loop() {
    for name in
        ["veth-in-bridge", "port-left-bridge", "point-to-point-address", "missing-link", "deleted-veth"]
    {
        let whole = recorded(name);
        for (cut, agreeing) in netlink::recorded::cuts(&whole) {
            assert_eq!(messages(cut).count(), 0, "{name} cut to {}", cut.len());
            assert!(messages(&agreeing).count() <= 1, "{name} cut to {}", cut.len());
        }
        for damaged in netlink::recorded::damages(&whole) {
            assert!(messages(&damaged).count() <= whole.len() / 16, "{name}: {damaged:x?}");
        }
    }
}

#[test]
fn questions_name_namespace_and_index() {
    let question = Question::PeerAddresses { family: AddressFamily::Inet6, netns_id: 4, ifindex: 9 };
    let bytes = question.encode(5);
    let mut expected = Vec::new();
    expected.extend(32_u32.to_ne_bytes());
    expected.extend(22_u16.to_ne_bytes());
    expected.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    expected.extend(5_u32.to_ne_bytes());
    expected.extend([0; 4]);
    expected.extend([10, 0, 0, 0]);
    expected.extend(9_u32.to_ne_bytes());
    // IFA_TARGET_NETNSID
    expected.extend(8_u16.to_ne_bytes());
    expected.extend(10_u16.to_ne_bytes());
    expected.extend(4_i32.to_ne_bytes());
    assert_eq!(bytes, expected);

    let bytes = Question::Link { ifindex: 9, netns_id: Some(4) }.encode(6);
    assert_eq!(bytes[6..8], NLM_F_REQUEST.to_ne_bytes());
    assert_eq!(bytes[20..24], 9_u32.to_ne_bytes());
    // IFLA_EXT_MASK, then IFLA_TARGET_NETNSID.
    assert_eq!(bytes[42..44], 46_u16.to_ne_bytes());
    assert_eq!(bytes[44..48], 4_i32.to_ne_bytes());
}

#[test]
fn a_node_listens_at_the_broadcast_and_the_anycast_address_of_its_networks() {
    let listened = |address: &str, prefix| super::listened(address.parse().unwrap(), prefix);
    let address = |address: &str| Some(address.parse().unwrap());
    assert_eq!(listened("10.0.5.7", 20), address("10.0.15.255"));
    assert_eq!(listened("10.0.5.7", 30), address("10.0.5.7"), "of its own network the last");
    assert_eq!(listened("10.0.5.6", 31), None, "two ends and no broadcast");
    assert_eq!(listened("10.0.5.7", 32), None);
    assert_eq!(listened("fd00::5:7", 64), address("fd00::"));
    assert_eq!(listened("fe80::1", 64), address("fe80::"));
    assert_eq!(listened("fd00::7", 126), address("fd00::4"));
    assert_eq!((listened("fd00::7", 127), listened("fd00::7", 128)), (None, None));
    assert_eq!(listened("10.0.5.7", 33), None, "no prefix of that family");
}

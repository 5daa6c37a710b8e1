use super::*;

/// A message as the kernel sent it.
fn recorded(name: &str) -> Vec<u8> {
    netlink::recorded::datagram(include_str!("recorded.txt"), name)
}

fn content_of(message: &[u8]) -> Content {
    let [Message { sequence: 7 | 9, content }] = messages(message).collect::<Vec<_>>()[..] else {
        panic!("not one message of the request")
    };
    content
}

fn tuple_of(source: &str, destination: &str) -> Tuple {
    Tuple::new(source.parse().unwrap(), destination.parse().unwrap()).unwrap()
}

/// The message with other bytes where these are, once.
fn replaced(name: &str, from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut message = recorded(name);
    let at = message.windows(from.len()).position(|window| window == from).unwrap();
    message[at..at + to.len()].copy_from_slice(to);
    message
}

/// The attribute with the state.
const STATE: [u8; 5] = [5, 0, 1, 0, 3];

#[test]
fn a_recorded_connection_has_the_addresses_before_and_behind_the_translation() {
    let expected = Connection {
        original: tuple_of("10.1.0.2:53048", "10.96.0.1:80"),
        reply: tuple_of("10.2.0.2:8080", "10.2.0.1:53048"),
        half_open: false,
    };
    assert_eq!(content_of(&recorded("translated")), Content::Connection(expected));
    let expected = Connection {
        original: tuple_of("[fd01::2]:51918", "[fd02::2]:8080"),
        reply: tuple_of("[fd02::2]:8080", "[fd01::2]:51918"),
        half_open: false,
    };
    assert_eq!(content_of(&recorded("ipv6")), Content::Connection(expected));
}

#[test]
fn what_was_picked_up_midway_is_none() {
    assert_eq!(content_of(&recorded("picked-up-midway")), Content::Other);
}

#[test]
fn only_states_in_which_data_flows_or_will_are_connections() {
    for (state, live) in [
        (0, false),
        (1, false),
        (2, true),
        (3, true),
        (4, true),
        (5, true),
        (6, false),
        (7, false),
        (9, false),
    ] {
        let content = content_of(&replaced("translated", &STATE, &[5, 0, 1, 0, state]));
        assert_eq!(matches!(content, Content::Connection(_)), live, "state {state}");
        let half_open = matches!(content, Content::Connection(connection) if connection.half_open);
        assert_eq!(half_open, state == 2, "state {state}");
    }
}

#[test]
fn what_was_not_answered_or_is_dying_is_none() {
    let status = [8, 0, 3, 0, 0, 0, 1, 0xbe];
    for (bits, live) in [([0, 0, 1, 0xbe], true), ([0, 0, 1, 0xbc], false), ([0, 0, 3, 0xbe], false)] {
        let mut changed = status;
        changed[4..].copy_from_slice(&bits);
        let content = content_of(&replaced("translated", &status, &changed));
        assert_eq!(matches!(content, Content::Connection(_)), live, "{bits:?}");
    }
}

#[test]
fn other_protocols_and_other_zones_are_none() {
    let udp = replaced("translated", &[5, 0, 1, 0, 6], &[5, 0, 1, 0, 17]);
    assert_eq!(content_of(&udp), Content::Other);
    // CTA_ID becomes CTA_ZONE.
    assert_eq!(content_of(&replaced("translated", &[8, 0, 12, 0], &[8, 0, 18, 0])), Content::Other);
}

#[test]
fn ends_and_errors_carry_their_code() {
    assert_eq!(content_of(&recorded("dump-end")), Content::End(0));
    assert_eq!(content_of(&recorded("bad-request")), Content::End(libc::EINVAL));
}

#[test]
fn several_messages_in_a_datagram_are_all_read() {
    let datagram = [recorded("translated"), recorded("ipv6"), recorded("dump-end")].concat();
    assert_eq!(messages(&datagram).count(), 3);
}

#[test]
fn cut_and_damaged_messages_neither_panic_nor_loop_nor_become_others() {
    for name in ["translated", "ipv6", "dump-end", "bad-request"] {
        let whole = recorded(name);
        let said = content_of(&whole);
        for (cut, agreeing) in netlink::recorded::cuts(&whole) {
            assert_eq!(messages(cut).count(), 0, "{name} cut to {}", cut.len());
            for message in messages(&agreeing) {
                assert!(message.content == said || !matches!(message.content, Content::Connection(_)));
            }
        }
        for damaged in netlink::recorded::damages(&whole) {
            assert!(messages(&damaged).count() <= whole.len() / 16, "{name}: {damaged:x?}");
        }
    }
}

#[test]
fn a_question_about_one_connection_names_its_tuple() {
    let bytes = Question::One(tuple_of("10.0.0.2:4000", "10.0.0.3:80")).encode(5);
    let mut expected = Vec::new();
    expected.extend(72_u32.to_ne_bytes());
    expected.extend(0x101_u16.to_ne_bytes());
    expected.extend(NLM_F_REQUEST.to_ne_bytes());
    expected.extend(5_u32.to_ne_bytes());
    expected.extend([0; 4]);
    // AF_INET, then CTA_TUPLE_ORIG with CTA_TUPLE_IP and CTA_TUPLE_PROTO in it, as the kernel has recorded them.
    expected.extend([2, 0, 0, 0]);
    expected.extend([0x34, 0, 1, 0x80, 0x14, 0, 1, 0x80]);
    expected.extend([8, 0, 1, 0, 10, 0, 0, 2, 8, 0, 2, 0, 10, 0, 0, 3]);
    expected.extend([0x1c, 0, 2, 0x80, 5, 0, 1, 0, 6, 0, 0, 0]);
    expected.extend([6, 0, 2, 0, 0x0f, 0xa0, 0, 0, 6, 0, 3, 0, 0, 80, 0, 0]);
    assert_eq!(bytes, expected);

    let ipv6 = Question::One(tuple_of("[fd01::2]:51918", "[fd02::2]:8080")).encode(6);
    let recorded = recorded("ipv6");
    // The original tuple as the kernel wrote it.
    assert_eq!(ipv6[20..], recorded[20..20 + 0x4c]);
    assert_eq!(ipv6[16], 10);
    assert_eq!(Question::All.encode(7)[6..8], (NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
}

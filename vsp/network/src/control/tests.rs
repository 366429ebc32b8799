use proptest::prelude::*;

use super::*;
use crate::protocol::rndis::oid;

fn control(queues: u16) -> Control {
    let identity = Identity {
        mac: [2, 0, 0, 0, 0, 1],
        may_change_mac: true,
        queues,
        speed: 1_000_000_000,
        mtu: 9000,
        name: "n".into(),
    };
    Control::new(identity, Arc::default(), true)
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn set(control: &mut Control, object: u32, value: &[u8]) -> u32 {
    let mut request = words(&[kind::SET, 28 + value.len() as u32, 9, object, value.len() as u32, 20, 0]);
    request.extend(value);
    let answer = control.answer(&request).unwrap().unwrap();
    assert_eq!(answer[..12], words(&[kind::SET | kind::COMPLETION, 16, 9]));
    u32::from_le_bytes(answer[12..16].try_into().unwrap())
}

/// `NDIS_RECEIVE_SCALE_PARAMETERS` with everything set.
fn scaling_parameters(flags: u16, table: &[u32], key: &[u8]) -> Vec<u8> {
    let (table_len, key_len) = (table.len() as u32 * 4, key.len() as u32);
    let mut bytes =
        words(&[0x0028_0289, flags.into(), 0x1701, table_len, 40, key_len, 40 + table_len, 0, 0, 0]);
    bytes.extend(words(table));
    bytes.extend(key);
    bytes
}

#[test]
fn scaling_is_set_changed_and_switched_off() {
    let mut control = control(4);
    assert_eq!(
        set(&mut control, oid::GEN_RECEIVE_SCALE_PARAMETERS, &scaling_parameters(0, &[0, 1, 2, 3], &[7; 40])),
        0
    );
    assert_eq!(*control.scaling(), Scaling { table: vec![0, 1, 2, 3], key: vec![7; 40], hash: 0x1701 });
    let kept = ndis::RSS_TABLE_UNCHANGED | ndis::RSS_HASH_UNCHANGED;
    assert_eq!(
        set(&mut control, oid::GEN_RECEIVE_SCALE_PARAMETERS, &scaling_parameters(kept, &[3], &[8; 16])),
        0
    );
    assert_eq!((control.scaling().table.len(), control.scaling().key.len()), (4, 16));
    for (bad, status) in [
        (scaling_parameters(0, &[4], &[]), Status::InvalidData),
        (scaling_parameters(0, &[70000], &[]), Status::InvalidData),
        (scaling_parameters(0, &[0; 257], &[]), Status::InvalidData),
        (scaling_parameters(0, &[0], &[0; 41]), Status::InvalidData),
        (scaling_parameters(0, &[0], &[0; 40])[..60].to_vec(), Status::InvalidLength),
        (vec![0x89; 30], Status::InvalidLength),
        (vec![0x88; 40], Status::InvalidData),
    ] {
        assert_eq!(set(&mut control, oid::GEN_RECEIVE_SCALE_PARAMETERS, &bad), status as u32);
        assert_eq!(control.scaling().table.len(), 4, "nothing is taken of what is refused");
    }
    let off = scaling_parameters(ndis::RSS_DISABLE, &[], &[]);
    assert_eq!(set(&mut control, oid::GEN_RECEIVE_SCALE_PARAMETERS, &off), 0);
    assert!(control.scaling().table.is_empty());
}

#[test]
fn requests_that_lie_about_their_length_are_malformed() {
    let mut control = control(1);
    for bad in [
        vec![],
        words(&[4]),
        words(&[4, 100]),
        words(&[4, 4]),
        words(&[4, 8]),
        words(&[2, 16, 1, 1]),
        words(&[8, 8]),
    ] {
        assert_eq!(control.answer(&bad), Err(Malformed::Length(bad.len())), "{bad:?}");
    }
    for unknown in [0, 1, 7, 9, kind::COMPLETION, u32::MAX] {
        assert_eq!(control.answer(&words(&[unknown, 8])), Err(Malformed::Kind(unknown)));
    }
    // Information outside of the message is refused, not read.
    for (len, offset, status) in
        [(4, 24, 0xC001_0014), (4, 0, 0xC001_0015), (u32::MAX, 20, 0xC001_0014), (4, u32::MAX, 0xC001_0014)]
    {
        let request = words(&[kind::SET, 32, 1, oid::GEN_CURRENT_PACKET_FILTER, len, offset, 0, 1]);
        let answer = control.answer(&request).unwrap().unwrap();
        assert_eq!(answer[12..16], u32::to_le_bytes(status), "{len} {offset}");
    }
    assert_eq!(control.filter(), 0);
}

#[test]
fn reset_and_keepalive_are_answered_and_halt_is_not() {
    let mut control = control(1);
    control.answer(&words(&[kind::INITIALIZE, 24, 1, 1, 0, 0x4000])).unwrap().unwrap();
    assert!(control.is_initialized());
    assert_eq!(set(&mut control, oid::GEN_CURRENT_PACKET_FILTER, &words(&[1])), 0);
    assert_eq!(
        control.answer(&words(&[kind::KEEPALIVE, 12, 5])).unwrap().unwrap(),
        words(&[0x8000_0008, 16, 5, 0])
    );
    assert_eq!(
        control.answer(&words(&[kind::RESET, 12, 0])).unwrap().unwrap(),
        words(&[0x8000_0006, 16, 0, 1])
    );
    assert_eq!(control.filter(), 0);
    assert_eq!(control.answer(&words(&[kind::HALT, 12, 6])), Ok(None));
    assert!(!control.is_initialized());
    assert_eq!(control.set_link(false), None, "nobody is there to be told");
}

#[test]
fn the_list_of_objects_has_no_object_twice() {
    let mut list = query::supported().to_vec();
    list.sort_unstable();
    list.dedup();
    assert_eq!(list.len(), query::supported().len());
}

proptest! {
    #[test]
    fn any_request_is_answered_or_malformed(
        kind in prop_oneof![0u32..10, any::<u32>()],
        object in prop_oneof![prop::sample::select(query::supported()), any::<u32>()],
        len in prop_oneof![0u32..80, any::<u32>()],
        offset in prop_oneof![Just(20u32), 0u32..60, any::<u32>()],
        rest in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut control = control(3);
        control.configure(1500, true);
        let mut request = words(&[kind, 28 + rest.len() as u32, 1, object, len, offset, 0]);
        request.extend(rest);
        if let Ok(Some(answer)) = control.answer(&request) {
            prop_assert!(answer.len() <= 4096, "it fits into a section");
            prop_assert_eq!(&answer[4..8], &(answer.len() as u32).to_le_bytes());
        }
        prop_assert!(control.scaling().table.iter().all(|queue| *queue < 3));
        prop_assert_eq!(control.mac()[0] & 1, 0);
    }
}

use super::*;
use crate::frame::BROADCAST;

#[test]
fn sections_are_the_guests_until_it_completes() {
    let mut outstanding = Outstanding::default();
    let one = outstanding.put(vec![1, 2]);
    let two = outstanding.put(vec![3]);
    assert_ne!(one, two);
    assert_eq!(outstanding.take(one), Some(vec![1, 2]));
    assert_eq!(outstanding.take(one), None, "not twice");
    assert_eq!(outstanding.put(vec![4]), one, "numbers are used again");
    for unknown in [2, u64::MAX] {
        assert_eq!(outstanding.take(unknown), None);
    }
    assert_eq!(outstanding.take(two), Some(vec![3]));
}

#[test]
fn a_guest_gets_what_its_filter_says_and_nothing_of_others() {
    let own = [2, 0, 0, 0, 0, 1];
    let (other, group) = ([2, 0, 0, 0, 0, 2], [1, 0, 0x5E, 0, 0, 1]);
    let view = |filter, takes_foreign| View { mac: own, filter, takes_foreign, ..View::default() };
    for (filter, foreign, expected) in [
        (0, false, [false, false, false, false]),
        (filter::DIRECTED, false, [true, false, false, false]),
        (filter::ALL_MULTICAST | filter::BROADCAST, false, [false, false, true, true]),
        (filter::MULTICAST, false, [false, false, true, false]),
        (filter::PROMISCUOUS, false, [true, false, true, true]),
        (filter::PROMISCUOUS, true, [true, true, true, true]),
        (filter::DIRECTED, true, [true, false, false, false]),
    ] {
        let view = view(filter, foreign);
        assert_eq!(
            [own, other, group, BROADCAST].map(|to| wanted(to, &view)),
            expected,
            "{filter:#x} {foreign}"
        );
    }
}

#[test]
fn transports_are_found() {
    let mut v4 = [0; 64];
    (v4[12], v4[23]) = (8, 6);
    let mut v6 = [0; 64];
    (v6[12], v6[13], v6[20]) = (0x86, 0xDD, 17);
    assert_eq!((transport(&v4), transport(&v6), transport(&[0; 64])), (Some(6), Some(17), None));
    assert_eq!((transport(&v4[..20]), transport(&[])), (None, None));
}

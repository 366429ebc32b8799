//! The state machine against a guest that behaves, one that does not, and one that does anything.

use proptest::prelude::*;

use parterre_vmbus_protocol::message::{
    ChannelMessage, GpadlBody, GpadlCreated, GpadlHeader, GpadlTeardown, Header, InitiateContact,
    MessageType, ModifyChannel, OfferChannel, OpenChannel, OpenResult, TlConnectRequest, VersionResponse,
};
use parterre_vmbus_protocol::offer::{OfferFlags, USER_DEFINED_BYTES};
use parterre_vmbus_protocol::{Guid, Version};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::*;
use crate::Offer;

const CONFIG: Config = Config { processors: 2, max_gpadl_pages: 64, max_version: Version::WIN10_V5_3 };
const GPADL: u32 = 0xE_1E10;

/// A server, and a worker that does at once what it is told unless it is asked to wait.
struct Rig {
    server: Server,
    /// Messages to the guest.
    sent: Vec<(MessageType, Vec<u8>)>,
    open: BTreeMap<u32, OpenRequest>,
    /// Channels that are to be closed, in order.
    closing: Vec<u32>,
    slow: bool,
    connects: Vec<ConnectRequest>,
    removed: Vec<OfferId>,
}

impl Rig {
    fn new() -> Rig {
        let (sent, open, closing) = (Vec::new(), BTreeMap::new(), Vec::new());
        let (connects, removed) = (Vec::new(), Vec::new());
        Rig { server: Server::new(CONFIG), sent, open, closing, slow: false, connects, removed }
    }

    /// A rig with `devices` devices and a guest that has their offers.
    fn connected(version: Version, devices: u128) -> Rig {
        let mut rig = Rig::new();
        for instance in 0..devices {
            rig.server.offer(offer(instance)).unwrap();
        }
        rig.contact(version);
        rig.header(MessageType::REQUEST_OFFERS).unwrap();
        rig
    }

    fn work(&mut self) {
        while let Some(action) = self.server.next_action() {
            match action {
                Action::Send { message, .. } => {
                    assert!(message.len() <= parterre_vmbus_protocol::message::MAX_MESSAGE_SIZE);
                    let (header, _) = Header::read_from_prefix(&message).unwrap();
                    self.sent.push((header.message_type, message));
                }
                Action::Open(request) => {
                    let number = request.channel;
                    assert!(self.open.insert(number, *request).is_none(), "channel {number} opened twice");
                    self.server.opened(number);
                }
                Action::Close { channel } => {
                    assert!(self.open.contains_key(&channel), "channel {channel} closed twice");
                    self.closing.push(channel);
                    if !self.slow {
                        self.finish_closing();
                    }
                }
                Action::Modify { .. } => {}
                Action::Connect(request) => self.connects.push(request),
                Action::Removed(id) => self.removed.push(id),
            }
        }
    }

    /// Says that what was to be closed is closed.
    fn finish_closing(&mut self) {
        for channel in std::mem::take(&mut self.closing) {
            self.open.remove(&channel);
            self.server.closed(channel);
        }
    }

    fn post(&mut self, message: &(impl IntoBytes + Immutable)) -> Result<(), MessageError> {
        let result = self.server.message(message.as_bytes());
        self.work();
        result
    }

    fn header(&mut self, kind: MessageType) -> Result<(), MessageError> {
        self.post(&Header::new(kind))
    }

    fn contact(&mut self, version: Version) {
        self.contact_with(version, [0, 0]);
    }

    fn contact_with(&mut self, version: Version, [monitor_page1, monitor_page2]: [u64; 2]) {
        let header = Header::new(MessageType::INITIATE_CONTACT);
        let interrupt_page_or_target = 2;
        let target_vp = 0;
        let message = InitiateContact {
            header,
            version,
            target_vp,
            interrupt_page_or_target,
            monitor_page1,
            monitor_page2,
        };
        self.post(&message).unwrap();
    }

    fn gpadl(&mut self, channel_id: u32, gpadl: u32, pages: u32) {
        let length = 8 + 8 * pages;
        let header = GpadlHeader {
            header: Header::new(MessageType::GPADL_HEADER),
            channel_id,
            gpadl,
            range_length: length as u16,
            range_count: 1,
        };
        let mut bytes = [pages * 4096, 0].map(u32::to_le_bytes).concat();
        bytes.extend((0..u64::from(pages)).flat_map(|page| (0x100 + page).to_le_bytes()));
        let mut message = header.as_bytes().to_vec();
        let (first, rest) = bytes.split_at(bytes.len().min(200));
        message.extend(first);
        let _ = self.server.message(&message);
        for part in rest.chunks(200) {
            let header = Header::new(MessageType::GPADL_BODY);
            let mut message = GpadlBody { header, message_number: 0, gpadl }.as_bytes().to_vec();
            message.extend(part);
            let _ = self.server.message(&message);
        }
        self.work();
    }

    fn teardown(&mut self, channel_id: u32, gpadl: u32) -> Result<(), MessageError> {
        let header = Header::new(MessageType::GPADL_TEARDOWN);
        self.post(&GpadlTeardown { header, channel_id, gpadl })
    }

    fn open(&mut self, channel_id: u32, ring_gpadl: u32) -> Result<(), MessageError> {
        self.post(&OpenChannel {
            header: Header::new(MessageType::OPEN_CHANNEL),
            channel_id,
            open_id: 77,
            ring_gpadl,
            target_vp: 1,
            downstream_page_offset: 2,
            user_data: [5; USER_DEFINED_BYTES],
        })
    }

    fn about(&mut self, kind: MessageType, channel_id: u32) -> Result<(), MessageError> {
        self.post(&ChannelMessage { header: Header::new(kind), channel_id })
    }

    fn count(&self, kind: MessageType) -> usize {
        self.sent.iter().filter(|(sent, _)| *sent == kind).count()
    }

    fn last<T: FromBytes + KnownLayout + Immutable>(&self, kind: MessageType) -> T {
        let (_, bytes) = self.sent.iter().rev().find(|(sent, _)| *sent == kind).expect("such a message");
        T::read_from_prefix(bytes).unwrap().0
    }
}

fn offer(instance: u128) -> Offer {
    Offer::new(Guid::from_u128(0xABC), Guid::from_u128(instance))
}

#[test]
fn every_version_is_spoken_and_no_other() {
    for version in Version::ALL {
        let mut rig = Rig::new();
        rig.contact(version);
        let response: VersionResponse = rig.last(MessageType::VERSION_RESPONSE);
        let spoken = version <= CONFIG.max_version;
        assert_eq!(
            (response.supported, rig.server.version().is_some()),
            (spoken.into(), spoken),
            "{version}"
        );
    }
    let mut rig = Rig::new();
    rig.contact(Version::new(5, 9));
    assert_eq!(rig.last::<VersionResponse>(MessageType::VERSION_RESPONSE).supported, 0);
    assert!(matches!(rig.header(MessageType::REQUEST_OFFERS), Err(MessageError::NotConnected(_))));
}

#[test]
fn only_channels_that_ask_for_it_are_monitored_and_only_with_a_page() {
    for version in Version::ALL.into_iter().filter(|version| *version <= CONFIG.max_version) {
        for (pages, page) in [
            ([0, 0], None),
            ([0x1000, 0], None),
            ([u64::MAX, 3], None),
            ([0x1000, 0x2000], Some(0x2000)),
            ([0x1000, 0x1000], Some(0x1000)),
        ] {
            let mut rig = Rig::new();
            rig.server.offer(offer(1)).unwrap();
            let mut monitored = offer(2);
            monitored.flags |= OfferFlags::REQUEST_MONITORED_NOTIFICATION;
            rig.server.offer(monitored).unwrap();
            rig.contact_with(version, pages);
            rig.header(MessageType::REQUEST_OFFERS).unwrap();
            let offered: OfferChannel = rig.last(MessageType::OFFER_CHANNEL);
            let expected = if page.is_some() { (1, offered.channel_id as u8) } else { (0, 0xFF) };
            assert_eq!((offered.monitor_allocated, offered.monitor_id), expected, "{version}");
            rig.gpadl(2, GPADL, 4);
            rig.open(2, GPADL).unwrap();
            assert_eq!(rig.open[&2].monitor.map(|monitor| monitor.page), page, "{version}");
            rig.gpadl(1, GPADL + 1, 4);
            rig.open(1, GPADL + 1).unwrap();
            assert_eq!(rig.open[&1].monitor, None, "{version}");
        }
    }
}

#[test]
fn channels_beyond_the_monitor_pages_room_signal_by_call() {
    let mut rig = Rig::new();
    for number in 1..=130 {
        let mut monitored = offer(number);
        monitored.flags |= OfferFlags::REQUEST_MONITORED_NOTIFICATION;
        rig.server.offer(monitored).unwrap();
    }
    rig.contact_with(Version::WIN10_V5_3, [0x1000, 0x2000]);
    rig.header(MessageType::REQUEST_OFFERS).unwrap();
    let offered: OfferChannel = rig.last(MessageType::OFFER_CHANNEL);
    assert_eq!((offered.channel_id, offered.monitor_allocated), (130, 0));
}

#[test]
fn a_channel_lives_from_offer_to_release() {
    let mut rig = Rig::connected(Version::WIN10_V5_3, 2);
    assert_eq!((rig.count(MessageType::OFFER_CHANNEL), rig.count(MessageType::ALL_OFFERS_DELIVERED)), (2, 1));
    let offer: OfferChannel = rig.last(MessageType::OFFER_CHANNEL);
    let (channel, connection, dedicated) = (offer.channel_id, offer.connection_id, offer.is_dedicated);
    assert_eq!((channel, connection, dedicated), (2, EVENT_CONNECTION_BASE + 2, 1));
    // 40 pages do not fit in one message.
    rig.gpadl(2, GPADL, 40);
    let created: GpadlCreated = rig.last(MessageType::GPADL_CREATED);
    assert_eq!((created.channel_id, created.gpadl, created.status), (2, GPADL, 0));
    rig.open(2, GPADL).unwrap();
    let request = &rig.open[&2];
    assert_eq!(
        (request.target, request.downstream_page, request.facts.index),
        (Target { vp: 1, sint: 2 }, 2, 0)
    );
    assert_eq!(request.rings.ranges[0].len(), 40 * 4096);
    let result: OpenResult = rig.last(MessageType::OPEN_CHANNEL_RESULT);
    assert_eq!((result.channel_id, result.open_id, result.status), (2, 77, 0));
    rig.about(MessageType::CLOSE_CHANNEL, 2).unwrap();
    rig.teardown(2, GPADL).unwrap();
    assert_eq!(rig.count(MessageType::GPADL_TORNDOWN), 1);
    assert!(rig.open.is_empty());
    let id = rig.server.channels[&2].device;
    rig.server.rescind(id);
    rig.work();
    rig.about(MessageType::RELID_RELEASED, 2).unwrap();
    assert_eq!(
        (rig.server.channels.len(), rig.server.devices.len(), rig.server.gpadls.get(GPADL)),
        (1, 1, None)
    );
}

#[test]
fn memory_is_given_back_only_when_the_channel_has_ended() {
    let mut rig = Rig::connected(Version::WIN10, 1);
    rig.slow = true;
    rig.gpadl(1, GPADL, 4);
    rig.gpadl(1, GPADL + 1, 4);
    rig.open(1, GPADL).unwrap();
    // The rings of an open channel stay, another buffer does not.
    rig.teardown(1, GPADL + 1).unwrap();
    assert_eq!(rig.count(MessageType::GPADL_TORNDOWN), 1);
    rig.about(MessageType::CLOSE_CHANNEL, 1).unwrap();
    rig.teardown(1, GPADL).unwrap();
    assert_eq!(rig.count(MessageType::GPADL_TORNDOWN), 1);
    assert!(matches!(rig.teardown(1, GPADL), Err(MessageError::Repeated(_))));
    rig.finish_closing();
    rig.work();
    assert_eq!(rig.count(MessageType::GPADL_TORNDOWN), 2);
}

#[test]
fn a_guest_may_open_again_before_the_channel_has_ended() {
    let mut rig = Rig::connected(Version::WIN10, 1);
    rig.slow = true;
    rig.gpadl(1, GPADL, 4);
    rig.open(1, GPADL).unwrap();
    rig.about(MessageType::CLOSE_CHANNEL, 1).unwrap();
    rig.open(1, GPADL).unwrap();
    assert_eq!(rig.count(MessageType::OPEN_CHANNEL_RESULT), 1);
    rig.finish_closing();
    rig.work();
    assert_eq!((rig.count(MessageType::OPEN_CHANNEL_RESULT), rig.open.len()), (2, 1));
}

#[test]
fn subchannels_come_and_go_with_their_device() {
    let mut rig = Rig::connected(Version::WIN10_V5, 1);
    rig.gpadl(1, GPADL, 4);
    rig.open(1, GPADL).unwrap();
    let id = rig.open[&1].device;
    assert_eq!(rig.server.offer_subchannels(id, 3), 3);
    assert_eq!(rig.server.offer_subchannels(id, 2), 3);
    rig.work();
    let last: OfferChannel = rig.last(MessageType::OFFER_CHANNEL);
    assert_eq!((last.channel_id, last.offer.subchannel_index), (4, 3));
    rig.gpadl(4, GPADL + 1, 4);
    rig.open(4, GPADL + 1).unwrap();
    assert_eq!(rig.open[&4].facts.index, 3);
    // A sub-channel reaches buffers of its device, and no other device does.
    assert!(rig.server.gpadl(id, GPADL + 1).is_some());
    assert!(rig.server.gpadl(OfferId(99), GPADL).is_none());
    rig.about(MessageType::CLOSE_CHANNEL, 1).unwrap();
    assert_eq!(rig.count(MessageType::RESCIND_CHANNEL_OFFER), 3);
    for channel in 2..=4 {
        rig.about(MessageType::RELID_RELEASED, channel).unwrap();
    }
    assert!(rig.open.is_empty());
    rig.open(1, GPADL).unwrap();
    assert_eq!(rig.server.offer_subchannels(id, 2), 2);
    rig.work();
    assert_eq!(rig.count(MessageType::OFFER_CHANNEL), 1 + 3 + 2);
}

#[test]
fn goodbye_and_a_sudden_new_guest_wait_for_all_channels() {
    for goodbye in [true, false] {
        let mut rig = Rig::connected(Version::WIN10_V5, 2);
        rig.slow = true;
        for (channel, gpadl) in [(1, GPADL), (2, GPADL + 1)] {
            rig.gpadl(channel, gpadl, 4);
            rig.open(channel, gpadl).unwrap();
        }
        rig.sent.clear();
        if goodbye {
            rig.header(MessageType::UNLOAD).unwrap()
        } else {
            rig.contact(Version::WIN10_V5_2)
        }
        assert_eq!((rig.sent.len(), rig.closing.len()), (0, 2));
        assert!(rig.open(1, GPADL).is_err());
        rig.finish_closing();
        rig.work();
        let answer = if goodbye { MessageType::UNLOAD_RESPONSE } else { MessageType::VERSION_RESPONSE };
        assert_eq!((rig.sent.len(), rig.count(answer)), (1, 1));
        assert_eq!(rig.server.gpadls.get(GPADL), None);
        rig.contact(Version::WIN10_V5);
        rig.header(MessageType::REQUEST_OFFERS).unwrap();
        assert_eq!(rig.count(MessageType::OFFER_CHANNEL), 2);
    }
}

#[test]
fn a_goodbye_while_a_contact_waits_is_what_is_answered() {
    let mut rig = Rig::connected(Version::WIN10_V5, 2);
    rig.slow = true;
    rig.gpadl(1, GPADL, 4);
    rig.open(1, GPADL).unwrap();
    rig.sent.clear();
    rig.contact(Version::WIN10_V5);
    rig.header(MessageType::UNLOAD).unwrap();
    rig.header(MessageType::UNLOAD).unwrap();
    assert_eq!(rig.sent.len(), 0);
    rig.finish_closing();
    rig.work();
    assert_eq!((rig.sent.len(), rig.count(MessageType::UNLOAD_RESPONSE)), (1, 1));
    assert!(rig.header(MessageType::UNLOAD).is_err());
}

#[test]
fn a_channel_that_fails_costs_its_device_until_the_next_guest() {
    let mut rig = Rig::connected(Version::WIN10_V5, 2);
    rig.gpadl(1, GPADL, 4);
    rig.open(1, GPADL).unwrap();
    rig.open.remove(&1);
    rig.server.closed(1);
    rig.work();
    assert_eq!(rig.count(MessageType::RESCIND_CHANNEL_OFFER), 1);
    // The guest may not know yet.
    rig.about(MessageType::CLOSE_CHANNEL, 1).unwrap();
    assert!(rig.open(1, GPADL).is_err());
    rig.about(MessageType::RELID_RELEASED, 1).unwrap();
    assert!(rig.about(MessageType::RELID_RELEASED, 1).is_err());
    // The number goes to another device; the one that failed comes back with a guest of its own.
    rig.server.offer(offer(9)).unwrap();
    rig.work();
    assert_eq!({ rig.last::<OfferChannel>(MessageType::OFFER_CHANNEL).channel_id }, 1);
    rig.header(MessageType::UNLOAD).unwrap();
    rig.contact(Version::WIN10_V5);
    rig.sent.clear();
    rig.header(MessageType::REQUEST_OFFERS).unwrap();
    assert_eq!(rig.count(MessageType::OFFER_CHANNEL), 3);
}

#[test]
fn an_opening_that_fails_is_answered() {
    let mut rig = Rig::connected(Version::WIN10_V5, 1);
    // Without memory, with memory that is not there, for a channel that is not there.
    assert!(matches!(rig.open(1, GPADL), Err(MessageError::Gpadl(GPADL))));
    assert_ne!({ rig.last::<OpenResult>(MessageType::OPEN_CHANNEL_RESULT).status }, 0);
    assert!(matches!(rig.open(7, GPADL), Err(MessageError::Channel(7))));
    // The worker cannot.
    rig.gpadl(1, GPADL, 4);
    let message = OpenChannel {
        header: Header::new(MessageType::OPEN_CHANNEL),
        channel_id: 1,
        open_id: 3,
        ring_gpadl: GPADL,
        target_vp: 0,
        downstream_page_offset: 0,
        user_data: [0; USER_DEFINED_BYTES],
    };
    rig.server.message(message.as_bytes()).unwrap();
    assert!(matches!(rig.server.next_action(), Some(Action::Open(_))));
    rig.server.closed(1);
    rig.work();
    let result: OpenResult = rig.last(MessageType::OPEN_CHANNEL_RESULT);
    assert!(result.open_id == 3 && result.status != 0);
    // A processor that is not there.
    let message = OpenChannel { target_vp: 2, ..message };
    assert_eq!(rig.post(&message), Err(MessageError::Processor(2)));
}

#[test]
fn memory_has_limits_and_makes_sense() {
    let mut rig = Rig::connected(Version::WIN10_V5, 1);
    rig.gpadl(1, GPADL, 40);
    rig.gpadl(1, GPADL + 1, 40);
    assert_ne!({ rig.last::<GpadlCreated>(MessageType::GPADL_CREATED).status }, 0);
    rig.teardown(1, GPADL).unwrap();
    rig.gpadl(1, GPADL + 1, 40);
    assert_eq!({ rig.last::<GpadlCreated>(MessageType::GPADL_CREATED).status }, 0);
    // The same handle again, handle 0, a channel that is not there.
    for (channel, handle) in [(1, GPADL + 1), (1, 0), (5, GPADL + 2)] {
        rig.gpadl(channel, handle, 1);
        assert_ne!({ rig.last::<GpadlCreated>(MessageType::GPADL_CREATED).status }, 0);
    }
    assert!(rig.teardown(1, 12345).is_err());
}

#[test]
fn connections_are_passed_on_and_leave_by_themselves() {
    let mut rig = Rig::connected(Version::WIN10_V5, 0);
    let (endpoint_id, service_id) = (Guid::from_u128(1), Guid::from_u128(2));
    let header = Header::new(MessageType::TL_CONNECT_REQUEST);
    rig.post(&TlConnectRequest { header, endpoint_id, service_id }).unwrap();
    let request = rig.connects[0];
    assert_eq!((request.endpoint, request.service), (endpoint_id, service_id));
    rig.server.refuse(request);
    rig.work();
    assert_eq!(rig.count(MessageType::TL_CONNECT_RESULT), 1);
    let mut socket = Offer::new(service_id, endpoint_id);
    socket.flags = OfferFlags::TLNPI_PROVIDER_OFFER | OfferFlags::NAMED_PIPE_MODE;
    let id = rig.server.offer(socket).unwrap();
    rig.work();
    rig.gpadl(1, GPADL, 4);
    rig.open(1, GPADL).unwrap();
    rig.about(MessageType::CLOSE_CHANNEL, 1).unwrap();
    rig.teardown(1, GPADL).unwrap();
    rig.about(MessageType::RELID_RELEASED, 1).unwrap();
    assert_eq!((rig.removed.clone(), rig.count(MessageType::RESCIND_CHANNEL_OFFER)), (vec![id], 0));
    assert!(rig.server.channels.is_empty() && rig.server.devices.is_empty());
}

#[test]
fn the_same_device_is_offered_once() {
    let mut rig = Rig::connected(Version::WIN10_V5, 1);
    assert!(matches!(rig.server.offer(offer(0)), Err(crate::bus::OfferError::Exists { .. })));
    let id = rig.server.channels[&1].device;
    rig.server.rescind(id);
    // Its place is free for a new one before the guest has let go of the old one.
    rig.server.offer(offer(0)).unwrap();
    assert!(matches!(rig.server.offer(offer(0)), Err(crate::bus::OfferError::Exists { .. })));
}

/// A guest never knows of two devices with the same ids.
#[test]
fn a_device_that_comes_again_waits_until_the_guest_has_let_go() {
    let mut rig = Rig::connected(Version::WIN10_V5, 1);
    rig.slow = true;
    rig.gpadl(1, GPADL, 4);
    rig.open(1, GPADL).unwrap();
    let id = rig.server.channels[&1].device;
    rig.server.rescind(id);
    let again = rig.server.offer(offer(0)).unwrap();
    rig.work();
    assert_eq!(rig.count(MessageType::OFFER_CHANNEL), 1);
    // Another device is not held up.
    rig.server.offer(offer(1)).unwrap();
    rig.work();
    assert_eq!({ rig.last::<OfferChannel>(MessageType::OFFER_CHANNEL).channel_id }, 3);
    rig.about(MessageType::CLOSE_CHANNEL, 1).unwrap();
    rig.about(MessageType::RELID_RELEASED, 1).unwrap();
    assert_eq!(rig.count(MessageType::OFFER_CHANNEL), 2, "the worker still works on it");
    rig.finish_closing();
    rig.work();
    assert_eq!({ rig.last::<OfferChannel>(MessageType::OFFER_CHANNEL).channel_id }, 2);
    // One that is taken away again before the guest has heard of it was never there.
    rig.server.rescind(again);
    rig.work();
    let third = rig.server.offer(offer(0)).unwrap();
    rig.server.rescind(third);
    rig.server.offer(offer(0)).unwrap();
    rig.work();
    assert_eq!(rig.count(MessageType::OFFER_CHANNEL), 3);
    rig.about(MessageType::RELID_RELEASED, 2).unwrap();
    assert_eq!(rig.count(MessageType::OFFER_CHANNEL), 4);
    // A new guest knows of nothing.
    rig.contact(Version::WIN10_V5);
    rig.header(MessageType::REQUEST_OFFERS).unwrap();
    assert_eq!(rig.count(MessageType::OFFER_CHANNEL), 6);
}

#[test]
fn a_device_goes_with_its_last_channel() {
    for order in [[1, 2], [2, 1]] {
        let mut rig = Rig::connected(Version::WIN10_V5, 1);
        let id = rig.server.channels[&1].device;
        assert_eq!(rig.server.offer_subchannels(id, 1), 1);
        rig.server.rescind(id);
        rig.work();
        for (number, left) in order.into_iter().zip([1, 0]) {
            rig.about(MessageType::RELID_RELEASED, number).unwrap();
            assert_eq!((rig.server.channels.len(), rig.server.devices.len()), (left, left), "{order:?}");
        }
    }
}

/// What a guest or a worker may do at any time.
#[derive(Clone, Debug)]
enum Step {
    Contact(Version),
    Plain(u32),
    About(u32, u32),
    Gpadl(u32, u32, u32),
    Teardown(u32, u32),
    Open(u32, u32),
    Modify(u32, u32),
    Raw(Vec<u8>),
    Rescind(u32),
    Offer(u8),
    Subchannels(u32, u16),
    Fail(u32),
    FinishClosing,
}

fn step() -> impl Strategy<Value = Step> {
    let version = prop::sample::select(Version::ALL.to_vec());
    let kinds = || prop::sample::select(vec![3u32, 7, 13, 16, 18, 19, 25, 0]);
    prop_oneof![
        1 => version.prop_map(Step::Contact),
        2 => kinds().prop_map(Step::Plain),
        6 => (kinds(), 0..8u32).prop_map(|(kind, channel)| Step::About(kind, channel)),
        6 => (0..8u32, 0..6u32, 0..60u32).prop_map(|(channel, handle, pages)| Step::Gpadl(channel, handle, pages)),
        4 => (0..8u32, 0..6u32).prop_map(|(channel, handle)| Step::Teardown(channel, handle)),
        8 => (0..8u32, 0..6u32).prop_map(|(channel, handle)| Step::Open(channel, handle)),
        2 => (0..8u32, 0..4u32).prop_map(|(channel, vp)| Step::Modify(channel, vp)),
        4 => prop::collection::vec(any::<u8>(), 0..240).prop_map(Step::Raw),
        1 => (0..6u32).prop_map(Step::Rescind),
        2 => any::<u8>().prop_map(Step::Offer),
        2 => (0..6u32, 0..5u16).prop_map(|(id, count)| Step::Subchannels(id, count)),
        2 => (0..8u32).prop_map(Step::Fail),
        4 => Just(Step::FinishClosing),
    ]
}

impl Rig {
    fn step(&mut self, step: Step) {
        match step {
            Step::Contact(version) => self.contact(version),
            Step::Plain(kind) => drop(self.header(MessageType(kind))),
            Step::About(kind, channel) => drop(self.about(MessageType(kind), channel)),
            Step::Gpadl(channel, handle, pages) => self.gpadl(channel, handle, pages),
            Step::Teardown(channel, handle) => drop(self.teardown(channel, handle)),
            Step::Open(channel, handle) => drop(self.open(channel, handle)),
            Step::Modify(channel_id, target_vp) => {
                let header = Header::new(MessageType::MODIFY_CHANNEL);
                let _ = self.post(&ModifyChannel { header, channel_id, target_vp });
            }
            Step::Raw(bytes) => drop(self.server.message(&bytes)),
            Step::Rescind(id) => self.server.rescind(OfferId(id)),
            Step::Offer(instance) => drop(self.server.offer(offer(instance.into()))),
            Step::Subchannels(id, count) => drop(self.server.offer_subchannels(OfferId(id), count)),
            Step::Fail(channel) => {
                if !self.closing.contains(&channel) && self.open.remove(&channel).is_some() {
                    self.server.closed(channel);
                }
            }
            Step::FinishClosing => self.finish_closing(),
        }
        self.work();
    }

    /// What must hold whatever happens.
    fn check(&self) {
        let server = &self.server;
        for (number, channel) in &server.channels {
            assert!((1..=MAX_CHANNELS).contains(number));
            assert!(server.devices.contains_key(&channel.device), "channel {number} has no device");
            assert_eq!(channel.is_busy(), self.open.contains_key(number), "channel {number}");
        }
        assert!(self.open.keys().all(|number| server.channels.contains_key(number)));
        assert!(server.gpadls.is_within_limits());
        let known = server.channels.values().filter(|channel| channel.announced && !channel.released);
        let ids = known.filter(|channel| channel.index == 0).map(|channel| {
            let offer = &server.devices[&channel.device].offer;
            (offer.interface, offer.instance)
        });
        let mut ids: Vec<_> =
            ids.map(|(interface, instance)| [interface, instance].map(Guid::to_u128)).collect();
        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), count, "the guest knows of two devices with the same ids");
    }
}

proptest! {
    #[test]
    fn whatever_happens_the_worker_and_the_server_agree(
        steps in prop::collection::vec(step(), 1..80),
        slow in any::<bool>(),
    ) {
        let mut rig = Rig::connected(Version::WIN10_V5_3, 2);
        rig.slow = slow;
        for step in steps {
            rig.step(step);
            rig.check();
        }
        // However it was left: a new guest is answered and finds the devices that are there.
        rig.slow = false;
        rig.finish_closing();
        rig.work();
        rig.contact(Version::WIN10_V5);
        rig.sent.clear();
        rig.header(MessageType::REQUEST_OFFERS).unwrap();
        prop_assert_eq!(rig.count(MessageType::OFFER_CHANNEL), rig.server.devices.len());
        prop_assert!(rig.open.is_empty());
    }
}

//! The VMBus server's state machine against a guest that sends anything and a worker that is slow.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use parterre_vmbus_server::bus::OfferId;
use parterre_vmbus_server::protocol::message::{
    ChannelMessage, GpadlBody, GpadlHeader, GpadlTeardown, Header, InitiateContact, MAX_MESSAGE_SIZE,
    MessageType, ModifyChannel, OpenChannel,
};
use parterre_vmbus_server::state::{Action, Config, Server};
use parterre_vmbus_server::{Guid, Offer, OfferFlags, Version};
use zerocopy::IntoBytes;

/// What happens next. Numbers are kept small, so that they often name something that is there.
#[derive(Debug, Arbitrary)]
enum Step {
    Contact { version: u8, vp: u8, target: u64 },
    Plain { kind: u8 },
    About { kind: u8, channel: u8 },
    Gpadl { channel: u8, handle: u8, length: u16, count: u8, bytes: Vec<u8> },
    Body { handle: u8, bytes: Vec<u8> },
    Teardown { channel: u8, handle: u8 },
    Open { channel: u8, handle: u8, vp: u8, page: u32 },
    Modify { channel: u8, vp: u8 },
    Raw { bytes: Vec<u8> },
    Offer { instance: u8, socket: bool },
    Rescind { id: u8 },
    Subchannels { id: u8, count: u16 },
    Opened { channel: u8 },
    Closed { channel: u8 },
}

fn post(server: &mut Server, head: &[u8], rest: &[u8]) {
    let mut message = head.to_vec();
    message.extend(rest);
    message.truncate(MAX_MESSAGE_SIZE);
    let _ = server.message(&message);
}

fn step(server: &mut Server, step: Step, running: &mut BTreeSet<u32>) {
    match step {
        Step::Contact { version, vp, target } => {
            let version = Version::ALL[usize::from(version) % Version::ALL.len()];
            let header = Header::new(MessageType::INITIATE_CONTACT);
            let (target_vp, interrupt_page_or_target) = (vp.into(), target);
            let (monitor_page1, monitor_page2) = (0, 0);
            let message = InitiateContact {
                header,
                version,
                target_vp,
                interrupt_page_or_target,
                monitor_page1,
                monitor_page2,
            };
            post(server, message.as_bytes(), &[]);
        }
        Step::Plain { kind } => post(server, Header::new(MessageType(kind.into())).as_bytes(), &[]),
        Step::About { kind, channel } => {
            let header = Header::new(MessageType(kind.into()));
            post(server, ChannelMessage { header, channel_id: channel.into() }.as_bytes(), &[]);
        }
        Step::Gpadl { channel, handle, length, count, bytes } => {
            let header = GpadlHeader {
                header: Header::new(MessageType::GPADL_HEADER),
                channel_id: channel.into(),
                gpadl: handle.into(),
                range_length: length,
                range_count: count.into(),
            };
            post(server, header.as_bytes(), &bytes);
        }
        Step::Body { handle, bytes } => {
            let header = Header::new(MessageType::GPADL_BODY);
            post(server, GpadlBody { header, message_number: 0, gpadl: handle.into() }.as_bytes(), &bytes);
        }
        Step::Teardown { channel, handle } => {
            let header = Header::new(MessageType::GPADL_TEARDOWN);
            let message = GpadlTeardown { header, channel_id: channel.into(), gpadl: handle.into() };
            post(server, message.as_bytes(), &[]);
        }
        Step::Open { channel, handle, vp, page } => {
            let message = OpenChannel {
                header: Header::new(MessageType::OPEN_CHANNEL),
                channel_id: channel.into(),
                open_id: 0,
                ring_gpadl: handle.into(),
                target_vp: vp.into(),
                downstream_page_offset: page,
                user_data: [0; 120],
            };
            post(server, message.as_bytes(), &[]);
        }
        Step::Modify { channel, vp } => {
            let header = Header::new(MessageType::MODIFY_CHANNEL);
            let message = ModifyChannel { header, channel_id: channel.into(), target_vp: vp.into() };
            post(server, message.as_bytes(), &[]);
        }
        Step::Raw { bytes } => post(server, &bytes, &[]),
        Step::Offer { instance, socket } => {
            let mut offer = Offer::new(Guid::from_u128(1), Guid::from_u128(instance.into()));
            if socket {
                offer.flags = OfferFlags::TLNPI_PROVIDER_OFFER;
            }
            let _ = server.offer(offer);
        }
        Step::Rescind { id } => server.rescind(OfferId(id.into())),
        Step::Subchannels { id, count } => drop(server.offer_subchannels(OfferId(id.into()), count)),
        Step::Opened { channel } => {
            if running.contains(&channel.into()) {
                server.opened(channel.into());
            }
        }
        Step::Closed { channel } => {
            if running.remove(&channel.into()) {
                server.closed(channel.into());
            }
        }
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let config = Config { processors: 4, max_gpadl_pages: 4096, max_version: Version::WIN10_V6_0 };
    let mut server = Server::new(config);
    let mut running = BTreeSet::new();
    for next in steps {
        step(&mut server, next, &mut running);
        while let Some(action) = server.next_action() {
            match action {
                Action::Send { target, message } => {
                    assert!(message.len() <= MAX_MESSAGE_SIZE && target.vp < 4 && target.sint < 16);
                }
                Action::Open(request) => {
                    assert!(request.target.vp < 4, "a processor that is not there");
                    assert!(running.insert(request.channel), "a channel is opened twice");
                }
                Action::Close { channel } => assert!(running.contains(&channel), "a channel is closed twice"),
                _ => {}
            }
        }
    }
    // However it was left, a new guest is answered once all channels have ended.
    let interrupt_page_or_target = 2;
    let header = Header::new(MessageType::INITIATE_CONTACT);
    let version = Version::WIN10_V5_3;
    let (target_vp, monitor_page1, monitor_page2) = (0, 0, 0);
    let message = InitiateContact {
        header,
        version,
        target_vp,
        interrupt_page_or_target,
        monitor_page1,
        monitor_page2,
    };
    server.message(message.as_bytes()).expect("a contact is always taken");
    for channel in running {
        server.closed(channel);
    }
    assert_eq!(server.version(), Some(Version::WIN10_V5_3));
});

//! One channel of an adapter: NVSP, and which way each packet goes.
//!
//! ```text
//!   opened -- INIT --> negotiated -- SEND_RECEIVE_BUFFER, SEND_SEND_BUFFER --> buffers
//!     -- RNDIS initialize, queries, sets --> packet filter set: frames flow
//!     -- SUBCHANNEL --> more channels, each a queue, which carry frames only
//! ```

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parterre_vmbus_server::{ChannelError, Handler, Packet, PacketKind, Queue, Visit, Wait, Written};

use crate::adapter::Shared;
use crate::buffers::{ReceiveBuffer, SendBuffer};
use crate::control::{DEFAULT_MTU, MAX_REQUEST};
use crate::frame::ETHERNET_HEADER;
use crate::packet::Source;
use crate::protocol::nvsp::{
    CAPABILITY_RSC, CHANNEL_CONTROL, CHANNEL_DATA, MESSAGE_SIZE, NO_SECTION, Reply, Request, RndisPacket,
    Status, Version, send_indirection_table,
};
use crate::receive::Receiver;
use crate::route::Route;
use crate::transmit::transmit;

/// Packets of the guest that are taken before frames for it have their turn.
const TURN: usize = 64;
/// Turns in one run. A guest that goes on and on shall not keep the thread from noticing that the channel is closed.
const TURNS: usize = 64;
/// Packets that are taken on the thread of a virtual processor: more are a stream, which the channel's own thread takes while
/// the guest makes more of it.
const VISIT: usize = 4;
/// Longest message of the guest's that is sent there: a large one takes the parent's network stack long.
const SMALL: u64 = 2048;
/// Least and greatest payload of a frame.
const MTU: std::ops::RangeInclusive<u32> = 68..=65521;

/// One open channel.
pub(crate) struct Channel {
    shared: Arc<Shared>,
    index: usize,
    receiver: Receiver,
    route: Route,
    /// Answers for which the guest's ring had no room: the packet's transaction, and the message if there is one.
    answers: VecDeque<(u64, Option<[u8; MESSAGE_SIZE]>)>,
    /// Sub-channels that were asked for, once the answer is under way.
    subchannels: Option<u16>,
    packet: Packet,
    /// The packet has been read, and its turn comes next.
    held: bool,
}

impl Channel {
    pub(crate) fn new(shared: Arc<Shared>, index: usize) -> Channel {
        let (receiver, packet) = (Receiver::default(), Packet::default());
        Channel {
            shared,
            index,
            receiver,
            route: Route::new(index),
            answers: VecDeque::new(),
            subchannels: None,
            packet,
            held: false,
        }
    }

    /// Says whether none waits any more.
    fn send_answers(&mut self, queue: &mut Queue) -> Result<bool, ChannelError> {
        while let Some((transaction, message)) = self.answers.front() {
            let payload = message.as_ref().map_or(&[][..], |message| &message[..]);
            if queue.complete(*transaction, payload)? == Written::Full {
                return Ok(false);
            }
            self.answers.pop_front();
        }
        Ok(true)
    }

    /// Takes packets of the guest until there are none, or it is the turn of frames for it. Says whether there are more.
    fn take_packets(&mut self, queue: &mut Queue) -> Result<bool, ChannelError> {
        for _ in 0..TURN {
            if !self.send_answers(queue)? {
                return Ok(false);
            }
            if !std::mem::take(&mut self.held) && !queue.read(&mut self.packet)? {
                return Ok(false);
            }
            self.take_held(queue)?;
        }
        Ok(true)
    }

    /// Takes the packet that has been read.
    fn take_held(&mut self, queue: &mut Queue) -> Result<(), ChannelError> {
        let packet = std::mem::take(&mut self.packet);
        let answer = self.take(&packet, queue)?;
        if packet.completion_requested {
            self.answers.push_back((packet.transaction_id, answer.map(|reply| reply.encode())));
        }
        self.packet = packet;
        Ok(())
    }

    /// Whether the packet that has been read is quickly done.
    fn is_quick(&self) -> bool {
        match self.packet.kind {
            PacketKind::Completion => true,
            PacketKind::TransferPages { .. } => false,
            PacketKind::Inband | PacketKind::GpaDirect => match Request::parse(self.packet.payload()) {
                Ok(Request::Rndis(rndis)) => {
                    let first = if rndis.section == NO_SECTION { 0 } else { rndis.section_size };
                    rndis.channel == CHANNEL_DATA && self.packet.memory.len() + u64::from(first) <= SMALL
                }
                _ => false,
            },
        }
    }

    /// Takes the packets that are quickly done; says whether that was all.
    fn take_quick(&mut self, queue: &mut Queue) -> Result<bool, ChannelError> {
        for _ in 0..VISIT {
            if !queue.read(&mut self.packet)? {
                return Ok(true);
            }
            if !self.is_quick() {
                self.held = true;
                return Ok(false);
            }
            self.take_held(queue)?;
        }
        Ok(false)
    }

    fn take(&mut self, packet: &Packet, queue: &mut Queue) -> Result<Option<Reply>, ChannelError> {
        match packet.kind {
            PacketKind::Completion => {
                self.receiver.complete(packet.transaction_id)?;
                return Ok(None);
            }
            PacketKind::TransferPages { .. } => {
                return Err(ChannelError::protocol("a network VSC does not send transfer pages"));
            }
            PacketKind::Inband | PacketKind::GpaDirect => {}
        }
        let request = Request::parse(packet.payload())
            .map_err(|malformed| ChannelError::protocol(malformed.to_string()))?;
        match request {
            Request::Rndis(rndis) => {
                self.take_rndis(&rndis, packet, queue).map(|status| Some(Reply::RndisComplete(status)))
            }
            _ if self.index != 0 => {
                Err(ChannelError::protocol(format!("{request:?} does not belong on a sub-channel")))
            }
            _ => self.take_request(request, queue),
        }
    }

    fn take_request(&mut self, request: Request, queue: &mut Queue) -> Result<Option<Reply>, ChannelError> {
        let version = self.shared.view().version;
        Ok(match request {
            Request::Init { min, max } => Some(self.negotiate(min, max)),
            Request::NdisConfig { mtu, capabilities } => {
                let mtu = mtu.saturating_sub(ETHERNET_HEADER as u32);
                let coalesce = capabilities & CAPABILITY_RSC != 0 && version >= Some(Version::V61);
                let mtu = if MTU.contains(&mtu) { mtu } else { DEFAULT_MTU };
                self.shared.control().configure(mtu, coalesce);
                None
            }
            Request::ReceiveBuffer { gpadl, id } => {
                Some(Reply::ReceiveBufferComplete(self.take_receive_buffer(gpadl, id, queue)?))
            }
            Request::SendBuffer { gpadl, .. } => {
                Some(Reply::SendBufferComplete(self.take_send_buffer(gpadl, queue)))
            }
            Request::RevokeReceiveBuffer => {
                self.shared.change(|view| view.receive = None);
                self.shared.follow()?;
                self.receiver.let_go();
                None
            }
            Request::RevokeSendBuffer => {
                self.shared.change(|view| view.send = None);
                None
            }
            Request::Subchannels { count } if version >= Some(Version::V5) => {
                // Another count than all is no error: a guest has as many as it has processors.
                let most = self.shared.lanes.len() as u32 - 1;
                let count = count.min(most) as u16;
                let there = queue.offer_subchannels(count).min(count);
                self.subchannels = Some(there);
                Some(Reply::Subchannels(Ok(there.into())))
            }
            Request::Subchannels { .. } => Some(Reply::Subchannels(Err(Status::Fail))),
            Request::PacketDirect { operation } => Some(Reply::PacketDirect { operation }),
            // There is only the synthetic path: the plain completion that the VSC waits for says so well enough.
            Request::SwitchDataPath { .. } | Request::NdisVersion { .. } | Request::Unsupported { .. } => {
                None
            }
            Request::RndisComplete { .. } | Request::Rndis(_) => {
                return Err(ChannelError::protocol("a completion came as a message"));
            }
        })
    }

    fn negotiate(&mut self, min: u32, max: u32) -> Reply {
        let version = Version::newest_between(min, max);
        let busy = self.shared.view().receive.is_some();
        let status = match version {
            Some(_) if busy => Status::Fail,
            Some(_) => Status::Success,
            None if min > Version::V61 as u32 => Status::ProtocolTooNew,
            None if max < Version::V1 as u32 => Status::ProtocolTooOld,
            None => Status::ProtocolUnsupported,
        };
        let version = version.filter(|_| status == Status::Success);
        if status == Status::Success {
            self.shared.change(|view| view.version = version);
        }
        Reply::InitComplete { version, status }
    }

    fn take_receive_buffer(
        &mut self,
        gpadl: u32,
        id: u16,
        queue: &Queue,
    ) -> Result<Result<crate::protocol::nvsp::ReceiveSection, Status>, ChannelError> {
        let mtu = self.shared.control().mtu();
        let free = { self.shared.view().receive.is_none() && self.shared.view().version.is_some() };
        let buffer = queue.gpadl(gpadl).filter(|_| free).and_then(|gpadl| ReceiveBuffer::new(gpadl, id, mtu));
        let Some(buffer) = buffer else { return Ok(Err(Status::Fail)) };
        let layout = buffer.layout();
        self.shared.change(|view| view.receive = Some(Arc::new(buffer)));
        self.shared.follow()?;
        Ok(Ok(layout))
    }

    fn take_send_buffer(&mut self, gpadl: u32, queue: &Queue) -> Result<u32, Status> {
        let free = { self.shared.view().send.is_none() && self.shared.view().version.is_some() };
        let buffer = queue.gpadl(gpadl).filter(|_| free).and_then(SendBuffer::new).ok_or(Status::Fail)?;
        let size = buffer.section_size();
        self.shared.change(|view| view.send = Some(Arc::new(buffer)));
        Ok(size)
    }

    fn take_rndis(
        &mut self,
        rndis: &RndisPacket,
        packet: &Packet,
        queue: &mut Queue,
    ) -> Result<Status, ChannelError> {
        let memory = queue.memory().clone();
        let view = self.shared.view();
        let first = match rndis.section {
            NO_SECTION => None,
            section => {
                let bytes = view.send.as_ref().and_then(|buffer| buffer.section(section, rndis.section_size));
                if bytes.is_none() {
                    return Ok(Status::InvalidRndisPacket);
                }
                bytes
            }
        };
        let source = Source::new(&*memory, first, &packet.memory);
        match rndis.channel {
            CHANNEL_DATA => {
                let received = self.shared.statistics.received.directed.bytes();
                let Some(lane) = self.route.next(queue.visitor(), received, &self.shared.lanes) else {
                    return Ok(Status::Fail);
                };
                Ok(transmit(&source, &view, &self.shared.guards, &*lane.wire, &self.shared.statistics.sent))
            }
            CHANNEL_CONTROL if self.index == 0 => {
                let mut request = vec![0; source.len().min(MAX_REQUEST as u64) as usize];
                source.read(0, &mut request)?;
                drop(view);
                self.answer(&request)?;
                Ok(Status::Success)
            }
            _ => Ok(Status::InvalidRndisPacket),
        }
    }

    fn answer(&mut self, request: &[u8]) -> Result<(), ChannelError> {
        let answer = self.shared.control().answer(request);
        let answer = answer.map_err(|malformed| ChannelError::protocol(malformed.to_string()))?;
        self.shared.follow()?;
        answer.map_or(Ok(()), |answer| self.receiver.tell(answer))
    }

    /// Gives the guest what came up.
    fn receive(&mut self, queue: &mut Queue) -> Result<(), ChannelError> {
        if self.index == 0 {
            for notice in self.shared.take_notices() {
                self.receiver.tell(notice)?;
            }
        }
        let shared = self.shared.clone();
        let Some(lane) = shared.lanes.get(self.index) else { return Ok(()) };
        let wire = (lane.is_attached() && !self.receiver.broken).then_some(&*lane.wire);
        let was = self.receiver.broken;
        let view = shared.view();
        self.receiver.run(queue, &view, wire, &shared.statistics.received)?;
        drop(view);
        if self.receiver.broken && !was {
            // The guest sees that its cable is out.
            shared.set_link(false)?;
        }
        Ok(())
    }

    /// Tells the guest how to spread what it sends, once it knows its sub-channels.
    fn spread(&mut self, queue: &mut Queue) -> Result<(), ChannelError> {
        if self.answers.is_empty()
            && let Some(count) = self.subchannels
        {
            let table = send_indirection_table(u32::from(count) + 1);
            let packet =
                parterre_vmbus_server::OutPacket::Inband { transaction_id: 0, completion_requested: false };
            if queue.write(&packet, &[&table])? == Written::Done {
                self.subchannels = None;
            }
        }
        Ok(())
    }
}

impl Handler for Channel {
    fn run(&mut self, queue: &mut Queue) -> Result<(), ChannelError> {
        if let Some(lane) = self.shared.lanes.get(self.index) {
            lane.waker.clear();
            lane.vp.store(queue.target_vp(), Ordering::Relaxed);
        }
        for _ in 0..TURNS {
            let more = self.take_packets(queue)?;
            self.spread(queue)?;
            self.receive(queue)?;
            if !more {
                return Ok(());
            }
        }
        if let Some(lane) = self.shared.lanes.get(self.index) {
            lane.waker.wake();
        }
        Ok(())
    }

    fn visit(&mut self, queue: &mut Queue) -> Result<Visit, ChannelError> {
        if self.held || self.subchannels.is_some() || !self.receiver.hungry {
            return Ok(Visit::Refused);
        }
        if !self.take_quick(queue)? {
            return Ok(Visit::Rest);
        }
        // None is kept for company: a guest's sender may wait for it (Linux's TCP corks small writes until then). Those for which
        // there is no room wait for the guest's signal that there is.
        self.send_answers(queue)?;
        Ok(Visit::Done)
    }

    fn wait(&self, wait: &mut Wait) {
        let Some(lane) = self.shared.lanes.get(self.index) else { return };
        wait.readable(lane.waker.source());
        if self.receiver.hungry && lane.is_attached() {
            wait.readable(lane.wire.clone());
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.receiver.let_go();
        // What fails here is a wire that is gone already.
        let _ = self.shared.set_open(self.index, false);
        if self.index == 0 {
            let _ = self.shared.reset();
        }
    }
}

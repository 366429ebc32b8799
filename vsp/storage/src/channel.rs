//! One open channel of a controller: takes packets, lets units execute them, and answers when they are done.
//!
//! ```text
//!   packet --> Negotiation          (the first channel's start)
//!          --> SCSI request --> Lun --> answer
//!                                   --> steps --> Engine ... completion --> answer
//! ```
//! Nothing blocks. A channel that has no place for another request leaves packets in the ring until one ends; an answer that finds the
//! ring full waits here, and nothing more is taken meanwhile.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use parterre_vmbus_server::ring::Segment;
use parterre_vmbus_server::{
    Buffer, ChannelError, Handler, Memory, OutPacket, PacketKind, Queue, Visit, Wait, Written,
};
use zerocopy::IntoBytes;

use crate::controller::Shared;
use crate::disk::{Completion, Engine, Operation, Request};
use crate::lun::{MAX_SEGMENTS, Outcome, Payload, Step, StepData, report_luns};
use crate::negotiation::{Negotiation, Reaction};
use crate::protocol::{self, OLD_PACKET_SIZE, PACKET_SIZE, Packet, ScsiRequest, operation, srb, status};
use crate::scsi::{self, Command, Sense, inquiry};

/// Most requests at a time.
const DEPTH: usize = 256;
/// Most packets taken before what was started is looked at.
const BATCH: usize = 64;
/// Most batches in a run: a guest that never ends must not keep the channel from being closed.
const MAX_ROUNDS: u32 = 32;
/// Most bytes that requests may be about until what was started is looked at: some engines move them meanwhile.
const BATCH_BYTES: u64 = 1 << 20;
/// Most packets that are taken on the thread of a virtual processor, and most bytes after which no other is begun there: that
/// processor's time is the guest's.
const VISIT: usize = 4;
const VISIT_BYTES: u64 = 128 << 10;

/// Names a packet until it is answered.
#[derive(Clone, Copy, Debug)]
struct Envelope {
    transaction_id: u64,
    /// Length of the packet, and so of the answer.
    size: usize,
    wanted: bool,
}

/// A request that an engine works on.
struct InFlight {
    envelope: Envelope,
    request: ScsiRequest,
    operation: Operation,
    /// Steps that have not ended.
    remaining: u32,
    /// Bytes that were transferred if all goes well.
    transferred: u32,
    /// The first thing that went wrong.
    failed: Option<Failure>,
}

#[derive(Clone, Copy)]
enum Failure {
    Sense(Sense),
    Invalid,
}

/// The handler of a channel.
pub(crate) struct Channel {
    shared: Arc<Shared>,
    engine: Box<dyn Engine>,
    /// Only the first channel negotiates and is told of changes.
    negotiation: Option<Negotiation>,
    slots: Vec<Option<InFlight>>,
    free: Vec<u32>,
    /// Answers that did not fit into the ring yet.
    waiting: VecDeque<(Envelope, Packet)>,
    /// A reset that is answered when nothing is under way.
    reset: Option<Envelope>,
    /// The last run stopped in the middle.
    again: bool,
    /// The packet has been read, and its turn comes next.
    held: bool,
    /// A visit is under way.
    visiting: bool,
    /// The engine has been given something that it has not been told to start.
    unkicked: bool,
    /// Bytes that the requests of this batch or visit are about.
    moved: u64,
    /// Kept from run to run, so that they are not allocated again.
    packet: parterre_vmbus_server::Packet,
    done: Vec<Completion>,
    segments: Vec<Segment>,
}

/// A packet's guest memory as the data of a command.
struct GuestData<'a> {
    buffer: &'a Buffer,
    memory: &'a dyn Memory,
    len: usize,
}

impl Payload for GuestData<'_> {
    fn len(&self) -> usize {
        self.len
    }

    fn read(&self, at: usize, buffer: &mut [u8]) -> Option<()> {
        if at.checked_add(buffer.len())? > self.len {
            return None;
        }
        self.buffer.read(self.memory, at as u64, buffer).ok()
    }
}

impl Channel {
    pub(crate) fn new(shared: Arc<Shared>, engine: Box<dyn Engine>, first: bool) -> Channel {
        let negotiation = first.then(|| Negotiation::new(shared.subchannels));
        Channel {
            shared,
            engine,
            negotiation,
            slots: (0..DEPTH).map(|_| None).collect(),
            free: (0..DEPTH as u32).rev().collect(),
            waiting: VecDeque::new(),
            reset: None,
            again: false,
            held: false,
            visiting: false,
            unkicked: false,
            moved: 0,
            packet: Default::default(),
            done: Vec::new(),
            segments: Vec::new(),
        }
    }

    fn idle(&self) -> bool {
        self.free.len() == DEPTH
    }

    /// Answers what has ended; says whether anything had.
    fn reap(&mut self, queue: &mut Queue) -> Result<bool, ChannelError> {
        let mut done = std::mem::take(&mut self.done);
        self.engine.completions(&mut done);
        let any = !done.is_empty();
        for Completion { tag, result } in done.drain(..) {
            let Some(slot) = self.slots.get_mut(tag as usize) else { continue };
            let Some(request) = slot else { continue };
            request.remaining -= 1;
            if let Err(error) = result {
                let failure = error.sense(request.operation).map_or(Failure::Invalid, Failure::Sense);
                request.failed.get_or_insert(failure);
            }
            if request.remaining == 0
                && let Some(request) = slot.take()
            {
                self.free.push(tag);
                self.finish(queue, request)?;
            }
        }
        self.done = done;
        if self.idle()
            && let Some(envelope) = self.reset.take()
        {
            self.send(queue, envelope, Packet::answer(status::SUCCESS))?;
        }
        Ok(any)
    }

    fn finish(&mut self, queue: &mut Queue, request: InFlight) -> Result<(), ChannelError> {
        let InFlight { envelope, request, transferred, failed, .. } = request;
        let outcome = match failed {
            None => Ended::Good(transferred),
            Some(Failure::Sense(sense)) => Ended::Sense(sense),
            Some(Failure::Invalid) => Ended::Port(srb::INVALID_REQUEST),
        };
        self.answer(queue, envelope, request, outcome)
    }

    /// Answers a SCSI request.
    fn answer(
        &mut self,
        queue: &mut Queue,
        envelope: Envelope,
        mut request: ScsiRequest,
        ended: Ended,
    ) -> Result<(), ChannelError> {
        request.scsi_status = scsi::GOOD;
        let (port, transferred) = match ended {
            Ended::Good(transferred) => (srb::SUCCESS, transferred),
            Ended::Port(status) => (status, 0),
            Ended::Sense(sense) => {
                let data = sense.fixed();
                request.cdb_or_sense = Default::default();
                let room = usize::from(request.sense_info_length).min(data.len());
                request.cdb_or_sense[..room].copy_from_slice(&data[..room]);
                request.sense_info_length = room as u8;
                request.scsi_status = scsi::CHECK_CONDITION;
                let valid = if room > 0 { srb::AUTOSENSE_VALID } else { 0 };
                (srb::ERROR | valid, 0)
            }
        };
        request.srb_status = port;
        request.data_transfer_length = transferred.into();
        let mut packet = Packet::answer(status::SUCCESS);
        packet.set_scsi(&request);
        self.send(queue, envelope, packet)
    }

    /// Puts an answer into the ring, or behind those that wait.
    fn send(&mut self, queue: &mut Queue, envelope: Envelope, packet: Packet) -> Result<(), ChannelError> {
        if !envelope.wanted {
            return Ok(());
        }
        let payload = &packet.as_bytes()[..envelope.size];
        if !self.waiting.is_empty() || queue.complete(envelope.transaction_id, payload)? == Written::Full {
            self.waiting.push_back((envelope, packet));
        }
        Ok(())
    }

    /// Puts waiting answers into the ring; says whether all of them fitted.
    fn send_waiting(&mut self, queue: &mut Queue) -> Result<bool, ChannelError> {
        while let Some((envelope, packet)) = self.waiting.front() {
            let payload = &packet.as_bytes()[..envelope.size];
            if queue.complete(envelope.transaction_id, payload)? == Written::Full {
                return Ok(false);
            }
            self.waiting.pop_front();
        }
        Ok(true)
    }

    /// Tells the guest to look for units that came or went.
    fn tell_changes(&mut self, queue: &mut Queue) -> Result<(), ChannelError> {
        let shared = &self.shared;
        if self.negotiation.is_none() || !shared.changed.load(Ordering::Acquire) {
            return Ok(());
        }
        shared.waker.clear();
        // A driver that has sent no command yet is not ready to be told, and will look by itself.
        if !shared.in_use.load(Ordering::Acquire) || !shared.changed.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let packet = OutPacket::Inband { transaction_id: 0, completion_requested: false };
        let payload = Packet::new(operation::ENUMERATE_BUS);
        if queue.write(&packet, &[payload.as_bytes()])? == Written::Full {
            shared.changed.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Takes packets from the ring; says whether there may be more.
    fn take_packets(&mut self, queue: &mut Queue) -> Result<bool, ChannelError> {
        self.moved = 0;
        for _ in 0..BATCH {
            if self.is_full() {
                return Ok(false);
            }
            if !std::mem::take(&mut self.held) && !queue.read(&mut self.packet)? {
                return Ok(false);
            }
            self.take_held(queue)?;
            if self.moved >= BATCH_BYTES {
                break;
            }
        }
        Ok(true)
    }

    /// Whether no packet can be taken for now.
    fn is_full(&self) -> bool {
        self.free.is_empty() || self.reset.is_some() || !self.waiting.is_empty()
    }

    /// Takes the packet that has been read.
    fn take_held(&mut self, queue: &mut Queue) -> Result<(), ChannelError> {
        let packet = std::mem::take(&mut self.packet);
        let taken = self.take_packet(queue, &packet);
        self.packet = packet;
        taken
    }

    /// Takes packets on the thread of a virtual processor; says whether that was all.
    fn take_quick(&mut self, queue: &mut Queue) -> Result<bool, ChannelError> {
        self.moved = 0;
        let mut left = VISIT;
        while queue.read(&mut self.packet)? {
            if left == 0 || self.moved >= VISIT_BYTES || !is_transfer(&self.packet) {
                self.held = true;
                return Ok(false);
            }
            left -= 1;
            self.take_held(queue)?;
            if self.unkicked || self.is_full() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Has the engine start what it was given.
    fn kick(&mut self) {
        if std::mem::take(&mut self.unkicked) {
            self.engine.kick();
        }
    }

    fn take_packet(
        &mut self,
        queue: &mut Queue,
        packet: &parterre_vmbus_server::Packet,
    ) -> Result<(), ChannelError> {
        if packet.kind == PacketKind::Completion {
            return Ok(());
        }
        let bytes = packet.payload();
        let Some(vstor) = Packet::parse(bytes) else {
            let length = bytes.len();
            return Err(ChannelError::protocol(format!(
                "a storage packet of {length} bytes is shorter than any that is known"
            )));
        };
        let envelope = Envelope {
            transaction_id: packet.transaction_id,
            size: if bytes.len() < PACKET_SIZE { OLD_PACKET_SIZE } else { PACKET_SIZE },
            wanted: packet.completion_requested || vstor.flags.get() & protocol::FLAG_COMPLETION != 0,
        };
        match vstor.operation.get() {
            operation::EXECUTE_SRB => self.execute(queue, envelope, vstor.scsi(), &packet.memory),
            operation::RESET_BUS | operation::RESET_ADAPTER | operation::RESET_LUN => {
                if self.idle() {
                    self.send(queue, envelope, Packet::answer(status::SUCCESS))
                } else {
                    self.reset = Some(envelope);
                    Ok(())
                }
            }
            _ => self.negotiate(queue, envelope, &vstor),
        }
    }

    fn negotiate(
        &mut self,
        queue: &mut Queue,
        envelope: Envelope,
        packet: &Packet,
    ) -> Result<(), ChannelError> {
        let Some(negotiation) = &mut self.negotiation else {
            return self.send(queue, envelope, Packet::answer(status::INVALID_DEVICE_REQUEST));
        };
        let was_ready = negotiation.is_ready();
        let reaction = negotiation.take(packet);
        if negotiation.is_ready() != was_ready {
            self.shared.restart();
        }
        let answer = match reaction {
            Reaction::Answer(answer) => answer,
            Reaction::Subchannels(count) => {
                let offered = queue.offer_subchannels(count);
                let enough = offered >= count;
                Packet::answer(if enough { status::SUCCESS } else { status::INVALID_PARAMETER })
            }
        };
        self.send(queue, envelope, answer)
    }

    /// Starts a SCSI request, or answers it at once.
    fn execute(
        &mut self,
        queue: &mut Queue,
        envelope: Envelope,
        request: ScsiRequest,
        buffer: &Buffer,
    ) -> Result<(), ChannelError> {
        if self.negotiation.as_ref().is_some_and(|negotiation| !negotiation.is_ready()) {
            return self.send(queue, envelope, Packet::answer(status::INVALID_DEVICE_STATE));
        }
        self.shared.first_command();
        let memory = queue.memory().clone();
        let told = request.data_transfer_length.get() as usize;
        let len = usize::try_from(buffer.len()).unwrap_or(0).min(told);
        let data = GuestData { buffer, memory: &*memory, len };
        let ended = match self.decide(&request, &data) {
            Outcome::Done => Ended::Good(0),
            Outcome::Failed(sense) => Ended::Sense(sense),
            Outcome::Invalid => Ended::Port(srb::INVALID_REQUEST),
            Outcome::Nobody => Ended::Port(srb::INVALID_LUN),
            Outcome::Data(bytes) => {
                let bytes = &bytes[..bytes.len().min(len)];
                match buffer.write(&*memory, 0, bytes) {
                    Ok(()) => Ended::Good(bytes.len() as u32),
                    Err(_) => Ended::Port(srb::INVALID_REQUEST),
                }
            }
            Outcome::Steps(medium, steps) => {
                return self.start(queue, envelope, request, buffer, &medium, steps.as_slice());
            }
        };
        self.answer(queue, envelope, request, ended)
    }

    /// What becomes of a request.
    fn decide(&self, request: &ScsiRequest, data: &GuestData<'_>) -> Outcome {
        let here = request.path_id == 0 && request.target_id == 0;
        let lun = if here { self.shared.lun(request.lun) } else { None };
        let cdb = &request.cdb_or_sense[..usize::from(request.cdb_length).min(16)];
        let command = match Command::parse(cdb) {
            Ok(command) => command,
            // The guest's driver takes a refused INQUIRY for one that was answered with nothing.
            Err(sense) => return Outcome::Failed(sense),
        };
        match (command, lun) {
            (Command::ReportLuns { select, allocation }, _) => {
                let places = if here { self.shared.places() } else { Vec::new() };
                report_luns(select, allocation, &places).into()
            }
            (command, Some(lun)) => lun.execute(command, data),
            (Command::Inquiry { page: None, allocation }, None) => {
                let mut data = inquiry::nobody();
                data.truncate(allocation.into());
                Outcome::Data(data)
            }
            (_, None) => Outcome::Nobody,
        }
    }

    /// Hands the steps of a request to the engine.
    fn start(
        &mut self,
        queue: &mut Queue,
        envelope: Envelope,
        request: ScsiRequest,
        buffer: &Buffer,
        medium: &Arc<crate::disk::Medium>,
        steps: &[Step],
    ) -> Result<(), ChannelError> {
        let (Some(tag), Some(first)) = (self.free.pop(), steps.first()) else {
            return self.answer(queue, envelope, request, Ended::Port(srb::INVALID_REQUEST));
        };
        let operation = first.operation;
        let transferred = match first.data {
            StepData::Payload => first.len as u32,
            StepData::FirstBlock => medium.facts.block,
            StepData::None => request.data_transfer_length.get(),
        };
        let mut started = InFlight { envelope, request, operation, remaining: 0, transferred, failed: None };
        for step in steps {
            if !gather(buffer, step, medium.facts.block, &mut self.segments) {
                started.failed = Some(Failure::Invalid);
                break;
            }
            let Step { operation, offset, len, .. } = *step;
            self.moved += len;
            let request = Request { tag, medium, operation, offset, len, segments: &self.segments };
            if self.visiting && self.engine.at_once(&request) {
                continue;
            }
            self.unkicked = true;
            match self.engine.submit(request) {
                Ok(()) => started.remaining += 1,
                Err(error) => {
                    let failure = error.sense(operation).map_or(Failure::Invalid, Failure::Sense);
                    started.failed = Some(failure);
                    break;
                }
            }
        }
        if started.remaining == 0 {
            self.free.push(tag);
            return self.finish(queue, started);
        }
        self.slots[tag as usize] = Some(started);
        Ok(())
    }
}

/// Whether a packet asks for data to be read or written, and no more: all else may take longer.
fn is_transfer(packet: &parterre_vmbus_server::Packet) -> bool {
    let request =
        Packet::parse(packet.payload()).filter(|vstor| vstor.operation.get() == operation::EXECUTE_SRB);
    let Some(request) = request.map(|vstor| vstor.scsi()) else { return false };
    let cdb = &request.cdb_or_sense[..usize::from(request.cdb_length).min(16)];
    match Command::parse(cdb) {
        Ok(Command::Read { .. }) => true,
        Ok(Command::Write { unit_access, .. }) => !unit_access,
        _ => false,
    }
}

/// How a SCSI request ended.
enum Ended {
    /// Well, with this many bytes.
    Good(u32),
    /// The unit says why not.
    Sense(Sense),
    /// The port says why not.
    Port(u8),
}

/// The memory of a step; `false` if the guest did not give enough, or gave it in too many pieces.
fn gather(buffer: &Buffer, step: &Step, block: u32, segments: &mut Vec<Segment>) -> bool {
    segments.clear();
    match step.data {
        StepData::None => true,
        StepData::Payload => {
            let Ok(pieces) = buffer.pieces(0, step.len) else { return false };
            segments.extend(pieces);
            segments.len() <= MAX_SEGMENTS
        }
        StepData::FirstBlock => {
            let Ok(pieces) = buffer.pieces(0, block.into()) else { return false };
            let one: Vec<Segment> = pieces.collect();
            // A block over two pages is rare; it would need more pieces than the kernel takes.
            let [segment] = one[..] else { return false };
            segments.extend(std::iter::repeat_n(segment, (step.len / u64::from(block)) as usize));
            true
        }
    }
}

impl Handler for Channel {
    fn run(&mut self, queue: &mut Queue) -> Result<(), ChannelError> {
        self.again = false;
        // What a visit has left.
        self.kick();
        for _ in 0..MAX_ROUNDS {
            self.reap(queue)?;
            if !self.send_waiting(queue)? {
                return Ok(());
            }
            self.tell_changes(queue)?;
            let more = self.take_packets(queue)?;
            self.kick();
            // What was in the page cache has ended already.
            let ended = self.reap(queue)?;
            if !more && !ended {
                return Ok(());
            }
            queue.flush()?;
        }
        self.again = true;
        Ok(())
    }

    fn visit(&mut self, queue: &mut Queue) -> Result<Visit, ChannelError> {
        // What waits for the channel's own thread comes first.
        if self.again || self.held || self.unkicked || self.is_full() {
            return Ok(Visit::Refused);
        }
        self.visiting = true;
        let done = self.take_quick(queue);
        self.visiting = false;
        Ok(if done? { Visit::Done } else { Visit::Rest })
    }

    fn under_way(&self) -> u32 {
        (DEPTH - self.free.len()) as u32
    }

    fn is_patient(&self) -> bool {
        true
    }

    fn wait(&self, wait: &mut Wait) {
        self.engine.wait(wait);
        if self.negotiation.is_some() {
            wait.readable(self.shared.waker.source());
        }
        if self.again {
            wait.until(Instant::now());
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.engine.drain();
    }
}

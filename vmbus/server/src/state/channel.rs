//! Channels: open, close, modify.

use parterre_vmbus_protocol::Version;
use parterre_vmbus_protocol::message::{
    ChannelMessage, Header, MessageType, ModifyChannel, ModifyChannelResponse, OpenChannel, OpenResult,
};

use super::{Action, MessageError, OpenRequest, Server, Target};
use crate::ChannelFacts;
use crate::bus::OfferId;

/// The highest channel number: numbers are event flags, of which a SINT has 2048, and 0 is none.
pub const MAX_CHANNELS: u32 = 2047;
/// Connection id of a channel's events, less its number. Apart from the fixed ids of messages and events.
pub const EVENT_CONNECTION_BASE: u32 = 0x1_0000;

/// `STATUS_UNSUCCESSFUL`.
const UNSUCCESSFUL: u32 = 0xC000_0001;

#[derive(Clone, Copy)]
enum State {
    Closed,
    Opening {
        open_id: u32,
    },
    Open,
    /// The worker ends it; then it may be opened again at once.
    Closing {
        reopen: Option<OpenChannel>,
    },
}

/// One channel.
pub(super) struct Channel {
    pub(super) device: OfferId,
    /// 0 for the device's first.
    pub(super) index: u16,
    /// The guest has been told of it.
    pub(super) announced: bool,
    /// The guest has been told that it is gone, or was never told of it.
    pub(super) rescinded: bool,
    /// The guest has forgotten it.
    pub(super) released: bool,
    state: State,
    /// GPADL of the rings, until it is closed.
    rings: Option<u32>,
}

impl Channel {
    pub(super) fn new(device: OfferId, index: u16) -> Channel {
        let (announced, rescinded, released) = (false, false, false);
        Channel { device, index, announced, rescinded, released, state: State::Closed, rings: None }
    }

    /// Whether the worker has something to do with it.
    pub(super) fn is_busy(&self) -> bool {
        !matches!(self.state, State::Closed)
    }

    /// Whether a GPADL of its device must stay for now.
    pub(super) fn holds(&self, gpadl: u32) -> bool {
        self.rings == Some(gpadl) || matches!(self.state, State::Closing { .. })
    }

    pub(super) fn state_name(&self) -> &'static str {
        match self.state {
            State::Closed => "closed",
            State::Opening { .. } => "being opened",
            State::Open => "open",
            State::Closing { .. } => "being closed",
        }
    }
}

impl Server {
    fn announced(&mut self, number: u32) -> Result<&mut Channel, MessageError> {
        self.channels
            .get_mut(&number)
            .filter(|channel| channel.announced && !channel.released)
            .ok_or(MessageError::Channel(number))
    }

    pub(super) fn open(&mut self, message: OpenChannel) -> Result<(), MessageError> {
        let number = message.channel_id;
        let channel = self.announced(number)?;
        match &mut channel.state {
            State::Closed => {}
            State::Closing { reopen } if !channel.rescinded => {
                *reopen = Some(message);
                return Ok(());
            }
            _ => {
                let (state, message) = (channel.state_name(), MessageType::OPEN_CHANNEL);
                return Err(MessageError::State { channel: number, state, message });
            }
        }
        match self.open_request(&message) {
            Ok(request) => {
                if let Some(channel) = self.channels.get_mut(&number) {
                    channel.state = State::Opening { open_id: message.open_id };
                    channel.rings = Some(message.ring_gpadl);
                }
                self.actions.push_back(Action::Open(Box::new(request)));
                Ok(())
            }
            Err(error) => {
                self.open_result(number, message.open_id, UNSUCCESSFUL);
                Err(error)
            }
        }
    }

    /// What the worker has to know, if the request makes sense.
    fn open_request(&self, message: &OpenChannel) -> Result<OpenRequest, MessageError> {
        let number = message.channel_id;
        let channel = self.channels.get(&number).filter(|channel| !channel.rescinded);
        let channel = channel.ok_or(MessageError::Channel(number))?;
        let version =
            self.connection.version().ok_or(MessageError::NotConnected(MessageType::OPEN_CHANNEL))?;
        let rings = message.ring_gpadl;
        let gpadl = self.gpadl(channel.device, rings).ok_or(MessageError::Gpadl(rings))?;
        let mut target = self.connection.target();
        if version >= Version::WIN8 {
            target = Target { vp: message.target_vp, ..target };
        }
        if target.vp >= self.config.processors {
            return Err(MessageError::Processor(target.vp));
        }
        Ok(OpenRequest {
            channel: number,
            device: channel.device,
            facts: ChannelFacts { index: channel.index, version, user_data: message.user_data },
            rings: gpadl,
            downstream_page: message.downstream_page_offset,
            target,
            interrupt_page: self.connection.interrupt_page(),
            monitor: self.monitor(number),
        })
    }

    fn open_result(&mut self, channel_id: u32, open_id: u32, status: u32) {
        let header = Header::new(MessageType::OPEN_CHANNEL_RESULT);
        self.send(&OpenResult { header, channel_id, open_id, status });
    }

    /// The guest closes a channel. It is not answered; the GPADL of the rings is, when the channel has ended.
    pub(super) fn close(&mut self, message: ChannelMessage) -> Result<(), MessageError> {
        let number = message.channel_id;
        let channel = self.announced(number)?;
        // The guest of a rescinded channel may not have known that it is closed.
        if matches!(channel.state, State::Closed) && !channel.rescinded {
            let message = MessageType::CLOSE_CHANNEL;
            return Err(MessageError::State { channel: number, state: "closed", message });
        }
        let (device, primary) = (channel.device, channel.index == 0);
        self.close_channel(number);
        if primary {
            self.rescind_subchannels(device);
        }
        Ok(())
    }

    /// Has the worker end a channel, if it has one.
    pub(super) fn close_channel(&mut self, number: u32) {
        let Some(channel) = self.channels.get_mut(&number) else { return };
        match &mut channel.state {
            State::Closed => {}
            State::Closing { reopen } => *reopen = None,
            State::Opening { .. } | State::Open => {
                channel.state = State::Closing { reopen: None };
                self.actions.push_back(Action::Close { channel: number });
            }
        }
    }

    /// The worker has opened a channel.
    pub fn opened(&mut self, number: u32) {
        let Some(channel) = self.channels.get_mut(&number) else { return };
        if let State::Opening { open_id } = channel.state {
            channel.state = State::Open;
            self.open_result(number, open_id, 0);
        }
    }

    /// A channel has ended: it was to be closed, or could not be opened, or failed. One that failed takes its device off
    /// the bus until the next guest.
    pub fn closed(&mut self, number: u32) {
        let Some(channel) = self.channels.get_mut(&number) else { return };
        let device = channel.device;
        let was = std::mem::replace(&mut channel.state, State::Closed);
        channel.rings = None;
        match was {
            State::Closed | State::Closing { .. } => {}
            State::Opening { open_id } => self.open_result(number, open_id, UNSUCCESSFUL),
            State::Open => self.rescind_device(device),
        }
        self.finish_teardowns(device);
        self.remove_if_done(number);
        if let State::Closing { reopen: Some(message) } = was {
            // What is wrong with it, the guest is told.
            let _ = self.open(message);
        }
        self.continue_reset();
    }

    pub(super) fn modify(&mut self, message: ModifyChannel) -> Result<(), MessageError> {
        let (number, vp) = (message.channel_id, message.target_vp);
        let processors = self.config.processors;
        let channel = self.announced(number)?;
        let result = match channel.state {
            _ if vp >= processors => Err(MessageError::Processor(vp)),
            State::Open | State::Opening { .. } => Ok(()),
            State::Closing { .. } => Ok(()),
            State::Closed => {
                let message = MessageType::MODIFY_CHANNEL;
                Err(MessageError::State { channel: number, state: "closed", message })
            }
        };
        if result.is_ok() {
            self.actions.push_back(Action::Modify { channel: number, vp });
        }
        if self.connection.version().is_some_and(|version| version >= Version::WIN10_V5_3) {
            let header = Header::new(MessageType::MODIFY_CHANNEL_RESPONSE);
            let status = if result.is_ok() { 0 } else { UNSUCCESSFUL };
            self.send(&ModifyChannelResponse { header, channel_id: number, status });
        }
        result
    }
}

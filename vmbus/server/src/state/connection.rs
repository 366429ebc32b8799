//! Contact, versions, unload: whether a guest is connected at all.

use parterre_vmbus_protocol::message::{
    Header, InitiateContact, MESSAGE_CONNECTION_ID_4, MessageType, VMBUS_SINT, VersionResponse,
    VersionResponse2,
};
use parterre_vmbus_protocol::{PAGE_SIZE, Version};

use super::{MessageError, Server, Target};

/// Number of SINTs of a VP; 0 is the hypervisor's own.
const SINTS: u8 = 16;

/// What is to be done when all channels are closed.
#[derive(Clone, Copy)]
enum AfterReset {
    Answer(InitiateContact),
    Unload,
}

#[derive(Clone, Copy, Default)]
enum State {
    #[default]
    Disconnected,
    Connected(Version),
    Resetting(AfterReset),
}

/// The connection with the guest.
#[derive(Default)]
pub(super) struct Connection {
    state: State,
    target: Target,
    interrupt_page: Option<u64>,
    /// Where the guest sets bits instead of signalling.
    monitor_page: Option<u64>,
    /// The guest has asked for the offers, and hears of new ones.
    pub(super) offers_requested: bool,
}

impl Connection {
    pub(super) fn version(&self) -> Option<Version> {
        match self.state {
            State::Connected(version) => Some(version),
            _ => None,
        }
    }

    /// Where messages go, and signals unless the channel says otherwise.
    pub(super) fn target(&self) -> Target {
        self.target
    }

    /// The interrupt page, in the versions that use it for signals.
    pub(super) fn interrupt_page(&self) -> Option<u64> {
        self.interrupt_page.filter(|_| self.version().is_some_and(|version| version < Version::WIN8))
    }

    /// The page of the guest's monitored signals, if it gave one.
    pub(super) fn monitor_page(&self) -> Option<u64> {
        self.monitor_page
    }
}

impl Server {
    /// A guest begins to talk: for the first time, or after a crash without having said goodbye.
    pub(super) fn initiate_contact(&mut self, message: InitiateContact) -> Result<(), MessageError> {
        self.begin_reset(AfterReset::Answer(message));
        Ok(())
    }

    /// The guest says goodbye. One that does so while an earlier message of this kind is under way, as a guest that panics then,
    /// hears the answer to this one alone.
    pub(super) fn unload(&mut self) -> Result<(), MessageError> {
        match self.connection.state {
            State::Connected(_) => self.begin_reset(AfterReset::Unload),
            State::Resetting(_) => self.connection.state = State::Resetting(AfterReset::Unload),
            State::Disconnected => return Err(MessageError::NotConnected(MessageType::UNLOAD)),
        }
        Ok(())
    }

    fn begin_reset(&mut self, after: AfterReset) {
        self.connection.state = State::Resetting(after);
        self.connection.offers_requested = false;
        let open: Vec<u32> = self.channels.keys().copied().collect();
        for channel in open {
            self.close_channel(channel);
        }
        self.continue_reset();
    }

    /// Completes a reset when the last channel has ended.
    pub(super) fn continue_reset(&mut self) {
        let State::Resetting(after) = self.connection.state else { return };
        if self.channels.values().any(|channel| channel.is_busy()) {
            return;
        }
        self.gpadls.clear();
        self.reset_offers();
        self.connection.state = State::Disconnected;
        match after {
            AfterReset::Unload => self.send(&Header::new(MessageType::UNLOAD_RESPONSE)),
            AfterReset::Answer(message) => self.answer_contact(&message),
        }
    }

    fn answer_contact(&mut self, message: &InitiateContact) {
        let version = message.version;
        let connection = &mut self.connection;
        // A VP that does not exist could never hear the answer.
        connection.target.vp = if message.target_vp < self.config.processors { message.target_vp } else { 0 };
        connection.target.sint = VMBUS_SINT;
        connection.interrupt_page = None;
        let page = message.monitor_page2;
        connection.monitor_page = (page != 0 && page.is_multiple_of(PAGE_SIZE as u64)).then_some(page);
        if version >= Version::WIN10_V5 {
            let sint = message.interrupt_page_or_target as u8;
            connection.target.sint = if (1..SINTS).contains(&sint) { sint } else { VMBUS_SINT };
        } else {
            connection.interrupt_page = Some(message.interrupt_page_or_target);
        }
        let supported = version.is_known() && version <= self.config.max_version;
        if supported {
            connection.state = State::Connected(version);
        }
        let response = VersionResponse {
            header: Header::new(MessageType::VERSION_RESPONSE),
            supported: supported.into(),
            connection_state: 0,
            padding: 0,
            connection_id: if supported { MESSAGE_CONNECTION_ID_4 } else { self.config.max_version.0 },
        };
        if version >= Version::WIN10_V6_0 {
            self.send(&VersionResponse2 { response, features: 0 });
        } else {
            self.send(&response);
        }
    }
}

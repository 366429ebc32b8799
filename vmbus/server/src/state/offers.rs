//! Devices on the bus: offering them, sub-channels, taking them away; connections of hv_sock.

use parterre_vmbus_protocol::message::{
    ChannelMessage, Header, MessageType, OfferChannel, TlConnectRequest, TlConnectResult,
};
use parterre_vmbus_protocol::monitor::MonitorId;
use parterre_vmbus_protocol::offer::{ChannelOffer, OfferFlags};
use parterre_vmbus_protocol::{Guid, Version};

use super::channel::{Channel, EVENT_CONNECTION_BASE, MAX_CHANNELS};
use super::{Action, MessageError, Monitor, Server};
use crate::Offer;
use crate::bus::{ConnectRequest, OfferError, OfferId};

/// `STATUS_CONNECTION_REFUSED`.
const CONNECTION_REFUSED: u32 = 0xC000_0236;
/// Most sub-channels of one device.
const MAX_SUBCHANNELS: u16 = 256;
/// Of a device that has no channel: it failed, and the guest has let go of it.
const NO_CHANNEL: u32 = 0;
/// The monitor id that says that there is none.
const NO_MONITOR: u8 = 0xFF;

/// A device on the bus.
pub(super) struct DeviceState {
    pub(super) offer: Offer,
    /// Channel of the device itself.
    primary: u32,
    /// Its channels by sub-channel index, the first being index 1.
    subchannels: Vec<u32>,
    /// Taken away, or failed: gone for this guest.
    rescinded: bool,
    /// Taken away by the worker: does not come back with the next guest.
    removed: bool,
}

impl DeviceState {
    fn channels(&self) -> impl Iterator<Item = u32> + use<> {
        std::iter::once(self.primary).chain(self.subchannels.clone())
    }

    fn is_socket(&self) -> bool {
        self.offer.flags.contains(OfferFlags::TLNPI_PROVIDER_OFFER)
    }

    fn has_ids(&self, interface: Guid, instance: Guid) -> bool {
        self.offer.interface == interface && self.offer.instance == instance
    }
}

impl Server {
    /// Puts a device on the bus. If one with the same ids has just been taken away, the guest is told of the new one when it has let
    /// go of the old one: guests know a device by its ids, and Linux would take one for the other.
    pub fn offer(&mut self, offer: Offer) -> Result<OfferId, OfferError> {
        let Offer { interface, instance, .. } = offer;
        if self.devices.values().any(|device| !device.removed && device.has_ids(interface, instance)) {
            return Err(OfferError::Exists { interface, instance });
        }
        let primary = self.free_channel().ok_or(OfferError::Full(MAX_CHANNELS as usize))?;
        let id = OfferId(self.next_offer);
        self.next_offer = self.next_offer.wrapping_add(1);
        let subchannels = Vec::new();
        let device = DeviceState { offer, primary, subchannels, rescinded: false, removed: false };
        self.devices.insert(id, device);
        self.channels.insert(primary, Channel::new(id, 0));
        self.announce_new();
        Ok(id)
    }

    /// Takes a device off the bus. An unknown id is ignored.
    pub fn rescind(&mut self, id: OfferId) {
        if let Some(device) = self.devices.get_mut(&id) {
            device.removed = true;
            self.rescind_device(id);
            self.forget_if_left(id);
        }
    }

    /// Offers sub-channels 1 to `count` of a device, as far as that has not been done. Returns how many there are.
    pub fn offer_subchannels(&mut self, id: OfferId, count: u16) -> u16 {
        let speaks = self.connection.version().is_some_and(|version| version >= Version::WIN8);
        let offered = self.devices.get(&id).filter(|device| !device.rescinded).map(|d| d.subchannels.len());
        let (true, Some(offered)) = (speaks && self.connection.offers_requested, offered) else { return 0 };
        let mut offered = offered as u16;
        while offered < count.min(MAX_SUBCHANNELS) {
            let Some(number) = self.free_channel() else { break };
            offered += 1;
            self.channels.insert(number, Channel::new(id, offered));
            if let Some(device) = self.devices.get_mut(&id) {
                device.subchannels.push(number);
            }
            self.announce(number);
        }
        offered
    }

    /// Answers a connection that nobody took.
    pub fn refuse(&mut self, request: ConnectRequest) {
        self.send(&TlConnectResult {
            header: Header::new(MessageType::TL_CONNECT_RESULT),
            endpoint_id: request.endpoint,
            service_id: request.service,
            status: CONNECTION_REFUSED,
        });
    }

    pub(super) fn connect_request(&mut self, message: TlConnectRequest) -> Result<(), MessageError> {
        self.actions.push_back(Action::Connect(message.into()));
        Ok(())
    }

    pub(super) fn request_offers(&mut self) -> Result<(), MessageError> {
        if std::mem::replace(&mut self.connection.offers_requested, true) {
            return Err(MessageError::Repeated(MessageType::REQUEST_OFFERS));
        }
        self.announce_new();
        self.send(&Header::new(MessageType::ALL_OFFERS_DELIVERED));
        Ok(())
    }

    /// The guest has forgotten a channel that was rescinded, or an hv_sock connection that it closed itself.
    pub(super) fn release(&mut self, message: ChannelMessage) -> Result<(), MessageError> {
        let number = message.channel_id;
        let channel = self.channels.get_mut(&number).filter(|channel| channel.announced);
        let channel = channel.ok_or(MessageError::Channel(number))?;
        let socket = self.devices.get(&channel.device).is_some_and(DeviceState::is_socket);
        if !channel.rescinded && !socket {
            let (state, message) = (channel.state_name(), MessageType::RELID_RELEASED);
            return Err(MessageError::State { channel: number, state, message });
        }
        channel.released = true;
        self.close_channel(number);
        self.remove_if_done(number);
        Ok(())
    }

    /// Tells the guest of devices that it has not been told of, but for those whose ids it still knows from another one.
    fn announce_new(&mut self) {
        if !self.connection.offers_requested {
            return;
        }
        let is_known = |offer: &Offer| {
            let mut known = self.channels.values().filter(|channel| channel.announced && !channel.released);
            known.any(|channel| {
                let device = self.devices.get(&channel.device);
                device.is_some_and(|device| device.has_ids(offer.interface, offer.instance))
            })
        };
        let is_new = |device: &DeviceState| {
            let primary = self.channels.get(&device.primary);
            primary.is_some_and(|channel| !channel.announced && !channel.rescinded)
                && !is_known(&device.offer)
        };
        let new: Vec<u32> =
            self.devices.values().filter(|device| is_new(device)).map(|device| device.primary).collect();
        for primary in new {
            self.announce(primary);
        }
    }

    /// Tells the guest of a channel.
    fn announce(&mut self, number: u32) {
        let monitor = self.monitor(number);
        let Some(channel) = self.channels.get_mut(&number) else { return };
        let Some(device) = self.devices.get(&channel.device) else { return };
        channel.announced = true;
        let offer = &device.offer;
        let dedicated = self.connection.version().is_some_and(|version| version >= Version::WIN7);
        let message = OfferChannel {
            header: Header::new(MessageType::OFFER_CHANNEL),
            offer: ChannelOffer {
                interface: offer.interface,
                instance: offer.instance,
                reserved1: [0; 2],
                flags: offer.flags.bits(),
                mmio_megabytes: offer.mmio_megabytes,
                user_defined: offer.user_defined,
                subchannel_index: channel.index,
                reserved3: 0,
            },
            channel_id: number,
            monitor_id: monitor.map_or(NO_MONITOR, |monitor| monitor.id.value()),
            monitor_allocated: monitor.is_some().into(),
            is_dedicated: dedicated.into(),
            connection_id: EVENT_CONNECTION_BASE + number,
        };
        self.send(&message);
    }

    /// Where the guest announces the signals of a channel whose device has asked for that. Channels beyond the page's
    /// room signal by hypercall.
    pub(super) fn monitor(&self, number: u32) -> Option<Monitor> {
        let device = self.devices.get(&self.channels.get(&number)?.device)?;
        if !device.offer.flags.contains(OfferFlags::REQUEST_MONITORED_NOTIFICATION) {
            return None;
        }
        Some(Monitor { page: self.connection.monitor_page()?, id: MonitorId::new(number)? })
    }

    /// Takes a device and its sub-channels away from the guest.
    pub(super) fn rescind_device(&mut self, id: OfferId) {
        let Some(device) = self.devices.get_mut(&id) else { return };
        device.rescinded = true;
        // Sub-channels first, as the guest closes them first.
        let channels: Vec<u32> = device.channels().collect();
        for number in channels.into_iter().rev() {
            self.rescind_channel(number);
        }
    }

    /// Takes the sub-channels away: the guest has closed the device, and gets new ones when it opens it again.
    pub(super) fn rescind_subchannels(&mut self, id: OfferId) {
        let Some(device) = self.devices.get_mut(&id) else { return };
        for number in std::mem::take(&mut device.subchannels) {
            self.rescind_channel(number);
        }
    }

    fn rescind_channel(&mut self, number: u32) {
        let Some(channel) = self.channels.get_mut(&number) else { return };
        if std::mem::replace(&mut channel.rescinded, true) {
            return;
        }
        if channel.announced {
            let header = Header::new(MessageType::RESCIND_CHANNEL_OFFER);
            self.send(&ChannelMessage { header, channel_id: number });
        }
        self.close_channel(number);
        self.remove_if_done(number);
    }

    /// Forgets a channel that neither the guest nor the worker knows any more.
    pub(super) fn remove_if_done(&mut self, number: u32) {
        let Some(channel) = self.channels.get(&number) else { return };
        let (id, socket_gone) = (channel.device, channel.released && !channel.rescinded);
        let guest_knows = channel.announced && !channel.released;
        if channel.is_busy() || guest_knows || !(channel.rescinded || socket_gone) {
            return;
        }
        self.channels.remove(&number);
        self.gpadls.remove_of_channel(number);
        if let Some(device) = self.devices.get_mut(&id) {
            device.subchannels.retain(|subchannel| *subchannel != number);
            if device.primary == number {
                device.primary = NO_CHANNEL;
            }
        }
        if self.forget_if_left(id) && socket_gone {
            self.actions.push_back(Action::Removed(id));
        }
        self.announce_new();
    }

    /// Forgets a device that is gone for good when its last channel is. The guest may let go of the channels in any order.
    fn forget_if_left(&mut self, id: OfferId) -> bool {
        // A device that failed comes back with the next guest.
        let goes = self.devices.get(&id).is_some_and(|device| device.removed || device.is_socket());
        let left = goes && !self.channels.values().any(|channel| channel.device == id);
        if left {
            self.devices.remove(&id);
        }
        left
    }

    /// No guest knows of anything any more: sub-channels and connections go, failed devices come back.
    pub(super) fn reset_offers(&mut self) {
        let gone: Vec<OfferId> = self
            .devices
            .iter()
            .filter(|(_, device)| device.removed || device.is_socket())
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            if self.devices.remove(&id).is_some_and(|device| !device.removed) {
                self.actions.push_back(Action::Removed(id));
            }
        }
        self.channels.clear();
        for (number, (id, device)) in (1..).zip(&mut self.devices) {
            device.rescinded = false;
            device.subchannels.clear();
            device.primary = number;
            self.channels.insert(number, Channel::new(*id, 0));
        }
    }

    fn free_channel(&self) -> Option<u32> {
        (1..=MAX_CHANNELS).find(|number| !self.channels.contains_key(number))
    }
}

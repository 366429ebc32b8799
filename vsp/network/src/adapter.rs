//! The adapter: what its channels share, and how it is offered.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use parterre_vmbus_server::{ChannelError, Device, Guid, Handler, Offer, Queue, Waker};

use crate::buffers::{ReceiveBuffer, SendBuffer};
use crate::channel::Channel;
use crate::control::{Control, Identity};
use crate::frame::{Guards, MacAddress};
use crate::protocol::nvsp::Version;
use crate::statistics::Statistics;
use crate::wire::{ReceiveOffloads, Wire};

/// The interface of synthetic network adapters (Linux `include/linux/hyperv.h`, `HV_NIC_GUID`).
pub const INTERFACE: Guid = Guid::from_u128(0xf8615163_df3e_46c5_913f_f2d2f965ed0e);
/// Most queues, as VSCs allow.
pub const MAX_QUEUES: usize = 64;

/// What the adapter is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Names the adapter; the same at each start.
    pub instance: Guid,
    /// Its address.
    pub mac: MacAddress,
    /// What the guest may send.
    pub guards: Guards,
    /// Bits in a second that the link is said to carry.
    pub speed: u64,
    /// Longest payload of a frame (MTU) that what lies below carries; the guest may choose less.
    pub mtu: u32,
    /// What the guest may show beside the interface; empty for nothing.
    pub name: String,
}

/// What every channel looks at for each packet.
#[derive(Clone, Default)]
pub(crate) struct View {
    pub(crate) version: Option<Version>,
    pub(crate) receive: Option<Arc<ReceiveBuffer>>,
    pub(crate) send: Option<Arc<SendBuffer>>,
    pub(crate) mac: MacAddress,
    /// Longest payload of a frame that the guest may send.
    pub(crate) mtu: u32,
    pub(crate) filter: u32,
    /// Frames to foreign addresses may be for the guest.
    pub(crate) takes_foreign: bool,
    pub(crate) offloads: ReceiveOffloads,
}

/// One queue of the adapter.
pub(crate) struct Lane {
    pub(crate) wire: Arc<dyn Wire>,
    pub(crate) waker: Waker,
    /// The VP that its channel signals.
    pub(crate) vp: AtomicU32,
    /// Its channel is open.
    open: AtomicBool,
    /// The wire gives frames to it.
    attached: AtomicBool,
}

impl Lane {
    pub(crate) fn is_attached(&self) -> bool {
        self.attached.load(Ordering::Acquire)
    }
}

/// What the channels share.
pub(crate) struct Shared {
    pub(crate) guards: Guards,
    pub(crate) lanes: Vec<Lane>,
    pub(crate) statistics: Arc<Statistics>,
    control: Mutex<Control>,
    view: RwLock<View>,
    /// Held while decisions are followed: the last of them counts, whichever channel it came by.
    following: Mutex<()>,
    /// Messages for the guest that come from elsewhere than its own requests.
    notices: Mutex<Vec<Vec<u8>>>,
}

impl Shared {
    pub(crate) fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held while the guest's buffers are used: they are not taken away meanwhile.
    pub(crate) fn view(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the view; returns when no channel uses the old one any more.
    pub(crate) fn change(&self, change: impl FnOnce(&mut View)) {
        change(&mut self.view.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Takes what the guest has decided into the view, and tells the wires.
    pub(crate) fn follow(&self) -> Result<(), ChannelError> {
        let _turn = self.following.lock().unwrap_or_else(PoisonError::into_inner);
        let control = self.control();
        let (mac, filter) = (control.mac(), if control.link() { control.filter() } else { 0 });
        let wanted = control.offloads();
        let table = control.scaling().table.clone();
        drop(control);
        let mut offloads = ReceiveOffloads::default();
        let view = self.view().clone();
        if view.receive.as_ref().is_some_and(|buffer| buffer.takes_large(self.lanes.len())) {
            let checksum = wanted.receive_checksums == [true; 4];
            // A guest that takes coalesced packets is the end of their way. One that does not may pass them on, and
            // a packet without its checksum would go astray then.
            offloads.large_v4 = checksum && wanted.coalesce_v4;
            offloads.large_v6 = checksum && wanted.coalesce_v6;
            offloads.checksum = offloads.large_v4 && offloads.large_v6;
        }
        if offloads != view.offloads
            && let Some(lane) = self.lanes.first()
        {
            lane.wire.set_offloads(offloads)?;
        }
        let ready = view.receive.is_some() && filter != 0;
        self.change(|view| (view.mac, view.filter, view.offloads) = (mac, filter, offloads));
        for (index, lane) in self.lanes.iter().enumerate() {
            let chosen = match table.is_empty() {
                true => index == 0,
                false => table.contains(&(index as u16)),
            };
            self.attach(lane, ready && chosen)?;
        }
        Ok(())
    }

    fn attach(&self, lane: &Lane, wanted: bool) -> Result<(), ChannelError> {
        let wanted = wanted && lane.open.load(Ordering::Acquire);
        if lane.attached.swap(wanted, Ordering::AcqRel) != wanted {
            lane.wire.attach(wanted)?;
            lane.waker.wake();
        }
        Ok(())
    }

    /// A channel was opened or closed.
    pub(crate) fn set_open(&self, index: usize, open: bool) -> Result<(), ChannelError> {
        if let Some(lane) = self.lanes.get(index) {
            lane.open.store(open, Ordering::Release);
            if !open {
                self.attach(lane, false)?;
            }
        }
        self.follow()
    }

    /// The first channel was opened anew or closed: all is as when the adapter was plugged in.
    pub(crate) fn reset(&self) -> Result<(), ChannelError> {
        self.control().reset();
        self.notices.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.change(|view| (view.version, view.receive, view.send) = (None, None, None));
        self.follow()
    }

    pub(crate) fn take_notices(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut *self.notices.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn set_link(&self, up: bool) -> Result<(), ChannelError> {
        let message = self.control().set_link(up);
        self.notices.lock().unwrap_or_else(PoisonError::into_inner).extend(message);
        self.follow()?;
        if let Some(lane) = self.lanes.first() {
            lane.waker.wake();
        }
        Ok(())
    }
}

/// A synthetic network adapter.
pub struct Adapter {
    instance: Guid,
    shared: Arc<Shared>,
}

impl Adapter {
    /// An adapter over the queues of a wire, of which there must be at least one. The link is up.
    pub fn new(settings: Settings, wires: Vec<Arc<dyn Wire>>) -> std::io::Result<Adapter> {
        if wires.is_empty() || wires.len() > MAX_QUEUES {
            return Err(std::io::Error::other(format!("an adapter has 1 to {MAX_QUEUES} queues")));
        }
        let lane = |wire| {
            let (open, attached) = (AtomicBool::new(false), AtomicBool::new(false));
            Waker::new().map(|waker| Lane { wire, waker, vp: AtomicU32::new(0), open, attached })
        };
        let identity = Identity {
            mac: settings.mac,
            may_change_mac: settings.guards.mac_spoofing,
            queues: wires.len() as u16,
            speed: settings.speed,
            mtu: settings.mtu,
            name: settings.name,
        };
        let lanes = wires.into_iter().map(lane).collect::<std::io::Result<Vec<Lane>>>()?;
        for lane in &lanes {
            lane.wire.attach(false)?;
        }
        let statistics = Arc::new(Statistics::default());
        let control = Mutex::new(Control::new(identity, statistics.clone(), true));
        let takes_foreign = settings.guards.mac_spoofing;
        let view =
            RwLock::new(View { mac: settings.mac, mtu: settings.mtu, takes_foreign, ..View::default() });
        let guards = settings.guards;
        let (following, notices) = (Mutex::default(), Mutex::default());
        let shared = Arc::new(Shared { guards, lanes, statistics, control, view, following, notices });
        Ok(Adapter { instance: settings.instance, shared })
    }

    /// Plugs the cable in or out.
    pub fn set_link(&self, up: bool) -> Result<(), ChannelError> {
        self.shared.set_link(up)
    }

    /// What has gone through.
    pub fn statistics(&self) -> &Statistics {
        &self.shared.statistics
    }
}

impl Device for Adapter {
    fn offer(&self) -> Offer {
        Offer::new(INTERFACE, self.instance)
    }

    fn open(&self, queue: &mut Queue) -> Result<Box<dyn Handler>, ChannelError> {
        let index = usize::from(queue.index());
        if index >= self.shared.lanes.len() {
            return Err(ChannelError::protocol(format!("the adapter has no queue {index}")));
        }
        if index == 0 {
            self.shared.reset()?;
        }
        let channel = Channel::new(self.shared.clone(), index);
        self.shared.set_open(index, true)?;
        Ok(Box::new(channel))
    }
}

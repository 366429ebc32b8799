//! A SCSI controller: a VMBus device with places for logical units, which may come and go while the guest runs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use parterre_vmbus_server::{ChannelError, Device, Guid, Handler, Offer, Queue, Waker};
use uuid::Uuid;

use crate::channel::Channel;
use crate::disk::Engines;
use crate::lun::Lun;

/// Places of a controller.
pub const MAX_LUNS: u8 = 64;
/// Controllers of a virtual machine.
pub const MAX_CONTROLLERS: u8 = 4;
/// Most sub-channels of a controller: beyond that, more threads take more than they bring.
const MAX_SUBCHANNELS: u16 = 7;

/// The kind of device that `hv_storvsc` drives (`HV_SCSI_GUID` of `include/linux/hyperv.h`).
pub const SCSI_INTERFACE: Guid = Guid::from_u128(0xba61_63d9_04a1_4d29_b605_72e2_ffb1_dc7f);
/// Distinguishes controllers from other devices whose instance comes from the virtual machine's id.
const INSTANCE_SALT: u128 = 0x5c51_0000_0000_0000_0000_0000_0000_0000;

/// Why a place cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// There is no such place.
    #[error("a controller has the places 0 to {last}, not {0}", last = MAX_LUNS - 1)]
    NoPlace(u8),
    /// Something is there.
    #[error("place {0} of the controller is taken; choose another")]
    Taken(u8),
    /// Nothing is there.
    #[error("place {0} of the controller is empty")]
    Empty(u8),
}

/// What the controller's channels share.
pub(crate) struct Shared {
    luns: RwLock<BTreeMap<u8, Arc<Lun>>>,
    /// The guest is to look for units that came or went.
    pub(crate) changed: AtomicBool,
    /// The guest has sent a command since the first channel was initialized.
    pub(crate) in_use: AtomicBool,
    /// Wakes the first channel for changes.
    pub(crate) waker: Waker,
    pub(crate) subchannels: u16,
}

impl Shared {
    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<u8, Arc<Lun>>> {
        self.luns.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<u8, Arc<Lun>>> {
        self.luns.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The unit at a place.
    pub(crate) fn lun(&self, number: u8) -> Option<Arc<Lun>> {
        self.read().get(&number).cloned()
    }

    /// A guest begins to use the controller; what an earlier one has locked is free.
    pub(crate) fn restart(&self) {
        self.read().values().for_each(|lun| lun.restart());
        self.in_use.store(false, Ordering::Release);
        // What is there now, the guest finds by itself.
        self.changed.store(false, Ordering::Release);
    }

    /// Notes that the guest has sent a command: from now on it can be told of changes.
    pub(crate) fn first_command(&self) {
        if !self.in_use.load(Ordering::Acquire) {
            self.in_use.store(true, Ordering::Release);
            if self.changed.load(Ordering::Acquire) {
                self.waker.wake();
            }
        }
    }

    /// The places that are taken.
    pub(crate) fn places(&self) -> Vec<u8> {
        self.read().keys().copied().collect()
    }
}

/// The controller.
pub struct Controller {
    instance: Guid,
    engines: Arc<dyn Engines>,
    shared: Arc<Shared>,
}

impl Controller {
    /// Controller `number` of a virtual machine with `processors` processors, without units.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn new(
        machine: Uuid,
        number: u8,
        processors: u32,
        engines: Arc<dyn Engines>,
    ) -> std::io::Result<Controller> {
        let instance = Guid::from_u128(machine.as_u128() ^ INSTANCE_SALT ^ u128::from(number));
        let subchannels = queues(processors) - 1;
        let (changed, in_use, waker) = (AtomicBool::new(false), AtomicBool::new(false), Waker::new()?);
        let shared = Shared { luns: RwLock::default(), changed, in_use, waker, subchannels };
        Ok(Controller { instance, engines, shared: Arc::new(shared) })
    }

    /// Puts a unit in. A guest that runs is told.
    pub fn add(&self, number: u8, lun: Arc<Lun>) -> Result<(), PlaceError> {
        if number >= MAX_LUNS {
            return Err(PlaceError::NoPlace(number));
        }
        let mut luns = self.shared.write();
        if luns.contains_key(&number) {
            return Err(PlaceError::Taken(number));
        }
        luns.insert(number, lun);
        drop(luns);
        self.tell();
        Ok(())
    }

    /// Takes a unit out. What is under way to it still ends; then its file is closed.
    pub fn remove(&self, number: u8) -> Result<Arc<Lun>, PlaceError> {
        let lun = self.shared.write().remove(&number).ok_or(PlaceError::Empty(number))?;
        self.tell();
        Ok(lun)
    }

    /// The unit at a place.
    pub fn lun(&self, number: u8) -> Option<Arc<Lun>> {
        self.shared.lun(number)
    }

    /// Has a guest that runs look at its units: one of them has changed.
    pub fn tell(&self) {
        self.shared.changed.store(true, Ordering::Release);
        self.shared.waker.wake();
    }
}

/// Channels of a controller, and so engines that it may need at a time.
pub fn queues(processors: u32) -> u16 {
    let extra = processors.saturating_sub(1).min(MAX_SUBCHANNELS.into());
    1 + extra as u16
}

impl Device for Controller {
    fn offer(&self) -> Offer {
        Offer::new(SCSI_INTERFACE, self.instance)
    }

    fn open(&self, queue: &mut Queue) -> Result<Box<dyn Handler>, ChannelError> {
        let engine = self.engines.engine()?;
        Ok(Box::new(Channel::new(self.shared.clone(), engine, queue.index() == 0)))
    }
}

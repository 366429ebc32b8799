//! The device: strokes wait in a queue, the channel takes them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use parterre_vmbus_server::{
    ChannelError, Device, Guid, Handler, Offer, OutPacket, Packet, Queue, Wait, Waker, Written,
};

use crate::keys::Stroke;
use crate::wire::{self, FromGuest, VERSION};

const INTERFACE: Guid = Guid::from_u128(0xf912ad6d_2b17_48ea_bd65_f927a61c7684);
const INSTANCE: Guid = Guid::from_u128(0xd34b2567_b9b6_42b9_8778_0a4ec0b955bf);
/// Strokes that may wait; a guest that takes none loses the rest.
const MAX_STROKES: usize = 4096;

/// The keyboard's lights, as the guest wants them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lights {
    /// Scroll lock.
    pub scroll_lock: bool,
    /// Num lock.
    pub num_lock: bool,
    /// Caps lock.
    pub caps_lock: bool,
}

/// What the guest does with the keyboard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It has not opened it.
    #[default]
    Closed,
    /// It has not asked for a version that there is.
    Opened,
    /// It takes strokes.
    Ready,
}

#[derive(Default)]
struct Inner {
    state: State,
    lights: Lights,
    strokes: VecDeque<Stroke>,
}

struct Shared {
    inner: Mutex<Inner>,
    waker: Waker,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A keyboard. Clones share it.
#[derive(Clone)]
pub struct Keyboard(Arc<Shared>);

impl Keyboard {
    /// A keyboard that no guest has opened.
    ///
    /// # Errors
    /// There is no file descriptor left.
    pub fn new() -> std::io::Result<Keyboard> {
        Ok(Keyboard(Arc::new(Shared { inner: Mutex::default(), waker: Waker::new()? })))
    }

    /// What the guest does with it.
    pub fn state(&self) -> State {
        self.0.lock().state
    }

    /// The lights.
    pub fn lights(&self) -> Lights {
        self.0.lock().lights
    }

    /// Types. `false`: the guest takes no strokes, or has not taken those from before.
    pub fn press(&self, strokes: &[Stroke]) -> bool {
        let mut inner = self.0.lock();
        if inner.state != State::Ready || inner.strokes.len() + strokes.len() > MAX_STROKES {
            return false;
        }
        inner.strokes.extend(strokes);
        drop(inner);
        self.0.waker.wake();
        true
    }
}

impl Device for Keyboard {
    fn offer(&self) -> Offer {
        Offer::new(INTERFACE, INSTANCE)
    }

    fn open(&self, _queue: &mut Queue) -> Result<Box<dyn Handler>, ChannelError> {
        *self.0.lock() = Inner { state: State::Opened, ..Inner::default() };
        Ok(Box::new(Channel { shared: self.0.clone(), packet: Packet::default(), answer: None, sent: 0 }))
    }
}

struct Channel {
    shared: Arc<Shared>,
    packet: Packet,
    answer: Option<Vec<u8>>,
    sent: u64,
}

impl Channel {
    /// Sends a message; `false` if there is no room.
    fn send(&mut self, queue: &mut Queue, message: &[u8]) -> Result<bool, ChannelError> {
        let packet = OutPacket::Inband { transaction_id: self.sent, completion_requested: false };
        if queue.write(&packet, &[message])? == Written::Full {
            return Ok(false);
        }
        self.sent = self.sent.wrapping_add(1);
        Ok(true)
    }

    fn take(&mut self) -> Result<(), ChannelError> {
        let message = wire::read(self.packet.payload());
        let mut inner = self.shared.lock();
        match message {
            None => return Err(ChannelError::protocol("keyboard: a message is cut off")),
            Some(FromGuest::Version(version)) => {
                inner.state = if version == VERSION { State::Ready } else { State::Opened };
                self.answer = Some(wire::response(version == VERSION));
            }
            Some(FromGuest::Lights(bits)) => {
                let on = |bit: u16| bits & 1 << bit != 0;
                inner.lights = Lights { scroll_lock: on(0), num_lock: on(1), caps_lock: on(2) };
            }
            // Newer guests may say more than is understood.
            Some(FromGuest::Unknown(_)) => {}
        }
        Ok(())
    }

    fn answer(&mut self, queue: &mut Queue) -> Result<bool, ChannelError> {
        let Some(answer) = self.answer.take() else { return Ok(true) };
        let sent = self.send(queue, &answer)?;
        if !sent {
            self.answer = Some(answer);
        }
        Ok(sent)
    }
}

impl Handler for Channel {
    fn run(&mut self, queue: &mut Queue) -> Result<(), ChannelError> {
        self.shared.waker.clear();
        // One answer at a time: a guest that asks without reading waits in its own ring.
        while self.answer(queue)? && queue.read(&mut self.packet)? {
            self.take()?;
        }
        loop {
            let Some(stroke) = self.shared.lock().strokes.front().copied() else { return Ok(()) };
            if self.answer.is_some() || !self.send(queue, &wire::keystroke(stroke))? {
                return Ok(());
            }
            self.shared.lock().strokes.pop_front();
        }
    }

    fn wait(&self, wait: &mut Wait) {
        wait.readable(self.shared.waker.source());
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        *self.shared.lock() = Inner::default();
    }
}

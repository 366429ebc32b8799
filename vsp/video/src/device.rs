//! The device: a session on a VMBus channel, and the video memory behind it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use parterre_vmbus_server::protocol::offer::PIPE_TYPE_MESSAGE;
use parterre_vmbus_server::{
    ChannelError, Device, Guid, Handler, Offer, OutPacket, Packet, Queue, Wait, Waker, Written,
};

use crate::session::{Effect, PIXEL, Session};
use crate::wire::{Situation, Version};

const INTERFACE: Guid = Guid::from_u128(0xda0a7802_e377_4aac_8e77_0558eb1073f8);
const INSTANCE: Guid = Guid::from_u128(0x5620e0c7_8062_4dce_aeb7_520c7ef76171);

/// Size of the video memory in bytes: enough for 1920x1080.
pub const VRAM_SIZE: u32 = 8 << 20;

/// The video memory: as the guest's memory, but not part of its RAM.
pub trait Vram: Send + Sync {
    /// Puts it at a guest physical address, or nowhere, which never fails. It was nowhere, or at the place that was last asked
    /// for.
    ///
    /// # Errors
    /// A sentence for the log: the address cannot be had.
    fn place(&self, gpa: Option<u64>) -> Result<(), String>;

    /// Copies bytes out of it. The guest may be writing them.
    ///
    /// # Errors
    /// They are not all within [`VRAM_SIZE`].
    fn read(&self, offset: u32, bytes: &mut [u8]) -> std::io::Result<()>;
}

/// What is to be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Red, green and blue of each pixel, row by row.
    pub rgb: Vec<u8>,
}

/// What the guest does with its screen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The version that it speaks; absent before it does.
    pub version: Option<Version>,
    /// Width and height of the picture, if there is one.
    pub size: Option<(u32, u32)>,
    /// Goes up with each change that the guest tells of.
    pub changes: u64,
}

#[derive(Default)]
struct Inner {
    session: Option<Session>,
    watched: bool,
    changes: u64,
}

struct Shared {
    vram: Arc<dyn Vram>,
    inner: Mutex<Inner>,
    waker: Waker,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A screen. Clones share it.
#[derive(Clone)]
pub struct Screen(Arc<Shared>);

impl Screen {
    /// A screen with this video memory.
    ///
    /// # Errors
    /// There is no file descriptor left.
    pub fn new(vram: Arc<dyn Vram>) -> std::io::Result<Screen> {
        Ok(Screen(Arc::new(Shared { vram, inner: Mutex::default(), waker: Waker::new()? })))
    }

    /// What the guest does with it.
    pub fn state(&self) -> State {
        let inner = self.0.lock();
        let session = inner.session.as_ref();
        let size = session.and_then(Session::picture).map(|picture| (picture.width, picture.height));
        State { version: session.and_then(Session::version), size, changes: inner.changes }
    }

    /// Whether the guest is to tell each change ([`State::changes`]): somebody looks.
    pub fn watch(&self, watched: bool) {
        let mut inner = self.0.lock();
        inner.watched = watched;
        if let Some(session) = &mut inner.session {
            session.watch(watched);
        }
        drop(inner);
        self.0.waker.wake();
    }

    /// What is to be seen now; nothing if the guest shows nothing.
    pub fn picture(&self) -> Option<Picture> {
        // Held, so that the video memory stays where the picture is.
        let inner = self.0.lock();
        let situation = inner.session.as_ref()?.picture()?;
        copied(&*self.0.vram, &situation).ok()
    }
}

/// The pixels of a picture.
fn copied(vram: &dyn Vram, situation: &Situation) -> std::io::Result<Picture> {
    let Situation { width, height, offset, pitch, .. } = *situation;
    let mut row = vec![0; (width * PIXEL) as usize];
    let mut rgb = Vec::with_capacity(row.len() * height as usize / PIXEL as usize * 3);
    for y in 0..height {
        vram.read(offset + y * pitch, &mut row)?;
        rgb.extend(row.as_chunks::<{ PIXEL as usize }>().0.iter().flat_map(|[b, g, r, _]| [*r, *g, *b]));
    }
    Ok(Picture { width, height, rgb })
}

impl Device for Screen {
    fn offer(&self) -> Offer {
        let mut offer = Offer::pipe(INTERFACE, INSTANCE, PIPE_TYPE_MESSAGE);
        offer.mmio_megabytes = (VRAM_SIZE >> 20) as u16;
        offer
    }

    fn open(&self, _queue: &mut Queue) -> Result<Box<dyn Handler>, ChannelError> {
        self.0.lock().session = Some(Session::new(VRAM_SIZE));
        let shared = self.0.clone();
        Ok(Box::new(Channel { shared, packet: Packet::default(), unsent: None, sent: 0, refusals: 0 }))
    }
}

/// Refusals that are worth a line in the log, for one channel.
const MAX_REFUSALS: u32 = 3;

struct Channel {
    shared: Arc<Shared>,
    packet: Packet,
    unsent: Option<Vec<u8>>,
    sent: u64,
    refusals: u32,
}

impl Channel {
    /// Sends what there is; `false` if the ring is full.
    fn send(&mut self, queue: &mut Queue) -> Result<bool, ChannelError> {
        loop {
            let next = |shared: &Shared| shared.lock().session.as_mut().and_then(Session::next_message);
            let Some(message) = self.unsent.take().or_else(|| next(&self.shared)) else { return Ok(true) };
            let packet = OutPacket::Inband { transaction_id: self.sent, completion_requested: false };
            if queue.write(&packet, &[&message])? == Written::Full {
                self.unsent = Some(message);
                return Ok(false);
            }
            self.sent = self.sent.wrapping_add(1);
        }
    }

    fn take(&mut self) -> Result<(), ChannelError> {
        let mut inner = self.shared.lock();
        let Inner { session: Some(session), watched, changes } = &mut *inner else { return Ok(()) };
        let taken = session.take(self.packet.payload());
        match taken.map_err(|violation| ChannelError::protocol(violation.to_string()))? {
            Effect::None => {}
            Effect::Changed => *changes = changes.wrapping_add(1),
            Effect::Place { context, gpa } => {
                let placed = self.shared.vram.place(gpa);
                session.placed(context, gpa, placed.is_ok());
                if *watched {
                    session.watch(true);
                }
                if let Err(why) = placed {
                    self.refusals += 1;
                    if self.refusals > MAX_REFUSALS {
                        return Err(ChannelError::protocol(format!("screen: {why}")));
                    }
                }
            }
        }
        Ok(())
    }
}

impl Handler for Channel {
    fn run(&mut self, queue: &mut Queue) -> Result<(), ChannelError> {
        self.shared.waker.clear();
        // A guest that asks without reading waits in its own ring.
        while self.send(queue)? && queue.read(&mut self.packet)? {
            self.take()?;
        }
        Ok(())
    }

    fn wait(&self, wait: &mut Wait) {
        wait.readable(self.shared.waker.source());
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        let mut inner = self.shared.lock();
        inner.session = None;
        // To be nowhere never fails.
        let _ = self.shared.vram.place(None);
    }
}

//! One guest's talk about its screen, without input or output: messages go in, messages and decisions come out.

use crate::wire::{self, FromGuest, Situation, Version};

/// Resolutions that a guest may choose from; each fits the video memory.
pub const RESOLUTIONS: [(u16, u16); 9] = [
    (640, 480),
    (800, 600),
    (1024, 768),
    (1152, 864),
    (1280, 720),
    (1280, 1024),
    (1440, 900),
    (1600, 1200),
    (1920, 1080),
];
/// The one that a guest begins with: 1024x768, as on Hyper-V.
const FIRST: u8 = 2;
/// Bytes of a pixel: blue, green, red, and one that means nothing.
pub const PIXEL: u32 = 4;
/// Most pixels in a row or a column, so that a picture's size can be calculated with.
const MAX_SIDE: u32 = 1 << 14;

/// Why a guest's message ends the channel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// It is no message.
    #[error("screen: a message is cut off or is no data")]
    Malformed,
    /// No version has been agreed on.
    #[error("screen: a message before the version")]
    OutOfTurn,
    /// The picture does not lie in the video memory.
    #[error("screen: a picture of {width}x{height} pixels that does not lie in the video memory")]
    Picture {
        /// Pixels in a row.
        width: u32,
        /// Rows.
        height: u32,
    },
}

/// What is to be done besides answering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// The video memory is to be here, or nowhere; the answer waits for [`Session::placed`].
    Place {
        /// For [`Session::placed`].
        context: u64,
        /// Guest physical address.
        gpa: Option<u64>,
    },
    /// What is to be seen has changed.
    Changed,
}

/// The talk. It lives as long as the channel is open.
pub struct Session {
    vram: u32,
    version: Option<Version>,
    placed: bool,
    situation: Option<Situation>,
    answers: Vec<Vec<u8>>,
}

impl Session {
    /// A guest with so many bytes of video memory.
    pub fn new(vram: u32) -> Session {
        Session { vram, version: None, placed: false, situation: None, answers: Vec::new() }
    }

    /// The version that was agreed on.
    pub fn version(&self) -> Option<Version> {
        self.version
    }

    /// How the picture lies in the video memory, if there is one.
    pub fn picture(&self) -> Option<Situation> {
        self.situation.filter(|situation| self.placed && situation.active)
    }

    /// Takes a packet in.
    ///
    /// # Errors
    /// The channel cannot go on.
    pub fn take(&mut self, packet: &[u8]) -> Result<Effect, Violation> {
        let message = wire::read(packet).ok_or(Violation::Malformed)?;
        if let FromGuest::Version(version) = message {
            self.version = version.is_known().then_some(version);
            self.answers.push(wire::version_response(version, version.is_known()));
            return Ok(Effect::None);
        }
        if self.version.is_none() {
            return Err(Violation::OutOfTurn);
        }
        match message {
            FromGuest::Vram { context, gpa } => return Ok(Effect::Place { context, gpa }),
            FromGuest::Situation { context, output } => {
                self.situation = output.map(|output| self.checked(output)).transpose()?;
                self.answers.push(wire::acknowledgement(wire::SITUATION_UPDATE_ACK, context));
                return Ok(Effect::Changed);
            }
            FromGuest::Resolutions => self.answers.push(wire::resolutions(&RESOLUTIONS, FIRST)),
            FromGuest::Dirt(_) => return Ok(Effect::Changed),
            // The pointer is in the picture. Newer guests may say more than is understood.
            FromGuest::Pointer | FromGuest::Unknown(_) | FromGuest::Version(_) => {}
        }
        Ok(Effect::None)
    }

    /// The video memory is where the guest wanted it, or could not be put there.
    pub fn placed(&mut self, context: u64, gpa: Option<u64>, done: bool) {
        self.placed = done && gpa.is_some();
        // The protocol has no word for a refusal; guests compare what they get back.
        let answer = if done { context } else { !context };
        self.answers.push(wire::acknowledgement(wire::VRAM_LOCATION_ACK, answer));
    }

    /// The parent wants to be told of changes, or no longer.
    pub fn watch(&mut self, watched: bool) {
        if self.version.is_some() {
            self.answers.push(wire::feature_change(watched));
        }
    }

    /// The next message for the guest.
    pub fn next_message(&mut self) -> Option<Vec<u8>> {
        if self.answers.is_empty() { None } else { Some(self.answers.remove(0)) }
    }

    fn checked(&self, output: Situation) -> Result<Situation, Violation> {
        let Situation { active, offset, depth, width, height, pitch } = output;
        if !active {
            return Ok(output);
        }
        let row = width.checked_mul(PIXEL).filter(|_| (1..=MAX_SIDE).contains(&width));
        let size = u64::from(pitch) * u64::from(height);
        let fits = row.is_some_and(|row| row <= pitch)
            && (1..=MAX_SIDE).contains(&height)
            && u64::from(offset) + size <= self.vram.into();
        if fits && u32::from(depth) == PIXEL * 8 {
            Ok(output)
        } else {
            Err(Violation::Picture { width, height })
        }
    }
}

//! One guest's talk about its memory, without input or output: messages go in, messages and pages to let go come out.
//!
//! The guest asks for a version, tells what it can do, and from then on reports its pressure. The parent asks for pages, or
//! gives some back, one transaction at a time, until the guest has what the parent has decided that it shall have.

use crate::pages::{NotYours, PageSet};
use crate::wire::{self, Capabilities, FromGuest, Malformed, PageRange, Pressure, Version};

/// Why a guest's message ends the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// It is no message.
    #[error("dynamic memory: {0}")]
    Malformed(#[from] Malformed),
    /// It gives up what it does not have.
    #[error("dynamic memory: {0}")]
    NotYours(#[from] NotYours),
    /// It gives up more than it was asked for.
    #[error("dynamic memory: the guest gives up {given} pages and was asked for {asked} at most")]
    TooMany {
        /// Pages in the message.
        given: u64,
        /// What is left of the request.
        asked: u64,
    },
    /// It is not the time for it.
    #[error("dynamic memory: a message of type {0} out of turn")]
    OutOfTurn(u16),
}

/// How far the guest has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// It is to ask for a version.
    #[default]
    Version,
    /// It is to tell what it can do.
    Capabilities(Version),
    /// Everything is settled.
    Ready(Version, Capabilities),
}

/// What the guest has been asked and has not finished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Transaction {
    #[default]
    None,
    /// Give up pages: so many may still come, so many have come.
    Balloon { left: u64, given: u64 },
    /// Take pages back: so many are still to be told.
    Unballoon { left: u64 },
}

/// The talk. It lives as long as the channel is open.
pub struct Session {
    stage: Stage,
    transaction: Transaction,
    /// Answers that have not been sent: at most two, since a guest gets one for each message.
    answers: Vec<Vec<u8>>,
    given_up: PageSet,
    pressure: Option<Pressure>,
    /// Pages that the guest shall have.
    target: u64,
    /// The guest gave nothing when it was last asked: it is not asked again before the target changes.
    exhausted: bool,
    next_transaction: u32,
}

impl Session {
    /// A guest with this RAM, that shall have so many pages.
    pub fn new(ram: &[PageRange], target: u64) -> Session {
        Session {
            stage: Stage::default(),
            transaction: Transaction::default(),
            answers: Vec::new(),
            given_up: PageSet::new(ram),
            pressure: None,
            target,
            exhausted: false,
            next_transaction: 1,
        }
    }

    /// The version that was agreed on.
    pub fn version(&self) -> Option<Version> {
        match self.stage {
            Stage::Ready(version, _) => Some(version),
            _ => None,
        }
    }

    /// What the guest can do.
    pub fn capabilities(&self) -> Option<Capabilities> {
        match self.stage {
            Stage::Ready(_, capabilities) => Some(capabilities),
            _ => None,
        }
    }

    /// The guest's last report. Guests count what they gave up as committed; here it is not.
    pub fn pressure(&self) -> Option<Pressure> {
        self.pressure
    }

    /// Pages that the guest has.
    pub fn assigned(&self) -> u64 {
        self.given_up.ram() - self.given_up.count()
    }

    /// Decides how many pages the guest shall have.
    pub fn set_target(&mut self, pages: u64) {
        self.target = pages;
        self.exhausted = false;
    }

    /// Whether nothing is under way and nothing will be before the target changes.
    pub fn is_settled(&self) -> bool {
        self.transaction == Transaction::None && self.next_step().is_none()
    }

    /// Takes a message in; returns the pages that the guest gives up with it.
    ///
    /// # Errors
    /// The channel cannot go on.
    pub fn take(&mut self, packet: &[u8]) -> Result<Vec<PageRange>, Violation> {
        let (transaction, message) = wire::read(packet)?;
        match message {
            FromGuest::Version(version) => self.take_version(transaction, version)?,
            FromGuest::Capabilities(capabilities) => self.take_capabilities(transaction, capabilities)?,
            FromGuest::Status(pressure) => {
                self.ready(wire::STATUS_REPORT)?;
                let committed = pressure.committed.saturating_sub(self.given_up.count());
                self.pressure = Some(Pressure { committed, ..pressure });
            }
            FromGuest::Ballooned { ranges, more } => return self.take_pages(ranges, more),
            FromGuest::Unballooned => match self.transaction {
                Transaction::Unballoon { left: 0 } => self.transaction = Transaction::None,
                _ => return Err(Violation::OutOfTurn(wire::UNBALLOON_RESPONSE)),
            },
            FromGuest::HotAdded => return Err(Violation::OutOfTurn(wire::HOT_ADD_RESPONSE)),
            // Newer guests may say more than is understood.
            FromGuest::Unknown(_) => {}
        }
        Ok(Vec::new())
    }

    fn ready(&self, kind: u16) -> Result<(), Violation> {
        if self.version().is_none() { Err(Violation::OutOfTurn(kind)) } else { Ok(()) }
    }

    fn take_version(&mut self, transaction: u32, version: Version) -> Result<(), Violation> {
        if let Stage::Ready(..) = self.stage {
            return Err(Violation::OutOfTurn(wire::VERSION_REQUEST));
        }
        let accepted = Version::ALL.contains(&version);
        self.stage = if accepted { Stage::Capabilities(version) } else { Stage::Version };
        self.answers.push(wire::response(wire::VERSION_RESPONSE, transaction, accepted));
        Ok(())
    }

    fn take_capabilities(&mut self, transaction: u32, capabilities: Capabilities) -> Result<(), Violation> {
        let Stage::Capabilities(version) = self.stage else {
            return Err(Violation::OutOfTurn(wire::CAPABILITIES_REPORT));
        };
        self.stage = Stage::Ready(version, capabilities);
        self.answers.push(wire::response(wire::CAPABILITIES_RESPONSE, transaction, true));
        if version >= Version::V1_0 {
            let number = self.number();
            self.answers.push(wire::max_page_count(number, self.given_up.ram()));
        }
        Ok(())
    }

    fn take_pages(&mut self, ranges: Vec<PageRange>, more: bool) -> Result<Vec<PageRange>, Violation> {
        let Transaction::Balloon { left, given } = self.transaction else {
            return Err(Violation::OutOfTurn(wire::BALLOON_RESPONSE));
        };
        let pages: u64 = ranges.iter().map(|range| range.count).sum();
        if pages > left {
            return Err(Violation::TooMany { given: pages, asked: left });
        }
        for range in &ranges {
            self.given_up.insert(*range)?;
        }
        let given = given + pages;
        self.transaction = match more {
            true => Transaction::Balloon { left: left - pages, given },
            false => Transaction::None,
        };
        self.exhausted = !more && given == 0;
        Ok(ranges)
    }

    /// The next message for the guest, if there is one to be sent now. What is returned counts as sent.
    pub fn next_message(&mut self) -> Option<Vec<u8>> {
        if !self.answers.is_empty() {
            return Some(self.answers.remove(0));
        }
        if self.transaction == Transaction::None {
            self.transaction = self.next_step()?;
            if let Transaction::Balloon { left, .. } = self.transaction {
                let number = self.number();
                // `next_step` asks for no more than fits.
                return Some(wire::balloon_request(number, left as u32));
            }
        }
        let Transaction::Unballoon { left } = self.transaction else { return None };
        if left == 0 {
            return None;
        }
        let ranges = self.given_up.take(left, wire::MAX_RANGES);
        let left = left - ranges.iter().map(|range| range.count).sum::<u64>();
        self.transaction = Transaction::Unballoon { left };
        let number = self.number();
        Some(wire::unballoon_request(number, &ranges, left > 0))
    }

    /// What is to be done next to come to the target.
    fn next_step(&self) -> Option<Transaction> {
        let can_balloon = self.capabilities().is_some_and(|capabilities| capabilities.balloon);
        let (has, shall) = (self.assigned(), self.target.min(self.given_up.ram()));
        if !can_balloon || has == shall {
            None
        } else if has > shall {
            let left = (has - shall).min(u32::MAX.into());
            (!self.exhausted).then_some(Transaction::Balloon { left, given: 0 })
        } else {
            Some(Transaction::Unballoon { left: shall - has })
        }
    }

    fn number(&mut self) -> u32 {
        let number = self.next_transaction;
        self.next_transaction = number.wrapping_add(1);
        number
    }
}

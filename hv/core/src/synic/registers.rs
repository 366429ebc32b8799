//! The registers of a SynIC.

use crate::apic::Fault;
use parterre_abi::msr::{self, OverlayPageMsr, SINT_COUNT, Scontrol, Sint};

/// What a written register asks of the virtual processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// Put the message page where this says, or take it away.
    MessagePage(OverlayPageMsr),
    /// Put the event flags page where this says, or take it away.
    EventFlagsPage(OverlayPageMsr),
    /// Look for queued messages: the guest has emptied a slot, or a source or the SynIC has changed.
    Deliver,
}

/// A virtual processor's SynIC: its registers. Its pages are the virtual processor's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synic {
    control: Scontrol,
    messages: OverlayPageMsr,
    event_flags: OverlayPageMsr,
    sources: [Sint; SINT_COUNT],
    /// The vectors that end by themselves, one bit each.
    auto_eoi: [u64; 4],
}

impl Default for Synic {
    fn default() -> Self {
        Self::new()
    }
}

impl Synic {
    /// After creation or reset: everything is off, all sources are masked.
    pub fn new() -> Self {
        Self {
            control: Scontrol::new(),
            messages: OverlayPageMsr::new(),
            event_flags: OverlayPageMsr::new(),
            sources: [Sint::RESET; SINT_COUNT],
            auto_eoi: [0; 4],
        }
    }

    /// Reads SCONTROL, SVERSION, SIEFP, SIMP, EOM or a SINT. `None` for other registers.
    pub fn read(&self, number: u32) -> Option<u64> {
        Some(match number {
            msr::SCONTROL => self.control.into(),
            msr::SVERSION => msr::SYNIC_VERSION_1,
            msr::SIEFP => self.event_flags.into(),
            msr::SIMP => self.messages.into(),
            msr::EOM => 0,
            msr::SINT0..=msr::SINT15 => (*self.source(number - msr::SINT0)?).into(),
            _ => return None,
        })
    }

    /// Writes one of these. `None` for other registers.
    pub fn write(&mut self, number: u32, value: u64) -> Option<Result<Change, Fault>> {
        Some(match number {
            msr::SCONTROL => {
                self.control = value.into();
                Ok(Change::Deliver)
            }
            msr::SVERSION => Err(Fault),
            msr::SIEFP => {
                self.event_flags = value.into();
                Ok(Change::EventFlagsPage(self.event_flags))
            }
            msr::SIMP => {
                self.messages = value.into();
                Ok(Change::MessagePage(self.messages))
            }
            msr::EOM => Ok(Change::Deliver),
            msr::SINT0..=msr::SINT15 => self.write_source(number - msr::SINT0, value.into()),
            _ => return None,
        })
    }

    fn write_source(&mut self, index: u32, value: Sint) -> Result<Change, Fault> {
        // A source that is polled makes no interrupt, and needs no vector.
        if !value.is_valid() && !value.polling() {
            return Err(Fault);
        }
        let source =
            usize::try_from(index).ok().and_then(|index| self.sources.get_mut(index)).ok_or(Fault)?;
        *source = value;
        self.auto_eoi = [0; 4];
        for source in self.sources {
            if makes_interrupts(source) && source.auto_eoi() {
                let vector = source.vector();
                self.auto_eoi[usize::from(vector >> 6)] |= 1 << (vector & 63);
            }
        }
        Ok(Change::Deliver)
    }

    /// Whether an interrupt with `vector` ends when it is delivered, as a source of that vector says.
    pub fn is_auto_eoi(&self, vector: u8) -> bool {
        self.auto_eoi[usize::from(vector >> 6)] & 1 << (vector & 63) != 0
    }

    /// Whether there is such a vector.
    pub fn has_auto_eoi(&self) -> bool {
        self.auto_eoi != [0; 4]
    }

    /// Whether messages can be put into slots.
    pub fn takes_messages(&self) -> bool {
        self.control.enabled() && self.messages.enabled()
    }

    /// Whether event flags of source `index` can be set.
    pub fn takes_events(&self, index: u8) -> bool {
        let open = self.source(index.into()).is_some_and(|source| !source.masked() || source.polling());
        self.control.enabled() && self.event_flags.enabled() && open
    }

    /// The vector that news of source `index` asserts; `None` if it is masked or polled.
    pub fn vector(&self, index: u8) -> Option<u8> {
        self.source(index.into()).filter(|source| makes_interrupts(**source)).map(|source| source.vector())
    }

    /// The message page register.
    pub fn message_page(&self) -> OverlayPageMsr {
        self.messages
    }

    /// The event flags page register.
    pub fn event_flags_page(&self) -> OverlayPageMsr {
        self.event_flags
    }

    fn source(&self, index: u32) -> Option<&Sint> {
        self.sources.get(usize::try_from(index).ok()?)
    }
}

fn makes_interrupts(source: Sint) -> bool {
    !source.masked() && !source.polling()
}

//! Tests of the local APIC, by subject.

mod access;
mod incoming;
mod properties;
mod state;
mod timer;

use super::*;

/// 2 GHz TSC, 200 MHz APIC clock: ten TSC ticks to one.
const RATES: Rates = Rates { tsc: 2_000_000_000, apic: 200_000_000 };

/// A local APIC with its surroundings.
struct Fixture {
    incoming: Incoming,
    apic: LocalApic,
    tsc: u64,
    tsc_offset: u64,
    cr8: u8,
}

impl Fixture {
    /// After power-on.
    fn reset(id: u32) -> Self {
        let incoming = Incoming::new(id);
        let configuration =
            Configuration { id, bootstrap: id == 0, x2apic: true, physical_bits: 48, rates: RATES };
        let apic = LocalApic::new(configuration, &incoming);
        Self { incoming, apic, tsc: 1_000_000, tsc_offset: 0, cr8: 0 }
    }

    /// In xAPIC mode, enabled by software.
    fn xapic(id: u32) -> Self {
        let mut fixture = Self::reset(id);
        assert_eq!(fixture.page_write(0xF0, 0x1FF), Effect::TimerChanged);
        fixture
    }

    /// In x2APIC mode, enabled by software.
    fn x2apic(id: u32) -> Self {
        let mut fixture = Self::reset(id);
        let base = fixture.apic.base().bits();
        fixture.apic.write_base(base | 1 << 10, &fixture.incoming).unwrap();
        assert_eq!(fixture.msr_write(0x80F, 0x1FF), Ok(Effect::TimerChanged));
        fixture
    }

    fn page_write(&mut self, offset: u16, value: u32) -> Effect {
        let Self { incoming, apic, tsc, tsc_offset, cr8 } = self;
        apic.write_page(offset, value, &Context { incoming, tsc: *tsc, tsc_offset: *tsc_offset, cr8: *cr8 })
    }

    fn page_read(&mut self, offset: u16) -> u32 {
        let Self { incoming, apic, tsc, tsc_offset, cr8 } = self;
        apic.read_page(offset, &Context { incoming, tsc: *tsc, tsc_offset: *tsc_offset, cr8: *cr8 })
    }

    fn msr_write(&mut self, msr: u32, value: u64) -> Result<Effect, Fault> {
        let Self { incoming, apic, tsc, tsc_offset, cr8 } = self;
        apic.write_msr(msr, value, &Context { incoming, tsc: *tsc, tsc_offset: *tsc_offset, cr8: *cr8 })
    }

    fn msr_read(&self, msr: u32) -> Result<u64, Fault> {
        self.apic.read_msr(msr, &self.context())
    }

    fn context(&self) -> Context<'_> {
        Context { incoming: &self.incoming, tsc: self.tsc, tsc_offset: self.tsc_offset, cr8: self.cr8 }
    }

    fn pending(&self) -> Option<u8> {
        self.apic.highest_pending(&self.incoming, self.cr8)
    }

    fn acknowledge(&mut self, vector: u8) -> bool {
        self.apic.acknowledge(&self.incoming, vector, false)
    }

    fn deadline(&self) -> Option<u64> {
        self.apic.timer_deadline(&self.context())
    }

    fn expired(&mut self) -> Option<u8> {
        let Self { incoming, apic, tsc, tsc_offset, cr8 } = self;
        apic.timer_expired(&Context { incoming, tsc: *tsc, tsc_offset: *tsc_offset, cr8: *cr8 })
    }
}

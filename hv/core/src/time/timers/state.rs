//! The synthetic timers as the hypercall interface carries them (`HV_SYNTHETIC_TIMERS_STATE`).

use super::{SyntheticTimers, Timer, is_possible};
use parterre_abi::hypercall::{StimerState, SyntheticTimersState};
use parterre_abi::msr::StimerConfig;

impl SyntheticTimers {
    /// The state (`HV_GET_SET_VP_STATE_SYNTHETIC_TIMERS`) at reference time `now`.
    pub fn export(&self, now: u64) -> SyntheticTimersState {
        SyntheticTimersState { timers: self.timers.map(|timer| timer.export(now)), ..Default::default() }
    }

    /// Takes over `state` at reference time `now`, which must have been set before. Any value is accepted; what
    /// cannot be is dropped.
    pub fn import(&mut self, state: &SyntheticTimersState, now: u64) {
        for (timer, state) in self.timers.iter_mut().zip(&state.timers) {
            *timer = Timer::import(state, now);
        }
        self.find_earliest();
    }
}

impl Timer {
    fn export(&self, now: u64) -> StimerState {
        // Until a periodic timer's next expiration, less than a period is left: how far the period has gone.
        let gone = self
            .next
            .filter(|_| self.config.periodic())
            .map_or(0, |next| self.period().saturating_sub(next.saturating_sub(now)));
        StimerState {
            flags: u32::from(self.undelivered.is_some()) * StimerState::UNDELIVERED_MESSAGE_PENDING,
            reserved: 0,
            config: self.config.into(),
            count: self.count,
            adjustment: gone,
            undelivered_expiration_time: self.undelivered.unwrap_or(0),
        }
    }

    fn import(state: &StimerState, now: u64) -> Self {
        let config = StimerConfig::from(state.config).with_reserved_z0(0).with_reserved_z1(0);
        let config = if is_possible(config) { config } else { config.with_enabled(false) };
        let mut timer = Self { config, count: state.count, next: None, not_before: 0, undelivered: None };
        timer.restart(now);
        if config.periodic() {
            let gone = state.adjustment.min(timer.period());
            timer.next = timer.next.map(|next| next.saturating_sub(gone));
        }
        let pending = state.flags & StimerState::UNDELIVERED_MESSAGE_PENDING != 0;
        timer.undelivered = pending
            .then_some(state.undelivered_expiration_time)
            .filter(|_| !config.direct_mode() && config.sintx() != 0);
        timer
    }
}

//! The CMOS clock: time of day for guests that ask a PC's clock, and 128 bytes of memory.
//!
//! Source: Motorola MC146818A datasheet. The clock runs on the host's time, in UTC, plus what the guest set it off by.
//! There is no alarm and no periodic interrupt (the device has no interrupt line), and no update is ever in progress:
//! a read always sees whole seconds.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use time::{Date, Month, OffsetDateTime, Time};

use crate::bus::Device;

/// First port: index, then data.
pub const BASE: u64 = 0x70;
/// Number of ports.
pub const LEN: u64 = 2;
/// Where the century is kept; the FADT says so too.
pub const CENTURY: u8 = 0x32;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REGISTER_A: u8 = 0x0A;
const REGISTER_B: u8 = 0x0B;
const REGISTER_C: u8 = 0x0C;
const REGISTER_D: u8 = 0x0D;

/// Register A: 32.768 kHz time base, no rate.
const TIME_BASE: u8 = 0x20;
/// Register B: the clock is stopped while it is being set.
const SET: u8 = 1 << 7;
/// Register B: values are binary, not BCD.
const BINARY: u8 = 1 << 2;
/// Register B: hours run to 24.
const HOURS_24: u8 = 1 << 1;
/// Register D: RAM and time are valid.
const VALID: u8 = 1 << 7;

/// Tells the host's time in seconds since 1970 (UTC).
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// The host's clock.
pub fn system_clock() -> Clock {
    Arc::new(|| match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(_) => 0,
    })
}

struct State {
    index: u8,
    control: u8,
    /// Seconds that the guest's clock is ahead of the host's.
    ahead: i64,
    /// The time fields while the guest sets the clock.
    held: Option<OffsetDateTime>,
    ram: [u8; 128],
}

/// The clock.
pub struct Rtc {
    clock: Clock,
    state: Mutex<State>,
}

impl Rtc {
    /// A clock that shows the time of `clock`.
    pub fn new(clock: Clock) -> Rtc {
        let state = State { index: 0, control: HOURS_24, ahead: 0, held: None, ram: [0; 128] };
        Rtc { clock, state: Mutex::new(state) }
    }
}

impl State {
    /// The time that the guest sees now.
    fn now(&self, clock: &Clock) -> OffsetDateTime {
        self.held.unwrap_or_else(|| {
            OffsetDateTime::from_unix_timestamp(clock().saturating_add(self.ahead))
                .unwrap_or(OffsetDateTime::UNIX_EPOCH)
        })
    }

    fn encode(&self, value: u8) -> u8 {
        if self.control & BINARY != 0 { value } else { ((value / 10) << 4) | (value % 10) }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.control & BINARY != 0 { value } else { (value >> 4) * 10 + (value & 0xF) }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.control & HOURS_24 != 0 {
            return self.encode(hour);
        }
        let afternoon = if hour >= 12 { 0x80 } else { 0 };
        self.encode((hour + 11) % 12 + 1) | afternoon
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.control & HOURS_24 != 0 {
            return self.decode(value);
        }
        let hour = self.decode(value & 0x7F) % 12;
        if value & 0x80 != 0 { hour + 12 } else { hour }
    }

    fn read(&self, clock: &Clock) -> u8 {
        let now = || self.now(clock);
        match self.index {
            SECONDS => self.encode(now().second()),
            MINUTES => self.encode(now().minute()),
            HOURS => self.encode_hour(now().hour()),
            WEEKDAY => self.encode(now().weekday().number_from_sunday()),
            DAY => self.encode(now().day()),
            MONTH => self.encode(now().month().into()),
            YEAR => self.encode((now().year() % 100) as u8),
            CENTURY => self.encode((now().year() / 100) as u8),
            REGISTER_A => TIME_BASE,
            REGISTER_B => self.control,
            REGISTER_C => 0,
            REGISTER_D => VALID,
            index => self.ram[usize::from(index)],
        }
    }

    fn write(&mut self, value: u8, clock: &Clock) {
        match self.index {
            REGISTER_B => self.set_control(value, clock),
            REGISTER_A | REGISTER_C | REGISTER_D => {}
            SECONDS | MINUTES | HOURS | WEEKDAY | DAY | MONTH | YEAR | CENTURY => {
                self.set_field(value, clock)
            }
            index => self.ram[usize::from(index)] = value,
        }
    }

    fn set_control(&mut self, value: u8, clock: &Clock) {
        if value & SET != 0 && self.held.is_none() {
            self.held = Some(self.now(clock));
        } else if value & SET == 0
            && let Some(held) = self.held.take()
        {
            self.ahead = held.unix_timestamp().saturating_sub(clock());
        }
        // There are no interrupts to enable.
        self.control = value & (SET | BINARY | HOURS_24);
    }

    /// Changes one field of the time. A combination that is no date (31 February, hour 77) changes nothing.
    fn set_field(&mut self, value: u8, clock: &Clock) {
        let now = self.now(clock);
        let plain = self.decode(value);
        let (mut date, mut clock_time) = (now.date(), now.time());
        let year = now.year();
        let changed = match self.index {
            SECONDS => clock_time.replace_second(plain).map(|t| clock_time = t),
            MINUTES => clock_time.replace_minute(plain).map(|t| clock_time = t),
            HOURS => clock_time.replace_hour(self.decode_hour(value)).map(|t| clock_time = t),
            DAY => date.replace_day(plain).map(|d| date = d),
            MONTH => Month::try_from(plain).and_then(|m| date.replace_month(m)).map(|d| date = d),
            YEAR => date.replace_year(year - year % 100 + i32::from(plain)).map(|d| date = d),
            CENTURY => date.replace_year(i32::from(plain) * 100 + year % 100).map(|d| date = d),
            _ => return,
        };
        if changed.is_ok() {
            self.store(date, clock_time, clock);
        }
    }

    fn store(&mut self, date: Date, clock_time: Time, clock: &Clock) {
        let new = OffsetDateTime::new_utc(date, clock_time);
        match &mut self.held {
            Some(held) => *held = new,
            None => self.ahead = new.unix_timestamp().saturating_sub(clock()),
        }
    }
}

impl Device for Rtc {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match (offset, size) {
            (1, 1) => u64::from(state.read(&self.clock)),
            // The index register cannot be read on a PC.
            _ => crate::bus::all_ones(size),
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match (offset, size) {
            // Bit 7 masks NMIs on a PC; there is none to mask.
            (0, 1) => state.index = value as u8 & 0x7F,
            (1, 1) => state.write(value as u8, &self.clock),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-22 15:04:05 UTC, a Sunday.
    const NOW: i64 = 1_795_359_845;

    fn make() -> Rtc {
        Rtc::new(Arc::new(|| NOW))
    }

    fn get(rtc: &Rtc, index: u8) -> u64 {
        rtc.write(0, 1, index.into());
        rtc.read(1, 1)
    }

    fn set(rtc: &Rtc, index: u8, value: u8) {
        rtc.write(0, 1, index.into());
        rtc.write(1, 1, value.into());
    }

    fn fields(rtc: &Rtc) -> [u64; 8] {
        [CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS, WEEKDAY].map(|index| get(rtc, index))
    }

    #[test]
    fn shows_the_time_in_bcd_binary_and_twelve_hours() {
        let rtc = make();
        assert_eq!(fields(&rtc), [0x20, 0x26, 0x11, 0x22, 0x15, 0x04, 0x05, 1]);
        set(&rtc, REGISTER_B, BINARY);
        assert_eq!(fields(&rtc), [20, 26, 11, 22, 0x80 | 3, 4, 5, 1]);
    }

    #[test]
    fn setting_keeps_running_from_the_new_time() {
        let rtc = make();
        set(&rtc, REGISTER_B, SET | BINARY | HOURS_24);
        for (index, value) in [(YEAR, 30), (MONTH, 2), (DAY, 28), (HOURS, 23), (MINUTES, 59), (SECONDS, 58)] {
            set(&rtc, index, value);
        }
        set(&rtc, REGISTER_B, BINARY | HOURS_24);
        assert_eq!(fields(&rtc)[..7], [20, 30, 2, 28, 23, 59, 58]);
    }

    #[test]
    fn impossible_values_change_nothing() {
        let rtc = make();
        let before = fields(&rtc);
        for (index, value) in [(SECONDS, 0x77), (HOURS, 0xFF), (MONTH, 0), (MONTH, 0x13), (DAY, 0x31)] {
            set(&rtc, index, value);
        }
        assert_eq!(fields(&rtc), before);
        set(&rtc, 0x7F, 0x5A);
        assert_eq!(get(&rtc, 0x7F), 0x5A);
        assert_eq!((rtc.read(0, 1), rtc.read(0, 2)), (0xFF, 0xFFFF));
    }
}

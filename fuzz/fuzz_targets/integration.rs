//! A guest that answers the integration services with any bytes, at any time.
//!
//! What must hold: no panic; at most one request at a time; a deadline lies ahead whenever there is nothing to send.

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use parterre_vsp_ic::copy::{Destination, FileCopy};
use parterre_vsp_ic::heartbeat::Heartbeat;
use parterre_vsp_ic::kvp::{Item, KeyValue, Pool};
use parterre_vsp_ic::shutdown::{Action, Shutdown};
use parterre_vsp_ic::timesync::{Clock, TimeSync};
use parterre_vsp_ic::vss::Backup;
use parterre_vsp_ic::{Protocol, Reply, Session};

/// Bytes before a message's body.
const HEADERS: usize = 28;
const FLAGS: usize = 25;

struct StoppedClock;

impl Clock for StoppedClock {
    fn time_of_day(&mut self) -> u64 {
        1
    }
    fn reference_time(&mut self) -> Option<u64> {
        Some(1)
    }
}

/// Takes the choice of versions for the guest, so that most inputs come past it.
fn start<P: Protocol>(session: &mut Session<P>, now: Duration) {
    session.open();
    let mut answer = session.poll(now).map(<[u8]>::to_vec).unwrap_or_default();
    session.sent();
    let newest = session.protocol().versions().last().copied();
    if let (Some(newest), true) = (newest, answer.len() >= HEADERS + 16) {
        answer[FLAGS] = 5;
        answer[HEADERS..HEADERS + 4].copy_from_slice(&[1, 0, 1, 0]);
        answer[HEADERS + 8..HEADERS + 12].copy_from_slice(&[3, 0, 0, 0]);
        answer[HEADERS + 12..HEADERS + 14].copy_from_slice(&newest.major.to_le_bytes());
        answer[HEADERS + 14..HEADERS + 16].copy_from_slice(&newest.minor.to_le_bytes());
        let _ = session.receive(now, &answer);
    }
}

/// Plays acts of three bytes and what they need.
fn play<P: Protocol>(protocol: P, mut acts: &[u8], mut order: impl FnMut(&mut P, u8)) {
    let mut session = Session::new(protocol);
    let mut now = Duration::from_secs(1000);
    let mut last: Option<Vec<u8>> = None;
    start(&mut session, now);
    while let [kind, a, b, rest @ ..] = acts {
        acts = rest;
        match kind % 6 {
            0 => start(&mut session, now),
            1 => session.close(),
            2 => now += Duration::from_secs(u64::from(*a)),
            3 => {
                if let Ok(protocol) = session.order() {
                    order(protocol, *a);
                }
            }
            4 => {
                let (noise, rest) = acts.split_at(acts.len().min(usize::from(*a)));
                acts = rest;
                let _ = session.receive(now, noise);
            }
            _ => {
                let Some(mut answer) = last.take() else { continue };
                let (body, rest) = acts.split_at(acts.len().min(usize::from(*a)));
                acts = rest;
                answer[FLAGS] = 5;
                answer[20] = *b;
                for (byte, new) in answer[HEADERS..].iter_mut().zip(body) {
                    *byte = *new;
                }
                let _ = session.receive(now, &answer);
            }
        }
        if let Some(packet) = session.poll(now).map(<[u8]>::to_vec) {
            session.sent();
            last = Some(packet);
            assert!(session.poll(now).is_none(), "two requests at a time");
        }
        assert!(session.deadline().is_none_or(|at| at > now), "nothing is sent, and a deadline is over");
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((which, acts)) = data.split_first() else { return };
    match which % 6 {
        0 => play(Heartbeat::default(), acts, |_, _| {}),
        1 => play(TimeSync::new(StoppedClock), acts, |time, _| time.synchronize()),
        2 => play(Shutdown::default(), acts, |shutdown, what| {
            shutdown.request(Action::Restart, what > 127, "text", Reply::nobody());
        }),
        3 => play(KeyValue::default(), acts, |items, what| match what % 3 {
            0 => items.read(Pool::Guest, Reply::nobody()),
            1 => {
                let item = Item { key: "key".into(), value: "v".repeat(usize::from(what) * 8) };
                items.set(Pool::External, item, Reply::nobody());
            }
            _ => items.get_addresses("00:15:5D:00:00:01", Reply::nobody()),
        }),
        4 => play(Backup::default(), acts, |backup, what| match what % 2 {
            0 => backup.freeze(Duration::from_secs(u64::from(what)), Reply::nobody()),
            _ => backup.thaw(Reply::nobody()),
        }),
        _ => {
            let destination =
                Destination { path: "/tmp/file".into(), size: 9, overwrite: true, create_path: true };
            play(FileCopy::default(), acts, |copy, what| match what % 4 {
                0 => copy.start(&destination, Reply::nobody()),
                1 => copy.write(&vec![what; usize::from(what) * 24], Reply::nobody()),
                2 => copy.finish(Reply::nobody()),
                _ => copy.cancel(),
            });
        }
    }
});

//! A guest whose drivers answer as Linux's do, and time that passes when a test says so.

#![allow(dead_code)]

use std::sync::mpsc;
use std::time::Duration;

use parterre_vsp_ic::session::Violation;
use parterre_vsp_ic::wire::HEADERS_SIZE;
use parterre_vsp_ic::{Failure, Link, Protocol, Reply, Session, Version};

/// Place of fields in a packet.
const MESSAGE_TYPE: usize = 12;
const STATUS: usize = 20;
const TRANSACTION: usize = 24;
const FLAGS: usize = 25;

/// A session and the time.
pub struct Bench<P> {
    pub session: Session<P>,
    pub now: Duration,
}

/// A request as the guest sees it.
pub struct Asked {
    pub packet: Vec<u8>,
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

impl Asked {
    pub fn body(&self) -> &[u8] {
        &self.packet[HEADERS_SIZE..]
    }

    pub fn message_type(&self) -> u8 {
        self.packet[MESSAGE_TYPE]
    }

    /// The packet turned into an answer, as Linux does it: in place.
    pub fn answer(mut self, status: u32, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
        self.packet[STATUS..STATUS + 4].copy_from_slice(&status.to_le_bytes());
        self.packet[FLAGS] = 1 | 4;
        change(&mut self.packet[HEADERS_SIZE..]);
        self.packet
    }

    pub fn with_transaction(mut self, transaction: u8) -> Asked {
        self.packet[TRANSACTION] = transaction;
        self
    }
}

impl<P: Protocol> Bench<P> {
    pub fn new(protocol: P) -> Bench<P> {
        Bench { session: Session::new(protocol), now: Duration::from_secs(1000) }
    }

    /// A bench whose guest has taken the newest version, or this one.
    pub fn running(protocol: P, version: Option<Version>) -> Bench<P> {
        let mut bench = Bench::new(protocol);
        bench.session.open();
        let offered = bench.session.protocol().versions().to_vec();
        let version = version.unwrap_or(*offered.last().unwrap());
        let asked = bench.asked().unwrap();
        bench.choose(asked, Version::new(3, 0), version).unwrap();
        assert!(matches!(bench.session.link(), Link::Running(choice) if choice.version == version));
        bench
    }

    pub fn choose(&mut self, asked: Asked, framework: Version, version: Version) -> Result<(), Violation> {
        let answer = asked.answer(0, |body| {
            body[..4].copy_from_slice(&[1, 0, 1, 0]);
            for (at, version) in [(8, framework), (12, version)] {
                body[at..at + 2].copy_from_slice(&version.major.to_le_bytes());
                body[at + 2..at + 4].copy_from_slice(&version.minor.to_le_bytes());
            }
        });
        self.receive(&answer)
    }

    /// The next request, if there is one now.
    pub fn asked(&mut self) -> Option<Asked> {
        let packet = self.session.poll(self.now)?.to_vec();
        self.session.sent();
        assert_eq!(u32_at(&packet, 4) as usize, packet.len() - 8);
        Some(Asked { packet })
    }

    pub fn receive(&mut self, packet: &[u8]) -> Result<(), Violation> {
        self.session.receive(self.now, packet)
    }

    pub fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    /// Lets the time pass that the session wants to pass.
    pub fn wait_for_deadline(&mut self) {
        self.now = self.now.max(self.session.deadline().unwrap());
    }

    /// Answers a request with this status and otherwise unchanged.
    pub fn answer(&mut self, asked: Asked, status: u32) {
        let answer = asked.answer(status, |_| {});
        self.receive(&answer).unwrap();
    }
}

/// A reply and where it arrives.
pub fn reply<T: Send + 'static>() -> (Reply<T>, mpsc::Receiver<Result<T, Failure>>) {
    let (sender, receiver) = mpsc::channel();
    (Reply::new(move |outcome| sender.send(outcome).unwrap()), receiver)
}

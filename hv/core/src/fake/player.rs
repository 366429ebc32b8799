//! Plays bytes as what a parent and its children do: hypercalls with parameters of the right kinds and now and then of the
//! wrong ones, accesses to registers, and exits of guests. For property tests and fuzzers, which then call [`Rig::check`].

use std::{collections::BTreeMap, collections::BTreeSet, vec, vec::Vec};

use super::{Rig, Script};
use crate::machine::{Access, Exit, IoExit, Machine, Reg, Segment, SegmentName, Vcpu, gpr};
use parterre_abi::{
    hypercall::{HypercallCode as Code, HypercallInput},
    msr,
};

/// What a word of a call's input is.
#[derive(Clone, Copy)]
enum Word {
    /// The id of a partition.
    Id,
    /// The index of a virtual processor, and the word's other half.
    Vp(&'static [u32]),
    /// A GPA page of a child.
    Page,
    /// A page of the machine.
    Frame,
    /// One of these.
    One(&'static [u64]),
    /// Anything.
    Any,
}
use Word::{Any, Frame, Id, One, Page, Vp};

const ZERO: Word = One(&[0]);
const REGISTERS: Word = One(&[
    0, 1, 3, 4, 0x1_0002, 0x1_0003, 0x1_0004, 0x1_0006, 0x2_0000, 0x2_0010, 0x2_0011, 0x3_0003, 0x3_0018,
    0x3_0019, 0x4_0000, 0x4_0002, 0x4_0003, 0x4_0004, 0x4_0005, 0x5_0004, 0x5_0005, 0x6_0001, 0x7_0001,
    0x8_0000, 0x8_0001, 0x8_0002, 0x8_0003, 0x8_0004, 0x8_007B, 0x8_4802, 0x9_0001, 0x9_0002, 0x9_0013,
    0x9_0014, 0x9_0017, 0xA_0000, 0xA_0002, 0xA_0010, 0xA_0012, 0xA_0013, 0xA_0014, 0xB_0000, 0xB_0001,
]);
const STATES: Word = One(&[0x8000_0000, 0x8000_0001, 0x8000_0002, 0x8000_0003, 4]);
const PROPERTIES: Word = One(&[
    0x1_0000, 0x1_0001, 0x3_0003, 0x3_0005, 0x5_0003, 0x5_0005, 0x5_0017, 0x6_0000, 0x6_000A, 0x9_0007,
    0x9_0009,
]);

/// The calls, their inputs, and whether the last word repeats.
const CALLS: [(Code, &[Word], bool); 46] = [
    (
        Code::CREATE_PARTITION,
        &[One(&[0x48_2110, 0x2000]), ZERO, One(&[0x609]), ZERO, ZERO, ZERO, ZERO],
        false,
    ),
    (Code::INITIALIZE_PARTITION, &[Id], false),
    (Code::FINALIZE_PARTITION, &[Id], false),
    (Code::DELETE_PARTITION, &[Id], false),
    (Code::GET_PARTITION_PROPERTY, &[Id, PROPERTIES], false),
    (Code::SET_PARTITION_PROPERTY, &[Id, PROPERTIES, One(&[0, 1, 2, 1 << 40])], false),
    (Code::GET_PARTITION_PROPERTY_EX, &[Id, PROPERTIES, ZERO], false),
    (Code::GET_PARTITION_ID, &[], false),
    (Code::GET_NEXT_CHILD_PARTITION, &[Id, Id], false),
    (Code::DEPOSIT_MEMORY, &[Id, Frame], true),
    (Code::WITHDRAW_MEMORY, &[Id, ZERO], true),
    (Code::GET_MEMORY_BALANCE, &[Id, ZERO], false),
    (
        Code::MAP_GPA_PAGES,
        &[Id, Page, One(&[0xF, 0x3, 0x800F, 0x1_0000, 0x8000_000F, 0x8001_0000]), Frame],
        true,
    ),
    (Code::UNMAP_GPA_PAGES, &[Id, Page, One(&[0, 2])], true),
    (Code::GET_GPA_PAGES_ACCESS_STATES, &[Id, One(&[0, 5, 10]), Page], true),
    (
        Code::INSTALL_INTERCEPT,
        &[Id, One(&[1 << 32 | 7, 8 << 32 | 4, 7, 1 << 32, 0xC << 32 | 3, 0xD << 32 | 4]), Any],
        false,
    ),
    (
        Code::REGISTER_INTERCEPT_RESULT,
        &[Id, One(&[2 << 32 | 0xFFFF_FFFF]), Any, Any, Any, Any, Any, Any],
        false,
    ),
    (Code::CREATE_VP, &[Id, Vp(&[0]), ZERO, ZERO, ZERO], false),
    (Code::DELETE_VP, &[Id, Vp(&[0])], false),
    (Code::GET_VP_REGISTERS, &[Id, Vp(&[0]), REGISTERS], true),
    (Code::SET_VP_REGISTERS, &[Id, Vp(&[0]), REGISTERS, ZERO, Any, Any], false),
    (Code::TRANSLATE_VIRTUAL_ADDRESS, &[Id, Vp(&[0]), One(&[0, 1, 3, 0x13, 0x1F]), Page], false),
    (Code::GET_VP_CPUID_VALUES, &[Id, Vp(&[0]), ZERO, Any, ZERO, ZERO], false),
    (Code::MAP_VP_STATE_PAGE, &[Id, Vp(&[0, 1]), ZERO], false),
    (Code::UNMAP_VP_STATE_PAGE, &[Id, Vp(&[0, 1])], false),
    (Code::GET_VP_STATE, &[Id, Vp(&[0]), STATES, ZERO, ZERO, Frame], false),
    (Code::SET_VP_STATE, &[Id, Vp(&[0]), STATES, ZERO, ZERO, Frame], false),
    (Code::DISPATCH_VP, &[Id, Vp(&[0, 1, 0x41]), ZERO, ZERO], false),
    (Code::DISPATCH_VP, &[Id, Vp(&[1]), ZERO, ZERO], false),
    (
        Code::ASSERT_VIRTUAL_INTERRUPT,
        &[Id, One(&[0, 1, 4, 5, 6, 7, 8, 9, 1 << 32]), One(&[0, 1, 0xFF]), One(&[0x20, 0x41, 0xFE, 8])],
        false,
    ),
    (Code::CLEAR_VIRTUAL_INTERRUPT, &[Id], false),
    (Code::SIGNAL_EVENT_DIRECT, &[Id, Vp(&[0x200, 0x700_0000, 0xF00, 0x1000])], false),
    (
        Code::POST_MESSAGE_DIRECT,
        &[Id, Vp(&[0]), One(&[2 | 1 << 32, 15 | 2 << 32, 16]), One(&[8, 240])],
        false,
    ),
    (
        Code::CREATE_PORT,
        &[One(&[1, u64::MAX]), One(&[1, 2, 3]), Id, One(&[4]), One(&[5 | 0xFFFF_FFFF << 32]), ZERO, ZERO],
        false,
    ),
    (Code::DELETE_PORT, &[One(&[1, u64::MAX]), One(&[1, 2, 3])], false),
    (
        Code::CONNECT_PORT,
        &[
            Id,
            One(&[1, 2]),
            One(&[1]),
            One(&[1, 2, 3]),
            One(&[4]),
            One(&[0x9000, 0x9004]),
            Any,
            One(&[1 << 31, 3, 1 << 31 | 1]),
            ZERO,
        ],
        false,
    ),
    (Code::DISCONNECT_PORT, &[Id, One(&[1, 2])], false),
    (Code::NOTIFY_PORT_RING_EMPTY, &[One(&[5, 4, 16])], false),
    (Code::MAP_STATS_PAGE, &[One(&[1, 2, 0x1_0001, 0x1_0002]), Id, Vp(&[0])], false),
    (Code::UNMAP_STATS_PAGE, &[One(&[1, 2, 0x1_0001, 0x1_0002]), Id, Vp(&[0])], false),
    (
        Code::MAP_DEVICE_INTERRUPT,
        &[
            One(&[1]),
            One(&[1 << 62 | 24, 2 << 62]),
            ZERO,
            ZERO,
            ZERO,
            One(&[0]),
            One(&[1]),
            One(&[0x51 | 2 << 32]),
            ZERO,
            One(&[1]),
            One(&[1]),
        ],
        false,
    ),
    (
        Code::UNMAP_DEVICE_INTERRUPT,
        &[One(&[1]), One(&[1 << 62 | 24, 2 << 62]), One(&[1]), One(&[0x51 << 32 | 0xFEE0_0000]), ZERO],
        false,
    ),
    (Code::GET_SYSTEM_PROPERTY, &[One(&[15, 47]), ZERO], false),
    (Code::SET_SYSTEM_PROPERTY, &[One(&[3]), One(&[5])], false),
    (Code::NOTIFY_PARTITION_EVENT, &[One(&[4, 4 << 32 | 2, 1 << 32 | 2])], false),
    (Code::ADD_LOGICAL_PROCESSOR, &[One(&[0, 1, 2 << 32 | 1]), ZERO], false),
];

/// Registers of guests and of the parent that are worth playing with.
const MSRS: [u32; 44] = [
    0x10,
    0x1B,
    0x48,
    0x49,
    0x8B,
    0xFE,
    0x200,
    0x277,
    0x2FF,
    0x6E0,
    0x802,
    0x808,
    0x80B,
    0x80F,
    0x830,
    0x832,
    0x838,
    0x83E,
    0x83F,
    0xDA0,
    0xC000_0080,
    0xC000_0103,
    msr::GUEST_OS_ID,
    msr::HYPERCALL,
    msr::VP_INDEX,
    msr::TIME_REF_COUNT,
    msr::REFERENCE_TSC,
    msr::EOI,
    msr::ICR,
    msr::TPR,
    msr::VP_ASSIST_PAGE,
    msr::SCONTROL,
    msr::SIMP,
    msr::EOM,
    msr::SINT0,
    msr::SINT0 + 2,
    msr::SIEFP,
    msr::VP_RUNTIME,
    msr::GUEST_IDLE,
    msr::CRASH_CTL,
    msr::TSC_INVARIANT_CONTROL,
    msr::STIMER0_CONFIG,
    msr::STIMER0_COUNT,
    msr::STIMER3_COUNT,
];

/// Calls that a guest has.
const GUEST_CALLS: [Code; 11] = [
    Code::FLUSH_VIRTUAL_ADDRESS_SPACE,
    Code::FLUSH_VIRTUAL_ADDRESS_LIST,
    Code::FLUSH_VIRTUAL_ADDRESS_SPACE_EX,
    Code::FLUSH_VIRTUAL_ADDRESS_LIST_EX,
    Code::SEND_SYNTHETIC_CLUSTER_IPI,
    Code::SEND_SYNTHETIC_CLUSTER_IPI_EX,
    Code::NOTIFY_LONG_SPIN_WAIT,
    Code::GET_VP_INDEX_FROM_APIC_ID,
    Code::START_VIRTUAL_PROCESSOR,
    Code::POST_MESSAGE,
    Code::SIGNAL_EVENT,
];

/// Bytes, and zeros behind them.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn next(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::from(self.next()) % limit.max(1)
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn word(&mut self) -> u64 {
        match self.next() % 8 {
            0 => 0,
            1 => u64::MAX,
            2 => u64::from(self.next()),
            3 => 1 << (self.next() % 64),
            4 => u64::from(self.next()) << 12,
            5 => u64::from(self.next()) << 56 | u64::from(self.next()),
            _ => u64::from_le_bytes(core::array::from_fn(|_| self.next())),
        }
    }
}

/// A rig, and what it has come to have.
pub struct Player {
    /// The rig.
    pub rig: Rig,
    /// The statuses that each call was answered with so far.
    pub answers: BTreeMap<Code, BTreeSet<u16>>,
    ids: Vec<u64>,
    /// The script of the first virtual processor of this play, and how many are played with.
    first_script: usize,
    scripts: usize,
}

impl Default for Player {
    fn default() -> Self {
        Self::new()
    }
}

impl Player {
    /// The calls that are played.
    pub fn calls() -> impl Iterator<Item = Code> {
        CALLS.iter().map(|(code, ..)| *code)
    }

    /// A parent with one processor that has deposited some memory for itself.
    pub fn new() -> Self {
        let rig = Rig::new();
        rig.machine.set_tick(50);
        let mut player = Self { rig, answers: BTreeMap::new(), ids: vec![], first_script: 0, scripts: 0 };
        player.begin();
        player
    }

    /// Begins a play, on a new rig or after [`Player::end`].
    fn begin(&mut self) {
        self.rig.reuse_pages();
        let pages = self.rig.pages(16);
        let (status, _) = self.rig.cpus[0].rep(Code::DEPOSIT_MEMORY, &u64::MAX, &pages, [0, 16]);
        assert!(status.is_success(), "the pages are the parent's");
        self.ids = vec![1, u64::MAX, 0, 1 << 12 | 1];
        (self.first_script, self.scripts) = (self.rig.machine.vcpus(), 1);
    }

    /// Makes a partition with memory and a virtual processor that may run, so that play begins where it matters.
    pub fn with_guest() -> Self {
        let mut player = Self::new();
        player.make_guest();
        player
    }

    /// The same on the rig of a play that has ended.
    pub fn again_with_guest(&mut self) {
        self.begin();
        self.make_guest();
    }

    fn make_guest(&mut self) {
        let cpu = &mut self.rig.cpus[0];
        let flags = [0x48_2110u64, 0, 0x609, 0, 0, 0, 0];
        let id: u64 = cpu.query(Code::CREATE_PARTITION, &flags).expect("there is memory");
        let pages = self.rig.pages(128);
        let memory = self.rig.pages(16);
        let cpu = &mut self.rig.cpus[0];
        assert!(cpu.rep(Code::DEPOSIT_MEMORY, &id, &pages, [0, 128]).0.is_success());
        assert_eq!(cpu.simple(Code::INITIALIZE_PARTITION, &id), Ok(()));
        assert!(cpu.rep(Code::MAP_GPA_PAGES, &[id, 0, 0xF], &memory, [0, 16]).0.is_success());
        assert_eq!(cpu.simple(Code::CREATE_VP, &[id, 0, 0, 0, 0]), Ok(()));
        for page in 0..2 {
            assert!(cpu.query::<_, u64>(Code::MAP_VP_STATE_PAGE, &[id, page << 32, 0]).is_ok());
        }
        assert!(cpu.query::<_, u64>(Code::MAP_STATS_PAGE, &[0x1_0002u64, id, 0]).is_ok());
        assert!(cpu.rep(Code::SET_VP_REGISTERS, &[id, 0], &[0u64; 4], [0, 1]).0.is_success());
        // Messages, events, source 2, and all of it on.
        for (name, value) in [(0xA_0013, 0x5001u64), (0xA_0012, 0x6001), (0xA_0002, 0x52), (0xA_0010, 1)] {
            let words = [id, 0, name, 0, value, 0];
            assert!(cpu.rep(Code::SET_VP_REGISTERS, &words[..2], &words[2..], [0, 1]).0.is_success());
        }
        self.ids.push(id);
    }

    /// Ends all partitions and takes everything back, as a parent does that shuts down.
    ///
    /// # Panics
    /// Not every page came back.
    pub fn end(&mut self) {
        let cpu = &mut self.rig.cpus[0];
        while let Ok(id) = cpu.query::<_, u64>(Code::GET_NEXT_CHILD_PARTITION, &[u64::MAX, 0]) {
            if id == 0 {
                break;
            }
            // One that was never initialized cannot be finalized.
            let _ = cpu.simple(Code::FINALIZE_PARTITION, &id);
            assert_eq!(
                cpu.simple(Code::DELETE_PARTITION, &id),
                Ok(()),
                "a partition ends when the parent wants it"
            );
        }
        for kind in [1u64, 2, 0x1_0001, 0x1_0002] {
            let _ = cpu.simple(Code::UNMAP_STATS_PAGE, &[kind, if kind == 2 { 0 } else { 1 }, 0]);
        }
        for port in 1..4u64 {
            let _ = cpu.simple(Code::DELETE_PORT, &[u64::MAX, port]);
        }
        while cpu.rep(Code::WITHDRAW_MEMORY, &[u64::MAX, 0], &[0u8; 0], [0, 512]).0.is_success() {}
        self.rig.check();
        assert_eq!((self.rig.missing(), self.rig.machine.live_pages()), (0, 0), "everything came back");
    }

    /// Plays all of `data`.
    pub fn play(&mut self, data: &[u8]) {
        let mut bytes = Bytes(data);
        while !bytes.0.is_empty() {
            match bytes.next() % 16 {
                0 => self.register(&mut bytes),
                1 => self.raw(&mut bytes),
                2 => self.rig.machine.pass(bytes.word() >> 40),
                3..=6 => self.guest(&mut bytes),
                7 => self.page(&mut bytes),
                8 => {
                    self.rig.cpus[0].take_interrupts();
                    self.rig.cpus[0].take_message();
                    self.rig.cpus[0].idle();
                }
                _ => self.call(&mut bytes),
            }
            self.rig.cpus[0].take_event();
        }
    }

    fn value(&mut self, word: Word, bytes: &mut Bytes<'_>) -> u64 {
        if bytes.next().is_multiple_of(32) {
            return bytes.word();
        }
        match word {
            // Mostly the one that is there since the beginning or the latest one.
            Id => match bytes.next() % 4 {
                0 => self.ids[self.ids.len() - 1],
                1 => self.ids[bytes.below(self.ids.len())],
                _ => self.ids[self.ids.len().min(5) - 1],
            },
            Vp(high) => {
                u64::from(bytes.one(&[0u32, 0, 0, 1, 1, 2, 255, 256])) | u64::from(bytes.one(high)) << 32
            }
            Page => {
                bytes.one(&[0u64, 1, 9, 16, 512, 1024, 1 << 20, (1 << 28) - 1]) + u64::from(bytes.next() % 4)
            }
            Frame => match bytes.next() % 8 {
                0 => bytes.one(&[0, 3, self.rig.ram(), self.rig.ram() + 40, 1 << 40]),
                1 => 512 * u64::from(bytes.next() % 8),
                _ => 1024 + u64::from(bytes.next()),
            },
            One(of) => bytes.one(of),
            Any => bytes.word(),
        }
    }

    fn call(&mut self, bytes: &mut Bytes<'_>) {
        let (code, words, repeats) = CALLS[bytes.below(CALLS.len())];
        let mut input: Vec<u64> = words.iter().map(|word| self.value(*word, bytes)).collect();
        // A parent that gives away the pages of its own calls can make no more.
        let own = [self.rig.cpus[0].input() >> 12, self.rig.cpus[0].output() >> 12];
        let mut control = HypercallInput::new().with_call_code(code.0);
        let elements = matches!(code, Code::SET_VP_REGISTERS | Code::GET_VP_CPUID_VALUES) || repeats;
        if elements {
            let count = 1 + bytes.next() % 8;
            if let Some(last) = words.last().filter(|_| repeats) {
                input.extend((1..count).map(|_| self.value(*last, bytes)).collect::<Vec<_>>());
            }
            control.set_rep_count(if repeats { count.into() } else { 1 });
            control.set_rep_start(if bytes.next().is_multiple_of(8) { 1 } else { 0 });
        }
        match code {
            Code::GET_VP_STATE | Code::SET_VP_STATE => control.set_variable_header_size(1),
            Code::MAP_DEVICE_INTERRUPT => control.set_variable_header_size(2),
            _ => {}
        }
        if bytes.next().is_multiple_of(32) {
            control = HypercallInput::from(u64::from(control) ^ bytes.word());
        }
        input.iter_mut().filter(|word| own.contains(word)).for_each(|word| *word = 0);
        let cpu = &mut self.rig.cpus[0];
        cpu.write_input(zerocopy::IntoBytes::as_bytes(input.as_slice()));
        let (rdx, r8) = if control.fast() {
            (input.first().copied().unwrap_or(0), input.get(1).copied().unwrap_or(0))
        } else {
            (cpu.input(), cpu.output())
        };
        let result = cpu.hypercall(control.into(), rdx, r8);
        if let Ok(result) = result {
            self.answers.entry(control.code()).or_default().insert(result.status().0);
        }
        if code == Code::CREATE_PARTITION && result.is_ok_and(|result| result.status().is_success()) {
            let id = u64::from_le_bytes(cpu.read_output(8).try_into().expect("8 bytes"));
            self.ids.push(id);
            // Enough to be initialized with, if these pages are the parent's now.
            let first = 1280 + 8 * u64::from(bytes.next() % 16);
            let pages: Vec<u64> = (first..first + 8).collect();
            let _ = cpu.rep(Code::DEPOSIT_MEMORY, &id, &pages, [0, 8]);
        }
    }

    /// A call with any registers at all.
    fn raw(&mut self, bytes: &mut Bytes<'_>) {
        let (control, rdx, r8) = (bytes.word(), bytes.word(), bytes.word());
        let _ = self.rig.cpus[0].hypercall(control, rdx, r8);
    }

    fn register(&mut self, bytes: &mut Bytes<'_>) {
        let number = if bytes.next().is_multiple_of(4) { bytes.word() as u32 } else { bytes.one(&MSRS) };
        // The machine does not come back from a reset, nor a processor from an INIT that it sends itself.
        if matches!(number, msr::RESET | 0x830) {
            return;
        }
        let cpu = &mut self.rig.cpus[0];
        let exit = match bytes.next() % 2 {
            0 => Exit::ReadMsr { msr: number, length: None },
            _ => Exit::WriteMsr { msr: number, value: bytes.word(), length: None },
        };
        cpu.exit(&[], exit);
        cpu.take_event();
        // Whatever was turned off is turned on again.
        cpu.enable_hypercalls();
        cpu.enable_synic();
    }

    /// Gives some guest something to do.
    fn guest(&mut self, bytes: &mut Bytes<'_>) {
        let script = self.rig.machine.script(self.first_script + bytes.below(self.scripts + 2));
        self.scripts = (self.scripts + 1).min(6);
        if bytes.next().is_multiple_of(4) {
            return Self::guest_call(&script, bytes);
        }
        let flags = bytes.one(&[2u64, 0x202]);
        script.code(move |vcpu| {
            vcpu.set(Reg::Rflags, flags);
            super::Flow::Next
        });
        Self::exit(&script, bytes);
    }

    /// A guest says who it is, and calls the hypervisor in 64-bit mode.
    fn guest_call(script: &Script, bytes: &mut Bytes<'_>) {
        script.code(|vcpu| {
            for (register, value) in [(Reg::Cr0, 0x8000_0011), (Reg::Efer, 0x500), (Reg::Rflags, 2)] {
                vcpu.set(register, value);
            }
            let code = Segment { base: 0, limit: u32::MAX, selector: 8, attributes: 0xA09B };
            vcpu.set_segment(SegmentName::Cs, code);
            super::Flow::Next
        });
        script.exit(Exit::WriteMsr { msr: msr::GUEST_OS_ID, value: 1, length: Some(2) });
        let input: Vec<u64> = (0..bytes.below(24)).map(|_| bytes.word()).collect();
        let place = bytes.one(&[0x1000u64, 0x1FF0, 0x9000]);
        script.code(move |vcpu| {
            // Where there is no memory, the call finds none either.
            let _ = vcpu.write_memory(place, zerocopy::IntoBytes::as_bytes(input.as_slice()));
            super::Flow::Next
        });
        let control = HypercallInput::new()
            .with_call_code(bytes.one(&GUEST_CALLS).0)
            .with_fast(bytes.next().is_multiple_of(4))
            .with_variable_header_size(bytes.one(&[0, 0, 1, 2, 64]))
            .with_rep_count(bytes.one(&[0, 0, 1, 4, 0xFFF]));
        let input = if control.fast() { bytes.word() } else { place };
        let registers = [(gpr::RCX, control.into()), (gpr::RDX, input), (gpr::R8, bytes.word() & !7)];
        script.exit_with(&registers, Exit::Hypercall { length: Some(3) });
    }

    fn exit(script: &Script, bytes: &mut Bytes<'_>) {
        let length = bytes.one(&[None, Some(2), Some(3), Some(15)]);
        let number = if bytes.next().is_multiple_of(4) { bytes.word() as u32 } else { bytes.one(&MSRS) };
        let gpa = bytes.one(&[0xFEE0_0000, 0x9000, 0x9004, 0x20_0000, 0]) + u64::from(bytes.next()) * 16;
        let access = Access::from_bits_truncate(bytes.next());
        let io = IoExit {
            port: number as u16,
            size: 1 << (gpa & 1),
            input: gpa & 2 != 0,
            string: gpa & 4 != 0,
            repeat: gpa & 8 != 0,
            length,
        };
        let exits = [
            Exit::Interrupt,
            Exit::Nmi,
            Exit::InterruptWindow,
            Exit::NmiWindow,
            Exit::Cpuid { length },
            Exit::Hlt { length },
            Exit::ReadMsr { msr: number, length },
            Exit::WriteMsr { msr: number, value: bytes.word(), length },
            Exit::WriteMsr { msr: number, value: u64::from(bytes.next()) << 12 | 1, length },
            Exit::Hypercall { length },
            Exit::Io(io),
            Exit::SlatFault { gpa, gva: None, access, page_table_walk: false },
            Exit::Exception { vector: number as u8, error: None, parameter: gpa },
            Exit::Xsetbv { value: bytes.word(), length },
            Exit::WriteCr4 { register: length, length },
            Exit::WriteCr4 { register: None, length: None },
            Exit::InvalidInstruction,
            Exit::ReadPerformanceCounter,
            Exit::CacheInvalidate { length },
            Exit::Monitor { length },
            Exit::Mwait { length },
            Exit::Pause,
            Exit::Shutdown,
            Exit::Failed(gpa),
        ];
        let registers = [(gpr::RAX, bytes.word()), (gpr::RCX, bytes.word()), (gpr::RDX, bytes.word())];
        script.exit_with(&registers, bytes.one(&exits));
    }

    /// Writes into a page that the parent shares with the hypervisor or a guest, as user space does at any time.
    fn page(&mut self, bytes: &mut Bytes<'_>) {
        let page = 1024 + u64::from(bytes.next());
        let page =
            if bytes.next().is_multiple_of(2) { page } else { self.rig.ram() - 1 - u64::from(bytes.next()) };
        let offset = 8 * usize::from(bytes.next());
        let value = bytes.word();
        if self.rig.sees(page) {
            self.rig.machine.memory().write(page, offset, &value.to_le_bytes());
        }
        let _ = self.rig.machine.tsc();
    }
}

//! Instructions against a device that remembers, a fake processor, and real guest memory.

use std::sync::{Arc, Mutex};

use parterre_chipset::bus::{Bus, Device};
use parterre_partition::fake::FakeVp;
use parterre_partition::memory::GuestMemory;
use parterre_partition::message::{AccessKind, Context, InstructionBytes, IoPort, MemoryAccess};
use parterre_partition::registers::{Register, Segment, Segments};
use parterre_partition::{Exception, VirtualProcessor};
use vm_memory::{Bytes, GuestAddress};

use super::{Devices, memory, port};

/// Where the device is, and where code and data are.
const DEVICE: u64 = 0xFEC0_0000;
const CODE: u64 = 0x1000;
const DATA: u64 = 0x20_0000;

const CF: u64 = 1;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;

/// A device of 32 bytes of memory that notes every access.
#[derive(Default)]
struct Scratch {
    bytes: Mutex<[u8; 32]>,
    writes: Mutex<Vec<(u64, u8, u64)>>,
}

impl Device for Scratch {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let bytes = self.bytes.lock().unwrap();
        (0..u64::from(size)).fold(0, |value, i| value | u64::from(bytes[(offset + i) as usize]) << (8 * i))
    }
    fn write(&self, offset: u64, size: u8, value: u64) {
        self.writes.lock().unwrap().push((offset, size, value));
        let mut bytes = self.bytes.lock().unwrap();
        for i in 0..usize::from(size) {
            bytes[offset as usize + i] = (value >> (8 * i)) as u8;
        }
    }
}

struct Bench {
    vp: FakeVp,
    device: Arc<Scratch>,
    mmio: Bus,
    ports: Bus,
    ram: GuestMemory,
}

fn bench() -> Bench {
    let device = Arc::new(Scratch::default());
    let (mut mmio, mut ports) = (Bus::default(), Bus::default());
    mmio.add(DEVICE, 32, device.clone()).unwrap();
    ports.add(0x100, 32, device.clone()).unwrap();
    let mut vp = FakeVp { segments: long_segments(), ..FakeVp::default() };
    vp.registers[Register::Rax as usize] = DEVICE;
    vp.registers[Register::Rip as usize] = CODE;
    Bench { vp, device, mmio, ports, ram: GuestMemory::new(16 << 20).unwrap() }
}

fn long_segments() -> Segments {
    let code = Segment { attributes: 0xA09B, ..Segment::default() };
    let mut registers = [Segment { attributes: 0xC093, ..Segment::default() }; 6];
    registers[1] = code;
    registers[4].base = 0x1_0000;
    Segments { registers, cr0: 0x8000_0031, efer: 0x500 }
}

fn context(bench: &Bench, length: u8) -> Context {
    Context {
        instruction_length: length,
        long_mode: true,
        cs: bench.vp.segments.registers[1],
        rip: bench.vp.registers[Register::Rip as usize],
        ..Context::default()
    }
}

impl Bench {
    fn set(mut self, register: Register, value: u64) -> Bench {
        self.vp.registers[register as usize] = value;
        self
    }

    fn get(&self, register: Register) -> u64 {
        self.vp.registers[register as usize]
    }

    /// Puts 32 bits into the device.
    fn holding(self, value: u32) -> Bench {
        self.device.bytes.lock().unwrap()[..4].copy_from_slice(&value.to_le_bytes());
        self
    }

    fn held(&self) -> u32 {
        u32::from_le_bytes(self.device.bytes.lock().unwrap()[..4].try_into().unwrap())
    }

    /// Emulates an instruction that touched the device.
    fn run(mut self, code: &[u8]) -> Bench {
        let access = MemoryAccess {
            context: context(&self, 0),
            kind: AccessKind::Read,
            gpa: DEVICE,
            gva: None,
            bytes: InstructionBytes::new(code),
        };
        let devices = Devices { ports: &self.ports, memory: &self.mmio, ram: &self.ram };
        memory(&mut self.vp, devices, &access).unwrap();
        self
    }

    /// As `run`, and the instruction must have been carried out.
    fn ok(self, code: &[u8]) -> Bench {
        let after = self.run(code);
        assert!(after.vp.exceptions.is_empty(), "{:?} for {code:02x?}", after.vp.exceptions);
        assert_eq!(after.get(Register::Rip), CODE + code.len() as u64, "{code:02x?}");
        after
    }
}

#[test]
fn moves_of_every_width() {
    let b = bench().set(Register::Rcx, 0x1122_3344_5566_7788);
    let b = b.ok(&[0x89, 0x08]); // mov [rax], ecx
    assert_eq!(*b.device.writes.lock().unwrap(), [(0, 4, 0x5566_7788)]);
    let b = bench().set(Register::Rcx, 0x1122_3344_5566_7788).ok(&[0x48, 0x89, 0x48, 0x10]); // mov [rax+16], rcx
    assert_eq!(*b.device.writes.lock().unwrap(), [(16, 8, 0x1122_3344_5566_7788)]);
    let b = bench().set(Register::Rcx, 0xAABB).ok(&[0x88, 0x28]); // mov [rax], ch
    assert_eq!(*b.device.writes.lock().unwrap(), [(0, 1, 0xAA)]);
    let b = bench().ok(&[0x66, 0xC7, 0x00, 0x34, 0x12]); // mov word [rax], 0x1234
    assert_eq!(*b.device.writes.lock().unwrap(), [(0, 2, 0x1234)]);
    let b = bench().ok(&[0x48, 0xC7, 0x00, 0xFE, 0xFF, 0xFF, 0xFF]); // mov qword [rax], -2
    assert_eq!(*b.device.writes.lock().unwrap(), [(0, 8, u64::MAX - 1)]);
}

#[test]
fn loads_extend_as_their_width_says() {
    let start = || bench().holding(0x8091_A2F3).set(Register::Rcx, u64::MAX);
    assert_eq!(start().ok(&[0x8B, 0x08]).get(Register::Rcx), 0x8091_A2F3); // mov ecx, [rax]
    assert_eq!(start().ok(&[0x8A, 0x08]).get(Register::Rcx), 0xFFFF_FFFF_FFFF_FFF3); // mov cl, [rax]
    assert_eq!(start().ok(&[0x8A, 0x28]).get(Register::Rcx), 0xFFFF_FFFF_FFFF_F3FF); // mov ch, [rax]
    assert_eq!(start().ok(&[0x0F, 0xB6, 0x08]).get(Register::Rcx), 0xF3); // movzx ecx, byte [rax]
    assert_eq!(start().ok(&[0x0F, 0xB7, 0x08]).get(Register::Rcx), 0xA2F3); // movzx ecx, word [rax]
    assert_eq!(start().ok(&[0x48, 0x0F, 0xBE, 0x08]).get(Register::Rcx), 0xFFFF_FFFF_FFFF_FFF3); // movsx rcx
    assert_eq!(start().ok(&[0x0F, 0xBF, 0x08]).get(Register::Rcx), 0xFFFF_A2F3); // movsx ecx, word [rax]
    assert_eq!(start().ok(&[0x48, 0x63, 0x08]).get(Register::Rcx), 0xFFFF_FFFF_8091_A2F3); // movsxd rcx, [rax]
    // mov eax, moffs64
    let mut code = vec![0xA1];
    code.extend_from_slice(&DEVICE.to_le_bytes());
    assert_eq!(start().ok(&code).get(Register::Rax), 0x8091_A2F3);
}

#[test]
fn arithmetic_changes_device_and_flags() {
    let b = bench().holding(0xFFFF_FFFF).ok(&[0x83, 0x00, 0x01]); // add dword [rax], 1
    assert_eq!((b.held(), b.get(Register::Rflags) & (CF | ZF)), (0, CF | ZF));
    let b = bench().holding(0x10).ok(&[0x83, 0x08, 0x01]); // or
    assert_eq!(b.held(), 0x11);
    let b = bench().holding(0xFF).set(Register::Rcx, 0x0F).ok(&[0x21, 0x08]); // and [rax], ecx
    assert_eq!(b.held(), 0x0F);
    let b = bench().holding(5).set(Register::Rcx, 5).ok(&[0x31, 0x08]); // xor
    assert_eq!((b.held(), b.get(Register::Rflags) & ZF), (0, ZF));
    let b = bench().holding(3).set(Register::Rcx, 4).ok(&[0x39, 0x08]); // cmp [rax], ecx
    assert_eq!((b.held(), b.get(Register::Rflags) & (CF | SF | ZF)), (3, CF | SF));
    let b = bench().holding(2).ok(&[0xF6, 0x00, 0x01]); // test byte [rax], 1
    assert_eq!(b.get(Register::Rflags) & ZF, ZF);
    assert!(b.device.writes.lock().unwrap().is_empty());
    let b = bench().holding(7).set(Register::Rcx, 1).set(Register::Rflags, CF).ok(&[0x13, 0x08]); // adc ecx, [rax]
    assert_eq!(b.get(Register::Rcx), 9);
    let b = bench().holding(1).set(Register::Rflags, CF).ok(&[0xFF, 0x08]); // dec keeps CF
    assert_eq!((b.held(), b.get(Register::Rflags) & (CF | ZF)), (0, CF | ZF));
    let b = bench().holding(1).ok(&[0xF7, 0x18]); // neg
    assert_eq!((b.held(), b.get(Register::Rflags) & CF), (u32::MAX, CF));
    let b = bench().holding(0).ok(&[0xF7, 0x10]); // not
    assert_eq!(b.held(), u32::MAX);
}

#[test]
fn exchanges_and_bits() {
    let b = bench().holding(1).set(Register::Rcx, 2).ok(&[0x87, 0x08]); // xchg [rax], ecx
    assert_eq!((b.held(), b.get(Register::Rcx)), (2, 1));
    let b = bench().holding(1).set(Register::Rcx, 2).ok(&[0x0F, 0xC1, 0x08]); // xadd
    assert_eq!((b.held(), b.get(Register::Rcx)), (3, 1));
    let cmpxchg = [0xF0, 0x0F, 0xB1, 0x0A]; // lock cmpxchg [rdx], ecx
    let start = || bench().holding(5).set(Register::Rdx, DEVICE).set(Register::Rcx, 9);
    let b = start().set(Register::Rax, 5).ok(&cmpxchg);
    assert_eq!((b.held(), b.get(Register::Rflags) & ZF), (9, ZF));
    let b = start().set(Register::Rax, 4).ok(&cmpxchg);
    assert_eq!((b.held(), b.get(Register::Rax), b.get(Register::Rflags) & ZF), (5, 5, 0));
    let b = bench().holding(0).ok(&[0x0F, 0xBA, 0x28, 0x03]); // bts dword [rax], 3
    assert_eq!((b.held(), b.get(Register::Rflags) & CF), (8, 0));
    let b = bench().holding(8).ok(&[0x0F, 0xBA, 0x30, 0x03]); // btr
    assert_eq!((b.held(), b.get(Register::Rflags) & CF), (0, CF));
}

#[test]
fn strings_repeat_and_stop() {
    let b =
        bench().set(Register::Rdi, DEVICE).set(Register::Rcx, 3).set(Register::Rax, 0x11).ok(&[0xF3, 0xAA]);
    assert_eq!(b.held(), 0x0011_1111);
    assert_eq!((b.get(Register::Rcx), b.get(Register::Rdi)), (0, DEVICE + 3));
    let b = bench().set(Register::Rsi, DATA).set(Register::Rdi, DEVICE).set(Register::Rcx, 2);
    b.ram.regions().write_slice(&[1, 2, 3, 4, 5, 6, 7, 8], GuestAddress(DATA)).unwrap();
    let b = b.ok(&[0xF3, 0xA5]); // rep movsd
    assert_eq!(*b.device.writes.lock().unwrap(), [(0, 4, 0x0403_0201), (4, 4, 0x0807_0605)]);
    // lodsd backwards
    let b = bench().holding(0x1234).set(Register::Rsi, DEVICE).set(Register::Rflags, 1 << 10).ok(&[0xAD]);
    assert_eq!((b.get(Register::Rax), b.get(Register::Rsi)), (0x1234, DEVICE - 4));
    // repne scasb finds the byte
    let b = bench().holding(0x0042_0000).set(Register::Rdi, DEVICE).set(Register::Rcx, 10);
    let b = b.set(Register::Rax, 0x42).ok(&[0xF2, 0xAE]);
    assert_eq!((b.get(Register::Rcx), b.get(Register::Rdi)), (7, DEVICE + 3));
    // A count of zero does nothing.
    let b = bench().set(Register::Rdi, DEVICE).ok(&[0xF3, 0xAA]);
    assert!(b.device.writes.lock().unwrap().is_empty());
}

#[test]
fn a_long_string_gives_the_guest_its_interrupts_in_between() {
    let count = super::REP_CHUNK + 10;
    let b = bench().set(Register::Rsi, DEVICE).set(Register::Rdi, DATA).set(Register::Rcx, count);
    let b = b.set(Register::Rflags, 0).run(&[0xF3, 0xA4]); // rep movsb runs out of the device into ones
    assert_eq!((b.get(Register::Rcx), b.get(Register::Rip)), (10, CODE));
    let b = b.run(&[0xF3, 0xA4]);
    assert_eq!((b.get(Register::Rcx), b.get(Register::Rip)), (0, CODE + 2));
    assert_eq!(b.ram.regions().read_obj::<u8>(GuestAddress(DATA + 100)).unwrap(), 0xFF);
}

#[test]
fn segments_count_where_they_exist() {
    let b = bench().holding(7).set(Register::Rax, DEVICE - 0x1_0000).ok(&[0x64, 0x8B, 0x08]); // mov ecx, fs:[rax]
    assert_eq!(b.get(Register::Rcx), 7);
    // 32-bit code: DS has a base.
    let mut b = bench().holding(9).set(Register::Rax, DEVICE - 0x100);
    b.vp.segments.efer = 0;
    b.vp.segments.registers[1].attributes = 0xC09B;
    b.vp.segments.registers[3].base = 0x100;
    let mut context = context(&b, 0);
    context.long_mode = false;
    let access = MemoryAccess {
        context,
        kind: AccessKind::Read,
        gpa: DEVICE,
        gva: None,
        bytes: InstructionBytes::new(&[0x8B, 0x08]),
    };
    memory(&mut b.vp, Devices { ports: &b.ports, memory: &b.mmio, ram: &b.ram }, &access).unwrap();
    assert_eq!(b.get(Register::Rcx), 9);
}

#[test]
fn instructions_no_driver_uses_get_undefined_opcode() {
    let ud = Exception { vector: 6, error_code: None, parameter: 0 };
    // movups [rax], xmm0; mov cr0, rax; fld [rax]; bts [rax], ecx beyond the operand; nothing valid
    let codes: [&[u8]; 4] = [&[0x0F, 0x11, 0x00], &[0x0F, 0x22, 0xC0], &[0xD9, 0x00], &[0x0F, 0xAB, 0x08]];
    for code in codes {
        let b = bench().set(Register::Rcx, 500).run(code);
        assert_eq!(b.vp.exceptions, [ud], "{code:02x?}");
        assert_eq!(b.get(Register::Rip), CODE);
    }
}

#[test]
fn missing_instruction_bytes_are_fetched_over_a_page_end() {
    let mut b = bench().holding(0x55).set(Register::Rip, CODE + 0xFFE);
    b.ram.regions().write_slice(&[0x0F, 0xB6, 0x08], GuestAddress(CODE + 0xFFE)).unwrap();
    b = b.run(&[]);
    assert_eq!((b.get(Register::Rcx), b.get(Register::Rip)), (0x55, CODE + 0x1001));
    // Code in a device cannot run.
    let b = bench().set(Register::Rip, DEVICE).run(&[]);
    assert_eq!(b.vp.exceptions.len(), 1);
}

#[test]
fn page_faults_go_to_the_guest_with_progress_kept() {
    let mut b = bench().set(Register::Rsi, DEVICE).set(Register::Rdi, DATA + 0xFFE).set(Register::Rcx, 8);
    b.vp.pages.insert((DATA >> 12) + 1, None);
    let b = b.run(&[0xF3, 0xA4]); // rep movsb into a page that is not there
    let fault = Exception { vector: 14, error_code: Some(2), parameter: DATA + 0x1000 };
    assert_eq!(b.vp.exceptions, [fault]);
    assert_eq!((b.get(Register::Rcx), b.get(Register::Rip)), (6, CODE));
}

fn io(bench: &Bench, write: bool, size: u8, code: &[u8], length: u8) -> IoPort {
    let string = code.iter().any(|byte| (0x6C..=0x6F).contains(byte));
    IoPort {
        context: context(bench, length),
        write,
        port: 0x100,
        size,
        string,
        rep: code.contains(&0xF3),
        rax: bench.get(Register::Rax),
        bytes: InstructionBytes::new(code),
    }
}

fn run_io(mut b: Bench, write: bool, size: u8, code: &[u8], length: u8) -> Bench {
    let access = io(&b, write, size, code, length);
    port(&mut b.vp, Devices { ports: &b.ports, memory: &b.mmio, ram: &b.ram }, &access).unwrap();
    b
}

#[test]
fn ports_with_and_without_a_known_length() {
    for length in [0, 1] {
        let b = run_io(bench().set(Register::Rax, 0x1234_5678), true, 2, &[0x66, 0xEF], length * 2);
        assert_eq!(*b.device.writes.lock().unwrap(), [(0, 2, 0x5678)]);
        assert_eq!(b.get(Register::Rip), CODE + 2);
        let b = run_io(bench().holding(0xAABB_CCDD).set(Register::Rax, u64::MAX), false, 1, &[0xEC], length);
        assert_eq!((b.get(Register::Rax), b.get(Register::Rip)), (0xFFFF_FFFF_FFFF_FFDD, CODE + 1));
        let b = run_io(bench().holding(0xAABB_CCDD).set(Register::Rax, u64::MAX), false, 4, &[0xED], length);
        assert_eq!(b.get(Register::Rax), 0xAABB_CCDD);
    }
}

#[test]
fn string_ports_move_memory() {
    let b = bench().set(Register::Rsi, DATA).set(Register::Rcx, 3);
    b.ram.regions().write_slice(b"abc", GuestAddress(DATA)).unwrap();
    let b = run_io(b, true, 1, &[0xF3, 0x6E], 2); // rep outsb
    assert_eq!(*b.device.writes.lock().unwrap(), [(0, 1, 0x61), (0, 1, 0x62), (0, 1, 0x63)]);
    assert_eq!((b.get(Register::Rsi), b.get(Register::Rcx), b.get(Register::Rip)), (DATA + 3, 0, CODE + 2));
    let b = bench().holding(0xBEEF).set(Register::Rdi, DATA);
    let b = run_io(b, false, 2, &[0x66, 0x6D], 2); // insw
    assert_eq!(b.ram.regions().read_obj::<u16>(GuestAddress(DATA)).unwrap(), 0xBEEF);
    // The target page is not there: the device is not even asked.
    let mut b = bench().holding(0xBEEF).set(Register::Rdi, DATA);
    b.vp.pages.insert(DATA >> 12, None);
    let b = run_io(b, false, 2, &[0x66, 0x6D], 2);
    assert_eq!(b.vp.exceptions[0].vector, 14);
    assert_eq!(b.get(Register::Rdi), DATA);
}

#[test]
fn any_bytes_as_an_instruction_do_no_harm() {
    // A small generator is enough: the point is that nothing panics and nothing fails.
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut b = bench();
    for _ in 0..20_000 {
        let bytes: Vec<u8> = (0..16).map(|_| next() as u8).collect();
        for register in Register::ALL {
            b.vp.registers[register as usize] = if next() & 1 == 0 { DEVICE + next() % 80 } else { next() };
        }
        b.vp.exceptions.clear();
        b = b.run(&bytes);
    }
    assert_eq!(b.vp.index(), 0);
}

#[test]
fn the_only_operand_needs_no_translation() {
    // The page tables would say no; the intercept has said where the access goes.
    let mut b = bench().holding(0x77).set(Register::Rax, 0xFFFF_8000_0000_0000);
    b.vp.pages.insert(0xFFFF_8000_0000_0000 >> 12, None);
    let b = b.ok(&[0x8B, 0x08]); // mov ecx, [rax]
    assert_eq!(b.get(Register::Rcx), 0x77);
    // Two operands in memory do.
    let mut b = bench().set(Register::Rsi, DEVICE).set(Register::Rdi, DATA);
    b.vp.pages.insert(DATA >> 12, None);
    assert_eq!(b.run(&[0xA4]).vp.exceptions[0].vector, 14); // movsb
}

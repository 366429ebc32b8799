//! A hypervisor on the fake machine, with a parent whose code is what a test does: a [`Rig`].
//!
//! Each method is something that the parent's kernel does on one of its processors: calls the hypervisor, reads or writes a
//! model-specific register, runs a child. Nothing here looks inside the hypervisor; what it answers is what the parent sees.

use std::{boxed::Box, collections::HashMap, sync::Arc, vec, vec::Vec};

use super::{FakeMachine, FakeProcessor, Script};
use crate::{
    Config, Hypervisor, LogicalProcessor, ProcessorConfig, Slot, SynicPages,
    hypervisor::PARENT_OWNER,
    machine::{Access, Event, Exit, Machine, Mapping, Reg, Vcpu, gpr},
    memory::{Owner, OwnershipTable, PageOwner, ParentSpace, Pool, Visible},
    parent::{Message as StartMessage, ParentVp},
};
use parterre_abi::{
    hypercall::{HypercallCode, HypercallInput, HypercallOutput},
    message::{MESSAGE_SIZE, Message, MessageType},
    msr,
    status::{HvResult, HvStatus},
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Pages of the parent that no test deposits: input, output.
const INPUT: u64 = 20;
const OUTPUT: u64 = 21;
/// Pages that [`Rig::pages`] never gives out lie below this one.
const FIRST_FREE: u64 = 512;
const PAGE: u64 = 4096;

/// One of the parent's processors.
pub struct Cpu {
    index: usize,
    processor: FakeProcessor,
    vp: ParentVp<FakeMachine>,
    script: Arc<Script>,
    machine: FakeMachine,
    input: u64,
    output: u64,
}

/// See the module.
pub struct Rig {
    /// The machine.
    pub machine: FakeMachine,
    /// The parent's processors, in order.
    pub cpus: Vec<Cpu>,
    pub(crate) hv: &'static Hypervisor<FakeMachine>,
    ram: u64,
    next: u64,
}

/// The instruction raised #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralProtection;

/// How big the hypervisor's own lists are.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Processors.
    pub processors: usize,
    /// Children.
    pub slots: usize,
    /// Interrupts of devices.
    pub interrupts: usize,
    /// Ports.
    pub ports: usize,
    /// Tables for splitting the parent's entries; enough if `None`.
    pub reserve: Option<u64>,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { processors: 1, slots: 4, interrupts: 8, ports: 8, reserve: None }
    }
}

impl Rig {
    /// A hypervisor whose parent has just begun on all `processors`: it has not said who it is.
    pub fn bare(sizes: Sizes) -> Self {
        let builder = FakeMachine::builder().processors(sizes.processors);
        let mut board = match sizes.reserve {
            Some(pages) => builder.reserve(pages).build(),
            None => builder.build(),
        };
        describe(&board.machine);
        let vcpus: Vec<_> = (0..sizes.processors).map(|_| board.parent_vcpu()).collect();
        let machine = board.machine.clone();
        let mut page = |access| special(&machine, &board.table, &mut board.parent, access);
        let hypercall_page = page(Access::READ | Access::EXECUTE);
        let reference_tsc_page = page(Access::READ);
        let processors: Vec<_> = (0..sizes.processors)
            .map(|index| {
                let mut page = || page(Access::READ | Access::WRITE);
                let synic = SynicPages { messages: page(), events: page(), rings: page() };
                LogicalProcessor::new(ProcessorConfig { index, synic, assist: page() })
            })
            .collect();
        let hv: &'static Hypervisor<FakeMachine> = Box::leak(Box::new(Hypervisor::new(Config {
            machine: machine.clone(),
            table: board.table,
            parent_space: board.parent,
            hypercall_page,
            reference_tsc_page,
            processors: processors.leak(),
            slots: (0..sizes.slots).map(|_| Slot::new()).collect::<Vec<_>>().leak(),
            device_interrupts: (0..sizes.interrupts).map(|_| None).collect::<Vec<_>>().leak(),
            ports: (0..sizes.ports).map(|_| None).collect::<Vec<_>>().leak(),
            stats: (0..2 + 2 * sizes.processors).map(|_| None).collect::<Vec<_>>().leak(),
        })));
        let cpus = vcpus.into_iter().enumerate().map(|(index, vcpu)| Cpu::new(hv, index, vcpu)).collect();
        Self { machine, cpus, hv, ram: board.ram, next: board.ram - 1 }
    }

    /// A hypervisor whose parent has enabled the hypercall page, added its processors, and set up its SynIC.
    pub fn with(sizes: Sizes) -> Self {
        let mut rig = Self::bare(sizes);
        rig.cpus[0].enable_hypercalls();
        for index in 1..sizes.processors {
            let apic_id = rig.machine.apic_id(index);
            let added =
                rig.cpus[0].simple(HypercallCode::ADD_LOGICAL_PROCESSOR, &[index as u32, apic_id, 0, 0]);
            assert_eq!(added, Ok(()), "processor {index} can be added");
        }
        rig.cpus.iter_mut().for_each(Cpu::enable_synic);
        rig
    }

    /// The same with one processor.
    pub fn new() -> Self {
        Self::with(Sizes::default())
    }

    /// The first page behind the parent's RAM.
    pub fn ram(&self) -> u64 {
        self.ram
    }

    /// Whose a page is.
    pub fn owner(&self, page: u64) -> PageOwner {
        self.hv.table.owner(page)
    }

    /// Pages of the parent's that were not given out before, from its last one down.
    pub fn pages(&mut self, count: usize) -> Vec<u64> {
        let pages: Vec<u64> = (0..count as u64).map(|index| self.next - index).collect();
        self.next -= count as u64;
        assert!(self.next >= FIRST_FREE, "the test takes more pages than the parent has");
        pages
    }

    /// Lets [`Rig::pages`] begin from the last page again. The caller knows that all came back.
    pub fn reuse_pages(&mut self) {
        self.next = self.ram - 1;
    }

    /// How many pages are not the parent's now, though they were at the start.
    pub fn missing(&self) -> usize {
        (16..self.ram).filter(|&page| self.owner(page) != PageOwner::Parent { lends: 0 }).count()
    }
}

impl Rig {
    /// Whether the parent can write a page.
    pub fn sees(&self, page: u64) -> bool {
        let mapping = self.hv.parent.space.read().get(page);
        matches!(mapping, Mapping::Memory { access, .. } if access.contains(Access::WRITE))
    }

    /// Checks what must hold at any time between two steps of the parent: that every page is whose the table says, is
    /// mapped where its owner allows, and is counted once.
    ///
    /// # Panics
    /// It does not hold.
    pub fn check(&self) {
        let lends = self.check_children();
        let parent = self.hv.parent.space.read();
        let mut covered = 0;
        for page in 16..self.ram {
            let mapping = parent.get(page);
            let lent = lends.get(&page).copied().unwrap_or(0);
            match self.owner(page) {
                PageOwner::Parent { lends } => {
                    assert!(
                        matches!(mapping, Mapping::Memory { frame, .. } if frame == page),
                        "page {page:#x} is hidden"
                    );
                    assert!(lends >= lent, "page {page:#x} is mapped more often than it is lent");
                    covered += lends - lent;
                }
                PageOwner::Deposited(_) => {
                    assert_eq!(mapping, Mapping::Empty, "the parent sees deposited page {page:#x}")
                }
                PageOwner::Used { shares, .. } => {
                    assert!(shares != 0 || mapping == Mapping::Empty, "the parent sees page {page:#x}");
                    assert_eq!(lent, 0, "page {page:#x} of the hypervisor is lent");
                }
                other => panic!("page {page:#x} is {other:?}"),
            }
        }
        drop(parent);
        // What lies under an overlay stays lent: two of a partition, three of each virtual processor.
        let overlays: usize = self.hv.children().map(|child| 2 + 3 * child.vps().count()).sum();
        assert!(covered <= overlays as u64, "{covered} pages are lent and mapped nowhere");
        self.check_pool(PARENT_OWNER, &self.hv.parent.pool.lock());
    }

    /// Checks the children's pools and mappings; gives how often each page of the parent is mapped.
    fn check_children(&self) -> HashMap<u64, u64> {
        let mut lends = HashMap::new();
        for child in self.hv.children() {
            let owner = Owner(child.slot + 1);
            self.check_pool(owner, &child.pool.lock());
            let mapped = child.read_space(|space| space.slat().mapped()).unwrap_or_default();
            for (page, frame, _) in mapped {
                match self.owner(frame) {
                    PageOwner::Parent { .. } => *lends.entry(frame).or_default() += 1,
                    PageOwner::Used { owner: user, shares } => {
                        assert!(user == owner && shares != 0, "GPA page {page:#x} is {frame:#x} of {user:?}");
                    }
                    other => panic!("GPA page {page:#x} is {frame:#x}, which is {other:?}"),
                }
            }
        }
        lends
    }

    fn check_pool(&self, owner: Owner, pool: &Pool) {
        let of_owner = |page: &u64| match self.owner(*page) {
            PageOwner::Deposited(other) | PageOwner::Used { owner: other, .. } => other == owner,
            _ => false,
        };
        let count = (16..self.ram).filter(of_owner).count() as u64;
        assert_eq!(pool.deposited(), count, "{owner:?} has what was deposited to it");
    }
}

impl Default for Rig {
    fn default() -> Self {
        Self::new()
    }
}

/// What CPUID says of a small AMD processor: 40 address bits, XSAVE with SSE and AVX.
fn describe(machine: &FakeMachine) {
    let word = |text: &[u8; 4]| u32::from_le_bytes(*text);
    machine.set_cpuid(0, 0, [0xD, word(b"Auth"), word(b"cAMD"), word(b"enti")]);
    machine.set_cpuid(1, 0, [0x0080_0F12, 0x0800, 0x7ED8_320B, 0x178B_FBFF]);
    machine.set_cpuid(0xD, 0, [7, 832, 832, 0]);
    machine.set_cpuid(0xD, 2, [256, 576, 0, 0]);
    machine.set_cpuid(0x8000_0000, 0, [0x8000_0021, 0, 0, 0]);
    machine.set_cpuid(0x8000_0008, 0, [0x3028, 0, 0, 0]);
}

/// A page that the parent's registers name, shown to it as the machine layer does at boot.
fn special(
    machine: &FakeMachine,
    table: &OwnershipTable,
    space: &mut ParentSpace<FakeMachine>,
    access: Access,
) -> Visible {
    let page = table.take_special().expect("the board has special pages");
    space.share(machine, table, &page, access).expect("the reserve has tables");
    page
}

impl Cpu {
    fn new(hv: &'static Hypervisor<FakeMachine>, index: usize, vcpu: super::FakeVcpu) -> Self {
        let machine = hv.machine.clone();
        let mut processor = machine.processor(index);
        let script = machine.script(index);
        let mut vp = ParentVp::new(hv, &processor, vcpu);
        if index != 0 {
            vp.lp.post(&machine, StartMessage::Startup(8));
            vp.wait_for_startup(&mut processor);
        }
        vp.vcpu.load(&mut processor);
        let base = 2 * index as u64;
        Self {
            index,
            processor,
            vp,
            script,
            machine,
            input: (INPUT + base) * PAGE,
            output: (OUTPUT + base) * PAGE,
        }
    }

    /// The GPA of the input page.
    pub fn input(&self) -> u64 {
        self.input
    }

    /// The GPA of the output page.
    pub fn output(&self) -> u64 {
        self.output
    }

    /// When the processor's timer is due.
    pub fn timer(&self) -> Option<u64> {
        self.processor.timer().map(|(deadline, _)| deadline)
    }

    /// The parent's registers.
    pub fn vcpu(&mut self) -> &mut super::FakeVcpu {
        &mut self.vp.vcpu
    }

    /// Has the parent exit once, with these registers set before.
    pub fn exit(&mut self, registers: &[(usize, u64)], exit: Exit) {
        self.script.exit_with(registers, exit);
        while self.script.left() != 0 {
            self.vp.step(&mut self.processor);
        }
    }

    /// Lets the parent see to what other processors have asked of it.
    pub fn idle(&mut self) {
        self.vp.step(&mut self.processor);
    }

    /// Takes the exception that the last exit raised, if it did.
    pub fn take_event(&mut self) -> Option<Event> {
        let event = self.vp.vcpu.pending_event();
        self.vp.vcpu.inject(None);
        event
    }

    /// RDMSR.
    pub fn rdmsr(&mut self, msr: u32) -> Result<u64, GeneralProtection> {
        self.exit(&[(gpr::RCX, msr.into())], Exit::ReadMsr { msr, length: Some(2) });
        self.fault()?;
        let r = self.vp.vcpu.gprs();
        Ok(r[gpr::RDX] << 32 | r[gpr::RAX])
    }

    /// WRMSR.
    pub fn wrmsr(&mut self, msr: u32, value: u64) -> Result<(), GeneralProtection> {
        self.exit(&[(gpr::RCX, msr.into())], Exit::WriteMsr { msr, value, length: Some(2) });
        self.fault()
    }

    fn fault(&mut self) -> Result<(), GeneralProtection> {
        match self.take_event() {
            None => Ok(()),
            Some(event) => {
                assert_eq!(event, Event::Exception(13, Some(0)), "an access to a register raises #GP only");
                Err(GeneralProtection)
            }
        }
    }

    /// Says who the parent is, and enables the hypercall page.
    pub fn enable_hypercalls(&mut self) {
        self.wrmsr(msr::GUEST_OS_ID, 0x8100 << 48).expect("anyone may say who they are");
        let page = self.rdmsr(msr::HYPERCALL).expect("the register is there");
        self.wrmsr(msr::HYPERCALL, page | 1).expect("the page is the one that was read");
    }

    /// Enables the message, event and ring pages, and SINT 0 and 5 with vector 0xF3, as Linux does.
    pub fn enable_synic(&mut self) {
        for register in [msr::SIMP, msr::SIEFP, msr::SIRBP] {
            let page = self.rdmsr(register).expect("the register is there");
            self.wrmsr(register, page | 1).expect("the page is the one that was read");
        }
        self.wrmsr(msr::SINT0, 0xF3).expect("a vector above 15");
        self.wrmsr(msr::SINT0 + 5, 0xF3 | 1 << 19).expect("a vector above 15");
        self.wrmsr(msr::SCONTROL, 1).expect("the register is there");
    }

    /// The frame of a page register's page.
    pub fn page_of(&mut self, register: u32) -> u64 {
        self.rdmsr(register).expect("the register is there") >> 12
    }

    /// Takes the message in slot 0, and ends it if more is waiting.
    pub fn take_message(&mut self) -> Option<Message> {
        let frame = self.page_of(msr::SIMP);
        let mut bytes = [0; MESSAGE_SIZE];
        self.machine.memory().read(frame, 0, &mut bytes);
        let message = Message::read_from_bytes(&bytes).expect("it has this size");
        if message.header.message_type == MessageType::NONE {
            return None;
        }
        self.machine.memory().write(frame, 0, &[0; 4]);
        if message.header.message_flags.message_pending() {
            self.wrmsr(msr::EOM, 0).expect("the register is there");
        }
        Some(message)
    }

    /// A hypercall with these registers: what is in RAX afterwards, or the exception that it raised.
    pub fn hypercall(&mut self, control: u64, input: u64, output: u64) -> Result<HypercallOutput, Event> {
        let registers = [(gpr::RCX, control), (gpr::RDX, input), (gpr::R8, output)];
        let rip = self.vp.vcpu.get(Reg::Rip);
        self.exit(&registers, Exit::Hypercall { length: Some(3) });
        match self.take_event() {
            Some(event) => Err(event),
            None => {
                let skipped = self.vp.vcpu.get(Reg::Rip).wrapping_sub(rip) & 0xFFFF;
                assert_eq!(skipped, 3, "the instruction is passed over");
                Ok(HypercallOutput::from(self.vp.vcpu.gprs()[gpr::RAX]))
            }
        }
    }

    /// Writes `bytes` to the start of the input page.
    pub fn write_input(&self, bytes: &[u8]) {
        self.machine.memory().write(self.input / PAGE, 0, bytes);
    }

    /// Reads `count` bytes of the output page.
    pub fn read_output(&self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.machine.memory().read(self.output / PAGE, 0, &mut bytes);
        bytes
    }

    /// A call without elements.
    pub fn simple<I: IntoBytes + Immutable + ?Sized>(
        &mut self,
        code: HypercallCode,
        input: &I,
    ) -> HvResult<()> {
        self.write_input(input.as_bytes());
        let control = HypercallInput::new().with_call_code(code.0);
        let result = self.hypercall(control.into(), self.input, self.output).expect("no exception");
        assert_eq!(result.reps_completed(), 0, "a call without elements completes none");
        result.status().ok()
    }

    /// A call without elements that answers something.
    pub fn query<I, O>(&mut self, code: HypercallCode, input: &I) -> HvResult<O>
    where
        I: IntoBytes + Immutable + ?Sized,
        O: FromBytes + KnownLayout,
    {
        self.machine.memory().write(self.output / PAGE, 0, &[0xAA; PAGE as usize]);
        self.simple(code, input)?;
        Ok(O::read_from_bytes(&self.read_output(size_of::<O>())).expect("it has this size"))
    }

    /// A call whose input is in registers: 16 bytes at most.
    pub fn fast<I: IntoBytes + Immutable + ?Sized>(
        &mut self,
        code: HypercallCode,
        input: &I,
    ) -> HvResult<()> {
        let mut words = [0u64; 2];
        words.as_mut_bytes()[..input.as_bytes().len()].copy_from_slice(input.as_bytes());
        let control = HypercallInput::new().with_call_code(code.0).with_fast(true);
        self.hypercall(control.into(), words[0], words[1]).expect("no exception").status().ok()
    }

    /// A call with elements: the status, and how many are done.
    pub fn rep<H, E>(
        &mut self,
        code: HypercallCode,
        header: &H,
        elements: &[E],
        reps: [u16; 2],
    ) -> (HvStatus, u16)
    where
        H: IntoBytes + Immutable + ?Sized,
        E: IntoBytes + Immutable,
    {
        let bytes = [header.as_bytes(), elements.as_bytes()].concat();
        self.write_input(&bytes[..bytes.len().min(PAGE as usize)]);
        let [start, count] = reps;
        let control =
            HypercallInput::new().with_call_code(code.0).with_rep_start(start).with_rep_count(count);
        let result = self.hypercall(control.into(), self.input, self.output).expect("no exception");
        (result.status(), result.reps_completed())
    }

    /// Takes the physical interrupts that wait, as the parent does whenever it has interrupts on.
    pub fn take_interrupts(&self) -> Vec<u8> {
        self.machine.take_parent_interrupts(self.index)
    }
}

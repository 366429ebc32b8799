//! A machine: partition, devices and processor threads, from power-on to the next power-off or reset.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parterre_chipset::pc::Pc;
use parterre_chipset::{ApicBus, ApicMessage, rtc};
use parterre_partition::memory::GuestMemory;
use parterre_partition::signal::Kicker;
use parterre_partition::{
    DeliveryMode, Error, Hypervisor, InterruptRequest, Partition, PartitionConfig, VirtualProcessor,
};
use parterre_vmbus_server::bus::{Bus, OfferError};

use crate::boot::{self, BootError, BootSource};
use crate::console::ConsoleLog;
use crate::crash::Crashes;
use crate::event::Events;
use crate::processor::{self, Board, PowerSwitch};
use crate::vmbus::VmBus;
use crate::vsp::{Attachment, Devices};

/// Stack of a processor thread: the run loop and the emulator need little.
const STACK_SIZE: usize = 128 << 10;
/// How long to wait for a processor to notice that it is to stop, before it is interrupted again.
const KICK_INTERVAL: Duration = Duration::from_millis(2);
/// Most pages that a guest may share with its devices, however large it is: 4 GiB.
const MAX_GPADL_PAGES: u64 = 1 << 20;
const PAGE_SIZE: u64 = 4096;

/// Why a machine cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The hypervisor or the kernel refused.
    #[error(transparent)]
    Partition(#[from] Error),
    /// The boot files are not right.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Two devices at one address.
    #[error(transparent)]
    Devices(#[from] parterre_chipset::bus::Overlap),
    /// A device that cannot be on VMBus.
    #[error(transparent)]
    Offer(#[from] OfferError),
    /// No thread for a processor.
    #[error("cannot start the thread of virtual processor {index}: {source}")]
    Thread {
        /// VP index.
        index: u8,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

/// The way from the IO-APIC to the partition's local APICs.
struct PartitionApics(Arc<dyn Partition>);

impl ApicBus for PartitionApics {
    fn send(&self, message: ApicMessage) {
        let mode = match message.delivery_mode {
            0 => DeliveryMode::Fixed,
            1 => DeliveryMode::LowestPriority,
            2 => DeliveryMode::Smi,
            4 => DeliveryMode::Nmi,
            5 => DeliveryMode::Init,
            7 => DeliveryMode::ExtInt,
            _ => return,
        };
        let request = InterruptRequest {
            mode,
            destination: message.destination.into(),
            vector: message.vector,
            level: message.level,
            logical: message.logical,
        };
        if let Err(error) = self.0.assert_interrupt(&request) {
            // A destination that does not exist is the guest's own doing; it misses the interrupt.
            processor::log_line(format_args!("{error}"));
        }
    }
}

/// A running machine. It must be ended with [`Machine::stop`].
pub struct Machine {
    board: Board,
    partition: Arc<dyn Partition>,
    threads: Vec<JoinHandle<()>>,
    kicker: Kicker,
    attachments: Vec<Arc<dyn Attachment>>,
}

/// What stays the same over all restarts of a machine.
pub struct Template {
    /// The hypervisor.
    pub hypervisor: Hypervisor,
    /// Shape of the partition.
    pub config: PartitionConfig,
    /// RAM.
    pub memory: Arc<GuestMemory>,
    /// What to boot.
    pub source: BootSource,
    /// Console output.
    pub console: ConsoleLog,
    /// Where events go.
    pub events: Events,
    /// The right to interrupt processor threads.
    pub kicker: Kicker,
    /// What stands on VMBus.
    pub devices: Devices,
    /// Hears of the guest's crashes.
    pub crashes: Arc<Crashes>,
    /// Every intercept is written to the log.
    pub trace: bool,
}

impl Template {
    /// Powers a machine on: clears memory, creates the partition, loads the guest, starts the processors. `step` hears
    /// what is being done.
    pub fn power_on(&self, step: &mut dyn FnMut(&str)) -> Result<Machine, MachineError> {
        step("creating the partition");
        self.memory.discard()?;
        let partition = Arc::new(self.hypervisor.create_partition(self.memory.clone())?);
        let mut processors = Vec::new();
        for index in 0..self.config.processors {
            let vp: Box<dyn VirtualProcessor> = Box::new(partition.create_vp(index)?);
            processors.push(vp);
        }
        step("loading the guest");
        let state = boot::load(&self.memory, &self.source, u32::from(self.config.processors))?;
        if let Some(first) = processors.first_mut() {
            first.set_arch_state(&state)?;
        }
        step("starting the processors");
        self.assemble(partition, processors)
    }

    /// Connects devices and starts the threads.
    fn assemble(
        &self,
        partition: Arc<dyn Partition>,
        processors: Vec<Box<dyn VirtualProcessor>>,
    ) -> Result<Machine, MachineError> {
        let stop = Arc::new(AtomicBool::new(false));
        let power = Arc::new(PowerSwitch::new(self.events.clone(), stop.clone()));
        let vmbus = self.vmbus(partition.clone())?;
        let apics = Arc::new(PartitionApics(partition.clone()));
        let wake = self.events.clone();
        let pc = Pc::new(
            apics,
            power,
            rtc::system_clock(),
            Box::new(self.console.clone()),
            Box::new(move || wake.wake()),
        )?;
        let (pc, ram, events) = (Arc::new(pc), self.memory.clone(), self.events.clone());
        let (crashes, gate) = (self.crashes.clone(), Arc::default());
        let board = Board { pc, ram, vmbus, crashes, events, stop, gate, trace: self.trace };
        let attachments = self.devices.attachments.clone();
        let mut machine = Machine { board, partition, threads: Vec::new(), kicker: self.kicker, attachments };
        for (index, mut vp) in (0u8..).zip(processors) {
            let board = machine.board.clone();
            let thread = thread::Builder::new()
                .name(format!("vp{index}"))
                .stack_size(STACK_SIZE)
                .spawn(move || processor::run(&mut *vp, &board));
            match thread {
                Ok(thread) => machine.threads.push(thread),
                Err(source) => {
                    machine.stop();
                    return Err(MachineError::Thread { index, source });
                }
            }
        }
        Ok(machine)
    }
}

impl Template {
    /// A new bus with all devices.
    fn vmbus(&self, partition: Arc<dyn Partition>) -> Result<VmBus, MachineError> {
        let ram: u64 = self.memory.ranges().iter().map(|range| range.len).sum();
        let max_gpadl_pages = (ram / PAGE_SIZE).min(MAX_GPADL_PAGES) as usize;
        let memory = Arc::new(self.memory.regions().clone());
        let processors = u32::from(self.config.processors);
        let listener = self.devices.listener.clone();
        let vmbus = VmBus::new(partition.clone(), memory, processors, max_gpadl_pages, listener);
        for device in &self.devices.devices {
            vmbus.offer(device.clone())?;
        }
        for attachment in &self.devices.attachments {
            attachment.attach(Arc::new(vmbus.clone()), partition.clone());
        }
        Ok(vmbus)
    }
}

impl Machine {
    /// The bus of the synthetic devices.
    pub fn vmbus(&self) -> &VmBus {
        &self.board.vmbus
    }

    /// The devices.
    pub fn pc(&self) -> &Pc {
        &self.board.pc
    }

    /// Has all processors and the guest's reference time stand still. Devices finish what they are at.
    pub fn pause(&self) {
        self.board.gate.close();
        let is_held = || {
            let running = self.threads.iter().filter(|thread| !thread.is_finished()).count();
            self.board.gate.waiting() >= running || self.board.stop.load(Ordering::Acquire)
        };
        while !is_held() {
            self.threads.iter().for_each(|thread| self.kicker.kick(thread));
            thread::sleep(KICK_INTERVAL);
        }
        if let Err(error) = self.partition.freeze_time(true) {
            processor::log_line(format_args!("{error}; it goes on while the machine is paused"));
        }
    }

    /// Has them go on, and the guest set its clock.
    pub fn resume(&self) {
        if let Err(error) = self.partition.freeze_time(false) {
            processor::log_line(format_args!("{error}"));
        }
        self.board.gate.open();
        for attachment in &self.attachments {
            attachment.resumed();
        }
    }

    /// Takes all processors out of the guest and ends their threads. The partition goes with the last of them.
    pub fn stop(self) {
        self.board.stop.store(true, Ordering::Release);
        self.board.gate.open();
        for thread in &self.threads {
            // A signal may come just before the thread enters the guest, hence the repetition.
            while !thread.is_finished() {
                self.kicker.kick(thread);
                thread::sleep(KICK_INTERVAL);
            }
        }
        for thread in self.threads {
            // A thread that panicked has ended as well; its machine is being taken down anyway.
            let _ = thread.join();
        }
        self.board.vmbus.stop();
        for attachment in &self.attachments {
            attachment.detach();
        }
    }
}

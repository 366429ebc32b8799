//! Dynamic memory: the guest's RAM as its device sees it, and the requests about it.

use std::sync::Arc;
use std::time::Duration;

use parterre_api::guest::GuestAnswer;
use parterre_api::{ErrorCode, MIN_ASSIGNED, MemoryRequest, MemoryStatus, check_memory};
use parterre_partition::memory::GuestMemory;
use parterre_vsp_memory::wire::PageRange;
use parterre_vsp_memory::{DynamicMemory, Ram, State};

const PAGE_SHIFT: u32 = 12;
/// Longest time that a request may wait for the guest.
const MAX_PATIENCE: u32 = 240;

struct GuestRam(Arc<GuestMemory>);

impl Ram for GuestRam {
    fn ranges(&self) -> Vec<PageRange> {
        let range = |ram: &parterre_partition::memory::RamRange| PageRange {
            first: ram.gpa >> PAGE_SHIFT,
            count: ram.len >> PAGE_SHIFT,
        };
        self.0.ranges().iter().map(range).collect()
    }

    fn release(&self, range: PageRange) -> std::io::Result<()> {
        let (gpa, len) = (range.first << PAGE_SHIFT, range.count << PAGE_SHIFT);
        self.0.discard_range(gpa, len).map_err(|error| std::io::Error::other(error.to_string()))
    }
}

/// Dynamic memory of one guest.
pub struct Memory {
    ram: Arc<GuestMemory>,
    device: DynamicMemory,
}

impl Memory {
    /// For a guest with this RAM.
    ///
    /// # Errors
    /// There is no file descriptor left.
    pub fn new(ram: Arc<GuestMemory>) -> std::io::Result<Memory> {
        let device = DynamicMemory::new(Arc::new(GuestRam(ram.clone())))?;
        Ok(Memory { ram, device })
    }

    /// What is offered on the bus.
    pub fn device(&self) -> Arc<DynamicMemory> {
        Arc::new(self.device.clone())
    }

    /// How the guest stands.
    pub fn status(&self) -> MemoryStatus {
        status(&self.device.state())
    }

    /// Has the guest come to an amount of memory, and waits for it.
    pub fn bring(&self, request: MemoryRequest) -> GuestAnswer {
        let state = self.device.state();
        let startup = state.ram << PAGE_SHIFT;
        if let Err(message) = check_memory(request.bytes, MIN_ASSIGNED) {
            return refused(ErrorCode::BadRequest, message);
        }
        if request.bytes > startup {
            let most = parterre_api::format_size(startup);
            let message = format!("it started with {most} and cannot have more before it is started again");
            return refused(ErrorCode::BadRequest, message);
        }
        if self.ram.is_pinned() {
            let message = "the parent's kernel holds all memory of its virtual machines for as long as they run; \
                           use a newer one, which can take memory back";
            return refused(ErrorCode::Conflict, message.into());
        }
        if !state.capabilities.is_some_and(|capabilities| capabilities.balloon) {
            let message = "the guest cannot give memory up (its driver hv_balloon is not loaded)";
            return refused(ErrorCode::Conflict, message.into());
        }
        self.device.set_target(request.bytes >> PAGE_SHIFT);
        let patience = Duration::from_secs(request.seconds.min(MAX_PATIENCE).into());
        GuestAnswer::Memory(status(&self.device.wait(patience)))
    }
}

fn refused(code: ErrorCode, message: String) -> GuestAnswer {
    GuestAnswer::Failed { code, message }
}

fn status(state: &State) -> MemoryStatus {
    MemoryStatus {
        assigned: state.assigned << PAGE_SHIFT,
        startup: state.ram << PAGE_SHIFT,
        target: state.target << PAGE_SHIFT,
        // The guest's numbers may be anything.
        demand: state.pressure.map(|pressure| pressure.committed.saturating_mul(1 << PAGE_SHIFT)),
        available: state.pressure.map(|pressure| pressure.available.saturating_mul(1 << PAGE_SHIFT)),
        version: state.version.map(|version| version.to_string()),
        settled: state.settled,
    }
}

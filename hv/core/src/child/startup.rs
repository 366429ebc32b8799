//! Starting a virtual processor by `HvCallStartVirtualProcessor`, with a whole context instead of a start-up message.
//!
//! The caller holds its own virtual processor's lock, so it cannot take the lock of the one that it starts: two could wait for
//! each other. It leaves the context here, and a signal beside those of INIT and SIPI; the started one takes both when it runs.

use super::{
    Child, cpuid,
    registers::{
        CR0_PE, CR0_PG, is_canonical, is_valid_cr0, is_valid_efer, is_valid_pat, is_valid_rflags, segment,
        table,
    },
};
use crate::{
    apic::Incoming,
    events::EFER_LMA,
    hypervisor::Hypervisor,
    machine::{Machine, Reg, SegmentName, TableName, Vcpu, gpr},
    power_on,
};
use parterre_abi::{
    hypercall::InitialVpContext,
    status::{HvResult, HvStatus},
};
use spin::Mutex;

/// Whether a virtual processor waits to be started, and the context that it was given.
pub(crate) struct Startup(Mutex<State>);

struct State {
    waits: bool,
    context: Option<InitialVpContext>,
}

impl Startup {
    /// Of a virtual processor that waits to be started, or does not.
    pub fn new(waits: bool) -> Self {
        Self(Mutex::new(State { waits, context: None }))
    }

    /// Leaves a context for it; only the first caller does. `false`: it does not wait to be started.
    fn leave(&self, incoming: &Incoming, context: InitialVpContext) -> bool {
        let mut state = self.0.lock();
        if !state.waits {
            return false;
        }
        *state = State { waits: false, context: Some(context) };
        incoming.post_start();
        true
    }

    /// It waits to be started from now on, unless it has just been; an INIT takes back a start that was not begun.
    pub fn wait(&self, incoming: &Incoming) {
        let mut state = self.0.lock();
        if !incoming.start_pending() {
            *state = State { waits: true, context: None };
        }
    }

    /// It has begun by itself, or by a start-up message.
    pub fn begun(&self, incoming: &Incoming) {
        let mut state = self.0.lock();
        incoming.take_start();
        *state = State { waits: false, context: None };
    }

    /// The context that was left, if it was not taken back.
    pub fn take(&self, incoming: &Incoming) -> Option<InitialVpContext> {
        let mut state = self.0.lock();
        incoming.take_start().then(|| state.context.take()).flatten()
    }
}

impl<M: Machine> Child<M> {
    /// Starts a virtual processor that has not been started.
    ///
    /// # Errors
    /// [`HvStatus::INVALID_VP_INDEX`]: there is none; [`HvStatus::INVALID_VP_STATE`]: it has been started;
    /// [`HvStatus::INVALID_REGISTER_VALUE`]: a processor cannot begin like this.
    pub(crate) fn start_vp(&self, hv: &Hypervisor<M>, index: u32, context: InitialVpContext) -> HvResult<()> {
        let vp = self.vp(index)?;
        let policy = self.policy.read();
        let context = checked(context, policy.physical_bits, cpuid::cr4(&hv.machine, &policy).allowed)?;
        drop(policy);
        if !vp.startup.leave(&vp.incoming, context) {
            return Err(HvStatus::INVALID_VP_STATE);
        }
        self.wake(hv, &vp);
        Ok(())
    }
}

const EFER_LME: u64 = 1 << 8;
const CR4_PAE: u64 = 1 << 5;
const RFLAGS_VM: u64 = 1 << 17;
/// Type of a segment: code.
const CODE: u8 = 1 << 3;
/// Type of a system segment: busy task state segment, less the bit that tells 16 from 32 bits.
const BUSY_TSS: u8 = 3;

/// The context as a processor can begin with it: long mode is active if it is enabled and paging is on.
///
/// # Errors
/// [`HvStatus::INVALID_REGISTER_VALUE`]: no processor can be in this state (AMD APM 2, 15.5.1; Intel SDM 3C, 27.3.1).
fn checked(mut context: InitialVpContext, physical_bits: u8, cr4: u64) -> HvResult<InitialVpContext> {
    let c = &mut context;
    let paging = c.cr0 & CR0_PG != 0;
    let long = paging && c.efer & EFER_LME != 0;
    let controls = is_valid_cr0(c.cr0)
        && c.cr4 & !cr4 == 0
        && is_valid_efer(c.efer)
        && is_valid_pat(c.msr_cr_pat)
        && c.cr3 >> physical_bits.min(63) == 0;
    let mode = if long { c.cr4 & CR4_PAE != 0 } else { c.efer & EFER_LMA == 0 };
    let flags = is_valid_rflags(c.rflags) && !(long && c.rflags & RFLAGS_VM != 0);
    let bases = [c.fs.base, c.gs.base, c.tr.base, c.ldtr.base, c.gdtr.base, c.idtr.base];
    let addresses = bases.into_iter().all(is_canonical) && (!long || is_canonical(c.rip));
    if !(controls && mode && flags && addresses && are_valid_segments(c, long)) {
        return Err(HvStatus::INVALID_REGISTER_VALUE);
    }
    if long {
        c.efer |= EFER_LMA;
    }
    Ok(context)
}

fn are_valid_segments(c: &InitialVpContext, long: bool) -> bool {
    let (code, task) = (c.cs.attributes, c.tr.attributes);
    let is_code = c.cr0 & CR0_PE == 0 || code.segment_type() & CODE != 0;
    let one_size = !(long && code.long() && code.default());
    let is_busy_task = !task.non_system_segment() && task.segment_type() & !CODE == BUSY_TSS;
    code.present() && code.non_system_segment() && is_code && one_size && task.present() && is_busy_task
}

/// Puts `vcpu` into its state after INIT, and then into the one that was asked for, which was checked.
pub(super) fn begin<V: Vcpu>(vcpu: &mut V, signature: u32, context: &InitialVpContext) {
    let c = context;
    power_on::init(vcpu, signature);
    vcpu.gprs_mut()[gpr::RSP] = c.rsp;
    let registers = [
        (Reg::Efer, c.efer),
        (Reg::Cr0, c.cr0 | 0x10),
        (Reg::Cr3, c.cr3),
        (Reg::Cr4, c.cr4),
        (Reg::Pat, c.msr_cr_pat),
        (Reg::Rip, c.rip),
        (Reg::Rflags, c.rflags | 2),
    ];
    registers.into_iter().for_each(|(register, value)| vcpu.set(register, value));
    let segments = [
        (SegmentName::Cs, c.cs),
        (SegmentName::Ds, c.ds),
        (SegmentName::Es, c.es),
        (SegmentName::Fs, c.fs),
        (SegmentName::Gs, c.gs),
        (SegmentName::Ss, c.ss),
        (SegmentName::Tr, c.tr),
        (SegmentName::Ldtr, c.ldtr),
    ];
    segments.into_iter().for_each(|(name, value)| vcpu.set_segment(name, segment(value)));
    vcpu.set_table(TableName::Idtr, table(c.idtr));
    vcpu.set_table(TableName::Gdtr, table(c.gdtr));
}

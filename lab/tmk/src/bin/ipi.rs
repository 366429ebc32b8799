//! Interrupts between processors: by the local APIC in all ways, and by hypercall.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use parterre_abi::hypercall::HypercallCode;
use parterre_abi::msr;
use parterre_abi::status::HvStatus;
use tmk::fault::{self, MAX_PROCESSORS};
use tmk::{TestResult, apic, check, cpu, hv, line, skip, smp, time};

tmk::program!("ipi":
    all_processors_start,
    to_self,
    to_each_other,
    to_all_but_self,
    to_all,
    from_each_to_the_first,
    to_halted_processor,
    many_in_a_row,
    nmi_to_another,
    by_hypercall,
    by_hypercall_to_self,
);

const VECTOR: u8 = 0x60;

static RECEIVED: [AtomicU32; MAX_PROCESSORS + 1] = [const { AtomicU32::new(0) }; MAX_PROCESSORS + 1];
static STOP: AtomicBool = AtomicBool::new(false);

fn receive() {
    RECEIVED[fault::processor_index()].fetch_add(1, Ordering::SeqCst);
    apic::eoi();
}

fn received(index: usize) -> u32 {
    RECEIVED[index].load(Ordering::SeqCst)
}

fn reset() {
    RECEIVED.iter().for_each(|count| count.store(0, Ordering::SeqCst));
    fault::set_handler(VECTOR, Some(receive));
}

/// What the others do meanwhile: they take interrupts until they are told to stop.
fn listen() {
    while !STOP.load(Ordering::SeqCst) {
        cpu::take_interrupts();
        core::hint::spin_loop();
    }
}

/// The same, halted in between.
fn listen_halted() {
    while !STOP.load(Ordering::SeqCst) {
        cpu::halt();
    }
}

/// Runs `test` while the others listen in the given way.
fn with_listeners(how: fn(), test: impl FnOnce() -> TestResult) -> TestResult {
    reset();
    STOP.store(false, Ordering::SeqCst);
    for index in 1..smp::count() {
        smp::give(index, how);
    }
    let result = test();
    STOP.store(true, Ordering::SeqCst);
    for index in 1..smp::count() {
        apic::send_ipi(VECTOR, smp::apic_id(index));
        check!(smp::finished(index), "processor {index} does not come back");
        // The last IPI may have come too late for the listener; the next test must not see it.
        smp::give(index, || {
            time::spin(1_000_000);
            cpu::take_interrupts();
        });
        smp::finished(index);
    }
    result
}

macro_rules! need_two {
    () => {
        if smp::count() < 2 {
            skip!("one processor only")
        }
    };
}

fn all_processors_start() -> TestResult {
    let named = tmk::acpi::apic_ids().len().max(1);
    line!("{} of {named} processors run", smp::count());
    check!(smp::count() == named, "{} of {named} processors run; {} came", smp::count(), smp::entered() + 1);
    Ok(())
}

fn to_self() -> TestResult {
    reset();
    apic::send_ipi(VECTOR, apic::id());
    let arrives = time::wait_until(time::LONG, || {
        cpu::take_interrupts();
        received(0) == 1
    });
    check!(arrives, "an IPI to its own APIC id does not arrive");
    Ok(())
}

fn to_each_other() -> TestResult {
    need_two!();
    with_listeners(listen, || {
        for index in 1..smp::count() {
            apic::send_ipi(VECTOR, smp::apic_id(index));
            check!(
                time::wait_until(time::LONG, || received(index) == 1),
                "processor {index} receives nothing"
            );
        }
        check!(received(0) == 0, "the sender receives its own IPI");
        Ok(())
    })
}

fn to_all_but_self() -> TestResult {
    need_two!();
    with_listeners(listen, || {
        apic::send(3 << 18 | 1 << 14 | u32::from(VECTOR), 0);
        for index in 1..smp::count() {
            check!(
                time::wait_until(time::LONG, || received(index) == 1),
                "processor {index} receives nothing"
            );
        }
        cpu::take_interrupts();
        check!(received(0) == 0, "the sender receives it too");
        Ok(())
    })
}

fn to_all() -> TestResult {
    need_two!();
    with_listeners(listen, || {
        apic::send(2 << 18 | 1 << 14 | u32::from(VECTOR), 0);
        for index in 0..smp::count() {
            let arrives = time::wait_until(time::LONG, || {
                cpu::take_interrupts();
                received(index) == 1
            });
            check!(arrives, "processor {index} receives {} instead of 1", received(index));
        }
        Ok(())
    })
}

fn from_each_to_the_first() -> TestResult {
    need_two!();
    reset();
    for index in 1..smp::count() {
        smp::give(index, || apic::send_ipi(VECTOR, smp::apic_id(0)));
        check!(smp::finished(index), "processor {index} does not come back");
        let arrives = time::wait_until(time::LONG, || {
            cpu::take_interrupts();
            received(0) == index as u32
        });
        check!(arrives, "nothing comes from processor {index}");
    }
    Ok(())
}

fn to_halted_processor() -> TestResult {
    need_two!();
    with_listeners(listen_halted, || {
        for round in 1..=20 {
            for index in 1..smp::count() {
                time::spin(200_000);
                apic::send_ipi(VECTOR, smp::apic_id(index));
                let arrives = time::wait_until(time::LONG, || received(index) == round);
                check!(arrives, "processor {index} is not woken, round {round}");
            }
        }
        Ok(())
    })
}

/// Sent without waiting, IPIs of one vector may merge, but the last one is never lost.
fn many_in_a_row() -> TestResult {
    need_two!();
    with_listeners(listen_halted, || {
        for round in 0..100 {
            let before = received(1);
            for _ in 0..round % 4 + 1 {
                apic::send_ipi(VECTOR, smp::apic_id(1));
            }
            check!(time::wait_until(time::LONG, || received(1) > before), "round {round} is lost");
        }
        Ok(())
    })
}

/// An NMI goes through although interrupts are off: here it ends what the other processor does.
fn nmi_to_another() -> TestResult {
    need_two!();
    static SEEN: AtomicU32 = AtomicU32::new(0);
    SEEN.store(0, Ordering::SeqCst);
    STOP.store(false, Ordering::SeqCst);
    smp::give(1, || {
        let outcome = tmk::catch(|| {
            SEEN.store(1, Ordering::SeqCst);
            while !STOP.load(Ordering::SeqCst) {
                core::hint::spin_loop();
            }
        });
        SEEN.store(if matches!(outcome, Err(fault) if fault.vector == 2) { 2 } else { 3 }, Ordering::SeqCst);
    });
    check!(time::wait_until(time::LONG, || SEEN.load(Ordering::SeqCst) == 1), "processor 1 does not start");
    apic::send(4 << 8 | 1 << 14, smp::apic_id(1));
    let arrives = time::wait_until(time::LONG, || SEEN.load(Ordering::SeqCst) >= 2);
    STOP.store(true, Ordering::SeqCst);
    check!(smp::finished(1), "processor 1 does not come back");
    check!(arrives && SEEN.load(Ordering::SeqCst) == 2, "the NMI does not arrive");
    Ok(())
}

/// The VP index of a processor, as it reads it itself.
fn vp_index(index: usize) -> u32 {
    static VP_INDEX: AtomicU32 = AtomicU32::new(0);
    if index == 0 {
        return cpu::rdmsr(msr::VP_INDEX) as u32;
    }
    smp::give(index, || VP_INDEX.store(cpu::rdmsr(msr::VP_INDEX) as u32, Ordering::SeqCst));
    smp::finished(index);
    VP_INDEX.load(Ordering::SeqCst)
}

fn by_hypercall() -> TestResult {
    need_two!();
    if !hv::enable_hypercalls() {
        skip!("no hypercalls")
    }
    let indices: arrayvec::ArrayVec<u32, { MAX_PROCESSORS + 1 }> = (0..smp::count()).map(vp_index).collect();
    with_listeners(listen_halted, || {
        for (index, vp) in indices.iter().enumerate().skip(1).filter(|(_, vp)| **vp < 64) {
            let output = hv::call_fast(HypercallCode::SEND_SYNTHETIC_CLUSTER_IPI, VECTOR.into(), 1 << vp);
            if matches!(output.status(), HvStatus::ACCESS_DENIED | HvStatus::INVALID_HYPERCALL_CODE) {
                skip!("{:?}", output.status())
            }
            check!(output.status().is_success(), "to VP {vp}: {:?}", output.status());
            check!(time::wait_until(time::LONG, || received(index) == 1), "VP {vp} receives nothing");
        }
        Ok(())
    })
}

fn by_hypercall_to_self() -> TestResult {
    if !hv::enable_hypercalls() {
        skip!("no hypercalls")
    }
    reset();
    let vp = vp_index(0);
    let output = hv::call_fast(HypercallCode::SEND_SYNTHETIC_CLUSTER_IPI, VECTOR.into(), 1 << (vp & 63));
    if matches!(output.status(), HvStatus::ACCESS_DENIED | HvStatus::INVALID_HYPERCALL_CODE) {
        skip!("{:?}", output.status())
    }
    check!(output.status().is_success(), "{:?}", output.status());
    let arrives = time::wait_until(time::LONG, || {
        cpu::take_interrupts();
        received(0) == 1
    });
    check!(arrives, "it does not arrive");
    Ok(())
}

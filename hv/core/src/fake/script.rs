//! What a virtual processor does in place of running instructions.

use std::{boxed::Box, collections::VecDeque, vec::Vec};

use super::lock::Lock;
use super::vcpu::FakeVcpu;
use crate::machine::{Event, Exit};

/// How a step of guest code ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// The next step follows at once.
    Next,
    /// This exit, then the next step.
    Exit(Exit),
    /// This exit, then the same step again: a fault whose cause the hypervisor removes.
    Again(Exit),
}

/// Guest code: gets the registers, and memory through the address space.
type Code = Box<dyn FnMut(&mut FakeVcpu) -> Flow + Send>;

/// The steps of a virtual processor, and what happened to it. Tests hold it while the hypervisor owns the processor.
#[derive(Default)]
pub struct Script {
    steps: Lock<VecDeque<Code>>,
    delivered: Lock<Vec<Event>>,
    flushes: Lock<u64>,
    runs: Lock<u64>,
}

impl Script {
    /// Adds guest code.
    pub fn code(&self, code: impl FnMut(&mut FakeVcpu) -> Flow + Send + 'static) -> &Self {
        self.steps.get().push_back(Box::new(code));
        self
    }

    /// Adds an exit.
    pub fn exit(&self, exit: Exit) -> &Self {
        self.code(move |_| Flow::Exit(exit))
    }

    /// Adds guest code that sets registers (by [`gpr`](crate::machine::gpr) number) and exits.
    pub fn exit_with(&self, registers: &[(usize, u64)], exit: Exit) -> &Self {
        let registers = registers.to_vec();
        self.code(move |vcpu| {
            use crate::machine::Vcpu;
            registers.iter().for_each(|&(register, value)| vcpu.gprs_mut()[register] = value);
            Flow::Exit(exit)
        })
    }

    /// How many steps are left.
    pub fn left(&self) -> usize {
        self.steps.get().len()
    }

    /// Takes the events that the processor was given so far.
    pub fn take_delivered(&self) -> Vec<Event> {
        core::mem::take(&mut self.delivered.get())
    }

    /// The events that the processor was given so far.
    pub fn delivered(&self) -> Vec<Event> {
        self.delivered.get().clone()
    }

    /// How often cached translations were dropped.
    pub fn flushes(&self) -> u64 {
        *self.flushes.get()
    }

    /// How often the processor was run.
    pub fn runs(&self) -> u64 {
        *self.runs.get()
    }

    pub(super) fn note_delivered(&self, event: Event) {
        self.delivered.get().push(event);
    }

    pub(super) fn note_flush(&self) {
        *self.flushes.get() += 1;
    }

    pub(super) fn note_run(&self) {
        *self.runs.get() += 1;
    }

    /// Does the next steps until one exits; `None` when there are no more.
    pub(super) fn advance(&self, vcpu: &mut FakeVcpu) -> Option<Exit> {
        loop {
            let mut step = self.steps.get().pop_front()?;
            match step(vcpu) {
                Flow::Next => {
                    if let Some(exit) = vcpu.window() {
                        return Some(exit);
                    }
                }
                Flow::Exit(exit) => return Some(exit),
                Flow::Again(exit) => {
                    self.steps.get().push_front(step);
                    return Some(exit);
                }
            }
        }
    }
}

//! Signals that would end the command while a guest stands still because of it.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Catches signals from its making on, for as long as the process lives: whoever has it lets the guest go on before it ends.
pub(super) struct Interrupts {
    terminal: Signal,
    others: [Signal; 2],
}

/// What came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interrupt {
    /// Ctrl-C on the terminal, which programs that were started from here get too.
    Terminal,
    /// Somebody wants this process to end.
    End,
}

impl Interrupts {
    /// Catches them. Needs a runtime around it.
    ///
    /// # Errors
    /// The system refuses.
    pub(super) fn catch() -> io::Result<Interrupts> {
        Ok(Interrupts {
            terminal: signal(SignalKind::interrupt())?,
            others: [signal(SignalKind::terminate())?, signal(SignalKind::hangup())?],
        })
    }

    /// Waits for one.
    pub(super) async fn next(&mut self) -> Interrupt {
        let [terminate, hangup] = &mut self.others;
        tokio::select! {
            _ = self.terminal.recv() => Interrupt::Terminal,
            _ = terminate.recv() => Interrupt::End,
            _ = hangup.recv() => Interrupt::End,
        }
    }
}

//! One turn of an open channel: what its thread does between two waits.

use crate::pace::Pace;
use crate::{ChannelError, Handler, Queue, Visit};

/// Most runs in one turn: a guest that fills the ring without end must not keep the thread from noticing that the channel
/// is to be closed.
const MAX_RUNS: usize = 64;

/// Whether to wait after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Turn {
    /// Nothing left to do: wait for a signal or a source.
    Wait,
    /// There is more to do.
    Again,
    /// Nothing left to do, but the guest is about to send more, and does not signal it: another turn when others have run.
    Yield,
}

/// Lets a handler do what is quickly done, on the thread of a VP. Says whether nothing is left that a turn would do.
pub fn visit(
    queue: &mut Queue,
    handler: &mut dyn Handler,
    pace: &mut Pace,
    vp: u32,
) -> Result<bool, ChannelError> {
    queue.begin(Some(vp))?;
    if pace.is_deep() {
        // More packets need no signal until the thread has looked.
        return Ok(false);
    }
    let visit = handler.visit(queue)?;
    pace.visited(queue.taken());
    match visit {
        Visit::Done => Ok(!queue.end()?),
        Visit::Rest => queue.flush().map(|()| false),
        // The turn that follows finds the ring as it is.
        Visit::Refused => Ok(false),
    }
}

/// Runs a handler until there is nothing to do.
pub fn turn(queue: &mut Queue, handler: &mut dyn Handler, pace: &mut Pace) -> Result<Turn, ChannelError> {
    for _ in 0..MAX_RUNS {
        queue.begin(None)?;
        handler.run(queue)?;
        pace.ran(queue.taken(), handler.under_way());
        if pace.is_deep() && handler.is_patient() && queue.has_drained_some() {
            queue.flush()?;
            return Ok(Turn::Yield);
        }
        if !queue.end()? {
            return Ok(Turn::Wait);
        }
    }
    Ok(Turn::Again)
}

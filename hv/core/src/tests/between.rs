//! Has something happen between two steps of a processor, so that every order of two processors' steps can be tried on one
//! thread.

use std::{boxed::Box, cell::RefCell};

type Action = Box<dyn FnOnce()>;

std::thread_local! {
    /// How many steps pass before the action.
    static NEXT: RefCell<Option<(usize, Action)>> = const { RefCell::new(None) };
}

/// Has `action` happen after `steps` more steps of this thread.
pub(super) fn after(steps: usize, action: impl FnOnce() + 'static) {
    NEXT.with(|next| *next.borrow_mut() = Some((steps, Box::new(action))));
}

/// Forgets what has not happened; whether there was something.
pub(super) fn cancel() -> bool {
    NEXT.with(|next| next.borrow_mut().take().is_some())
}

/// A step.
pub(crate) fn step() {
    let due = NEXT.with(|next| {
        let mut next = next.borrow_mut();
        match next.as_mut() {
            Some((0, _)) => next.take(),
            Some((steps, _)) => {
                *steps -= 1;
                None
            }
            None => None,
        }
    });
    if let Some((_, action)) = due {
        action();
    }
}

//! A value in a page.

use core::ops::{Deref, DerefMut};
use std::boxed::Box;

use crate::memory::Frame;

/// A value that stands for the content of a frame. The memory of that frame is not used.
#[derive(Debug)]
pub struct FakePage<T> {
    value: Box<T>,
    frame: Frame,
}

impl<T> FakePage<T> {
    pub(super) fn new(frame: Frame, value: T) -> Self {
        const { assert!(size_of::<T>() <= super::memory::PAGE, "the value does not fit a page") };
        Self { value: Box::new(value), frame }
    }

    pub(super) fn into_parts(self) -> (T, Frame) {
        (*self.value, self.frame)
    }
}

impl<T> Deref for FakePage<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for FakePage<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

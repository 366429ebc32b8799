//! The keyboard of a guest: keystrokes from the parent over VMBus.
//!
//! The guest asks for a version, the parent accepts or not, then sends keystrokes as make and break codes of scan code set 1;
//! the guest says which lights are on. [`keys`] knows the codes of keys and of text, [`Keyboard`] is the device.
//!
//! Source: Linux `drivers/input/serio/hyperv-keyboard.c`.

#![forbid(unsafe_code)]

mod device;
pub mod keys;
pub mod wire;

pub use device::{Keyboard, Lights, State};

//! The parent's side of a guest's screen: video memory that guest and parent share, and the talk about it.
//!
//! The guest asks for a version and the resolutions that there are, says where in its physical address space it wants the
//! video memory, and how the picture lies in it; then it draws. What is to be seen can be copied out at any time
//! ([`Screen::picture`]). Only while somebody looks ([`Screen::watch`]) does the guest tell what has changed.
//!
//! [`wire`] are the messages, [`session::Session`] the talk without input or output, [`Screen`] the device on VMBus. The
//! pointer is drawn by the guest itself. There is one screen, and no 3D.
//!
//! Sources: Linux `drivers/gpu/drm/hyperv` and, of older kernels, `drivers/video/fbdev/hyperv_fb.c`.

#![forbid(unsafe_code)]

mod device;
pub mod session;
pub mod wire;

pub use device::{Picture, Screen, State, VRAM_SIZE, Vram};

//! Page ownership: whose every physical page is, and the tokens that stand for it.

mod frame;

pub use frame::{Frame, Lent, Visible, entry};

//! Emulated PC devices for unenlightened guests

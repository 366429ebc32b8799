//! Hypercalls: the calling convention, and which function answers which call.
//!
//! [`Call`] is one call: its control word, where its input comes from and where its output goes. The modules below answer
//! calls by the chapter of the TLFS; they see a `Call`, never registers. Everything that a call brings is data of
//! somebody else: it is copied, checked, and answered with the status that the specification names.

mod frame;

pub(crate) use frame::{Call, Done, Memory};

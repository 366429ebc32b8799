//! Addresses for the guests of an internal switch: a DHCP server (RFC 2131) for one subnet that the parent is in.
//!
//! It is a state machine without input or output: [`Server::answer`] is told the time and a packet, and says what to send
//! to whom. The program `vdhcp` puts a socket around it; the management service starts one for each switch that wants it.
//!
//! A guest gets an address and the subnet's mask, and what [`Extras`] say: router and name servers only where the switch leads
//! further than to the parent. Relays, BOOTP and client identifiers other than the adapter's address are not there: an
//! adapter of a virtual machine is known by its Ethernet address.

#![forbid(unsafe_code)]

mod leases;
mod server;
mod subnet;

pub use leases::{Lease, Leases, MAX_LEASES};
pub use server::{Answer, CLIENT_PORT, Extras, LEASE_SECONDS, SERVER_PORT, Server};
pub use subnet::Subnet;

//! Who has which address, until when; and the text that this is kept as.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use parterre_api::MacAddress;

/// Most leases of a switch, so that nobody can use up memory by asking in many names.
pub const MAX_LEASES: usize = 4096;

/// What an adapter has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its address.
    pub address: Ipv4Addr,
    /// When it ends, in seconds since 1970.
    pub until: u64,
    /// The guest has been offered the address and has not taken it yet.
    pub offered: bool,
}

/// All leases of a switch. No two have the same address.
#[derive(Clone, Debug, Default)]
pub struct Leases {
    by_mac: BTreeMap<MacAddress, Lease>,
    by_address: BTreeMap<Ipv4Addr, MacAddress>,
}

impl Leases {
    /// Reads the text that [`Leases::to_text`] wrote. Lines that are damaged, or contradict those before, are left out.
    pub fn from_text(text: &str) -> Leases {
        let mut leases = Leases::default();
        for line in text.lines() {
            let mut words = line.split(' ');
            let mut word = || words.next().unwrap_or_default();
            let (Ok(mac), Ok(address), Ok(until)) = (word().parse(), word().parse(), word().parse()) else {
                continue;
            };
            if leases.of(mac).is_none() && leases.holder(address).is_none() {
                leases.set(mac, Lease { address, until, offered: false });
            }
        }
        leases
    }

    /// A line for each lease: the adapter's address, the address that it has, the end. Offers are not worth keeping.
    pub fn to_text(&self) -> String {
        self.taken().map(|(mac, lease)| format!("{mac} {} {}\n", lease.address, lease.until)).collect()
    }

    /// Those that guests have taken.
    pub fn taken(&self) -> impl Iterator<Item = (MacAddress, Lease)> {
        self.by_mac.iter().map(|(mac, lease)| (*mac, *lease)).filter(|(_, lease)| !lease.offered)
    }

    /// An adapter's.
    pub fn of(&self, mac: MacAddress) -> Option<Lease> {
        self.by_mac.get(&mac).copied()
    }

    /// Who has, or had, an address.
    pub fn holder(&self, address: Ipv4Addr) -> Option<(MacAddress, Lease)> {
        let mac = *self.by_address.get(&address)?;
        Some((mac, self.of(mac)?))
    }

    /// Takes an adapter's lease away.
    pub fn remove(&mut self, mac: MacAddress) {
        if let Some(lease) = self.by_mac.remove(&mac) {
            self.by_address.remove(&lease.address);
        }
    }

    /// Gives an adapter a lease, in place of what it had and of what another had of that address; `false`: there are too many.
    pub fn set(&mut self, mac: MacAddress, lease: Lease) -> bool {
        if self.by_mac.len() >= MAX_LEASES && !self.by_mac.contains_key(&mac) {
            return false;
        }
        self.remove(mac);
        if let Some(other) = self.by_address.insert(lease.address, mac) {
            self.by_mac.remove(&other);
        }
        self.by_mac.insert(mac, lease);
        true
    }

    /// Forgets what has ended.
    pub fn forget_ended(&mut self, now: u64) {
        self.by_mac.retain(|_, lease| lease.until > now);
        self.by_address.retain(|_, mac| self.by_mac.contains_key(mac));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_text_loses_what_is_damaged() {
        let good = "02:00:00:00:00:01 10.9.0.2 500\n02:00:00:00:00:02 10.9.0.3 600\n";
        assert_eq!(Leases::from_text(good).to_text(), good);
        let bad = format!(
            "\n\0\n02:00:00:00:00:09\n{good}02:00:00:00:00:03 10.9.0.2 700\n02:00:00:00:00:01 10.9.0.9 1\nx y"
        );
        assert_eq!(Leases::from_text(&bad).to_text(), good);
    }

    #[test]
    fn there_is_an_end_to_them() {
        let mut leases = Leases::default();
        let mac = |n: usize| MacAddress([2, 0, 0, 0, (n >> 8) as u8, n as u8]);
        let lease = |n: usize| Lease { address: Ipv4Addr::from_bits(n as u32), until: 9, offered: false };
        assert!((0..MAX_LEASES).all(|n| leases.set(mac(n), lease(n))));
        assert!(!leases.set(mac(MAX_LEASES), lease(MAX_LEASES)));
        assert!(leases.set(mac(0), lease(1)), "one that is there can be changed");
        assert_eq!((leases.of(mac(1)), leases.taken().count()), (None, MAX_LEASES - 1));
        leases.forget_ended(9);
        assert_eq!((leases.taken().count(), leases.by_address.len()), (0, 0));
    }
}

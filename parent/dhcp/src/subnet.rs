//! The subnet that addresses are given of.

use std::net::Ipv4Addr;

/// A subnet, and the parent's own address in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    own: Ipv4Addr,
    prefix: u8,
}

impl Subnet {
    /// A subnet by the parent's address and the length of the prefix.
    ///
    /// # Errors
    /// There would be no address for a guest, or the parent's is none of a host.
    pub fn new(own: Ipv4Addr, prefix: u8) -> Result<Subnet, String> {
        if !(8..=30).contains(&prefix) {
            return Err(format!("{own}/{prefix}: the prefix of a subnet with guests has 8 to 30 bits"));
        }
        let subnet = Subnet { own, prefix };
        if own.is_multicast() || own.is_loopback() || own.is_unspecified() || !subnet.is_host(own) {
            return Err(format!("{own}/{prefix}: {own} is not the address of a host in that subnet"));
        }
        Ok(subnet)
    }

    /// The parent's own address.
    pub fn own(&self) -> Ipv4Addr {
        self.own
    }

    /// The mask.
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX << (32 - self.prefix))
    }

    fn network(&self) -> u32 {
        self.own.to_bits() & self.mask().to_bits()
    }

    /// How many addresses of hosts there are.
    pub fn hosts(&self) -> u32 {
        !self.mask().to_bits() - 1
    }

    /// The address of a host, counted from the first and around the last.
    pub fn host(&self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network() + 1 + number % self.hosts())
    }

    fn is_host(&self, address: Ipv4Addr) -> bool {
        let host = address.to_bits().wrapping_sub(self.network());
        (1..=self.hosts()).contains(&host)
    }

    /// Whether a guest can have this address, if nobody else has.
    pub fn is_for_guests(&self, address: Ipv4Addr) -> bool {
        self.is_host(address) && address != self.own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_what_is_between_network_and_broadcast() {
        let subnet = Subnet::new(Ipv4Addr::new(10, 9, 0, 1), 30).unwrap();
        assert_eq!((subnet.hosts(), subnet.mask()), (2, Ipv4Addr::new(255, 255, 255, 252)));
        assert_eq!([0, 1, 2].map(|n| subnet.host(n).octets()[3]), [1, 2, 1]);
        let usable = |last| subnet.is_for_guests(Ipv4Addr::new(10, 9, 0, last));
        assert_eq!([0, 1, 2, 3, 4].map(usable), [false, false, true, false, false]);
        assert!(!subnet.is_for_guests(Ipv4Addr::BROADCAST));
    }

    #[test]
    fn subnets_without_room_are_refused() {
        let own = Ipv4Addr::new(10, 9, 0, 1);
        assert!([0, 7, 31, 32, 255].iter().all(|&prefix| Subnet::new(own, prefix).is_err()));
        for own in [[10, 9, 0, 0], [10, 9, 0, 255], [127, 0, 0, 1], [224, 0, 0, 1], [0, 0, 0, 0]] {
            assert!(Subnet::new(own.into(), 24).is_err(), "{own:?}");
        }
    }
}

//! Ports as GUIDs: `<port>-facb-11e6-bd58-64006a7986d3`.

use parterre_vmbus_server::Guid;

/// Port 0.
const TEMPLATE: u128 = 0x0000_0000_facb_11e6_bd58_6400_6a79_86d3;
const PORT_SHIFT: u32 = 96;

/// The GUID of a port.
pub const fn of_port(port: u32) -> Guid {
    Guid::from_u128(TEMPLATE | (port as u128) << PORT_SHIFT)
}

/// The port of a GUID, if it is one.
pub const fn port_of(guid: Guid) -> Option<u32> {
    let digits = guid.to_u128();
    let port = (digits >> PORT_SHIFT) as u32;
    if digits == TEMPLATE | (port as u128) << PORT_SHIFT { Some(port) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_go_there_and_back() {
        for port in [0, 1, 22, 0x8000_0000, u32::MAX] {
            assert_eq!(port_of(of_port(port)), Some(port));
        }
        assert_eq!(of_port(0x1234).to_string(), "00001234-facb-11e6-bd58-64006a7986d3");
        assert_eq!(port_of(Guid::from_u128(TEMPLATE ^ 1)), None);
        assert_eq!(port_of(Guid::NIL), None);
    }
}

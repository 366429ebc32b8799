//! Does what is printed on the firmware's console come out of a given serial port already?
//!
//! Many firmwares mirror their console on a serial line. A message is then written once, not twice. The answer comes
//! from the device paths of the console's output devices (UEFI 2.10, 10.3 "Device Path Nodes"): a serial line is an
//! ACPI node PNP0501, whose UID counts the ports, followed by a UART node.

use crate::bytes::{u8_at, u16_at, u32_at};

const ACPI: (u8, u8) = (2, 1);
const UART: (u8, u8) = (3, 14);
const END_ALL: (u8, u8) = (0x7f, 0xff);

/// PNP0501 as a compressed EISA identifier.
const PNP0501: u32 = 0x0501_41d0;

/// The conventional I/O ports of COM1 to COM4.
const PORTS: [u16; 4] = [0x3f8, 0x2f8, 0x3e8, 0x2e8];

/// Whether `path` (the bytes of device paths, one or several instances) leads to the serial line at I/O port `port`.
pub fn leads_to_port(path: &[u8], port: u16) -> bool {
    let mut rest = path;
    let mut serial = None;
    // A node is type, subtype, length (itself included), data.
    while let (Some(kind), Some(subtype), Some(length)) = (u8_at(rest, 0), u8_at(rest, 1), u16_at(rest, 2)) {
        let (node, length) = ((kind, subtype), usize::from(length));
        if node == END_ALL || length < 4 || length > rest.len() {
            return false;
        }
        match node {
            ACPI if u32_at(rest, 4) == Some(PNP0501) => serial = u32_at(rest, 8),
            UART => {
                let uid = serial.take().and_then(|uid| usize::try_from(uid).ok());
                if uid.and_then(|uid| PORTS.get(uid)) == Some(&port) {
                    return true;
                }
            }
            _ => serial = None,
        }
        rest = &rest[length..];
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(kind: (u8, u8), data: &[u8]) -> Vec<u8> {
        let length = (4 + data.len()) as u16;
        [&[kind.0, kind.1], length.to_le_bytes().as_slice(), data].concat()
    }

    fn acpi(hid: u32, uid: u32) -> Vec<u8> {
        node(ACPI, &[hid.to_le_bytes(), uid.to_le_bytes()].concat())
    }

    #[test]
    fn a_serial_console_is_recognized() {
        let bridge = acpi(0x0a03_41d0, 0);
        let (uart, end) = (node(UART, &[0; 15]), node(END_ALL, &[]));
        let next = node((0x7f, 1), &[]);
        let com1 =
            [bridge.clone(), node((1, 1), &[0, 1]), acpi(PNP0501, 0), uart.clone(), end.clone()].concat();
        assert!(leads_to_port(&com1, 0x3f8));
        assert!(!leads_to_port(&com1, 0x2f8));
        let both = [bridge.clone(), next, acpi(PNP0501, 1), uart.clone(), end.clone()].concat();
        assert!(leads_to_port(&both, 0x2f8));
        let screen = [bridge, node((2, 3), &[0; 4]), end.clone()].concat();
        assert!(!leads_to_port(&screen, 0x3f8));
        assert!(!leads_to_port(&[end, acpi(PNP0501, 0), uart.clone()].concat(), 0x3f8), "behind the end");
        assert!(!leads_to_port(&uart, 0x3f8));
        assert!(!leads_to_port(&[acpi(PNP0501, 9), uart].concat(), 0x3f8));
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = leads_to_port(&bytes, 0x3f8);
        }
    }
}

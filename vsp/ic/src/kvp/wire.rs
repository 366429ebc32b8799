//! Messages of data exchange.
//!
//! Source: Linux `include/uapi/linux/hyperv.h`, `struct hv_kvp_msg` and `struct hv_kvp_ip_msg`. Text is UTF-16 with a
//! terminating zero, sizes are in bytes and count the zero.

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Addresses, Item, Pool};
use crate::text;

/// Bytes of a key.
pub const KEY_SIZE: usize = 512;
/// Bytes of a value.
pub const VALUE_SIZE: usize = 2048;

const OP_SET: u8 = 1;
const OP_DELETE: u8 = 2;
const OP_ENUMERATE: u8 = 3;
const OP_GET_IP: u8 = 4;
const OP_SET_IP: u8 = 5;

/// Value type: text.
const TYPE_TEXT: u32 = 1;
/// Value type: 32 bits.
const TYPE_U32: u32 = 4;
/// Value type: 64 bits.
const TYPE_U64: u32 = 8;

const ADAPTER_SIZE: usize = 2 * 128;
const ADDRESS_SIZE: usize = 2 * 1024;
const GATEWAY_SIZE: usize = 2 * 512;

#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct Header {
    operation: u8,
    pool: u8,
    pad: [u8; 2],
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct Exchange {
    value_type: U32,
    key_size: U32,
    value_size: U32,
    key: [u8; KEY_SIZE],
    value: [u8; VALUE_SIZE],
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct EnumerateMessage {
    header: Header,
    index: U32,
    data: Exchange,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct SetMessage {
    header: Header,
    data: Exchange,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct DeleteMessage {
    header: Header,
    key_size: U32,
    key: [u8; KEY_SIZE],
}

/// Unlike the others it has a header of two bytes.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct AddressMessage {
    operation: u8,
    pool: u8,
    adapter: [u8; ADAPTER_SIZE],
    family: u8,
    dhcp: u8,
    addresses: [u8; ADDRESS_SIZE],
    subnets: [u8; ADDRESS_SIZE],
    gateways: [u8; GATEWAY_SIZE],
    dns: [u8; ADDRESS_SIZE],
}

const _: () = assert!(size_of::<EnumerateMessage>() == 2580 && size_of::<AddressMessage>() == 7428);

/// Longest body.
pub const MAX_BODY: usize = size_of::<AddressMessage>();

fn header(operation: u8, pool: Pool) -> Header {
    Header { operation, pool: pool as u8, pad: [0; 2] }
}

fn key_field(key: &str, field: &mut [u8; KEY_SIZE]) -> Option<U32> {
    if key.is_empty() || key.contains('\0') {
        return None;
    }
    Some((text::encode(key, field)? as u32).into())
}

/// Asks for the item with this number.
pub fn enumerate(pool: Pool, index: u32) -> Vec<u8> {
    let data = Exchange::new_zeroed();
    EnumerateMessage { header: header(OP_ENUMERATE, pool), index: index.into(), data }.as_bytes().to_vec()
}

/// Sets an item. `None` if it does not fit.
pub fn set(pool: Pool, item: &Item) -> Option<Vec<u8>> {
    let mut data = Exchange::new_zeroed();
    data.value_type = TYPE_TEXT.into();
    data.key_size = key_field(&item.key, &mut data.key)?;
    data.value_size = (text::encode(&item.value, &mut data.value)? as u32).into();
    Some(SetMessage { header: header(OP_SET, pool), data }.as_bytes().to_vec())
}

/// Deletes an item. `None` if it cannot be a key.
pub fn delete(pool: Pool, key: &str) -> Option<Vec<u8>> {
    let mut message = DeleteMessage::new_zeroed();
    message.header = header(OP_DELETE, pool);
    message.key_size = key_field(key, &mut message.key)?;
    Some(message.as_bytes().to_vec())
}

/// Asks for the addresses of an adapter. `None` if it cannot be the name of one.
pub fn get_addresses(adapter: &str) -> Option<Vec<u8>> {
    let mut message = AddressMessage::new_zeroed();
    message.operation = OP_GET_IP;
    text::encode(adapter, &mut message.adapter)?;
    Some(message.as_bytes().to_vec())
}

/// Sets the addresses of an adapter. `None` if something does not fit.
pub fn set_addresses(adapter: &str, addresses: &Addresses) -> Option<Vec<u8>> {
    let mut message = AddressMessage::new_zeroed();
    message.operation = OP_SET_IP;
    message.dhcp = addresses.dhcp.into();
    message.family = addresses.family();
    text::encode(adapter, &mut message.adapter)?;
    text::encode(&addresses.addresses.join(";"), &mut message.addresses)?;
    text::encode(&addresses.subnets.join(";"), &mut message.subnets)?;
    text::encode(&addresses.gateways.join(";"), &mut message.gateways)?;
    text::encode(&addresses.dns.join(";"), &mut message.dns)?;
    Some(message.as_bytes().to_vec())
}

/// The part of a field that the guest says is used.
fn used(field: &[u8], size: U32) -> &[u8] {
    let size = usize::try_from(size.get()).unwrap_or(usize::MAX);
    &field[..size.min(field.len())]
}

/// Reads the answer to [`enumerate`].
pub fn read_item(body: &[u8]) -> Result<Item, &'static str> {
    let (message, _) = EnumerateMessage::ref_from_prefix(body).map_err(|_| "an item is cut off")?;
    let data = &message.data;
    let key = text::decode(used(&data.key, data.key_size));
    if key.is_empty() {
        return Err("an item has no key");
    }
    let scalar = |size: usize| {
        let bytes = used(&data.value, data.value_size).get(..size)?;
        Some(bytes.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte)).to_string())
    };
    let value = match data.value_type.get() {
        TYPE_TEXT => text::decode(used(&data.value, data.value_size)),
        TYPE_U32 => scalar(4).ok_or("a number is cut off")?,
        TYPE_U64 => scalar(8).ok_or("a number is cut off")?,
        _ => return Err("an item is of an unknown type"),
    };
    Ok(Item { key, value })
}

/// Reads the answer to [`get_addresses`].
pub fn read_addresses(body: &[u8]) -> Result<Addresses, &'static str> {
    let (message, _) =
        AddressMessage::ref_from_prefix(body).map_err(|_| "an adapter's addresses are cut off")?;
    let list = |field: &[u8]| -> Vec<String> {
        let text = text::decode(field);
        text.split(';').map(str::trim).filter(|part| !part.is_empty()).map(String::from).collect()
    };
    Ok(Addresses {
        dhcp: message.dhcp != 0,
        addresses: list(&message.addresses),
        subnets: list(&message.subnets),
        gateways: list(&message.gateways),
        dns: list(&message.dns),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn items_have_the_layout_that_linux_reads() {
        let item = Item { key: "k".into(), value: "vé".into() };
        let body = set(Pool::External, &item).unwrap();
        assert_eq!(body.len(), 2576);
        assert_eq!(body[..16], [1, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 6, 0, 0, 0]);
        assert_eq!(body[16..20], [b'k', 0, 0, 0]);
        assert_eq!(body[528..534], [b'v', 0, 0xE9, 0, 0, 0]);
        assert_eq!(delete(Pool::External, "k").unwrap().len(), 520);
        assert_eq!(enumerate(Pool::Auto, 7)[..8], [3, 2, 0, 0, 7, 0, 0, 0]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let long = "x".repeat(256);
        assert_eq!(set(Pool::External, &Item { key: long.clone(), value: String::new() }), None);
        assert_eq!(set(Pool::External, &Item { key: "k".into(), value: "v".repeat(1024) }), None);
        assert_eq!(delete(Pool::External, ""), None);
        assert_eq!(get_addresses(&long), None);
    }

    /// The answer of a guest to a request for an item.
    fn answer(value_type: u32, key: &str, value: &[u8]) -> Vec<u8> {
        let mut message = EnumerateMessage::new_zeroed();
        message.data.value_type = value_type.into();
        message.data.key_size = (text::encode(key, &mut message.data.key).unwrap() as u32).into();
        message.data.value_size = (value.len() as u32).into();
        message.data.value[..value.len()].copy_from_slice(value);
        message.as_bytes().to_vec()
    }

    #[test]
    fn values_are_text_or_numbers() {
        let read =
            |value_type, value: &[u8]| read_item(&answer(value_type, "k", value)).map(|item| item.value);
        assert_eq!(read(1, &[b'v', 0, 0, 0]), Ok("v".into()));
        assert_eq!(read(4, &[1, 2, 0, 0]), Ok("513".into()));
        assert_eq!(read(8, &[1, 0, 0, 0, 1, 0, 0, 0]), Ok("4294967297".into()));
        assert!(read(8, &[1]).is_err());
        assert!(read(3, &[1]).is_err());
        assert!(read_item(&answer(1, "", &[])).is_err());
        assert!(read_item(&[0; 100]).is_err());
    }

    #[test]
    fn addresses_go_there_and_back() {
        let addresses = Addresses {
            dhcp: true,
            addresses: vec!["10.0.0.2".into(), "10.0.0.3".into()],
            subnets: vec!["255.0.0.0".into()],
            gateways: Vec::new(),
            dns: vec!["10.0.0.1".into()],
        };
        let body = set_addresses("{guid}", &addresses).unwrap();
        assert_eq!(read_addresses(&body), Ok(addresses));
        assert_eq!(body[..2], [5, 0]);
    }

    proptest! {
        #[test]
        fn any_answer_can_be_read(mut body in prop::collection::vec(any::<u8>(), 0..3000), sizes: [u32; 3]) {
            for (place, size) in body.get_mut(8..20).into_iter().flat_map(|b| b.chunks_exact_mut(4)).zip(sizes) {
                place.copy_from_slice(&size.to_le_bytes());
            }
            if let Ok(item) = read_item(&body) {
                prop_assert!(item.key.chars().count() <= 256 && item.value.chars().count() <= 1024);
            }
            let _ = read_addresses(&body);
        }
    }
}

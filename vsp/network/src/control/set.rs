//! Objects that a guest can write.

use super::{Control, Scaling};
use crate::frame::MacAddress;
use crate::protocol::ndis::{self, OffloadParameters, ReceiveScaleParameters};
use crate::protocol::rndis::{Status, filter, oid};
use crate::protocol::{read, read_padded};

/// Most addresses of a multicast list.
pub(super) const MAX_MULTICAST: usize = 32;
/// Bits of a packet filter that are known.
const FILTERS: u32 =
    filter::DIRECTED | filter::MULTICAST | filter::ALL_MULTICAST | filter::BROADCAST | filter::PROMISCUOUS;
/// Most entries of an indirection table.
const MAX_TABLE: usize = 256;
/// The name of the configuration parameter that holds the adapter's address.
const NETWORK_ADDRESS: &str = "NetworkAddress";
/// The parameter is text.
const PARAMETER_TEXT: u32 = 2;

impl Control {
    /// Takes an object's new value.
    pub(super) fn set_object(&mut self, object: u32, value: &[u8]) -> Result<(), Status> {
        match object {
            oid::GEN_CURRENT_PACKET_FILTER => {
                let filter: u32 = read(value).ok_or(Status::InvalidLength)?;
                if filter & !FILTERS != 0 {
                    return Err(Status::NotSupported);
                }
                self.filter = filter;
                Ok(())
            }
            oid::GEN_CURRENT_LOOKAHEAD => read::<u32>(value).map(drop).ok_or(Status::InvalidLength),
            // Group addresses are not told apart: the guest gets all, and drops what it does not want.
            oid::ETHERNET_MULTICAST_LIST => match value.len() {
                len if len % 6 != 0 => Err(Status::InvalidLength),
                len if len > MAX_MULTICAST * 6 => Err(Status::InvalidData),
                _ => Ok(()),
            },
            oid::ETHERNET_CURRENT_ADDRESS => self.set_mac(read(value).ok_or(Status::InvalidLength)?),
            oid::GEN_CONFIG_PARAMETER => self.set_parameter(value),
            oid::TCP_OFFLOAD_PARAMETERS => self.set_offloads(value),
            oid::GEN_RECEIVE_SCALE_PARAMETERS => {
                self.scaling = scaling(value, &self.scaling, self.identity.queues)?;
                Ok(())
            }
            // Encapsulation is Ethernet; there is nothing to choose.
            oid::OFFLOAD_ENCAPSULATION => Ok(()),
            _ => Err(Status::InvalidOid),
        }
    }

    fn set_mac(&mut self, mac: MacAddress) -> Result<(), Status> {
        if mac == self.mac {
            return Ok(());
        }
        let group = mac[0] & 1 != 0;
        if group || mac == [0; 6] {
            return Err(Status::InvalidData);
        }
        if !self.identity.may_change_mac {
            return Err(Status::Failure);
        }
        self.mac = mac;
        Ok(())
    }

    /// A parameter by name, which is how Linux changes the address. Name and value are UTF-16.
    fn set_parameter(&mut self, value: &[u8]) -> Result<(), Status> {
        let [name_at, name_len, kind, value_at, value_len]: [u32; 5] =
            read(value).ok_or(Status::InvalidLength)?;
        let name = text(value, name_at, name_len)?;
        let parameter = text(value, value_at, value_len)?;
        if name.trim_end_matches('\0') != NETWORK_ADDRESS || kind != PARAMETER_TEXT {
            return Err(Status::NotSupported);
        }
        let mut mac = [0; 6];
        if parameter.len() != 12 || !parameter.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Status::InvalidData);
        }
        for (byte, digits) in mac.iter_mut().zip(parameter.as_bytes().chunks_exact(2)) {
            let digits = str::from_utf8(digits).map_err(|_| Status::InvalidData)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| Status::InvalidData)?;
        }
        self.set_mac(mac)
    }

    fn set_offloads(&mut self, value: &[u8]) -> Result<(), Status> {
        if value.len() < ndis::OFFLOAD_PARAMETERS_MIN {
            return Err(Status::InvalidLength);
        }
        let wanted: OffloadParameters = read_padded(value);
        if wanted.header.kind != ndis::TYPE_DEFAULT {
            return Err(Status::InvalidData);
        }
        let mut offloads = self.offloads;
        let checksums = [wanted.tcp_v4, wanted.udp_v4, wanted.tcp_v6, wanted.udp_v6];
        for (receive, wanted) in offloads.receive_checksums.iter_mut().zip(checksums) {
            *receive = match wanted {
                0 => *receive,
                // Neither; sending only.
                1 | 2 => false,
                // Receiving only; both.
                3 | 4 => true,
                _ => return Err(Status::InvalidData),
            };
        }
        let settled = self.starts == 1 && is_linux_before_its_features(&wanted) && self.can_coalesce;
        for (coalesce, wanted) in
            [(&mut offloads.coalesce_v4, wanted.coalesce_v4), (&mut offloads.coalesce_v6, wanted.coalesce_v6)]
        {
            *coalesce = match wanted {
                0 => *coalesce,
                ndis::OFF => settled,
                ndis::ON if self.can_coalesce => true,
                ndis::ON => return Err(Status::NotSupported),
                _ => return Err(Status::InvalidData),
            };
        }
        self.offloads = offloads;
        Ok(())
    }
}

/// Whether these are the first parameters that Linux sends. Its driver asks for no coalescing there only because it has
/// not set its own features yet; a moment later `NETIF_F_LRO` is among them, of which it tells us nothing. When the guest
/// begins to forward packets, Linux switches the feature off, and that it tells. (Linux `rndis_netdev_set_hwcaps`,
/// `netvsc_probe`.) Its mark is that it leaves the IPv4 header's checksum to itself, always.
fn is_linux_before_its_features(wanted: &OffloadParameters) -> bool {
    wanted.v4 == ndis::CHECKSUM_OFF && wanted.tcp_v4 == ndis::CHECKSUM_SEND_AND_RECEIVE
}

/// UTF-16 text inside of a value.
fn text(value: &[u8], offset: u32, len: u32) -> Result<String, Status> {
    let start = offset as usize;
    let end = start.checked_add(len as usize).ok_or(Status::InvalidLength)?;
    let bytes = value.get(start..end).ok_or(Status::InvalidLength)?;
    let words: Vec<u16> = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
    String::from_utf16(&words).map_err(|_| Status::InvalidData)
}

/// Reads parameters of receive-side scaling over what was before.
fn scaling(value: &[u8], before: &Scaling, queues: u16) -> Result<Scaling, Status> {
    let parameters: ReceiveScaleParameters = read(value).ok_or(Status::InvalidLength)?;
    if parameters.header.kind != ndis::TYPE_RSS_PARAMETERS {
        return Err(Status::InvalidData);
    }
    if parameters.flags & ndis::RSS_DISABLE != 0 {
        return Ok(Scaling { table: Vec::new(), ..before.clone() });
    }
    let part = |offset: u32, len: u16| {
        let start = offset as usize;
        value.get(start..start.saturating_add(usize::from(len))).ok_or(Status::InvalidLength)
    };
    let mut scaling = before.clone();
    if parameters.flags & ndis::RSS_HASH_UNCHANGED == 0 {
        scaling.hash = parameters.hash;
    }
    if parameters.flags & ndis::RSS_KEY_UNCHANGED == 0 {
        if usize::from(parameters.key_len) > ndis::RSS_KEY_MAX {
            return Err(Status::InvalidData);
        }
        scaling.key = part(parameters.key_offset, parameters.key_len)?.to_vec();
    }
    if parameters.flags & ndis::RSS_TABLE_UNCHANGED == 0 {
        let table = part(parameters.table_offset, parameters.table_len)?;
        if table.len() / 4 > MAX_TABLE {
            return Err(Status::InvalidData);
        }
        let entry = |bytes: &[u8]| {
            read::<u32>(bytes).and_then(|queue| u16::try_from(queue).ok()).filter(|queue| *queue < queues)
        };
        scaling.table =
            table.chunks_exact(4).map(entry).collect::<Option<Vec<u16>>>().ok_or(Status::InvalidData)?;
    }
    Ok(scaling)
}

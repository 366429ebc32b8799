//! NAT for internal switches that want it: guests reach what the parent reaches, by the parent's address.
//!
//! It is one table of the parent's packet filter (nftables), which is written whole whenever a switch comes or goes, by the program
//! `nft`. The parent has to forward packets for it, which it then does for all its interfaces; so the table also keeps
//! everything away from internal switches that their guests did not ask for, and the guests of other internal switches where
//! they are. IPv6 is neither translated nor forwarded. Nobody outside reaches a guest by himself: no port is mapped.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use parterre_api::{SwitchKind, SwitchSettings, parse_prefix};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use uuid::Uuid;

use super::{Said, bridge_name};

/// Whether the parent forwards packets from one interface to another.
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
/// Takes the table away, whether it is there or not.
const NO_TABLE: &str = "table ip parterre\ndelete table ip parterre\n";

/// The table, and what is remembered of the parent before it.
pub(super) struct Nat {
    /// There while the table is: what [`FORWARDING`] was before. It does not outlive the parent's kernel.
    before: PathBuf,
}

/// A subnet in the notation of nftables.
fn subnet(address: &str) -> Option<String> {
    match parse_prefix(address) {
        Ok((IpAddr::V4(own), prefix)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix))?;
            Some(format!("{}/{prefix}", Ipv4Addr::from_bits(own.to_bits() & mask)))
        }
        _ => None,
    }
}

/// The table for these switches; none if no switch wants NAT.
fn table<'a>(switches: impl Iterator<Item = (Uuid, &'a SwitchSettings)>) -> Option<String> {
    let (mut translate, mut inside, mut apart) = (String::new(), String::new(), String::new());
    let (mut bridges, mut wanted) = (Vec::new(), false);
    for (id, settings) in switches {
        let SwitchKind::Internal { address, nat, .. } = &settings.kind else { continue };
        let bridge = format!("\"{}\"", bridge_name(id));
        // Writing to text does not fail.
        let _ = writeln!(inside, "    iifname {bridge} oifname {bridge} accept");
        match address.as_deref().filter(|_| *nat).and_then(subnet) {
            Some(subnet) => {
                wanted = true;
                let _ = writeln!(translate, "    ip saddr {subnet} oifname != {bridge} masquerade");
                let _ = writeln!(apart, "    iifname {bridge} ip saddr != {subnet} drop");
            }
            None => {
                let _ = writeln!(apart, "    iifname {bridge} drop");
            }
        }
        bridges.push(bridge);
    }
    let bridges = bridges.join(", ");
    wanted.then(|| {
        format!(
            "{NO_TABLE}table ip parterre {{\n  chain postrouting {{\n    type nat hook postrouting priority srcnat; policy accept;\n\
             {translate}  }}\n  chain forward {{\n    type filter hook forward priority filter; policy accept;\n{inside}    \
             oifname {{ {bridges} }} ct state established,related accept\n    oifname {{ {bridges} }} drop\n{apart}  }}\n}}\n"
        )
    })
}

/// Has `nft` do what a text says.
async fn nft(text: &str) -> Said<()> {
    let failed = |what: String| format!("guests cannot be given NAT: {what}");
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| {
            failed(format!("the program nft cannot be run: {e}; `apt-get install nftables` installs it"))
        })?;
    if let Some(mut input) = child.stdin.take() {
        // One that ends before it has read everything says why.
        let _ = input.write_all(text.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(|e| failed(format!("nft: {e}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let first = said.lines().next().unwrap_or_default();
    Err(failed(format!(
        "nft: {first}; the kernel may lack CONFIG_NF_TABLES, CONFIG_NFT_NAT, CONFIG_NFT_CT or CONFIG_NFT_MASQ"
    )))
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

impl Nat {
    /// Nothing is done yet; what is remembered is in the file `before`.
    pub(super) fn new(before: PathBuf) -> Nat {
        Nat { before }
    }

    /// Makes the parent's filter what these switches need.
    pub(super) async fn follow<'a>(
        &self,
        switches: impl Iterator<Item = (Uuid, &'a SwitchSettings)>,
    ) -> Said<()> {
        match table(switches) {
            Some(table) => self.begin(&table).await,
            None => self.end().await,
        }
    }

    async fn begin(&self, table: &str) -> Said<()> {
        let failed = |what: &str, e: std::io::Error| format!("guests cannot be given NAT: {what}: {e}");
        nft(table).await?;
        if !self.before.exists() {
            let before = read(Path::new(FORWARDING)).unwrap_or_default();
            std::fs::write(&self.before, before)
                .map_err(|e| failed(&self.before.display().to_string(), e))?;
        }
        // Not before the table is there, which keeps apart what is not to be joined.
        std::fs::write(FORWARDING, "1").map_err(|e| failed("the parent cannot forward packets", e))
    }

    async fn end(&self) -> Said<()> {
        let Some(before) = read(&self.before) else { return Ok(()) };
        if before.trim() == "0" {
            std::fs::write(FORWARDING, "0")
                .map_err(|e| format!("the parent goes on forwarding packets: {e}"))?;
        }
        nft(NO_TABLE).await?;
        std::fs::remove_file(&self.before).map_err(|e| format!("{}: {e}", self.before.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn internal(address: Option<&str>, nat: bool) -> (Uuid, SwitchSettings) {
        let kind = SwitchKind::Internal { address: address.map(String::from), dhcp: false, nat };
        let id = Uuid::from_fields(if nat { 0xa } else { 0xb }, 0, 0, &[0; 8]);
        (id, SwitchSettings { name: "lan".into(), kind, mtu: None })
    }

    fn text(switches: &[(Uuid, SwitchSettings)]) -> Option<String> {
        table(switches.iter().map(|(id, settings)| (*id, settings)))
    }

    #[test]
    fn guests_get_out_and_nobody_gets_in() {
        let table = text(&[internal(Some("10.9.3.1/22"), true), internal(None, false)]).unwrap();
        let lines: Vec<&str> = table.lines().map(str::trim).collect();
        assert_eq!(lines[..2], ["table ip parterre", "delete table ip parterre"]);
        assert!(lines.contains(&"ip saddr 10.9.0.0/22 oifname != \"vsw0000000a\" masquerade"), "{table}");
        let place = |line: &str| lines.iter().position(|other| *other == line).expect(line);
        let in_order = [
            "iifname \"vsw0000000b\" oifname \"vsw0000000b\" accept",
            "oifname { \"vsw0000000a\", \"vsw0000000b\" } ct state established,related accept",
            "oifname { \"vsw0000000a\", \"vsw0000000b\" } drop",
            "iifname \"vsw0000000a\" ip saddr != 10.9.0.0/22 drop",
            "iifname \"vsw0000000b\" drop",
        ];
        assert!(in_order.map(place).is_sorted(), "{table}");
    }

    #[tokio::test]
    async fn no_table_is_there_without_need() {
        let private =
            (Uuid::nil(), SwitchSettings { name: "p".into(), kind: SwitchKind::Private, mtu: None });
        assert_eq!(text(&[private, internal(Some("10.9.0.1/24"), false)]), None);
        let directory = tempfile::tempdir().unwrap();
        // Nothing was begun, so nothing of the parent's is touched.
        assert_eq!(Nat::new(directory.path().join("before")).follow(std::iter::empty()).await, Ok(()));
    }

    #[test]
    fn subnets_are_cut_to_their_prefix() {
        assert_eq!(subnet("192.168.100.77/24").unwrap(), "192.168.100.0/24");
        assert_eq!(subnet("10.255.1.1/8").unwrap(), "10.0.0.0/8");
        assert_eq!(subnet("fd00::1/64"), None);
    }
}

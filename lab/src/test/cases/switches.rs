//! What a switch is besides whom it joins: how long its frames are, which VLANs a trunk carries, and the way out by NAT.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::network::{guest, start, switch};
use super::vm::{create, create_another, remove};
use super::{succeed, succeed_in};
use crate::boxes::BoxSpec;
use crate::media::Wish;
use crate::session::Session;
use crate::test::{Case, Check, USUAL};

pub const CASES: &[Case] = &[
    Case { name: "vm::switch-jumbo-frames", setting: USUAL, check: Check::Shared(jumbo) },
    Case { name: "vm::switch-trunk", setting: USUAL, check: Check::Shared(trunk) },
    Case { name: "vm::switch-nat", setting: USUAL, check: Check::Free(nat) },
];

const BOOT: Duration = Duration::from_secs(180);
const LIMIT: Duration = Duration::from_secs(120);

/// A guest and the parent exchange frames of 9000 bytes where the switch has them, and a guest gets no more than that.
fn jumbo(session: &mut Session) -> Result<()> {
    for (options, mtu) in [("--mtu 9000", 9000), ("", 1500), ("--mtu 1400", 1400)] {
        switch(session, &format!("--type internal --address 10.9.0.1/24 {options}"))?;
        succeed(
            session,
            &format!(
                "parterre switch show lan | grep 'MTU: *{mtu}$' && cat /sys/class/net/vsw*/mtu | grep -x {mtu}"
            ),
        )?;
        create(session, "one", 2)?;
        start(session, "one", 2, "")?;
        // As many as it gets.
        guest(
            session,
            "one",
            &format!("ip link set eth0 mtu 9000; [ $(cat /sys/class/net/eth0/mtu) = {mtu} ]"),
        )?;
        let sent = "cat /sys/class/net/eth0/statistics/tx_packets";
        let ping = format!(
            "before=$({sent}); ping -c 3 -s {} 10.9.0.1 && [ $(($({sent}) - before)) -lt 12 ]",
            mtu - 28
        );
        guest(session, "one", &ping)?;
        succeed(session, &format!("ping -c 3 -s {} 10.9.0.2", mtu - 28))?;
        transfer(session, "10.9.0.1", "one", "10.9.0.2")?;
        // Less, while it runs.
        guest(session, "one", "ip link set eth0 mtu 1300 && ping -c 3 -s 1272 10.9.0.1")?;
        transfer(session, "10.9.0.1", "one", "10.9.0.2")?;
        remove(session, "one")?;
        succeed(session, "parterre switch delete lan")?;
    }
    Ok(())
}

/// A megabyte from the parent to a guest and back, compared.
fn transfer(session: &mut Session, parent: &str, name: &str, address: &str) -> Result<()> {
    succeed(session, "mkdir -p /tmp/www && dd if=/dev/urandom of=/tmp/www/there bs=1M count=1 2>/dev/null")?;
    succeed(session, &format!("httpd -p {parent}:8000 -h /tmp/www"))?;
    let fetch = format!(
        "rm -rf /tmp/www && mkdir /tmp/www && wget -q -O /tmp/www/here http://{parent}:8000/there && \
         httpd -p {address}:8000 -h /tmp/www"
    );
    guest(session, name, &fetch)?;
    succeed_in(
        session,
        &format!("wget -q -O /tmp/back http://{address}:8000/here && cmp /tmp/www/there /tmp/back"),
        LIMIT,
    )?;
    guest(session, name, "killall httpd")?;
    succeed(session, "killall httpd; rm -r /tmp/www /tmp/back").map(drop)
}

/// A guest at a trunk is in several VLANs of the switch, and in no other.
fn trunk(session: &mut Session) -> Result<()> {
    switch(session, "--type internal --address 10.9.0.1/24")?;
    create(session, "one", 2)?;
    create_another(session, "two", 1)?;
    start(session, "one", 2, "--trunk 5,7-9")?;
    start(session, "two", 3, "--vlan 5")?;
    succeed(session, "parterre vm network list one | grep 'trunk 5,7-9'")?;
    // Without a tag it is where the parent is.
    guest(session, "one", "ping -c 3 10.9.0.1 && ! ping -c 2 -W 2 10.9.0.3")?;
    let vlan = |id: u8, net: u8| {
        format!(
            "ip link add link eth0 name eth0.{id} type vlan id {id} && ip link set eth0.{id} up && ip address add 10.{net}.0.2/24 dev eth0.{id}"
        )
    };
    guest(session, "one", &format!("modprobe 8021q; {} && {}", vlan(5, 5), vlan(6, 6)))?;
    guest(session, "two", "ip address add 10.5.0.3/24 dev eth0; ip address add 10.6.0.3/24 dev eth0")?;
    guest(session, "one", "ping -c 3 10.5.0.3 && ! ping -c 2 -W 2 10.6.0.3")?;
    // Offloads go through tags: a megabyte each way.
    let serve = "mkdir -p /tmp/www && dd if=/dev/urandom of=/tmp/www/there bs=1M count=1 2>/dev/null && httpd -p 8000 -h /tmp/www";
    guest(session, "two", serve)?;
    let fetch = "mkdir -p /tmp/www && wget -q -O /tmp/www/here http://10.5.0.3:8000/there && httpd -p 8000 -h /tmp/www";
    guest(session, "one", fetch)?;
    guest(session, "two", "wget -q -O /tmp/back http://10.5.0.2:8000/here && cmp /tmp/back /tmp/www/there")?;
    remove(session, "two")?;
    remove(session, "one")?;
    create(session, "one", 1)?;
    for (wrong, why) in
        [("--trunk 5-", "VLAN"), ("--trunk 5 --vlan 5", "--vlan"), ("--native-vlan 3", "--trunk")]
    {
        let run = session.shell(&format!("parterre vm network add one --switch lan {wrong}"), LIMIT)?;
        ensure!(run.stderr.contains(why), "`{wrong}` ended with {:?}: {}", run.outcome, run.stderr);
    }
    succeed(session, "parterre vm delete one && parterre switch delete lan").map(drop)
}

/// A network beyond the parent, in a namespace of its own. It knows of no guests, and then of them, as a neighbour would that
/// wants to get in.
const OUTSIDE: &str = "(unshare -n sleep 10000 &); ip link add up0 type veth && ip address add 203.0.113.1/24 dev up0 && \
                       ip link set up0 up && ip link set veth0 netns $(pidof sleep) && \
                       outside ip address add 203.0.113.2/24 dev veth0 && outside ip link set veth0 up && ping -c 2 203.0.113.2";
const IN_OUTSIDE: &str = "#!/bin/sh\nexec nsenter -t $(pidof sleep) -n \"$@\"\n";
/// What a guest takes of an offer.
const GOT: &str = "printf '#!/bin/sh\\n[ $1 = bound ] || exit 0; ip address flush dev eth0; ip address add $ip/$mask dev eth0; \
                   ip route add default via $router; echo servers $dns' >/tmp/got; chmod +x /tmp/got; ip link set eth0 up; \
                   udhcpc -i eth0 -n -q -t 20 -T 1 -s /tmp/got";

/// Guests reach what the parent reaches; nobody reaches them, and guests of other switches stay where they are.
fn nat(mut wish: Wish) -> Result<()> {
    wish.extras.packages.push("nftables".into());
    wish.extras.texts.push(("usr/bin/outside".into(), IN_OUTSIDE.into()));
    let spec: BoxSpec = USUAL.spec.parse()?;
    let mut session = Session::start(&spec, &wish, BOOT)?;
    let session = &mut session;
    succeed(session, OUTSIDE)?;
    succeed(
        session,
        "echo nameserver 203.0.113.53 >/etc/resolv.conf; [ $(cat /proc/sys/net/ipv4/ip_forward) = 0 ]",
    )?;
    switch(session, "--type internal --address 10.9.0.1/24 --dhcp --nat")?;
    succeed(session, "parterre switch create apart --type internal --address 10.8.0.1/24")?;
    create(session, "one", 1)?;
    succeed(session, "parterre vm network add one --switch lan && parterre vm start one")?;
    let said = guest(session, "one", GOT)?;
    ensure!(said.contains("servers 203.0.113.53"), "The guest was not told of the name server:\n{said}");
    succeed(session, "mkdir -p /tmp/www && dd if=/dev/urandom of=/tmp/www/there bs=1M count=1 2>/dev/null")?;
    succeed(session, "outside httpd -p 203.0.113.2:8000 -h /tmp/www")?;
    guest(
        session,
        "one",
        "ping -c 3 203.0.113.2 && wget -q -O /tmp/here http://203.0.113.2:8000/there && sha256sum /tmp/here",
    )?;
    // From outside nobody gets in, even with a route.
    let address = succeed(session, "parterre switch show lan | grep 'Address given'")?;
    let address = address.split_whitespace().nth(2).unwrap_or_default().to_owned();
    succeed(session, &format!("ping -c 2 {address} && outside ip route add 10.0.0.0/8 via 203.0.113.1"))?;
    succeed(session, &format!("! outside ping -c 2 -W 2 {address}"))?;
    // Nor does a guest of another internal switch get out, or to this one.
    create_another(session, "two", 1)?;
    succeed(session, "parterre vm network add two --switch apart && parterre vm start two")?;
    let up = "ip link set eth0 up && ip address add 10.8.0.2/24 dev eth0 && ip route add default via 10.8.0.1 && ping -c 2 10.8.0.1";
    guest(session, "two", up)?;
    guest(session, "two", &format!("! ping -c 2 -W 2 203.0.113.2 && ! ping -c 2 -W 2 {address}"))?;
    remove(session, "two")?;
    remove(session, "one")?;
    // What was done to the parent is undone.
    succeed(
        session,
        "parterre switch delete lan && ! nft list table ip parterre && [ $(cat /proc/sys/net/ipv4/ip_forward) = 0 ]",
    )?;
    // Without the program there is an explanation, and no half of a switch.
    succeed(
        session,
        "mv $(which nft) /tmp/; parterre switch create lan --type internal --address 10.9.0.1/24 --nat 2>&1 | grep nftables",
    )?;
    succeed(session, "! parterre switch show lan").map(drop)
}

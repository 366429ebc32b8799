//! Networks of virtual machines: switches, adapters, and who reaches whom.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::vm::{PROMPT, USERLAND, console, create, create_another, remove};
use super::{succeed, succeed_in};
use crate::session::{Outcome, Session};
use crate::test::{Case, Check, Setting, USUAL};

const OLDEST: Setting = Setting { guest: "oldest", ..USUAL };
const LIMIT: Duration = Duration::from_secs(120);

pub const CASES: &[Case] = &[
    Case { name: "vm::network-definitions", setting: USUAL, check: Check::Shared(definitions) },
    Case { name: "vm::network-internal", setting: USUAL, check: Check::Shared(|s| internal(s, 2)) },
    Case { name: "vm::network-oldest-guest", setting: OLDEST, check: Check::Shared(|s| internal(s, 1)) },
    Case { name: "vm::network-addresses", setting: USUAL, check: Check::Shared(addresses) },
    Case { name: "vm::network-private", setting: USUAL, check: Check::Shared(private) },
    Case { name: "vm::network-external", setting: USUAL, check: Check::Shared(external) },
    Case { name: "vm::network-vlans", setting: USUAL, check: Check::Shared(vlans) },
    Case { name: "vm::network-comes-and-goes", setting: USUAL, check: Check::Shared(comes_and_goes) },
    Case { name: "vm::network-guards", setting: USUAL, check: Check::Shared(guards) },
];

/// Deletes what an earlier, failed case left behind, and makes a switch.
pub fn switch(session: &mut Session, kind: &str) -> Result<()> {
    session.shell("for i in one two; do parterre vm stop $i --force; parterre vm delete $i; done", LIMIT)?;
    session.shell("parterre switch delete lan", LIMIT)?;
    succeed(session, &format!("parterre switch create lan {kind}")).map(drop)
}

/// Adds an adapter, starts the machine, and gives its interface the address 10.9.0.`host`.
pub fn start(session: &mut Session, name: &str, host: u8, options: &str) -> Result<()> {
    succeed(session, &format!("parterre vm network add {name} --switch lan {options}"))?;
    succeed_in(session, &format!("parterre vm start {name}"), LIMIT)?;
    let up = format!("ip link set eth0 up && ip address add 10.9.0.{host}/24 dev eth0");
    guest(session, name, &up).map(drop)
}

/// Runs a command in a guest, which shall succeed. The console repeats what was said before, so each end has its number.
pub fn guest(session: &mut Session, name: &str, command: &str) -> Result<String> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let command = format!("{command}; echo ended-{number}-$?\n");
    console(session, name, &[(PROMPT, &command), (&format!("ended-{number}-0"), ""), (PROMPT, "")])
}

fn definitions(session: &mut Session) -> Result<()> {
    switch(session, "--type internal --address 10.9.0.1/24")?;
    create(session, "one", 1)?;
    succeed(session, "parterre switch list | grep lan | grep internal | grep -w working")?;
    succeed(session, "parterre vm network add one --switch lan --mac 02:15:5d:00:00:01 --dhcp-guard")?;
    succeed(session, "parterre vm network list one | grep 02:15:5d:00:00:01 | grep 'dhcp guard'")?;
    succeed(session, "parterre switch show lan | grep 'Virtual machines: *one'")?;
    for (wrong, why) in [
        ("parterre switch create lan --type private", "already"),
        ("parterre switch create wan --type external --interface none0", "no network interface none0"),
        ("parterre switch create wan --type external", "--interface"),
        ("parterre switch create wan --type internal --address 10.9.0.1", "prefix"),
        ("parterre switch delete lan", "used by one"),
        ("parterre vm network add one --switch wan", "no switch 'wan'"),
        ("parterre vm network add one --switch lan --mac 02:15:5d:00:00:01", "already"),
        ("parterre vm network add one --switch lan --mac 03:15:5d:00:00:01", "group"),
        ("parterre vm network add one --switch lan --vlan 4095", "VLAN"),
        ("parterre vm network remove one 02:15:5d:00:00:02", "no network adapter"),
    ] {
        let run = session.shell(wrong, LIMIT)?;
        let refused = matches!(run.outcome, Outcome::Exit(status) if status != 0);
        ensure!(
            refused && run.stderr.contains(why),
            "`{wrong}` ended with {:?}: {}",
            run.outcome,
            run.stderr
        );
    }
    succeed(session, "parterre vm network remove one 02:15:5d:00:00:01 && parterre vm delete one")?;
    succeed(session, "parterre switch delete lan && ! ip link | grep vsw").map(drop)
}

/// The parent and a guest reach one another, with large packets in both directions.
fn internal(session: &mut Session, processors: u32) -> Result<()> {
    switch(session, "--type internal --address 10.9.0.1/24")?;
    create(session, "one", processors)?;
    start(session, "one", 2, "")?;
    guest(session, "one", "ping -c 3 10.9.0.1")?;
    succeed(session, "ping -c 3 10.9.0.2")?;
    // Four megabytes each way, compared.
    succeed(session, "mkdir -p /tmp/www && dd if=/dev/urandom of=/tmp/www/there bs=1M count=4 2>/dev/null")?;
    succeed(session, "httpd -p 10.9.0.1:8000 -h /tmp/www")?;
    guest(
        session,
        "one",
        "mkdir /tmp/www && wget -q -O /tmp/www/here http://10.9.0.1:8000/there && httpd -p 8000 -h /tmp/www",
    )?;
    succeed_in(
        session,
        "wget -q -O /tmp/back http://10.9.0.2:8000/here && cmp /tmp/www/there /tmp/back",
        LIMIT,
    )?;
    succeed(session, "killall httpd; rm -r /tmp/www /tmp/back")?;
    // Once more after the guest has started anew.
    let again = "echo again-$((6 * 7)); reboot\n";
    console(session, "one", &[(PROMPT, again), ("again-42", ""), (USERLAND, ""), (PROMPT, "")])?;
    guest(
        session,
        "one",
        "ip link set eth0 up && ip address add 10.9.0.2/24 dev eth0 && ping -c 3 10.9.0.1",
    )?;
    remove(session, "one")?;
    succeed(session, "parterre switch delete lan && ! ip link | grep -E 'vsw|vnic'").map(drop)
}

/// A guest is given an address by DHCP, and the same again by a server that was killed and by one of another service.
fn addresses(session: &mut Session) -> Result<()> {
    switch(session, "--type internal --address 10.9.0.1/24 --dhcp")?;
    create(session, "one", 1)?;
    succeed(session, "parterre vm network add one --switch lan && parterre vm start one")?;
    let script = "printf '#!/bin/sh\\n[ $1 = bound ] || exit 0; ip address flush dev eth0; ip address add $ip/$mask dev eth0' >/tmp/got; chmod +x /tmp/got";
    guest(session, "one", &format!("{script}; ip link set eth0 up"))?;
    let mut first = None;
    for change in ["true", "kill $(pidof vdhcp)", "kill $(pidof vmms)"] {
        succeed(
            session,
            &format!(
                "old=$(pidof vdhcp); {change}; sleep 3; [ '{change}' = true ] || [ $(pidof vdhcp) != $old ]"
            ),
        )?;
        guest(session, "one", "udhcpc -i eth0 -n -q -t 20 -T 1 -s /tmp/got && ping -c 3 10.9.0.1")?;
        let shown = succeed(session, "parterre switch show lan | grep 'Address given: .* of one$'")?;
        let address = shown.split_whitespace().nth(2).unwrap_or_default().to_owned();
        succeed(session, &format!("ping -c 3 {address}"))?;
        let expected = first.get_or_insert_with(|| address.clone());
        ensure!(*expected == address, "The guest had {expected}, and has {address} after `{change}`.");
    }
    remove(session, "one")?;
    succeed(session, "parterre switch delete lan && sleep 1 && ! pidof vdhcp").map(drop)
}

/// Two guests reach one another; the parent reaches neither.
fn private(session: &mut Session) -> Result<()> {
    switch(session, "--type private")?;
    create(session, "one", 1)?;
    create_another(session, "two", 1)?;
    start(session, "one", 2, "")?;
    start(session, "two", 3, "")?;
    guest(session, "two", "ping -c 3 10.9.0.2")?;
    let bridge = succeed(session, "ip -o link | grep -o 'vsw[0-9a-f]*' | head -n 1")?;
    let bridge = bridge.trim();
    succeed(session, &format!("ip address add 10.9.0.1/24 dev {bridge}"))?;
    succeed(session, "! ping -c 2 -W 2 10.9.0.2")?;
    guest(session, "two", "! ping -c 2 -W 2 10.9.0.1")?;
    remove(session, "two")?;
    remove(session, "one")?;
    succeed(session, "parterre switch delete lan").map(drop)
}

/// A machine beyond the parent, in a network namespace of its own, at the other end of the parent's interface.
const OUTSIDE: &str = "(unshare -n sleep 10000 & echo $! >/tmp/outside); sleep 1; ip link add up0 type veth && ip link set up0 up && \
                       ip link set veth0 netns $(cat /tmp/outside)";
const ITS_ADDRESS: &str = "nsenter -t $(cat /tmp/outside) -n ip address add 10.9.0.9/24 dev veth0 && \
                           nsenter -t $(cat /tmp/outside) -n ip link set veth0 up";
const NO_OUTSIDE: &str =
    "[ -f /tmp/outside ] && kill $(cat /tmp/outside); rm -f /tmp/outside; ip link delete up0; true";

/// A guest reaches what is beyond the parent's interface; the parent too, if it shares the interface, and only then.
fn external(session: &mut Session) -> Result<()> {
    session.shell(NO_OUTSIDE, LIMIT)?;
    succeed(session, OUTSIDE)?;
    succeed(session, ITS_ADDRESS)?;
    for (options, shared) in [("", false), ("--share", true)] {
        if shared {
            succeed(session, "ip address add 10.9.0.1/24 dev up0 && ping -c 3 10.9.0.9")?;
        }
        switch(session, &format!("--type external --interface up0 {options}"))?;
        create(session, "one", 1)?;
        start(session, "one", 2, "")?;
        guest(session, "one", "ping -c 3 10.9.0.9")?;
        succeed(session, "nsenter -t $(cat /tmp/outside) -n ping -c 3 10.9.0.2")?;
        if shared {
            // Its address has gone to the switch.
            succeed(
                session,
                "ping -c 3 10.9.0.9 && ping -c 3 10.9.0.2 && ! ip address show up0 | grep 10.9.0.1",
            )?;
            guest(session, "one", "ping -c 3 10.9.0.1")?;
        } else {
            let bridge = succeed(session, "basename $(ls -d /sys/class/net/vsw*)")?;
            succeed(session, &format!("ip address add 10.9.0.1/24 dev {}", bridge.trim()))?;
            succeed(session, "! ping -c 2 -W 2 10.9.0.2 && ! ping -c 2 -W 2 10.9.0.9")?;
        }
        remove(session, "one")?;
        succeed(session, "parterre switch delete lan && ! ip link | grep vsw")?;
    }
    succeed(session, "ip address show up0 | grep 10.9.0.1 && ping -c 3 10.9.0.9")?;
    session.shell(NO_OUTSIDE, LIMIT).map(drop)
}

/// Guests in different VLANs of a switch, and isolated ones, do not reach one another.
fn vlans(session: &mut Session) -> Result<()> {
    switch(session, "--type internal --address 10.9.0.1/24")?;
    for (one, two, reached) in
        [("--vlan 5", "--vlan 5", true), ("--vlan 5", "--vlan 6", false), ("--isolated", "--isolated", false)]
    {
        create(session, "one", 1)?;
        create_another(session, "two", 1)?;
        start(session, "one", 2, one)?;
        start(session, "two", 3, two)?;
        guest(session, "two", if reached { "ping -c 3 10.9.0.2" } else { "! ping -c 2 -W 2 10.9.0.2" })?;
        // The parent is where no tags are.
        guest(
            session,
            "two",
            if two == "--isolated" { "ping -c 3 10.9.0.1" } else { "! ping -c 2 -W 2 10.9.0.1" },
        )?;
        remove(session, "two")?;
        remove(session, "one")?;
    }
    succeed(session, "parterre switch delete lan").map(drop)
}

/// An adapter is added to a guest that runs, loses its link and gets it back, is removed, and comes again.
fn comes_and_goes(session: &mut Session) -> Result<()> {
    const MAC: &str = "02:15:5d:00:00:07";
    switch(session, "--type internal --address 10.9.0.1/24")?;
    create(session, "one", 2)?;
    succeed_in(session, "parterre vm start one", LIMIT)?;
    guest(session, "one", "! [ -e /sys/class/net/eth0 ]")?;
    let up = "for i in $(seq 100); do [ -e /sys/class/net/eth0 ] && break; sleep 0.2; done; ip link set eth0 up && \
              ip address add 10.9.0.2/24 dev eth0 && ping -c 3 10.9.0.1";
    let carrier = |value| {
        format!(
            "for i in $(seq 100); do [ $(cat /sys/class/net/eth0/carrier) = {value} ] && break; sleep 0.2; done; [ $(cat /sys/class/net/eth0/carrier) = {value} ]"
        )
    };
    for _ in 0..2 {
        succeed(session, &format!("parterre vm network add one --switch lan --mac {MAC}"))?;
        guest(session, "one", up)?;
        succeed(session, &format!("parterre vm network link one {MAC} down"))?;
        guest(session, "one", &carrier(0))?;
        succeed(session, "! ping -c 2 -W 2 10.9.0.2 && parterre vm network list one | grep 'link down'")?;
        succeed(session, &format!("parterre vm network link one {MAC} up"))?;
        guest(session, "one", &format!("{}; ping -c 3 10.9.0.1", carrier(1)))?;
        succeed(session, &format!("parterre vm network remove one {MAC}"))?;
        guest(
            session,
            "one",
            "for i in $(seq 100); do [ -e /sys/class/net/eth0 ] || break; sleep 0.2; done; ! [ -e /sys/class/net/eth0 ]",
        )?;
        // Nothing of it is left in the parent.
        succeed(
            session,
            "for i in $(seq 50); do ip link | grep -q vnic || break; sleep 0.2; done; ! ip link | grep vnic",
        )?;
    }
    // One without a link from the start, over a reset of the guest.
    succeed(
        session,
        &format!(
            "parterre vm network add one --switch lan --mac {MAC} && parterre vm network link one {MAC} down"
        ),
    )?;
    let again = "echo again-$((6 * 7)); reboot\n";
    console(session, "one", &[(PROMPT, again), ("again-42", ""), (USERLAND, ""), (PROMPT, "")])?;
    guest(session, "one", &format!("ip link set eth0 up; {}", carrier(0)))?;
    remove(session, "one")?;
    succeed(session, "parterre switch delete lan").map(drop)
}

/// A guest keeps its address, and is no DHCP server behind the guard.
fn guards(session: &mut Session) -> Result<()> {
    switch(session, "--type internal --address 10.9.0.1/24")?;
    create(session, "one", 1)?;
    start(session, "one", 2, "--mac 02:15:5d:00:00:01 --dhcp-guard")?;
    guest(
        session,
        "one",
        "ip link set eth0 down; ! ip link set eth0 address 02:15:5d:00:00:09; ip link set eth0 up",
    )?;
    guest(session, "one", "ip link show eth0 | grep 02:15:5d:00:00:01")?;
    guest_gives_addresses(session, false)?;
    remove(session, "one")?;
    create(session, "one", 1)?;
    start(session, "one", 2, "--mac-spoofing")?;
    guest_gives_addresses(session, true)?;
    guest(
        session,
        "one",
        "ip link set eth0 down && ip link set eth0 address 02:15:5d:00:00:09 && ip link set eth0 up && ping -c 3 10.9.0.1",
    )?;
    remove(session, "one")?;
    succeed(session, "parterre switch delete lan").map(drop)
}

/// A DHCP server in the guest, and a client in the parent that gets an address of it, or not.
fn guest_gives_addresses(session: &mut Session, through: bool) -> Result<()> {
    const SERVER: &str = "printf 'interface eth0\\nstart 10.9.0.50\\nend 10.9.0.60\\nlease_file /tmp/leases\\npidfile /tmp/pid\\n' >/tmp/dhcp; \
                          touch /tmp/leases; udhcpd /tmp/dhcp";
    guest(session, "one", SERVER)?;
    let client = "udhcpc -i $(basename $(ls -d /sys/class/net/vsw*)) -n -q -f -t 4 -T 1 -s /bin/true";
    let run = session.shell(client, LIMIT)?;
    let got = run.outcome == Outcome::Exit(0);
    ensure!(
        got == through,
        "The guest's DHCP server {} the parent: {}{}",
        if got { "reached" } else { "did not reach" },
        run.stdout,
        run.stderr
    );
    Ok(())
}

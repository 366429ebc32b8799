//! Whole Debian systems in virtual machines: systemd, the root file system on a VMBus disk, an address from the switch's DHCP
//! server, Debian's Hyper-V daemons. The parent reaches them by ssh.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::integration::{self, until};
use super::{succeed, succeed_in};
use crate::session::Session;
use crate::test::{Case, Check, Setting, USUAL};

/// For a whole system to boot, emulated, while the machine has other things to do.
const BOOT: Duration = Duration::from_secs(400);
/// For what a system does in a moment.
const SOON: Duration = Duration::from_secs(60);

const fn setting(system: &'static str) -> Setting {
    Setting { spec: "amd,cpus=2,memory=3G", guest: "", system, ..USUAL }
}

pub const LONG: &[Case] = &[
    Case {
        name: "vm::system-stable",
        setting: setting("stable"),
        check: Check::Own(|session| whole(session, 15)),
    },
    Case {
        name: "vm::system-oldest",
        setting: setting("oldest"),
        check: Check::Own(|session| whole(session, 120)),
    },
    Case {
        name: "vm::system-newest",
        setting: setting("newest"),
        check: Check::Own(|session| whole(session, 120)),
    },
];

/// What a shell script that shall succeed prints in the system.
pub fn in_system(session: &mut Session, script: &str) -> Result<String> {
    let said = succeed_in(session, &format!("/tmp/in-system bash -s <<'END'\n{script}\nEND"), BOOT)?;
    Ok(said.trim().to_owned())
}

/// The system from its first start to its end; `seconds` of load.
fn whole(session: &mut Session, seconds: u32) -> Result<()> {
    start(session)?;
    devices(session)?;
    disks(session)?;
    load(session, seconds)?;
    keyboard(session)?;
    integration::daemons(session)?;
    pause(session)?;
    no_complaints(session)?;
    shutdown(session)?;
    succeed(session, "parterre vm delete system && parterre switch delete lan && ! pidof vdhcp").map(drop)
}

/// Defines it and starts it; it is reached by ssh at the address that it was given.
fn start(session: &mut Session) -> Result<()> {
    succeed(
        session,
        "parterre switch create lan --type internal --address 10.9.0.1/24 --dhcp && \
         parterre vm create system --memory 1G --processors 2 --kernel /lab/guest-kernel --initrd /lab/guest-initrd \
         --cmdline 'console=ttyS0 root=LABEL=guest-root rw hv_storvsc.storvsc_vcpus_per_sub_channel=1' && \
         parterre vm disk add system $(readlink -f /dev/disk/by-id/*scratch0) && \
         parterre vm network add system --switch lan && parterre vm kvp set system role front && \
         parterre vm integration enable system file-copy && parterre vm start system",
    )?;
    succeed(session, "(parterre vm console system </dev/null >/tmp/console 2>&1 &)")?;
    until(session, "parterre switch show lan | grep -q 'Address given: .* of system'", BOOT)?;
    let shown = succeed(session, "parterre switch show lan | grep 'Address given'")?;
    let address = shown.split_whitespace().nth(2).unwrap_or_default();
    ensure!(address.starts_with("10.9.0."), "The system's address is not one of the switch: {shown}");
    let options = "-i /lab/guest-key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
                   -o BatchMode=yes -o ConnectTimeout=60";
    succeed(
        session,
        &format!(
            "chmod 600 /lab/guest-key && printf '#!/bin/sh\\nexec ssh {options} root@{address} \"$@\"\\n' >/tmp/in-system && \
             chmod +x /tmp/in-system"
        ),
    )?;
    until(session, "/tmp/in-system true 2>/tmp/ssh-said", BOOT)
}

/// Everything it stands on is what an enlightened guest has.
fn devices(session: &mut Session) -> Result<()> {
    let said = in_system(
        session,
        "set -e; root=$(findmnt --noheadings --output SOURCE /); disk=$(basename $root)
         echo root $(basename $(readlink -f /sys/block/$disk/device/../../../driver))
         echo network $(basename $(readlink -f /sys/class/net/eth0/device/driver))
         echo clock $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
         echo processors $(nproc)
         lsblk --noheadings --output TRAN,VENDOR,MODEL /dev/$disk",
    )?;
    for line in ["root hv_storvsc", "network hv_netvsc", "clock hyperv_clocksource_tsc_page", "processors 2"]
    {
        ensure!(said.lines().any(|said| said == line), "The system has not '{line}', but:\n{said}");
    }
    let failed =
        in_system(session, "systemctl is-system-running --wait; systemctl --failed --no-legend --plain")?;
    ensure!(failed == "running", "The system is not well:\n{failed}");
    Ok(())
}

/// A disk that is plugged in: found by its names, with a queue for each processor, and a channel too, as the kernel's command line
/// asks for. (What is to be zero the guest writes: Linux's driver never sends WRITE SAME.)
fn disks(session: &mut Session) -> Result<()> {
    let fill = "dd if=/dev/urandom of=/tmp/plain.img bs=1M count=16 2>/dev/null && \
                parterre vm disk add system /tmp/plain.img --lun 8 --serial LAB-0815";
    succeed(session, fill)?;
    let said = in_system(
        session,
        "set -e; for i in $(seq 60); do grep -q LAB-0815 /sys/block/sd*/device/vpd_pg80 && break; sleep 1; done
         udevadm settle; block=$(dirname $(dirname $(grep -l LAB-0815 /sys/block/sd*/device/vpd_pg80))); disk=$(basename $block)
         udevadm info --query=property --name=$disk | sed -n 's/ID_SCSI_SERIAL=/serial /p'
         echo same $(for name in $(ls /dev/disk/by-id | grep -E '^(wwn-0x3|scsi-3)'); do readlink -f /dev/disk/by-id/$name; done | grep -c $disk)
         echo queues $(ls $block/mq | wc -l)
         echo channels $(ls $(readlink -f $block/device/../../..)/channels | wc -l)
         echo fua $(cat $block/queue/fua)
         echo cache $(cat $block/queue/write_cache)
         blkdiscard --zeroout --offset 4194304 --length 2097152 /dev/$disk && sync
         echo 1 >$block/device/delete",
    )?;
    let expected = ["serial LAB-0815", "same 2", "queues 2", "channels 2", "fua 1", "cache write back"];
    for line in expected {
        ensure!(said.lines().any(|said| said == line), "The system's disk is not '{line}', but:\n{said}");
    }
    let zeroes = "dd if=/tmp/plain.img bs=1M skip=4 count=2 2>/dev/null | tr -d '\\0' | wc -c";
    let left = succeed(session, zeroes)?;
    ensure!(left.trim() == "0", "{} bytes are not zero.", left.trim());
    succeed(session, "parterre vm disk remove system --lun 8 && rm /tmp/plain.img").map(drop)
}

/// Disk, network both ways and processors at the same time; whatever was written or sent is compared.
fn load(session: &mut Session, seconds: u32) -> Result<()> {
    let verify = include_str!("../../../guest/verify");
    succeed_in(session, &format!("/tmp/in-system 'cat >/root/verify' <<'END'\n{verify}\nEND"), SOON)?;
    succeed(session, "mkdir -p /tmp/www && dd if=/dev/urandom of=/tmp/www/there bs=1M count=8 2>/dev/null")?;
    succeed(session, "httpd -p 10.9.0.1:8000 -h /tmp/www")?;
    let script = format!(
        "end=$(($(date +%s) + {seconds}))
         /tmp/in-system perl /root/verify /root {seconds} 2 >/tmp/disk 2>&1 & disk=$!
         /tmp/in-system 'for i in 1 2; do timeout {seconds} sha256sum /dev/zero & done; wait' & busy=$!
         rounds=0
         while [ $(date +%s) -lt $end ]; do
             /tmp/in-system cat </tmp/www/there | cmp - /tmp/www/there || exit 1
             /tmp/in-system bash -s <<'END' >/tmp/fetched || exit 1
exec 3<>/dev/tcp/10.9.0.1/8000
printf 'GET /there HTTP/1.0\\r\\n\\r\\n' >&3
sed '1,/^\\r$/d' <&3 | sha256sum
END
             [ \"$(cat /tmp/fetched)\" = \"$(sha256sum </tmp/www/there)\" ] || exit 1
             rounds=$((rounds + 1))
         done
         wait $busy; wait $disk || exit 1
         echo rounds: $rounds; cat /tmp/disk"
    );
    let limit = BOOT + Duration::from_secs(u64::from(seconds) * 3);
    let said = session.shell(&script, limit)?;
    let verified = said.stdout.matches("written and verified").count();
    ensure!(
        verified == 2 && !said.stdout.contains("rounds: 0"),
        "The load ended with {:?}: {}{}{}",
        said.outcome,
        said.stdout,
        said.stderr,
        session.shell("cat /tmp/disk", SOON)?.stdout
    );
    succeed(session, "killall httpd; rm -r /tmp/www").map(drop)
}

/// What is typed appears where somebody would log in.
fn keyboard(session: &mut Session) -> Result<()> {
    until(session, "parterre vm type system 'Hello, [System]!'", SOON)?;
    until(session, "/tmp/in-system cat /dev/vcs1 | grep -q 'login: Hello, .System.!'", SOON)?;
    // Twenty times back, and other keys.
    let back = "backspace ".repeat(20);
    succeed(session, &format!("parterre vm press system {back} && parterre vm type system root --enter"))?;
    until(session, "/tmp/in-system cat /dev/vcs1 | grep -qE 'login: root +'", SOON)?;
    until(session, "/tmp/in-system cat /dev/vcs1 | grep -qE 'Password:'", SOON)
}

/// Its clock is right again soon after a pause.
fn pause(session: &mut Session) -> Result<()> {
    succeed(session, "parterre vm pause system && sleep 10 && parterre vm resume system")?;
    let right = "guest=$(/tmp/in-system date +%s) && apart=$(($(date +%s) - guest)) && [ $apart -ge -2 -a $apart -le 3 ]";
    until(session, right, SOON)?;
    let uptime = in_system(session, "cut -d. -f1 /proc/uptime; journalctl --boot --output=cat | wc -l")?;
    ensure!(uptime.lines().count() == 2, "The system does not answer: {uptime}");
    Ok(())
}

/// What is no complaint about this machine: warnings that kernels give on Hyper-V too, about the emulated processor, and
/// about how slow it is.
const USUAL_WORDS: &[&str] = &[
    "Speculative Return Stack Overflow",
    "systemd-ssh-generator",
    "CONFIG_IMA_DISABLE_HTABLE",
    "Driver has suspect GRO implementation",
    "hrtimer: interrupt took",
    "hogged CPU",
    // The screen's driver before hyperv_drm looks for a PCI device, which there is not.
    "hyperv_fb: ",
    "probe failed for device 5620e0c7-8062-4dce-aeb7-520c7ef76171",
];

fn no_complaints(session: &mut Session) -> Result<()> {
    let said = in_system(session, "dmesg --level=emerg,alert,crit,err,warn")?;
    let complaints: Vec<&str> =
        said.lines().filter(|line| !USUAL_WORDS.iter().any(|words| line.contains(words))).collect();
    ensure!(complaints.is_empty(), "The system's kernel complains:\n{}", complaints.join("\n"));
    let log = succeed(session, "cat /run/parterre/vms/*/worker.log")?;
    ensure!(!log.contains("is closed:"), "The worker closed a channel:\n{log}");
    Ok(())
}

/// It ends by the integration component: all services, file systems, power.
fn shutdown(session: &mut Session) -> Result<()> {
    in_system(session, "date >/root/last && sync")?;
    succeed_in(session, "parterre vm shutdown system --timeout 200", BOOT)?;
    succeed(session, "parterre vm show system | grep -q 'powered off by the guest'")?;
    let console = succeed(session, "cat /tmp/console")?;
    for words in ["Reached target", "Unmounting", "reboot: Power down"] {
        ensure!(console.contains(words), "The console did not say '{words}':\n{console}");
    }
    // Its file system needs no recovery.
    succeed(
        session,
        "mkdir -p /mnt && mount -t ext4 -o ro $(readlink -f /dev/disk/by-id/*scratch0) /mnt && test -s /mnt/root/last && \
         umount /mnt && ! dmesg | grep -i 'EXT4-fs.*recovery'",
    )
    .map(drop)
}

//! The network between two guests of one host: on one switch, and for the peer on one bridge, with vhost. Both guests' exits count.

use super::devices::{Load, Side, network_unit};

/// The other guest, which serves, and the way until it answers.
const OURS: &str = "parterre switch create lan --type private && \
                    parterre vm create serve --memory 512M --processors 2 --kernel /lab/guest-kernel --initrd /lab/guest-initrd \
                    --cmdline 'console=ttyS0 quiet lab.run=ip+link+set+eth0+up;ip+address+add+10.9.0.3/24+dev+eth0;echo+serving;\
                    lab-load+network-server' && parterre vm network add serve --switch lan && parterre vm start serve && \
                    (parterre vm console serve </dev/null >/tmp/serve 2>&1 &) && \
                    until grep -q serving /tmp/serve; do sleep 0.2; done";
const PEERS: &str = "ip link add lan type bridge && ip link set lan up && \
                     printf '#!/bin/sh\\nip link set $1 master lan up\\n' >/tmp/up && chmod +x /tmp/up && \
                     (qemu -m 512M -smp 2 -kernel /lab/guest-kernel -initrd /lab/guest-initrd -append 'console=ttyS0 quiet \
                     lab.run=ip+link+set+eth0+up;ip+address+add+10.9.0.3/24+dev+eth0;echo+serving;lab-load+network-server' \
                     -netdev tap,id=net,ifname=port1,script=/tmp/up,downscript=no,vhost=on \
                     -device virtio-net-pci,netdev=net,romfile=,mac=52:54:00:12:34:57 </dev/null >/tmp/serve 2>&1 &) && \
                     until grep -q serving /tmp/serve; do sleep 0.2; done";

/// Two guests, of which one asks.
pub const LOAD: Load = Load {
    name: "network between guests",
    run: "ip+link+set+eth0+up;ip+address+add+10.9.0.2/24+dev+eth0;lab-load+network+10.9.0.3",
    unit: network_unit,
    ours: Side { prepare: OURS, device: "parterre vm network add load --switch lan" },
    peer: Side {
        prepare: PEERS,
        device: "-netdev tap,id=net,ifname=port,script=/tmp/up,downscript=no,vhost=on \
                 -device virtio-net-pci,netdev=net,romfile=",
    },
};

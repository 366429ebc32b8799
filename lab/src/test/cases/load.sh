#!/bin/sh
# Load of every kind on all processors of the parent, for $1 seconds: computing, memory, disks, network cards, timers,
# processes. Every worker checks what it gets. The first wrong thing is printed and ends everything with status 1;
# otherwise each worker prints how many rounds it did.
seconds=$1
read -r now _ </proc/uptime
end=$((${now%.*} + seconds))
cd /tmp || exit 1
rm -f wrong

more() {
    read -r now _ </proc/uptime
    [ "${now%.*}" -lt "$end" ] && [ ! -e /tmp/wrong ]
}
wrong() {
    echo "load: $*" | tee /tmp/wrong
    exit 1
}

# Runs rounds of a function until the time is over.
work() {
    rounds=0
    while more; do
        "$@"
        rounds=$((rounds + 1))
    done
    echo "load: $*: $rounds rounds"
}

ONES=$(head -c 1000000 /dev/zero | tr '\0' '1' | sha256sum)
compute() {
    sum=$(head -c 1000000 /dev/zero | tr '\0' '1' | sha256sum)
    [ "$sum" = "$ONES" ] || wrong "a sum came out as $sum"
}

memory() {
    dd if=/dev/urandom of=/dev/shm/a$1 bs=1M count=8 2>/dev/null
    cp /dev/shm/a$1 /dev/shm/b$1
    cmp /dev/shm/a$1 /dev/shm/b$1 || wrong "memory changed what was copied"
    rm /dev/shm/a$1 /dev/shm/b$1
}

disk() {
    dd if=/dev/urandom of=/dev/shm/d bs=1M count=4 2>/dev/null
    dd if=/dev/shm/d of=/mnt/disk/d bs=64k conv=fsync 2>/dev/null || wrong "the disk could not be written"
    echo 1 >/proc/sys/vm/drop_caches
    cmp /dev/shm/d /mnt/disk/d || wrong "the disk gave back other data"
    rm /mnt/disk/d
}

RAW=$(dd if=/dev/disk/by-id/lab-boot0 bs=4k count=250 iflag=direct 2>/dev/null | sha256sum)
raw() {
    sum=$(dd if=/dev/disk/by-id/lab-boot0 bs=4k count=250 iflag=direct 2>/dev/null | sha256sum)
    [ "$sum" = "$RAW" ] || wrong "the NVMe disk gave other data"
}

# The emulator's gateway answers. What it drops under load is its own affair, as long as most comes back.
network() {
    got=$(ping -I "$1" -c 20 -i 0.02 -s 1400 -W 2 10.0.2.2 | sed -n 's/.* \([0-9]*\) packets received.*/\1/p')
    [ "${got:-0}" -ge 16 ] || wrong "of 20 packets through $1 came back ${got:-0}"
}

timers() {
    before=$(lab-agent --clock)
    usleep 20000
    after=$(lab-agent --clock)
    [ $((after - before)) -ge 20000000 ] || wrong "20 ms were over after $((after - before)) ns"
}

processes() {
    for n in 1 2 3 4 5 6 7 8; do (/bin/true | /bin/true) & done
    wait
}

address=15
for card in /sys/class/net/*; do
    [ -e "$card/device" ] || continue
    card=${card##*/}
    case $(readlink "/sys/class/net/$card/device/driver") in *virtio* | *e1000*) ;; *) continue ;; esac
    ifconfig "$card" "10.0.2.$address" netmask 255.255.255.0 up
    cards="$cards $card"
    address=$((address + 1))
done
[ -n "$cards" ] || wrong "there is no network card"
mkdir -p /mnt/disk
mke2fs -q /dev/disk/by-id/lab-disk0 >/dev/null 2>&1
mount -t ext4 /dev/disk/by-id/lab-disk0 /mnt/disk || wrong "the disk cannot be mounted"

for n in $(seq "$(nproc)"); do
    work compute "$n" &
    work memory "$n" &
done
for card in $cards; do work network "$card" & done
work disk &
work raw &
work timers &
work processes &
wait
umount /mnt/disk
[ ! -e wrong ]

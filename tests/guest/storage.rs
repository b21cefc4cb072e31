// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Storage over RDMA from one NIC of a machine to the other: NVMe over fabrics and NFS, every byte verified by fio.

use crate::machine::value;
use crate::nic::nic;

/// `route` brings both ports up so that what goes from one address to the other passes the ports; `nvme_of` and `nfs` have a server at the second
/// and a client at the first. NVMe's target listens in the first network namespace only, so both are in that one.
const FUNCTIONS: &str = r#"
route() { # both ports in one namespace: what goes from one to the other passes the port, not the loopback interface
    up
    for _ in $(seq 300); do
        [ "$(cat /sys/class/infiniband/*/ports/1/state | grep -c ACTIVE)" = 2 ] && break
        sleep 0.1
    done
    modprobe ib_ipoib && modprobe rdma_ucm && modprobe ib_umad || problem "modprobe"
    ip link set lo up
    ip link set ib0 up && ip addr add 10.0.1.1/32 dev ib0 || problem "no ib0"
    ip link set ib1 up && ip addr add 10.0.2.1/32 dev ib1 || problem "no ib1"
    for port in all ib0 ib1; do
        for set in accept_local=1 rp_filter=0 arp_ignore=1; do
            echo "${set#*=}" >/proc/sys/net/ipv4/conf/$port/${set%=*}
        done
    done
    ip rule add pref 10 iif ib0 lookup local && ip rule add pref 11 iif ib1 lookup local
    ip rule add pref 20 from 10.0.1.1 to 10.0.2.1 lookup 100 && ip rule add pref 21 from 10.0.2.1 to 10.0.1.1 lookup 101
    ip route add 10.0.2.1/32 dev ib0 table 100 && ip route add 10.0.1.1/32 dev ib1 table 101
    ip rule add pref 100 lookup local && ip rule del pref 0 || problem "no routes"
    for _ in $(seq 300); do
        [ "$(cat /sys/class/net/ib0/carrier)" = 1 ] && [ "$(cat /sys/class/net/ib1/carrier)" = 1 ] && break
        sleep 0.1
    done
    for _ in $(seq 30); do ping -c 1 -W 2 -I 10.0.1.1 10.0.2.1 >/run/ping && return; done
    problem "the ports do not reach each other: $(cat /run/ping)"
}
verify() { # verify NAME FILE SIZE
    fio --name=$1 --filename=$2 --size=$3 --rw=randwrite --bsrange=4k-64k --ioengine=psync --verify=crc32c --do_verify=1 --verify_fatal=1 --direct=1 >/run/fio 2>&1 && grep -q 'err= 0' /run/fio || problem "$1: $(cat /run/fio)"
    echo "$1=ok"
}
target() {
    mount -t configfs none /sys/kernel/config 2>/dev/null
    modprobe null_blk nr_devices=1 memory_backed=1 gb=1 && modprobe nvmet-rdma && modprobe nvme-rdma || problem "modprobe"
    local all=/sys/kernel/config/nvmet
    mkdir $all/subsystems/t && echo 1 >$all/subsystems/t/attr_allow_any_host
    mkdir $all/subsystems/t/namespaces/1 && echo -n /dev/nullb0 >$all/subsystems/t/namespaces/1/device_path && echo 1 >$all/subsystems/t/namespaces/1/enable
    mkdir $all/ports/1 && echo rdma >$all/ports/1/addr_trtype && echo ipv4 >$all/ports/1/addr_adrfam && echo 10.0.2.1 >$all/ports/1/addr_traddr && echo 4420 >$all/ports/1/addr_trsvcid
    ln -s $all/subsystems/t $all/ports/1/subsystems/t || problem "no target: $(dmesg | tail)"
}
nvme_of() {
    target
    timeout 120 nvme connect -t rdma -n t -a 10.0.2.1 -s 4420 -w 10.0.1.1 -i 2 || problem "nvme connect"
    for _ in $(seq 100); do [ -b /dev/nvme0n1 ] && break; sleep 0.1; done
    verify nvme /dev/nvme0n1 16m
    nvme disconnect -n t >/dev/null || problem "nvme disconnect"
}
nfs() {
    mkdir -p /run/export /mnt/nfs /var/lib/nfs/v4recovery 2>/dev/null
    mount -t tmpfs none /run/export && modprobe nfsd && modprobe rpcrdma && modprobe nfsv4 || problem "modprobe"
    mount -t nfsd none /proc/fs/nfsd || problem "no nfsd"
    touch /etc/exports /var/lib/nfs/etab /var/lib/nfs/rmtab
    rpc.mountd -N 3 || problem "no mountd"
    exportfs -o rw,no_root_squash,fsid=0,insecure '*:/run/export' || problem "no export"
    echo 10 >/proc/fs/nfsd/nfsv4gracetime; echo 10 >/proc/fs/nfsd/nfsv4leasetime
    rpc.nfsd -N 3 2 || problem "no nfsd"
    echo "rdma 20049" >/proc/fs/nfsd/portlist || problem "no port"
    timeout 120 mount -t nfs4 -o rdma,port=20049,vers=4.2,clientaddr=10.0.1.1 10.0.2.1:/ /mnt/nfs || problem "no mount: $(dmesg | tail)"
    grep -q 'proto=rdma' /proc/mounts || problem "not by RDMA: $(cat /proc/mounts)"
    verify nfs /mnt/nfs/file 8m
    umount /mnt/nfs || problem "umount"
}
"#;

/// Packets that a port has sent by its counters, after data of 24 MiB at least in messages of 128 KiB at most.
const PACKETS: u64 = 5000;

fn storage(kernel: &str) {
    let script = "route; nvme_of; nfs; \
                  for lid in 1 2; do echo \"sent$lid=$(perfquery -x $lid 1 | sed -n 's/^PortXmitPkts:\\.*//p')\"; done; quiet";
    let options = ["--nic", "odp=on", "--memory", "size=2G"];
    let done = nic(kernel, &options, "odp=on", &format!("{FUNCTIONS}{script}"));
    assert_eq!(done.code(), 0);
    for (name, expected) in [("nvme=", "ok"), ("nfs=", "ok")] {
        assert_eq!(value(&done.out, name), expected);
    }
    for lid in ["sent1=", "sent2="] {
        assert!(value(&done.out, lid).parse::<u64>().unwrap() > PACKETS, "{}", done.out);
    }
}

#[test]
fn nvme_and_nfs_on_6_1() {
    storage("6.1");
}

#[test]
fn nvme_and_nfs_on_7_3() {
    storage("7.3");
}

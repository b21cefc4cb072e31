// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Two NICs in one machine, each in a network namespace: IPoIB between them, rdma_cm above it, and what the subnet tells of itself.

use crate::machine::value;
use crate::nic::nic;

/// `namespaces` brings both ports up and puts the second into namespace `b`; `there` runs a program in it, `pair` a server there and its
/// client here. A server is there when it has been listening for a while: rdma_cm tells nobody, so the client is tried again.
const FUNCTIONS: &str = r#"
S=10.0.1.2
namespaces() {
    up
    for _ in $(seq 300); do
        [ "$(cat /sys/class/infiniband/*/ports/1/state | grep -c ACTIVE)" = 2 ] && break
        sleep 0.1
    done
    modprobe ib_ipoib && modprobe ib_umad && modprobe rdma_ucm || problem "modprobe"
    ip link set lo up
    ip netns add b && ip link set ib1 netns b || problem "no namespace"
    ip link set ib0 up && ip addr add 10.0.1.1/24 dev ib0 || problem "no ib0"
    there ip link set lo up
    there ip link set ib1 up && there ip addr add $S/24 dev ib1 || problem "no ib1"
    for _ in $(seq 300); do
        [ "$(cat /sys/class/net/ib0/carrier)" = 1 ] && [ "$(there cat /sys/class/net/ib1/carrier)" = 1 ] && return
        sleep 0.1
    done
    problem "IPoIB has no carrier"
}
there() { ip netns exec b "$@"; }
pair() { # pair NAME SERVER CLIENT
    there timeout 100 $2 >/run/server.out 2>&1 &
    local server=$! try status=1
    for try in $(seq 20); do
        sleep 0.5
        timeout 60 $3 >/run/client.out 2>&1 && status=0 && break
        kill -0 $server 2>/dev/null || break
    done
    [ "$status" = 0 ] && wait $server || problem "$1: $(cat /run/client.out /run/server.out)"
    echo "$1=ok"
}
"#;

fn two(kernel: &str, script: &str) -> String {
    let done = nic(kernel, &["--nic", "odp=on"], "odp=on", &format!("{FUNCTIONS}{script}"));
    assert_eq!(done.code(), 0);
    done.out
}

/// Bytes over TCP each way, answered and compared.
const TCP: &str = r#"
cat >/run/serve.py <<'P'
import socket
s = socket.socket()
s.bind(("10.0.1.2", 5000))
s.listen()
c, a = s.accept()
while data := c.recv(65536): c.sendall(data)
P
cat >/run/ask.py <<'P'
import os, socket, threading
data, back = os.urandom(1 << 20), bytearray()
s = socket.create_connection(("10.0.1.2", 5000), 20)
def read():
    while len(back) < len(data): back.extend(s.recv(65536))
t = threading.Thread(target=read)
t.start()
s.sendall(data)
t.join()
assert back == data
P
pair tcp "python3 /run/serve.py" "python3 /run/ask.py"
"#;

fn connects(kernel: &str) {
    let script = "namespaces\n".to_owned()
        + TCP
        + r#"
pair rping "rping -s -a $S -v -C 5" "rping -c -a $S -v -C 5"
pair ucmatose "ucmatose -b $S -c 4 -C 10" "ucmatose -s $S -c 4 -C 10"
pair udaddy "udaddy -b $S -c 2 -C 5" "udaddy -s $S -c 2 -C 5"
pair rdma_client "rdma_server -s $S" "rdma_client -s $S"
pair write_bw "ib_write_bw -R -d mlx5_1 -n 100" "ib_write_bw -R -d mlx5_0 -n 100 $S"
there timeout 100 qperf >/run/server.out 2>&1 & qperf=$!
for _ in $(seq 100); do there grep -q ':4D35 .* 0A ' /proc/net/tcp /proc/net/tcp6 && break; sleep 0.1; done
timeout 100 qperf -t 1 $S rc_lat ud_lat rc_rdma_write_bw quit >/run/client.out 2>&1 && echo "qperf=$(grep -c '=' /run/client.out)" || problem "qperf: $(cat /run/client.out /run/server.out)"
wait $qperf
# Whoever hears the group is told, since it was there first.
there timeout 60 stdbuf -oL mckey -m 239.1.1.1 -b $S -C 5 >/run/server.out 2>&1 & hears=$!
for _ in $(seq 300); do grep -q 'receiving' /run/server.out && break; sleep 0.1; done
timeout 60 mckey -m 239.1.1.1 -b 10.0.1.1 -s -C 5 >/run/client.out 2>&1 && wait $hears && echo "mckey=ok" || problem "mckey: $(cat /run/client.out /run/server.out)"
echo "nodes=$(saquery | grep -c 'NodeDescription.*rnic')"
echo "members=$(saquery -m | grep -c 'PortGid\|Mgid')"
perfquery -x 1 1 >/run/own && perfquery -x 2 1 >/run/other || problem "perfquery: $(cat /run/own /run/other)"
echo "sent=$(sed -n 's/^PortXmitPkts:\.*//p' /run/own)"
echo "heard=$(sed -n 's/^PortRcvPkts:\.*//p' /run/other)"
quiet
"#;
    let out = two(kernel, &script);
    for program in ["tcp", "rping", "ucmatose", "udaddy", "rdma_client", "write_bw", "mckey"] {
        assert_eq!(value(&out, &format!("{program}=")), "ok");
    }
    assert_eq!((value(&out, "qperf="), value(&out, "nodes=")), ("3", "2"));
    let number = |name| value(&out, name).parse::<u64>().unwrap();
    assert!(number("members=") > 0 && number("sent=") > 1000 && number("heard=") > 1000, "{out}");
}

#[test]
fn programs_connect_over_ipoib_on_6_1() {
    connects("6.1");
}

#[test]
fn programs_connect_over_ipoib_on_7_3() {
    connects("7.3");
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kernels' own mlx5 drivers on the NIC: they bind, go, come back, and start anew after a reset and after kexec, without a
//! word of complaint. What goes over the wire is tests/verbs-smoke's.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use image::{initramfs, resolve_kernel};

use crate::common::{Done, rnic};
use crate::machine::{Disk, LIMIT, exec_after, kernel, value};

/// Two boots, drivers and some traffic, on a busy machine.
const BOOTS_LIMIT: Duration = LIMIT.saturating_mul(3);

/// Functions of the scripts: `up` loads the drivers and waits for the port, `down` unloads, `traffic` is a loopback with both
/// ends here, `busy` one that goes on, `quiet` prints what the kernel has to complain about.
const FUNCTIONS: &str = r#"
function=$(lspci -D -d 15b3: | cut -d ' ' -f 1)
problem() { echo "problem=$*"; dmesg | tail -n 30; exit 1; }
up() {
    modprobe mlx5_ib && modprobe ib_uverbs || problem "modprobe"
    for _ in $(seq 200); do
        if grep -q ACTIVE /sys/class/infiniband/mlx5_0/ports/1/state 2>/dev/null; then return; fi
        sleep 0.1
    done
    problem "no active port"
}
down() {
    rmmod mlx5_ib && rmmod mlx5_core || problem "rmmod"
    if [ -n "$(ls /sys/class/infiniband)" ]; then problem "a device stayed"; fi
}
listens() { # port 18515
    for _ in $(seq 100); do
        if grep -q ':4853 .* 0A ' /proc/net/tcp /proc/net/tcp6; then return; fi
        sleep 0.1
    done
}
traffic() {
    ibv_rc_pingpong -d mlx5_0 -n 50 >/run/server.out 2>&1 &
    listens
    timeout 30 ibv_rc_pingpong -d mlx5_0 -n 50 127.0.0.1 >/run/client.out 2>&1 && wait $! || problem "pingpong: $(cat /run/client.out /run/server.out)"
    echo "traffic=ok"
}
busy() { # messages without end: they begin when the peers know of one another
    ibv_rc_pingpong -d mlx5_0 -n 100000000 >/dev/null 2>&1 &
    listens
    stdbuf -oL ibv_rc_pingpong -d mlx5_0 -n 100000000 127.0.0.1 >/run/client.out 2>&1 &
    for _ in $(seq 100); do
        if grep -q 'remote address' /run/client.out; then return; fi
        sleep 0.1
    done
    problem "no messages: $(cat /run/client.out)"
}
quiet() {
    dmesg -l emerg,alert,crit,err,warn | grep -E 'mlx5|infiniband|ib_core|uverbs' | sed 's/^/complaint=/'
    dmesg | grep -E 'WARNING:|BUG:|Call Trace' | sed 's/^/complaint=/'
}
"#;

/// Runs `script` after [`FUNCTIONS`] in a guest with the NIC that `nic` describes. It comes on a disk of its own, /dev/vdb: a kernel command
/// line is short. Disks of `options` follow from /dev/vdc.
pub fn nic(kernel: &str, options: &[&str], nic: &str, script: &str) -> Done {
    nic_after(|| (), kernel, options, nic, script)
}

/// The same with disks of the script's own, which `prepare` makes ready.
fn nic_after(prepare: impl Fn(), kernel: &str, options: &[&str], nic: &str, script: &str) -> Done {
    let text = format!("{FUNCTIONS}{script}\n");
    let disk = Disk::new(0);
    // Empty lines, for a shell, up to a whole sector.
    std::fs::write(&disk.path, format!("{text:\n<width$}", width = text.len().next_multiple_of(512))).unwrap();
    let disk_option = disk.option(",readonly=on");
    let mut all = vec!["--cpus", "2", "--nic", nic, "--disk", &disk_option];
    all.extend(options);
    let done = exec_after(prepare, BOOTS_LIMIT, kernel, &all, "exec bash /dev/vdb");
    let complaints: Vec<_> = done.out.lines().filter(|line| line.starts_with("complaint=")).collect();
    assert!(complaints.is_empty(), "{kernel} complains: {complaints:#?}");
    done
}

/// Every kernel's driver: tests/verbs-smoke.
#[test]
fn the_driver_binds() {
    let script = "lspci -n -d 15b3: | sed 's/.* /id=/'; up; traffic; \
                  echo \"driver=$(basename \"$(readlink /sys/bus/pci/devices/$function/driver)\")\"; quiet";
    let done = nic("6.12", &[], "odp=on", script);
    assert_eq!(done.code(), 0);
    assert_eq!(value(&done.out, "id="), "15b3:1018");
    assert_eq!(value(&done.out, "driver="), "mlx5_core");
    assert_eq!(value(&done.out, "traffic="), "ok");
}

/// Bus-level unbind and bind, and a function-level reset of the idle function in between.
#[test]
fn unbind_reset_bind() {
    let script = "up; dev=$function; drv=/sys/bus/pci/drivers/mlx5_core; \
                  for _ in 1 2; do echo $dev >$drv/unbind; echo 1 >/sys/bus/pci/devices/$dev/reset || problem reset; echo $dev >$drv/bind; done; \
                  up; traffic; quiet";
    let done = nic("7.3", &[], "odp=on", script);
    assert_eq!((done.code(), value(&done.out, "traffic=")), (0, "ok"));
}

#[test]
fn without_on_demand_paging_there_is_no_sign_of_it() {
    let script = "up; traffic; ibv_devinfo -v >/run/info; echo \"general=$(grep -c ODP_SUPPORT /run/info)\"; \
                  echo \"kinds=$(grep -c SUPPORT_ /run/info)\"; \
                  if timeout 20 ibv_rc_pingpong -o >/run/o 2>&1; then problem 'an ODP registration was accepted'; fi; cat /run/o; quiet";
    let done = nic("7.3", &[], "odp=off", script);
    assert_eq!((done.code(), value(&done.out, "general="), value(&done.out, "kinds=")), (0, "0", "0"));
}

#[test]
fn the_physical_function_binds_too() {
    let script = "lspci -n -d 15b3: | sed 's/.* /id=/'; up; traffic; down; up; traffic; quiet";
    let done = nic("6.12", &[], "model=cx5", script);
    assert_eq!((done.code(), value(&done.out, "id=")), (0, "15b3:1017"));
    assert_eq!(done.out.matches("traffic=ok").count(), 2);
}

#[test]
fn the_command_log_has_the_commands_of_a_probe() {
    let done = nic("6.1", &[], "log=commands", "up; down");
    assert_eq!(done.code(), 0);
    for command in [
        "ENABLE_HCA",
        "QUERY_HCA_CAP",
        "INIT_HCA",
        "CREATE_EQ",
        "CREATE_CQ",
        "CREATE_MKEY",
        "TEARDOWN_HCA",
        "DISABLE_HCA",
    ] {
        assert!(done.err.contains(command), "{command} is not in the log:\n{}", done.err);
    }
}

/// Boots, resets the machine by `how` while a program is at work, boots again. The disk tells the two lives apart.
fn survives_a_reset(kernel: &str, how: &str) {
    let disk = Disk::new(4096);
    let script = format!(
        r#"
up; traffic; quiet
if [ "$(head -c 1 /dev/vdc)" = x ]; then exit 5; fi
echo x | dd of=/dev/vdc conv=sync oflag=direct status=none
busy
{how}
sleep 60
"#
    );
    let options = ["--reboot", "restart", "--disk", &disk.option("")];
    let done = nic_after(|| disk.wipe(), kernel, &options, "odp=on", &script);
    assert_eq!((done.code(), done.out.matches("traffic=ok").count()), (5, 2), "{}", done.out);
}

/// The driver is not asked: the device is in the middle of everything.
#[test]
fn a_sudden_reset_under_traffic() {
    survives_a_reset("6.1", "echo b >/proc/sysrq-trigger");
}

#[test]
fn a_reboot_under_traffic() {
    survives_a_reset("7.3", "python3 -c 'import ctypes; ctypes.CDLL(None).reboot(0x1234567)'");
}

/// `bytes` of `from` as a disk, padded to whole sectors.
fn padded(mut from: impl std::io::Read, to: &Path) -> u64 {
    let mut file = File::create(to).unwrap();
    let size = std::io::copy(&mut from, &mut file).unwrap();
    file.set_len(size.next_multiple_of(512)).unwrap();
    size
}

/// The agent that the program under test uses.
fn agent() -> PathBuf {
    let beside = "../guest/x86_64-unknown-linux-gnu/release/rnic-agent";
    std::env::var_os("RNIC_AGENT").map_or_else(|| rnic().parent().unwrap().join(beside), PathBuf::from)
}

/// Two kernels one after the other on the same device, the second by kexec while the first one's driver is at work.
fn kexec(name: &str, call: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (entry, cache) = kernel(name);
    let kernel_size = padded(File::open(cache.join(&entry.bzimage)).unwrap(), &dir.path().join("kernel"));
    let source = resolve_kernel(name, None).unwrap();
    let spec = initramfs::Spec {
        kernel: &source,
        agent: &agent(),
        boot: &[],
        modules: &initramfs::RDMA_MODULES,
        dependents_of: &[],
        files: &[],
    };
    let initramfs_size = padded(initramfs::build(&spec).unwrap().0, &dir.path().join("initramfs"));
    // One script for both lives, told apart by a word on the kernel's command line.
    let script = format!(
        r#"
up; traffic; quiet
if grep -q second=1 /proc/cmdline; then exit 5; fi
head -c {kernel_size} /dev/vdc >/run/kernel
head -c {initramfs_size} /dev/vdd >/run/initramfs
kexec {call} -l /run/kernel --initrd=/run/initramfs --command-line="$(cat /proc/cmdline) second=1" || problem "kexec -l"
busy
kexec -e
sleep 60
"#
    );
    let option = |file: &str| format!("path={},readonly=on", dir.path().join(file).display());
    let disks = [option("kernel"), option("initramfs")];
    let done = nic(name, &["--disk", &disks[0], "--disk", &disks[1]], "odp=on", &script);
    assert_eq!((done.code(), done.out.matches("traffic=ok").count()), (5, 2), "{}", done.out);
}

#[test]
fn kexec_of_6_1_by_kexec_load() {
    kexec("6.1", "-c");
}

#[test]
fn kexec_of_7_3_by_kexec_file_load() {
    kexec("7.3", "-s");
}

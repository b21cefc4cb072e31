# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The L1 guest of with-kvm: its initramfs and the QEMU command line that starts it."""

import shutil
import subprocess
from pathlib import Path

from . import cache, qemu
from .progress import Problem

INIT = Path(__file__).resolve().parents[2] / "l1-init"
KERNEL = "6.1"
MODULES = ("virtio_pci", "virtio_console", "9p", "9pnet_virtio", "overlay", "kvm-amd")
APPLETS = ("cat chroot insmod ip kill ln mkdir mkfifo mount poweroff printf readlink rm sed setsid sh sleep stty sync "
           "umount usleep").split()
FOLDERS = ("bin", "dev", "proc", "sys", "m", "io", "ro", "rw", "newroot")
# The L1 is trusted and short-lived: no mitigations, no zeroing of fresh pages, nothing probed that is not there. A CPU that is lost
# (QEMU 7.2 loses one now and then) ends it within a minute, so that with-kvm never waits for ever.
APPEND = ("console=ttyS0 quiet panic=-1 oops=panic mitigations=off init_on_alloc=0 nokaslr no_timer_check audit=0 "
          "apparmor=0 cryptomgr.notests random.trust_cpu=on tsc=reliable transparent_hugepage=madvise "
          "rcupdate.rcu_cpu_stall_timeout=60 sysctl.kernel.panic_on_rcu_stall=1 rdinit=/init")


def kernel(folder):
    """The manifest entry of the kernel that the L1 runs."""
    for entry in cache.read_manifest(folder)["kernels"]:
        if entry["name"] == KERNEL and (folder / entry["vmlinux"]).exists():
            return entry
    raise Problem(f"{folder} holds no kernel {KERNEL}, which the TCG guest runs: run images/prepare {KERNEL} first")


def initramfs(folder, entry):
    """The path of the L1's initramfs, built in well under a second if the cache has none for this kernel and init."""
    busybox = shutil.which("busybox")
    if not busybox:
        raise Problem("there is no busybox on this machine: run images/prepare first")
    parts = [Path(__file__).read_bytes(), INIT.read_bytes(), Path(busybox).read_bytes(), entry["modules"].encode()]
    key = cache.key_of("l1", [{"name": "part", "version": str(len(part)), "sha256": cache.digest(part)} for part in parts])
    place = folder / "l1" / key
    if not (place / "initramfs").exists():
        with cache.locked(folder, "l1"):
            if not (place / "initramfs").exists():
                for old in (folder / "l1").glob("*"):
                    if old.stat().st_mtime < cache.long_ago():
                        cache.remove(old)
                with cache.building(place) as work:
                    (work / "initramfs").write_bytes(archive(folder / entry["modules"], entry["release"], busybox))
    return place / "initramfs"


def archive(modules, release, busybox):
    """The initramfs as bytes: busybox, the init script, and the modules in the order they are to be loaded."""
    files = [("init", 0o100755, INIT.read_bytes()), ("bin/busybox", 0o100755, Path(busybox).read_bytes())]
    files += [(f"bin/{name}", 0o120777, b"busybox") for name in APPLETS]
    for number, path in enumerate(load_order(modules, release)):
        files.append((f"m/{number:02}-{path.name}", 0o100644, path.read_bytes()))
    return cpio([(name, 0o040755, b"") for name in FOLDERS] + files)


def load_order(modules, release):
    """MODULES and what they need, needed ones first."""
    order = []
    for name in MODULES:
        result = subprocess.run(["modprobe", "-d", str(modules), "-S", release, "--show-depends", name],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
        if result.returncode:
            raise Problem(f"kernel {release} has no module {name} ({result.stderr.strip()}): run images/prepare --update")
        order += [Path(line.split()[1]) for line in result.stdout.splitlines() if line.startswith("insmod ")]
    return list(dict.fromkeys(order))


def cpio(files):
    """A newc archive of (name, mode, data), as the kernel's initramfs documentation describes it."""
    parts = []
    for number, (name, mode, data) in enumerate([*files, ("TRAILER!!!", 0, b"")], 1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        parts += [head, b"\0" * (-len(head) % 4), data, b"\0" * (-len(data) % 4)]
    return b"".join(parts)


def command_line(program, version, guest):
    """QEMU's arguments. `guest` has vmlinux, initramfs, job, log, cpus, memory (MB), fds by port name, socket,
    writable."""
    # An older QEMU lets the inner guest's XSETBV bypass KVM: offer no XSAVE, nor what rests on it.
    cpu = "max,svm=on,la57=off" + ("" if version >= qemu.SOUND else ",xsave=off,avx=off,avx2=off,pku=off")
    line = [program, "-name", "rnic-l1", "-machine", "q35,usb=off,smbus=off,sata=off,vmport=off", "-nodefaults",
            "-no-user-config", "-display", "none", "-monitor", "none", "-no-reboot", "-accel", "tcg,thread=multi",
            "-cpu", cpu, "-m", str(guest.memory), "-smp", str(guest.cpus),
            "-kernel", str(guest.vmlinux), "-initrd", str(guest.initramfs),
            "-append", f"{APPEND} rnic.job={guest.job}", "-serial", f"file:{guest.log}",
            "-device", "virtio-serial-pci,id=ports"]
    for number, (name, device) in enumerate(PORTS):
        if name in guest.fds:
            line += ["-chardev", f"socket,id={name},fd={guest.fds[name]}",
                     "-device", f"{device},chardev={name},nr={number},bus=ports.0"]
    if guest.socket:
        comma = guest.socket.replace(",", ",,")
        line += ["-chardev", f"socket,id=command,path={comma},server=on,wait=off",
                 "-device", f"virtserialport,chardev=command,nr={len(PORTS)},bus=ports.0"]
    shares = [("root", "/", "on")] + [(f"w{number}", path, "off") for number, path in enumerate(guest.writable)]
    for tag, path, readonly in shares:
        comma = str(path).replace(",", ",,")
        line += ["-virtfs", f"local,path={comma},mount_tag={tag},security_model=none,readonly={readonly},multidevs=remap"]
    return line


# (name, device): the place in this table is the port's number in the guest (see l1-init). The next number is the command's own port.
PORTS = (("terminal", "virtconsole"), ("in", "virtserialport"), ("out", "virtserialport"), ("err", "virtserialport"),
         ("control", "virtserialport"))

# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""images/with-kvm: runs a command where /dev/kvm is architectural, on the host or in a TCG guest with SVM."""

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from . import cache, qemu, session
from .progress import Problem, say

REPOSITORY = Path(__file__).resolve().parents[3]
INSIDE = "RNIC_WITH_KVM_INSIDE"
DEFAULT_MEMORY = 6144
LEAST_MEMORY = 1536
HOST_RESERVE = 1024
REFUSED = 1
DIED = 125
# Where what is temporary stays in the guest, when the host's folder for it is a writable one.
GUEST_TEMPORARY = "/dev/shm"


def probe_program():
    """The rnic binary that can try the KVM, if it has been built."""
    target = os.environ.get("CARGO_TARGET_DIR") or REPOSITORY / "target"
    installed = REPOSITORY / "../../bin/rnic"
    for path in (os.environ.get("RNIC_BIN"), Path(target) / "release" / "rnic", REPOSITORY / "target/release/rnic", installed):
        if path and os.access(path, os.X_OK):
            return str(path)
    return None


def judge_host():
    """(whether the host's KVM is architectural, why)."""
    if not os.path.exists("/dev/kvm"):
        return False, "this machine has no /dev/kvm"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False, "/dev/kvm may not be opened by this user (the group kvm may)"
    if os.path.exists("/sys/module/kvm_pvm"):
        return False, "host KVM is kvm_pvm (no ring 0)"
    program = probe_program()
    if program:
        try:
            status = subprocess.run([program, "kvm-probe"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                    stderr=subprocess.DEVNULL, timeout=20, check=False).returncode
        except (subprocess.TimeoutExpired, OSError):
            return False, f"{program} kvm-probe did not end within 20 s"
        if status in (0, 1):
            return status == 0, "kvm-probe ran ring 0 in it" if status == 0 else "kvm-probe says that host KVM is not architectural"
    flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split()
    if "vmx" in flags or "svm" in flags:
        return True, "the CPU has VMX or SVM"
    return False, "the CPU shows neither VMX nor SVM"


def choose(environment, emulated):
    """(whether to run on the host, why), --emulated and RNIC_KVM=host|tcg considered."""
    if environment.get(INSIDE):
        return True, None
    if emulated:
        return False, emulated
    forced = environment.get("RNIC_KVM", "")
    if forced == "host":
        return True, "with-kvm: RNIC_KVM=host"
    if forced == "tcg":
        return False, "with-kvm: RNIC_KVM=tcg"
    if forced:
        raise Problem(f"RNIC_KVM={forced} is neither host nor tcg: unset it or choose one of them")
    host, why = judge_host()
    return host, f"with-kvm: {why}"


def memory_size(asked):
    """MB for the L1: what was asked, or 6144 as far as the host has it free."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    free = int(fields["MemAvailable"].split()[0]) // 1024
    size = asked or min(DEFAULT_MEMORY, free - HOST_RESERVE)
    if size < LEAST_MEMORY or size > free:
        raise Problem(f"the TCG guest would get {size} MB and needs at least {LEAST_MEMORY} MB of the {free} MB that are free: "
                      "end other programs or give --memory MB")
    return size


def run_directly(command, environment):
    """Becomes the command."""
    try:
        os.execvpe(command[0], command, {**environment, INSIDE: "1"})
    except OSError as error:
        say(f"with-kvm: {command[0]}: {error.strerror}")
        sys.exit(127 if isinstance(error, FileNotFoundError) else 126)


def end_with(parent):
    """Has this process get SIGTERM when the process `parent`, which started it, ends."""
    ctypes.CDLL(None).prctl(session.PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise Problem(f"--end-with {parent} is not the process that started this one")


def guest_environment(environment, writable):
    """The command's: what it keeps for itself alone does not go through a writable folder to the host."""
    temporary = os.path.realpath(tempfile.gettempdir())
    kept = any(os.path.commonpath((temporary, path)) == path for path in writable)
    return {**environment, INSIDE: "1", **({"TMPDIR": GUEST_TEMPORARY} if kept else {})}


def parse():
    """The command line; everything from the first word that is no option is the command."""
    parser = argparse.ArgumentParser(
        prog="images/with-kvm", usage="%(prog)s [--writable DIR]... [--memory MB] [--emulated WHY] [--end-with PID] [--socket PATH] [--] COMMAND...",
        description="Runs COMMAND where /dev/kvm is an architectural KVM: on this machine if its own is one, otherwise in a "
        "TCG guest with SVM that sees this machine's files read-only (writes vanish, except under --writable).",
        epilog="RNIC_KVM=host or tcg forces a way. Exit status: COMMAND's, 125 when the TCG guest died, 1 when COMMAND could not be started.")
    parser.add_argument("--writable", action="append", default=[], metavar="DIR", help="a folder whose changes are kept")
    parser.add_argument("--memory", type=int, metavar="MB", help=f"size of the TCG guest (default {DEFAULT_MEMORY} or what is free)")
    parser.add_argument("--emulated", metavar="WHY", help="use a TCG guest whatever this machine's KVM is; the line that says so begins with WHY")
    parser.add_argument("--end-with", type=int, metavar="PID", help="end when PID, which started this program, ends")
    parser.add_argument("--socket", metavar="PATH", help="a socket that is made there and leads, one client at a time, to /dev/vport0p5 in the TCG guest")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    parser.exit_on_error = False
    try:
        arguments = parser.parse_args()
    except argparse.ArgumentError as error:
        raise Problem(f"{error}; see images/with-kvm --help") from error
    if arguments.command[:1] == ["--"]:
        arguments.command = arguments.command[1:]
    if not arguments.command:
        raise Problem("no command given; see images/with-kvm --help")
    arguments.writable = sorted({os.path.realpath(path) for path in arguments.writable}, key=len)
    for path in arguments.writable:
        if not os.path.isdir(path) or "\n" in path or path == "/":
            raise Problem(f"--writable {path} is not a folder below /: make it first")
    return arguments


def run():
    """Does what the command line says; returns the exit status."""
    arguments = parse()
    if arguments.end_with:
        end_with(arguments.end_with)
    host, why = choose(os.environ, arguments.emulated)
    if host:
        if arguments.socket:
            raise Problem("--socket is for a TCG guest, and COMMAND runs on this machine: give --emulated WHY too")
        if why:
            say(f"{why}, using this machine's /dev/kvm")
        run_directly(arguments.command, os.environ)
    program, version = qemu.find(cache.root(), os.environ)
    with session.Session(cache.root(), program, version, memory_size(arguments.memory), arguments.writable,
                         arguments.socket) as guest:
        say(f"{why}, using a TCG guest with SVM (QEMU {qemu.dotted(version)}, {guest.cpus} vCPUs, {guest.memory} MB), "
            "boot takes 3 s or more")
        if version < qemu.SOUND:
            say(f"with-kvm: {program} is older than {qemu.dotted(qemu.SOUND)} and may lose nested guests under load: "
                "run images/prepare, which brings a newer one")
        return guest.run(arguments.command, guest_environment(os.environ, arguments.writable))


def main():
    """The entry point; the guest's death has a status of its own, since trying again helps there and nowhere else."""
    try:
        sys.stdout.flush()
        status = run()
    except Problem as problem:
        say(f"with-kvm: {problem}")
        status = DIED if isinstance(problem, session.Death) else REFUSED
    except OSError as error:
        say(f"with-kvm: {error.filename or 'the TCG guest'}: {error.strerror}; check the file and the disk")
        status = REFUSED
    except KeyboardInterrupt:
        status = 130
    os._exit(status)  # a thread may still wait for standard input


if __name__ == "__main__":
    main()

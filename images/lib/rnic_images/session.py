# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""One run of the L1 guest: its folder, its QEMU process, signals, terminal and exit status."""

import ctypes
import fcntl
import os
import re
import secrets
import select
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import termios
import time
import tty
from pathlib import Path

from . import l1
from .progress import Problem, say
from .relay import Input, Output

PREFIX = "rnic-with-kvm-"
BOOT_LIMIT = 300
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Of the host's session, not of the command's: sockets and displays that the guest cannot reach, the shell's own.
DENIED = re.compile(r"PWD|OLDPWD|_|SHLVL|DISPLAY|WAYLAND_DISPLAY|XAUTHORITY|DBUS_.*|SSH_.*|GPG_.*|XDG_RUNTIME_DIR|XDG_SESSION_.*"
                    r"|NOTIFY_SOCKET|LISTEN_.*|MAKEFLAGS|MFLAGS|JOURNAL_STREAM|INVOCATION_ID|CARGO_MAKEFLAGS|PPID|UID|EUID|GROUPS")
FORWARDED = ("HUP", "INT", "QUIT", "TERM", "USR1", "USR2")
PR_SET_PDEATHSIG = 1
# Where the telling part of a dead guest's messages begins, and how many lines of it are shown.
CRASH = re.compile(r"Kernel panic|BUG:|Oops|Out of memory")
SHOWN = 12


class Death(Problem):
    """The guest is gone, and the command with it."""


class Session:
    """The L1 guest of one command. Use as a context manager: QEMU and the folder are gone afterwards."""

    def __init__(self, folder, program, version, memory, writable, socket_path=None):
        entry = l1.kernel(folder)
        self.program, self.version = program, version
        self.vmlinux, self.initramfs = folder / entry["vmlinux"], l1.initramfs(folder, entry)
        self.memory, self.writable, self.socket = memory, writable, socket_path
        self.cpus = 2
        self.fds, self.ports = {}, {}
        self.process = self.saved_terminal = None
        self.started = False
        self.core = None  # the socket that marks the core of ours that the guest's CPUs share as taken
        self.beats = {}  # CPU: when it last said that it runs programs
        self.outputs = []

    def __enter__(self):
        sweep()
        self.job = Path(tempfile.mkdtemp(prefix=PREFIX))
        self.log = self.job / "console.log"
        self.lock = open(self.job / "lock.new", "w", encoding="ascii")  # held while this run lives, see sweep()
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        os.rename(self.job / "lock.new", self.job / "lock")
        return self

    def __exit__(self, *_):
        self.restore_terminal()
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.job, ignore_errors=True)

    def run(self, command, environment):
        """Boots, runs the command, returns its exit status."""
        self.nonce = secrets.token_hex(16)
        self.terminal = os.isatty(0) and os.isatty(1)
        self.own_stderr = not (self.terminal and os.isatty(2))
        wanted = ["control"] + (["terminal"] if self.terminal else ["in", "out"]) + (["err"] if self.own_stderr else [])
        ends = {name: socket.socketpair() for name in wanted}
        self.ports = {name: pair[0] for name, pair in ends.items()}
        self.fds = {name: pair[1].fileno() for name, pair in ends.items()}
        self.write_job(command, environment)
        wake = self.catch_signals()
        self.start_qemu()
        for pair in ends.values():
            pair[1].close()
        return self.serve(wake)

    def write_job(self, command, environment):
        """Writes what l1-init reads."""
        rows, columns = window_size() if self.terminal else (24, 80)
        settings = {"nonce": self.nonce, "terminal": int(self.terminal), "own_stderr": int(self.own_stderr), "rows": rows,
                    "columns": columns, "host_name": os.uname().nodename}
        text = "".join(f"{name}={shlex.quote(str(value))}\n" for name, value in settings.items())
        (self.job / "settings").write_text(text, encoding="utf-8")
        (self.job / "writable").write_bytes(b"".join(os.fsencode(path) + b"\n" for path in self.writable))
        lines = ["echo $$ >&8; exec 8>&- 9>&-"]
        lines += [f"export {name}={shlex.quote(value)}" for name, value in environment.items()
                  if NAME.fullmatch(name) and not DENIED.fullmatch(name)]
        lines += [f"cd {shlex.quote(os.getcwd())} || exit 125", "exec " + " ".join(map(shlex.quote, command))]
        (self.job / "command").write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")

    def start_qemu(self):
        """Starts QEMU in a session of its own (a ^C is ours to forward), to die when we do."""
        libc = ctypes.CDLL(None)
        parent = os.getpid()

        def bind_to_parent():
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGKILL)

        with open(self.job / "qemu.log", "wb") as log:
            self.process = subprocess.Popen(
                l1.command_line(self.program, self.version, self), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
                pass_fds=list(self.fds.values()), start_new_session=True, preexec_fn=bind_to_parent)

    def catch_signals(self):
        """Forwarded signals wake the serving loop through a pipe; returns its reading end."""
        reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for name in (*FORWARDED, "WINCH"):
            number = getattr(signal, f"SIG{name}")
            if signal.getsignal(number) != signal.SIG_IGN:  # what nohup or a shell's & ignores stays ignored
                signal.signal(number, lambda *_: None)
        for name in ("TTIN", "TTOU"):  # in the background a terminal is an end of file
            signal.signal(getattr(signal, f"SIG{name}"), signal.SIG_IGN)
        return reading

    def serve(self, wake):
        """Carries words and signals until the command has ended and its output is complete."""
        control, held, status = self.ports["control"], b"", None
        deadline, limit = time.monotonic() + BOOT_LIMIT, beat_limit()
        while status is None:
            ready, _, _ = select.select([control, wake], [], [], 0.5)
            if wake in ready:
                early = self.signals(os.read(wake, 64))
                if early:
                    return early
            if control in ready:
                data = receive(control)
                *words, held = (held + data).split(b"\n")
                for word in words:
                    status = self.word(word.decode(errors="replace"), status)
                if not data and status is None:
                    raise self.death()
            if status is None and self.process.poll() is not None:
                raise self.death()
            if not self.started and time.monotonic() > deadline:
                raise self.death(f" did not start within {BOOT_LIMIT} s")
            for cpu, last in self.beats.items():
                if time.monotonic() - last > limit:
                    raise self.death(f"'s CPU {cpu} stopped for good")
        for output in self.outputs:
            while not output.complete.wait(0.2):
                if not output.is_alive() or self.process.poll() is not None:
                    raise self.death()
                self.signals(os.read(wake, 64) if select.select([wake], [], [], 0)[0] else b"")
        return status

    def word(self, word, status):
        """One line of the guest's; returns the exit status once it is known."""
        verb, _, rest = word.partition(" ")
        if verb == "started":
            self.started = True
            self.share_a_core()
            self.attach()
        elif verb == "beat":
            self.beats[rest] = time.monotonic()
        elif verb == "exit" and rest.isdigit():
            return int(rest)
        elif verb == "failed":
            raise Problem(f"the TCG guest says: {rest}; its messages are in {self.keep_log()}")
        return status

    def share_a_core(self):
        """Puts the guest's CPUs on one core of ours, which takes turns: QEMU's nested virtualisation misplaces interrupts when they really
        run at the same time (docs/findings.md). Another guest gets another core while there is one."""
        cores = sorted(os.sched_getaffinity(0))
        first = self.process.pid % len(cores)
        for core in cores[first:] + cores[:first]:
            mark = socket.socket(socket.AF_UNIX)
            try:
                mark.bind(f"\0{PREFIX}core-{core}")
                self.core = mark
                break
            except OSError:
                mark.close()
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            if re.fullmatch(r"CPU \d+/TCG", (task / "comm").read_text(encoding="ascii", errors="replace").strip()):
                os.sched_setaffinity(int(task.name), {core})

    def attach(self):
        """Connects our streams to the guest's ports."""
        nonce = self.nonce.encode()

        def output(name, fd):
            return Output(self.ports[name], fd, nonce, lambda: self.tell(f"closed {name}"))

        if self.terminal:
            self.saved_terminal = termios.tcgetattr(0)
            tty.setraw(0)
            self.outputs.append(output("terminal", 1))
            Input(0, self.ports["terminal"]).start()
        else:
            self.outputs.append(output("out", 1))
            Input(0, self.ports["in"]).start()
        if self.own_stderr:
            self.outputs.append(output("err", 2))
        for thread in self.outputs:
            thread.start()

    def signals(self, numbers):
        """Forwards signals; before the command has started one of them ends with-kvm: then its exit status is returned."""
        for number in numbers:
            if number == signal.SIGWINCH:
                if self.terminal:
                    self.tell("size {} {}".format(*window_size()))
            elif self.started:
                self.tell(f"signal {signal.Signals(number).name.removeprefix('SIG')}")
            else:
                return 128 + number
        return None

    def tell(self, line):
        """Sends a line to the guest; a guest that is gone is noticed elsewhere."""
        try:
            self.ports["control"].sendall(line.encode() + b"\n")
        except OSError:
            pass

    def restore_terminal(self):
        if self.saved_terminal:
            termios.tcsetattr(0, termios.TCSADRAIN, self.saved_terminal)
            self.saved_terminal = None

    def keep_log(self):
        """Moves the console log out of the folder that goes away; returns its new path."""
        kept = Path(tempfile.gettempdir()) / f"{PREFIX}console-{os.getpid()}.log"
        with open(kept, "wb") as file:
            for part in (self.job / "qemu.log", self.log):
                if part.exists():
                    file.write(part.read_bytes())
        return kept

    def death(self, what=" died"):
        """The problem that the guest is gone, with the end of what it said."""
        self.restore_terminal()
        kept = self.keep_log()
        lines = kept.read_text(encoding="utf-8", errors="replace").splitlines()
        first = next((number for number, line in enumerate(lines) if CRASH.search(line)), len(lines) - SHOWN)
        for line in lines[max(0, first):][:SHOWN]:
            say(f"with-kvm: guest: {line}")
        return Death(f"the TCG guest{what} before the command ended; its messages are in {kept}")


def beat_limit():
    """How long a CPU of the guest may be silent, in seconds: on a very busy machine it may get no time for a while."""
    value = os.environ.get("RNIC_BEAT_LIMIT", "120")
    if not value.isdigit():
        raise Problem(f"RNIC_BEAT_LIMIT={value} is not a number of seconds: unset it or say one")
    return int(value)


def receive(port):
    """What a port has; nothing when it is closed."""
    try:
        return port.recv(4096)
    except OSError:
        return b""


def window_size():
    """(rows, columns) of the terminal at standard output."""
    try:
        size = os.get_terminal_size(1)
        return size.lines or 24, size.columns or 80
    except OSError:
        return 24, 80


def sweep():
    """Removes the folders of runs that were killed: those whose lock nobody holds."""
    for lock in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/lock"):
        try:
            with open(lock, "r", encoding="ascii") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
        except OSError:
            continue

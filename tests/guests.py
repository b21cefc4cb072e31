# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What the scripts have in common that run programs in guests (verbs-smoke, verbs-suite, perftest-table, soak): the program, disks of scripts, room for
hosts, and whose fault a guest's end is."""

import io
import os
import re
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ("6.1", "6.12", "7.3")
SECTOR = 512
# 125: the emulated host died; 12: a vCPU triple-faulted in it. Not about our program (docs/findings.md): said, and tried again.
HOST_AT_FAULT = (125, 12)
TRIES = 3


def program():
    """The release build of `rnic`, or the one that RNIC_BIN names."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return os.environ.get("RNIC_BIN", str(target / "release/rnic"))


def say(text):
    """A line for people, out of the way of --json."""
    print(text, file=sys.stderr if "--json" in sys.argv else sys.stdout, flush=True)


def lanes():
    """How many emulated hosts there is room for at once, at most two: each keeps to a core of its own."""
    memory = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text(encoding="ascii"))
    return 2 if os.cpu_count() >= 2 and int(memory[1]) >> 20 >= 14 else 1


def script_disk(folder, path):
    """A shell script as a disk, `exec bash /dev/vdb`: empty lines up to a whole sector."""
    script = Path(path).read_bytes()
    disk = Path(folder) / Path(path).name
    disk.write_bytes(script + b"\n" * (-len(script) % SECTOR))
    return disk


def archive(folder):
    """tests/verbs as a tar archive, which is a whole number of sectors."""
    path = Path(folder) / "verbs.tar"
    with tarfile.open(path, "w") as tar:
        for file in sorted((ROOT / "tests/verbs").iterdir()):
            data = file.read_bytes()
            member = tarfile.TarInfo(file.name)
            member.size, member.mode = len(data), 0o755
            tar.addfile(member, io.BytesIO(data))
    assert path.stat().st_size % SECTOR == 0
    return path


def unpack(then):
    """A guest's command: unpacks `archive`, which is /dev/vdb, and goes on with `then` in it."""
    return f"mkdir /run/verbs && tar -xf /dev/vdb -C /run/verbs && exec bash /run/verbs/{then}"

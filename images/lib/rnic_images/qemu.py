# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""QEMU for the L1 guest: unpacked from Debian into the cache, run by its own loader with its own libraries, nothing installed."""

import os
import re
import shutil
import subprocess

from . import cache, roots, unpack
from .progress import Problem, Step

RECIPE = "qemu 1"
NAME = "qemu"
PROGRAM = "qemu-system-x86_64"
SUITE = "trixie-backports"
PACKAGES = ["qemu-system-x86"]
OVERRIDE = "RNIC_QEMU"
# From here on AMD SVM is emulated rightly. 7.2 loses vCPUs of nested guests under load and lets XSETBV bypass KVM.
SOUND = (11, 1)

LOADER = "ld-linux-x86-64.so.2"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
# What is taken out of the packages: the program, libraries to choose from, firmware of a q35 machine that boots an ELF kernel.
KEPT = re.compile(rf"usr/bin/{PROGRAM}|{LIBRARIES}/[^/]+\.so(?:\.[^/]+)?|usr/share/seabios/bios-256k\.bin"
                  r"|usr/share/qemu/(?:kvmvapic|linuxboot_dma|multiboot_dma|pvh)\.bin")
# Opened by libc when a thread is cancelled, not named by the program.
OPENED_LATER = ("libgcc_s.so.1",)
LAUNCHER = f"""#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
unset LD_PRELOAD LD_AUDIT
exec "$here/lib/{LOADER}" --argv0 {PROGRAM} --library-path "$here/lib" "$here/bin/{PROGRAM}" -L "$here/share" "$@"
"""


def recipe():
    """What makes an entry what it is, beside its packages."""
    return cache.digest("\n".join((RECIPE, KEPT.pattern, *OPENED_LATER, LAUNCHER)).encode())[:16]


def build(folder, suite):
    """Makes the cache entry unless it is there and runs; returns its manifest entry."""
    packages = suite.resolve(PACKAGES)
    place = folder / "qemu" / cache.key_of(recipe(), packages)
    if not sound(place / PROGRAM):
        files = suite.download(packages)
        with cache.building(place) as work:
            unpack_all(files, work / "tree")
            suite.drop(files)
            arrange(work / "tree", work)
            cache.remove(work / "tree")
            if not sound(work / PROGRAM):
                raise Problem(f"{suite.name} has no QEMU {dotted(SOUND)} or newer that runs here: set RNIC_DEBIAN_MIRROR to another mirror")
    package = next(package for package in packages if package["name"] == PACKAGES[0])
    return {"name": NAME, "version": package["version"], "suite": suite.name, "program": f"qemu/{place.name}/{PROGRAM}",
            "recipe": recipe(), "packages": [{key: package[key] for key in ("name", "version", "sha256")} for package in packages]}


def unpack_all(files, tree):
    """Unpacks what KEPT names of packages into `tree`, its /usr merged."""
    with Step("qemu: unpacking", len(files), "packages") as step:
        for done, file in enumerate(files):
            for tar, member in unpack.members(file):
                path = roots.wanted_path(member.name)
                if path and KEPT.fullmatch(path) and not member.isdir():
                    roots.place_member(tree, tar, member)
            step.update(done)


def arrange(tree, place):
    """Fills `place` from `tree`: bin/ the program, lib/ just the libraries that it loads, share/ firmware, and the launcher."""
    libraries = tree / LIBRARIES
    for part in ("bin", "lib", "share"):
        (place / part).mkdir()
    # --list asks the loader itself; a name that it does not find in the tree is told as "not found".
    result = subprocess.run([libraries / LOADER, "--inhibit-cache", "--list", "--library-path", libraries, tree / "usr/bin" / PROGRAM],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False,
                            env={**os.environ, "LD_PRELOAD": "", "LD_AUDIT": ""})
    names = {os.path.basename(name) for name in re.findall(r"^\s*(\S+) => ", result.stdout, re.M)}
    absent = sorted(name for name in names if not (libraries / name).exists())
    if result.returncode or absent or LOADER not in names:
        raise Problem(f"qemu: its packages hold no working program ({' '.join(absent) or result.stderr.strip()[-200:]}): "
                      "run images/prepare --update qemu")
    for name in sorted(names) + [name for name in OPENED_LATER if (libraries / name).exists()]:
        shutil.copy2((libraries / name).resolve(), place / "lib" / name)
    (place / "lib" / LOADER).chmod(0o755)
    for path in [*tree.glob("usr/share/*/*"), tree / "usr/bin" / PROGRAM]:
        os.rename(path, place / ("bin" if path.name == PROGRAM else "share") / path.name)
    unpack.write_file(place / PROGRAM, LAUNCHER.encode(), 0o755)


def version_of(program):
    """(major, minor) of a QEMU program."""
    try:
        text = subprocess.run([program, "--version"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              text=True, timeout=60, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        text = ""
    match = re.search(r"version (\d+)\.(\d+)", text)
    if not match:
        raise Problem(f"{program} does not say its version: run images/prepare --update qemu, or unset {OVERRIDE}")
    return int(match[1]), int(match[2])


def dotted(version):
    """A version as people write it."""
    return ".".join(map(str, version))


def sound(program):
    """Whether it is a QEMU that runs and is new enough."""
    try:
        return version_of(program) >= SOUND
    except Problem:
        return False


def named(environment):
    """The program that RNIC_QEMU names, None if it is not set."""
    word = environment.get(OVERRIDE)
    program = shutil.which(word) if word else None
    if word and not program:
        raise Problem(f"{OVERRIDE}={word} is not a program: unset it or name a {PROGRAM}")
    return program


def hosts_own():
    """(program, version) of the machine's QEMU; (None, (0, 0)) when there is none that works."""
    program = shutil.which(PROGRAM)
    try:
        return (program, version_of(program)) if program else (None, (0, 0))
    except Problem:
        return None, (0, 0)


def needless(environment):
    """Whether with-kvm has a QEMU without the cache's: RNIC_QEMU, or the machine's own if it is sound."""
    return bool(named(environment)) or hosts_own()[1] >= SOUND


def find(folder, environment):
    """(program, version) for the L1: RNIC_QEMU, the cache's, the machine's own."""
    program = named(environment)
    if program:
        return program, version_of(program)
    for entry in cache.read_manifest(folder)["tools"]:
        if entry["name"] == NAME and (folder / entry["program"]).exists():
            return str(folder / entry["program"]), version_of(folder / entry["program"])
    program, version = hosts_own()
    if not program:
        raise Problem("there is no QEMU for a TCG guest: run images/prepare first")
    return program, version

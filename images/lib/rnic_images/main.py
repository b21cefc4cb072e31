# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""images/prepare once the host's packages are there: fills the cache and writes its manifest."""

import argparse
import errno
import os
import signal
import subprocess
import sys
import time

from . import cache, kernels, l1, qemu, roots
from .debian import Suite
from .progress import Problem, say

# MB that a finished entry takes at most, and what the building of one takes beside (downloads, unpacked files).
KERNEL_SPACE, ROOT_SPACE, TOOL_SPACE, BUILDING_SPACE = 350, 300, 80, 700
PARTS = (*kernels.KERNELS, *roots.ROOTS, qemu.NAME)


def wanted_parts(words):
    """The kernels, roots and tools that `words` name; all for no words. A kernel brings its root, the L1's kernel brings QEMU."""
    if not words:
        return list(kernels.KERNELS), list(roots.ROOTS), [qemu.NAME]
    wanted_kernels = [name for name in kernels.KERNELS if name in words]
    wanted_roots = [name for name in roots.ROOTS if name in words
                    or any(kernels.KERNELS[kernel][1] == name for kernel in wanted_kernels)]
    wanted_tools = [qemu.NAME] if qemu.NAME in words or l1.KERNEL in words else []
    unknown = [word for word in words if word not in PARTS]
    if unknown:
        raise Problem(f"there is no guest part {unknown[0]!r}: choose among {', '.join(PARTS)}")
    return wanted_kernels, wanted_roots, wanted_tools


def usable(folder, entry, members, recipe):
    """Whether a manifest entry's files are still there and made as they would be now."""
    return entry.get("recipe") == recipe and all((folder / entry[member]).exists() for member in members)


def missing(folder, manifest, wanted_kernels, wanted_roots, wanted_tools):
    """The wanted parts that the cache does not hold."""
    have_kernels = {entry["name"] for entry in manifest["kernels"]
                    if usable(folder, entry, ("vmlinux", "bzimage", "modules", "config"), kernels.recipe())}
    have_roots = {entry["name"] for entry in manifest["roots"] if usable(folder, entry, ("image",), roots.recipe())}
    have_tools = {entry["name"] for entry in manifest["tools"] if usable(folder, entry, ("program",), qemu.recipe())}
    return ([name for name in wanted_kernels if name not in have_kernels],
            [name for name in wanted_roots if name not in have_roots],
            [name for name in wanted_tools if name not in have_tools])


def put(entries, entry, order):
    """Replaces or adds an entry of the manifest; keeps the order of the table it comes from."""
    entries[:] = [old for old in entries if old["name"] != entry["name"]] + [entry]
    entries.sort(key=lambda item: list(order).index(item["name"]) if item["name"] in order else len(order))


def fill(folder, manifest, todo_kernels, todo_roots, todo_tools):
    """Builds what is missing; the manifest is renewed after each part, so that an interruption loses one part."""
    if todo_kernels or todo_roots or todo_tools:
        cache.need_space(folder, BUILDING_SPACE + KERNEL_SPACE * len(todo_kernels) + ROOT_SPACE * len(todo_roots)
                         + TOOL_SPACE * len(todo_tools))
    suites = {}

    def suite(name):
        if name not in suites:
            suites[name] = Suite(name, folder / "apt" / str(os.getpid()) / name).open()
        return suites[name]

    for name in todo_kernels:
        put(manifest["kernels"], kernels.build(folder, name, suite(kernels.KERNELS[name][0])), kernels.KERNELS)
        cache.write_manifest(folder, manifest)
    for name in todo_roots:
        put(manifest["roots"], roots.build(folder, name, suite(name)), roots.ROOTS)
        cache.write_manifest(folder, manifest)
    if todo_tools:
        put(manifest["tools"], qemu.build(folder, suite(qemu.SUITE)), (qemu.NAME,))
        cache.write_manifest(folder, manifest)


def report(folder, manifest, start):
    """Says what is there."""
    size = subprocess.run(["du", "-sm", str(folder)], stdout=subprocess.PIPE, text=True, check=False).stdout.split()
    for entry in manifest["kernels"]:
        say(f"kernel {entry['name']}: {entry['release']} (package {entry['package_version']}, {entry['suite']})")
    for entry in manifest["tools"]:
        say(f"{entry['name']}: {entry['version']}")
    say(f"guest parts are ready in {folder} ({size[0] if size else '?'} MB) after {time.monotonic() - start:.0f} s")


def run(arguments):
    """Does what the command line says."""
    start = time.monotonic()
    wanted = wanted_parts(arguments.what)
    folder = cache.root()

    def todo(manifest):
        parts, names, tools = wanted if arguments.update else missing(folder, manifest, *wanted)
        # Asked last: to learn a program's version takes longer than all the rest of a run that only looks.
        return parts, names, tools if tools and (qemu.NAME in arguments.what or not qemu.needless(os.environ)) else []

    if not any(todo(cache.read_manifest(folder))):
        say(f"guest parts are ready in {folder}")
        return
    with cache.locked(folder, "prepare"):
        manifest = cache.read_manifest(folder)
        cache.drop_unlisted(folder, manifest)
        try:
            fill(folder, manifest, *todo(manifest))
        finally:
            cache.drop_unlisted(folder, cache.read_manifest(folder))
        report(folder, manifest, start)


def main():
    """The entry point; exit status 1 for a problem a person can act on."""
    parser = argparse.ArgumentParser(
        prog="images/prepare", description="Makes this machine ready: host packages, guest kernels, root file systems, QEMU.")
    parser.add_argument("--update", action="store_true", help="look for newer kernels and packages (default: keep what is cached)")
    parser.add_argument("what", nargs="*", metavar="WHAT",
                        help=f"parts to prepare: {', '.join(PARTS)} (default: all)")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that half-made entries are cleaned up
    try:
        run(parser.parse_args())
    except Problem as problem:
        say(f"images/prepare: {problem}")
        sys.exit(1)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            say(f"images/prepare: the disk of {cache.root()} is full: make room, or point XDG_CACHE_HOME to a larger disk")
        else:
            say(f"images/prepare: {error.filename or cache.root()}: {error.strerror}; check the disk and its permissions")
        sys.exit(1)
    except subprocess.CalledProcessError as error:
        say(f"images/prepare: {error.cmd[0]} failed with status {error.returncode}; its message is above")
        sys.exit(1)
    except KeyboardInterrupt:
        say("images/prepare: interrupted; the next run goes on from the last finished part")
        sys.exit(130)


if __name__ == "__main__":
    main()

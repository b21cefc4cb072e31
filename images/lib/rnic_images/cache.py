# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The cache: entries keyed by content, built beside their place and renamed, one builder at a time."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from pathlib import Path

from .progress import Problem, say

MANIFEST_FORMAT = 1
BUILDING = ".building-"
SUPERSEDED = "superseded"
SUPERSEDED_KEPT = 5
# What every manifest entry of a kind has, beside its list of packages.
MEMBERS = {"kernels": ("name", "release", "package_version", "vmlinux", "bzimage", "modules", "config", "root", "recipe"),
           "roots": ("name", "image", "recipe"),
           "tools": ("name", "version", "program", "recipe")}
# kind -> the folder of its entries, and the member of an entry that is a path in it.
PLACES = {"kernels": ("kernels", "vmlinux"), "roots": ("roots", "image"), "tools": ("qemu", "program")}


def root():
    """The folder of the cache, as the program finds it too (src/image/manifest.rs)."""
    own = os.environ.get("RNIC_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "rnic"


def key_of(recipe, packages):
    """The key of an entry made by `recipe` (a string with its version) from `packages`."""
    text = recipe + "".join(f"\n{p['name']} {p['version']} {p['sha256']}" for p in packages)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextlib.contextmanager
def locked(folder, name):
    """Holds the lock `name` of the cache; says so when it has to wait for another run."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f".{name}.lock", "w", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            start, next_word = time.monotonic(), 0.0
            while True:
                waited = time.monotonic() - start
                if waited >= next_word:
                    say(f"waiting for another run that is filling {folder} ({waited:.0f} s)")
                    next_word = waited + 15
                time.sleep(0.2)
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
        yield


@contextlib.contextmanager
def building(place):
    """Yields a fresh folder that becomes `place` when the block succeeds and vanishes when it fails.

    The caller holds the cache's lock, so that leftovers of an interrupted run are nobody's.
    """
    work = place.parent / f"{BUILDING}{place.name}"
    place.parent.mkdir(parents=True, exist_ok=True)
    remove(work)
    work.mkdir()
    try:
        yield work
        remove(place)
        os.rename(work, place)
    finally:
        remove(work)


def remove(path):
    """Removes a file or a tree, whether it exists or not."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def read_manifest(folder):
    """The manifest with its well-formed entries; an empty one where there is none or it cannot be read."""
    try:
        found = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    manifest = {"format": MANIFEST_FORMAT, **{kind: [] for kind in MEMBERS}}
    if isinstance(found, dict) and found.get("format") == MANIFEST_FORMAT:
        for kind, members in MEMBERS.items():
            entries = found.get(kind) if isinstance(found.get(kind), list) else []
            manifest[kind] = [entry for entry in entries if isinstance(entry, dict)
                              and all(isinstance(entry.get(member), str) for member in members)]
    return manifest


def write_manifest(folder, manifest):
    """Replaces the manifest in one step."""
    work = folder / "manifest.json.new"
    with open(work, "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(work, folder / "manifest.json")


def drop_unlisted(folder, manifest):
    """Removes leftovers of interrupted runs and entries that the manifest no longer names.

    A guest of another run may still read a superseded entry: it is marked, and goes a day later, or when five newer ones have come.
    """
    superseded = []
    for kind, (place, member) in PLACES.items():
        wanted = {Path(entry[member]).parts[1] for entry in manifest[kind]}
        for path in sorted((folder / place).glob("*")) + sorted((folder / place).glob(BUILDING + "*")):
            if path.name.startswith(BUILDING):
                remove(path)
            elif path.name in wanted:
                remove(path / SUPERSEDED)
            else:
                if not (path / SUPERSEDED).exists():
                    (path / SUPERSEDED).touch()
                superseded.append(((path / SUPERSEDED).stat().st_mtime, path))
    superseded.sort(reverse=True)
    for number, (since, path) in enumerate(superseded):
        if number >= SUPERSEDED_KEPT or since < long_ago():
            remove(path)
    remove(folder / "apt")


def need_space(folder, megabytes):
    """Fails when the file system of `folder` has less than `megabytes` free."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free // 1_000_000
    if free < megabytes:
        raise Problem(f"{folder} has {free} MB free and about {megabytes} MB are needed: "
                      "make room, or point XDG_CACHE_HOME to a larger disk")


def digest(data):
    """The SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def long_ago():
    """The time before which an unused small entry may go: a day ago."""
    return time.time() - 86400

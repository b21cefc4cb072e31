# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Read-only root file systems: packages unpacked (no maintainer script runs), what the scripts would have made, ext4."""

import os
import stat
import subprocess
import uuid

from . import cache, unpack
from .progress import Problem, Step

RECIPE = "root 1"

# name -> suite. rdma-core has to match the kernels: 44 goes with 6.1, 56 with 6.12 and later.
ROOTS = {"bookworm": "bookworm", "trixie": "trixie"}

PACKAGES = """
    base-files base-passwd bash coreutils dash debianutils diffutils findutils grep gzip hostname mawk ncurses-base sed tar
    libc-bin less login util-linux mount kmod kexec-tools procps pciutils psmisc strace
    e2fsprogs xfsprogs btrfs-progs dmsetup cryptsetup-bin mdadm fio xz-utils
    iproute2 ethtool rdma-core ibverbs-utils ibverbs-providers libibverbs1 librdmacm1 rdmacm-utils infiniband-diags perftest
    python3-minimal python3-pyverbs python3-scapy
    iputils-ping qperf nvme-cli nfs-common nfs-kernel-server
""".split()

MERGED = ("bin", "sbin", "lib", "lib64")
FOLDERS = ("proc", "sys", "dev", "run", "tmp", "mnt", "root", "etc", "var/tmp", "usr/lib/modules", "scratch")

# Links that maintainer scripts or update-alternatives would have made: path -> target, made where the target exists.
LINKS = {
    "usr/bin/awk": "mawk",
    "usr/bin/sh": "dash",
    "usr/bin/which": "which.debianutils",
    "usr/bin/pager": "more",
    "usr/bin/python3": "python3.11",
    "usr/sbin/iptables": "iptables-nft",
    "var/run": "../run",
    "etc/mtab": "../proc/self/mounts",
}

FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\ntty:x:5:\ndisk:x:6:\nkvm:x:104:\nnogroup:x:65534:\n",
    "etc/shadow": "root:*:19000:0:99999:7:::\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/hostname": "rnic\n",
    "etc/fstab": "",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}

# Nothing in a guest reads these.
TRIMMED = ("usr/share/doc/", "usr/share/man/", "usr/share/locale/", "usr/share/info/", "usr/share/lintian/", "usr/share/bug/",
           "usr/share/i18n/", "usr/share/bash-completion/", "usr/share/zoneinfo/", "usr/lib/systemd/", "usr/lib/udev/hwdb.d/",
           "usr/share/perl/", "usr/lib/x86_64-linux-gnu/perl/", "usr/share/gcc/", "usr/share/initramfs-tools/",
           "usr/share/common-licenses/", "usr/lib/x86_64-linux-gnu/gconv/", "usr/share/keyrings/", "usr/share/fio/")
KEPT = ("usr/share/doc/rdma-core/tests", "usr/lib/systemd/libsystemd")


def recipe():
    """What makes an image what it is, beside its packages."""
    return cache.digest("\n".join(map(repr, (RECIPE, PACKAGES, FOLDERS, LINKS, FILES, TRIMMED, KEPT))).encode())[:16]


def build(folder, name, suite):
    """Makes the cache entry of root `name` unless it is there; returns its manifest entry."""
    packages = suite.resolve(PACKAGES)
    place = folder / "roots" / cache.key_of(recipe(), packages)
    if not (place / "root.ext4").exists():
        files = suite.download(packages)
        with cache.building(place) as work:
            tree = work / "tree"
            unpack_all(name, files, tree)
            suite.drop(files)
            finish(tree)
            make_image(name, tree, work / "root.ext4")
            cache.remove(tree)
    return {"name": name, "image": f"roots/{place.name}/root.ext4", "recipe": recipe(),
            "packages": [{key: package[key] for key in ("name", "version", "sha256")} for package in packages]}


def unpack_all(name, files, tree):
    """Unpacks packages into `tree`, its /usr merged; everything belongs to root in the image."""
    for folder in ("usr", *(f"usr/{path}" for path in MERGED), *FOLDERS):
        (tree / folder).mkdir(parents=True, exist_ok=True)
    for path in MERGED:
        (tree / path).symlink_to(f"usr/{path}")
    with Step(f"root {name}: unpacking", len(files), "packages") as step:
        for done, file in enumerate(files):
            for tar, member in unpack.members(file):
                place_member(tree, tar, member)
            step.update(done)


def wanted_path(name):
    """The path in the tree of a package's member, /usr merged; None for what is trimmed or would leave the tree."""
    path = name.removeprefix("./").rstrip("/")
    if path.split("/")[0] in MERGED:
        path = f"usr/{path}"
    if not path or ".." in path.split("/") or path.startswith("/") or path in MERGED:
        return None
    if f"{path}/".startswith(TRIMMED) and not path.startswith(KEPT):
        return None
    return path


def place_member(tree, tar, member):
    """Puts one member of a package into the tree."""
    path = wanted_path(member.name)
    if path is None or path.removeprefix("usr/") in MERGED:
        return
    target = tree / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if member.isdir():
        if not target.is_symlink():
            target.mkdir(exist_ok=True)
            target.chmod(member.mode)
        return
    target.unlink(missing_ok=True)
    if member.issym():
        target.symlink_to(member.linkname)
    elif member.islnk():
        source = wanted_path(member.linkname)
        if source and (tree / source).exists():
            os.link(tree / source, target)
    elif member.isfile():
        data = tar.extractfile(member).read()
        if path.startswith(KEPT) and path.endswith(".gz"):
            target, data = target.with_suffix(""), unpack.decompress(path, data)[1]
        unpack.write_file(target, data, stat.S_IMODE(member.mode))


def finish(tree):
    """What maintainer scripts would have made, as far as a guest needs it."""
    for path, text in FILES.items():
        (tree / path).unlink(missing_ok=True)
        unpack.write_file(tree / path, text.encode())
    (tree / "etc/shadow").chmod(0o640)
    for path, target in LINKS.items():
        link = tree / path
        if not (os.path.lexists(link)) and (path.startswith(("var/", "etc/")) or (link.parent / target).exists()):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)
    for path in ("tmp", "var/tmp"):
        (tree / path).chmod(0o1777)
    if not os.path.lexists(tree / "usr/bin/sh"):
        raise Problem("the root file system would have no shell: run images/prepare --update")


def privileged(command):
    """`command` as root, or as the root of a user namespace, in which our own files belong to root."""
    return command if os.getuid() == 0 else ["unshare", "--map-root-user", *command]


def make_image(name, tree, image):
    """An ext4 image of `tree` without a journal, with a tenth of free space."""
    with Step(f"root {name}: writing the image") as step:
        subprocess.run(privileged(["/sbin/ldconfig", "-X", "-r", str(tree)]), check=False, stderr=subprocess.DEVNULL)
        blocks = inodes = 0
        for base, folders, files in os.walk(tree):
            inodes += len(folders) + len(files)
            blocks += sum(-(-os.lstat(os.path.join(base, file)).st_size // 4096) for file in files) + len(folders)
        step.update(inodes)
        size = int(blocks * 1.06) + inodes // 8 + 4096
        identity = str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{name}.{image.parent.name}"))
        command = ["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-m", "0", "-N", str(inodes + 1024), "-L", "rnic-root",
                   "-U", identity, "-O", "^has_journal,^resize_inode", "-E", f"hash_seed={identity},root_owner=0:0,lazy_itable_init=0",
                   "-d", str(tree), str(image), str(size)]
        environment = {**os.environ, "E2FSPROGS_FAKE_TIME": "1700000000", "PATH": f"{os.environ['PATH']}:/sbin:/usr/sbin"}
        result = subprocess.run(privileged(command), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if result.returncode:
            raise Problem(f"mke2fs could not make the root file system {name} ({result.stderr.strip()[-200:]}): check the free space")

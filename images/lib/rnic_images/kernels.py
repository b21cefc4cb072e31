# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Stock Debian kernels: vmlinux, bzImage, configuration and modules, ready for a guest."""

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor

from . import cache, unpack
from .progress import Problem, Step, say

RECIPE = "kernel 1"
META = "linux-image-amd64"
PARTS = re.compile(r"linux-(image|binary|modules|base)-\d")

# name -> (suite, root file system). The newest kernel of the suite is taken.
KERNELS = {
    "6.1": ("bookworm", "bookworm"),
    "6.12": ("trixie", "trixie"),
    "7.3": ("trixie-backports", "trixie"),
}

# What a guest without a screen, a radio or foreign hardware never loads; half of the size.
DROPPED = re.compile(r"""kernel/(?:
    sound/ |
    drivers/(?:
        accel | android | ata | atm | auxdisplay | bcma | bluetooth | comedi | edac | extcon | firewire | gnss | gpu | hid | hwmon |
        i2c | iio | input | isdn | leds | media | memstick | mfd | mmc | mtd | nfc | parport | pcmcia | pinctrl | platform | power |
        pwm | regulator | rtc | slimbus | soc | soundwire | spi | ssb | staging | thermal | thunderbolt | ufs | usb | video | w1 |
        watchdog | xen | net/(?:arcnet | can | fddi | hamradio | usb | wan | wireless | wwan)
    )/ |
    drivers/(?:
        char/(?!virtio | hw_random) | infiniband/hw/(?!mlx) | misc/(?!pvpanic) | net/ethernet/(?!mellanox) |
        scsi/(?!iscsi | libiscsi | scsi_ | sd_ | ses | sg\. | sr_ | virtio)
    ) |
    net/(?:
        6lowpan | appletalk | atm | ax25 | batman-adv | bluetooth | can | ceph | dccp | ieee802154 | lapb | mac80211 | mac802154 |
        netrom | nfc | openvswitch | rds | rose | rxrpc | sctp | smc | tipc | wireless | x25
    )/
)""", re.X)


def recipe():
    """What makes an entry what it is, beside its packages."""
    return cache.digest((RECIPE + PARTS.pattern + DROPPED.pattern).encode())[:16]


def resolve(suite):
    """The packages of the newest stock kernel of `suite`."""
    packages = [package for package in suite.resolve([META]) if PARTS.match(package["name"])]
    if not any(re.match(r"linux-(image|binary)-\d", package["name"]) for package in packages):
        raise Problem(f"{suite.name}: {META} leads to no kernel image: set RNIC_DEBIAN_MIRROR to another mirror")
    return packages


def build(folder, name, suite):
    """Makes the cache entry of kernel `name` unless it is there; returns its manifest entry."""
    packages = resolve(suite)
    place = folder / "kernels" / cache.key_of(recipe(), packages)
    if not (place / "release").exists():
        files = suite.download(packages)
        with cache.building(place) as work:
            unpack_packages(name, files, work)
        suite.drop(files)
    release = (place / "release").read_text(encoding="ascii").strip()
    here = f"kernels/{place.name}"
    image = next(package for package in packages if re.match(r"linux-(image|binary)-\d", package["name"]))
    actual = ".".join(release.split(".")[:2]).split("+")[0].split("-")[0]
    if actual != name:
        say(f"kernel {name}: {suite.name} has moved on to {release}; it keeps the name {name} here")
    return {"name": name, "release": release, "package_version": image["version"], "suite": suite.name,
            "vmlinux": f"{here}/vmlinux", "bzimage": f"{here}/bzimage", "config": f"{here}/config",
            "modules": f"{here}/modules", "root": KERNELS[name][1], "recipe": recipe(),
            "packages": [{key: package[key] for key in ("name", "version", "sha256")} for package in packages]}


def unpack_packages(name, files, work):
    """Unpacks kernel packages into `work` and makes modules.dep anew."""
    done = 0
    with Step(f"kernel {name}: unpacking", unit="files") as step, ThreadPoolExecutor(2) as pool:
        jobs = []
        for file in files:
            for tar, member in unpack.members(file):
                path = place_of(member.name) if member.isfile() else None
                if path:
                    jobs.append(pool.submit(store, work / path, tar.extractfile(member).read()))
                done += 1
                step.update(done)
        for job in jobs:
            job.result()
        releases = [path.name for path in (work / "modules/lib/modules").glob("*")]
        if len(releases) != 1 or not (work / "bzimage").exists():
            raise Problem(f"kernel {name}: its packages hold no kernel or no modules: run images/prepare --update")
        unpack.write_file(work / "vmlinux", unpack.vmlinux_of((work / "bzimage").read_bytes()))
        subprocess.run(["depmod", "-b", str(work / "modules"), releases[0]], check=True)
        unpack.write_file(work / "release", releases[0].encode() + b"\n")


def place_of(member):
    """Where a package's file goes in the entry; None for a file that is not kept."""
    path = member.removeprefix("./").removeprefix("usr/")
    match = re.fullmatch(r"(?:boot/|lib/modules/[^/]+/)(vmlinuz|config)(?:-.*)?", path)
    if match:
        return {"vmlinuz": "bzimage", "config": "config"}[match[1]]
    match = re.fullmatch(r"lib/modules/[^/]+/(kernel/.*|modules\.(?:order|builtin|builtin\.modinfo))", path)
    if match and not DROPPED.match(match[1]):
        return f"modules/{path}"
    return None


def store(path, data):
    """Writes one file of a kernel package, decompressed if it is a module."""
    name, data = unpack.decompress(path.name, data) if ".ko" in path.name else (path.name, data)
    unpack.write_file(path.with_name(name), data)

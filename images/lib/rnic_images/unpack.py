# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Debian packages, compressed modules and bzImages taken apart."""

import lzma
import os
import struct
import subprocess
import tarfile
import zlib
from pathlib import Path

from .progress import Problem

PAYLOAD_MAGIC = {b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"\x1f\x8b": "gzip"}


def members(deb):
    """Yields (tar, member) of a package's files, in order."""
    command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
                for member in tar:
                    yield tar, member
        except (tarfile.TarError, EOFError) as error:
            raise Problem(f"{Path(deb).name} cannot be unpacked ({error}): run images/prepare again") from error


def zstd(data):
    """Decompresses one zstd frame with the zstd program (Python 3.11 has no module for it)."""
    result = subprocess.run(["zstd", "-dcq"], input=data, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    if result.returncode:
        raise Problem(f"zstd cannot decompress a kernel part ({result.stderr.decode(errors='replace').strip()}): "
                      "run images/prepare --update")
    return result.stdout


def decompress(name, data):
    """The data of a file called `name`, decompressed if its name ends in .xz, .zst or .gz; with the bare name."""
    if name.endswith(".xz"):
        return name[:-3], lzma.decompress(data)
    if name.endswith(".zst"):
        return name[:-4], zstd(data)
    if name.endswith(".gz"):
        return name[:-3], zlib.decompress(data, 31)
    return name, data


def vmlinux_of(image):
    """The ELF kernel in a bzImage (Linux boot protocol 2.08: payload_offset and payload_length at 0x248)."""
    if image[0x202:0x206] != b"HdrS":
        raise Problem("the kernel in the package is not a bzImage: run images/prepare --update")
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    payload = image[(setup_sectors + 1) * 512 + offset:][:length]
    kind = next((kind for magic, kind in PAYLOAD_MAGIC.items() if payload.startswith(magic)), None)
    if kind == "xz":  # the last 4 bytes of a payload are its unpacked size, not part of the stream
        vmlinux = lzma.LZMADecompressor(format=lzma.FORMAT_XZ).decompress(payload)
    elif kind == "zstd":
        vmlinux = zstd(payload[:-4])
    elif kind == "gzip":
        vmlinux = zlib.decompressobj(31).decompress(payload)
    else:
        raise Problem(f"the kernel's payload starts with {payload[:4].hex()}, which is none of xz, zstd, gzip")
    if not vmlinux.startswith(b"\x7fELF"):
        raise Problem("the kernel's payload is not an ELF file: run images/prepare --update")
    return vmlinux


def write_file(path, data, mode=0o644):
    """Writes a file, making its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.chmod(path, mode)

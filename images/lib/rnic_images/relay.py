# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Bytes between with-kvm's own streams and the L1 guest's ports, as they come."""

import os
import socket
import threading

CHUNK = 1 << 16


def write_all(fd, data):
    """Writes all of `data` to a file descriptor."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]


class Output(threading.Thread):
    """Copies a port to a file descriptor until the nonce that ends it; `complete` is set when it has come.

    When nobody reads the file descriptor any more (EPIPE), `on_broken` is called once and the rest is dropped.
    """

    def __init__(self, port, fd, nonce, on_broken):
        super().__init__(daemon=True)
        self.port, self.fd, self.nonce, self.on_broken = port, fd, nonce, on_broken
        self.complete = threading.Event()
        self.broken = False

    def run(self):
        held = b""
        while True:
            try:
                data = self.port.recv(CHUNK)
            except OSError:
                data = b""
            held += data
            end = held.endswith(self.nonce)
            keep = len(self.nonce) if end else 0 if not data else overlap(held, self.nonce)
            self.write(held[:len(held) - keep])
            held = held[len(held) - keep:]
            if end or not data:
                if end:
                    self.complete.set()
                return

    def write(self, data):
        if data and not self.broken:
            try:
                write_all(self.fd, data)
            except OSError:
                self.broken = True
                self.on_broken()


def overlap(data, nonce):
    """How many bytes at the end of `data` may be the beginning of `nonce`."""
    for length in range(min(len(data), len(nonce) - 1), 0, -1):
        if data.endswith(nonce[:length]):
            return length
    return 0


class Input(threading.Thread):
    """Copies a file descriptor to a port; its end of file closes the port's way in."""

    def __init__(self, fd, port):
        super().__init__(daemon=True)
        self.fd, self.port = fd, port

    def run(self):
        try:
            while data := os.read(self.fd, CHUNK):
                self.port.sendall(data)
            self.port.shutdown(socket.SHUT_WR)
        except OSError:  # no standard input, or the guest is gone: the same as an end of file
            try:
                self.port.shutdown(socket.SHUT_WR)
            except OSError:
                pass

# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Errors that a person reads, and progress on standard error."""

import os
import sys
import time

TERMINAL_EVERY = 0.2
PLAIN_EVERY = 5.0


class Problem(Exception):
    """Something a person can act on: one sentence that names the thing and the remedy."""


def say(text):
    """Prints one line of plain progress."""
    print(text, file=sys.stderr, flush=True)


class Step:
    """One step: a line that is rewritten on a terminal, plain lines some seconds apart elsewhere.

    `total` and the values given to `update` are in `unit` ("MB" or a plural noun). Steps
    that end within two seconds print their closing line only if `always` is set.
    """

    def __init__(self, name, total=None, unit="", always=False):
        self.name, self.total, self.unit, self.always = name, total, unit, always
        self.start = self.last = time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.shown = False

    def __enter__(self):
        return self

    def __exit__(self, kind, _value, _trace):
        seconds = time.monotonic() - self.start
        if self.terminal and self.shown:
            sys.stderr.write("\r\033[K")
        if kind is None and (self.always or self.shown or seconds > 2):
            amount = f", {self.amount(self.total)}" if self.total else ""
            say(f"{self.name}: done{amount} in {seconds:.0f} s")

    def amount(self, value):
        return f"{value:.0f} {self.unit}" if self.unit else f"{value:.0f}"

    def update(self, done):
        """Reports that `done` of `total` is done; cheap enough to call often."""
        now = time.monotonic()
        if now - self.last < (TERMINAL_EVERY if self.terminal else PLAIN_EVERY):
            return
        self.last, self.shown = now, True
        text = f"{self.name}: {self.amount(done)}"
        if self.total:
            text = f"{self.name}: {done:.0f} of {self.amount(self.total)}"
            if done > 0:
                left = (now - self.start) * max(0.0, self.total - done) / done
                text += f", about {left:.0f} s left"
        if self.terminal:
            sys.stderr.write(f"\r{text[:os.get_terminal_size(2).columns - 1]}\033[K")
            sys.stderr.flush()
        else:
            say(text)

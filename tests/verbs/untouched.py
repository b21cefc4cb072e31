#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Messages into memory that nobody has touched, so that the NIC meets page faults: untouched.py DEVICE [shared]

An RC queue pair sends to another one of the same process; `shared`: the receiver takes its requests from a shared queue. A last line says that
all bytes are as they were sent, or what went wrong; then the exit status is 1.
"""

import os
import sys

from data import ACCESS, PAGE, SRQ, Area, Failed, Fabric, Pair, SrqAttr, SrqInitAttr, completion, e, expect

COUNT = 16
SIZE = 3 * PAGE


def exchange(fabric, srq):
    """COUNT messages of SIZE bytes, a request each. In which requests they have come."""
    pair = Pair(fabric, srq=srq)
    source, target = Area(fabric, COUNT * SIZE), Area(fabric, COUNT * SIZE, ACCESS | e.IBV_ACCESS_ON_DEMAND)
    source.memory[:] = os.urandom(COUNT * SIZE)
    for number in range(COUNT):
        pair.receive([target.sge(number * SIZE, SIZE)], number)
    for number in range(COUNT):
        pair.post(e.IBV_WR_SEND, [source.sge(number * SIZE, SIZE)])
    requests = [completion(pair.cq_right).wr_id for _ in range(COUNT)]
    for message, request in enumerate(requests):
        sent, got = (area.memory[at * SIZE:(at + 1) * SIZE] for area, at in ((source, message), (target, request)))
        expect(sent == got, f"message {message} is not in request {request}")
    return requests


def main():
    """See the module."""
    fabric = Fabric(sys.argv[1])
    srq = SRQ(fabric.pd, SrqInitAttr(SrqAttr(max_wr=32, max_sge=4))) if sys.argv[2:] == ["shared"] else None
    try:
        print(f"@@ {COUNT} messages as they were sent, in requests {exchange(fabric, srq)}", flush=True)
    except Failed as error:
        print(f"@@ {error}", flush=True)
        # Without the destructors, whose order is wrong while requests are under way.
        os._exit(1)


main()

#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Every byte that verbs move, checked: data.py DEVICE odp|no-odp [PEER]

RC queue pairs of one process, connected to each other through DEVICE (InfiniBand or RoCE), or from DEVICE to PEER. Each operation moves random bytes, at odd
offsets, and must leave the bytes around its target alone. Then what must fail: with which status, and without a byte moved.
The last line counts; a failed case is a line with FAILED in it, and exit status 1.
"""

import ctypes
import faulthandler
import mmap
import os
import signal
import struct
import sys
import time

from pyverbs.addr import AHAttr, GlobalRoute
from pyverbs.cq import CQ
from pyverbs.device import Context
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.pyverbs_error import PyverbsError
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
from pyverbs.srq import SRQ, SrqAttr, SrqInitAttr
from pyverbs.wr import SGE, RecvWR, SendWR

try:
    import pyverbs.enums as e
except ImportError:
    import pyverbs.libibverbs_enums as e

# For a hang, not for a busy machine.
LIMIT = 120.0
SLOW = 5.0
SIZES = (1, 8, 63, 4096, 4097, 65539, 1 << 20)
GUARD = 64
AREA = (1 << 20) + 4096
PAGE = mmap.PAGESIZE
ACCESS = (e.IBV_ACCESS_LOCAL_WRITE | e.IBV_ACCESS_REMOTE_WRITE | e.IBV_ACCESS_REMOTE_READ | e.IBV_ACCESS_REMOTE_ATOMIC)
IMMEDIATE = 0x1234ABCD


class Failed(Exception):
    """A case did not do what it must."""


def expect(condition, text):
    if not condition:
        raise Failed(text)


class Area:
    """Memory of this process, registered."""

    def __init__(self, fabric, size, access=ACCESS):
        # Private: pages of a shared mapping would outlive MADV_DONTNEED.
        self.memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.size = size
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        # As the left side's programs know it, and the right side's; with one device both are the same.
        self.mr = MR(fabric.pd, size, access, self.address)
        self.remote = self.mr if fabric.peer is fabric else MR(fabric.peer.pd, size, access, self.address)

    def sge(self, offset, length, mr=None):
        return SGE(self.address + offset, length, (mr or self.mr).lkey)

    def fill(self):
        self.memory[:] = b"\xee" * self.size


class Fabric:
    """The device, how a queue pair of it is reached, and the device at the other end (itself, if there is no other)."""

    def __init__(self, name, peer=None):
        self.context = Context(name=name)
        self.port = self.context.query_port(1)
        self.pd = PD(self.context)
        self.ethernet = self.port.link_layer == e.IBV_LINK_LAYER_ETHERNET
        # The first GID of a RoCE port is its link-local one, the second that of its IPv4 address.
        self.gid = self.context.query_gid(1, 1) if self.ethernet else None
        self.peer = peer or self

    def attributes(self, destination):
        """For a queue pair whose peer is `destination` of this device."""
        attributes = QPAttr(port_num=1, path_mtu=e.IBV_MTU_1024)
        attributes.dest_qp_num = destination
        attributes.rq_psn = attributes.sq_psn = 0x123
        attributes.max_rd_atomic = attributes.max_dest_rd_atomic = 1
        attributes.min_rnr_timer, attributes.timeout, attributes.retry_cnt, attributes.rnr_retry = 12, 14, 7, 7
        attributes.qp_access_flags = ACCESS
        route = GlobalRoute(dgid=self.gid, sgid_index=1) if self.ethernet else None
        attributes.ah_attr = AHAttr(dlid=self.port.lid, is_global=int(self.ethernet), port_num=1, gr=route)
        return attributes


class Pair:
    """Two connected RC queue pairs: `left` sends, `right` receives."""

    def __init__(self, fabric, srq=None, inline=0):
        self.cq_left, self.cq_right = CQ(fabric.context, 64), CQ(fabric.peer.context, 64)
        self.srq = srq
        cap = QPCap(max_send_wr=32, max_recv_wr=32, max_send_sge=4, max_recv_sge=4, max_inline_data=inline)
        self.left = QP(fabric.pd, QPInitAttr(qp_type=e.IBV_QPT_RC, scq=self.cq_left, rcq=self.cq_left, cap=cap, sq_sig_all=0))
        self.right = QP(fabric.peer.pd, QPInitAttr(qp_type=e.IBV_QPT_RC, scq=self.cq_right, rcq=self.cq_right, cap=cap, srq=srq, sq_sig_all=0))
        self.left.to_rts(fabric.peer.attributes(self.right.qp_num))
        self.right.to_rts(fabric.attributes(self.left.qp_num))

    def receive(self, sges, number=7):
        (self.srq or self.right).post_recv(RecvWR(number, len(sges), sges))

    def post(self, opcode, sges, rdma=None, atomic=None, flags=0):
        wr = SendWR(11, opcode, len(sges), IMMEDIATE, sges, e.IBV_SEND_SIGNALED | flags)
        if rdma:
            wr.set_wr_rdma(*rdma)
        if atomic:
            wr.set_wr_atomic(*atomic)
        self.left.post_send(wr)

    def close(self):
        for thing in (self.left, self.right, self.cq_left, self.cq_right):
            thing.close()


# Soft-RoCE answers with other statuses than the InfiniBand specification (9.9.6) names: seen on 6.1 and 7.3.
RXE_QUIRKS = {e.IBV_WC_LOC_PROT_ERR: (e.IBV_WC_LOC_QP_OP_ERR, e.IBV_WC_WR_FLUSH_ERR), e.IBV_WC_REM_INV_REQ_ERR: (e.IBV_WC_REM_OP_ERR,)}
RXE = sys.argv[1].startswith("rxe")


def completion(cq, status=e.IBV_WC_SUCCESS):
    """The next completion, which must have `status`."""
    allowed = RXE_QUIRKS.get(status, (status,)) if RXE else (status,)
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        count, found = cq.poll()
        if count:
            expect(found[0].status in allowed, f"completion status {found[0].status} (vendor {found[0].vendor_err:#x}) instead of {status}")
            return found[0]
    raise Failed(f"no completion within {LIMIT:.0f} s")


def check(area, offset, data, what):
    """`data` at `offset` of `area`, and around it nothing but filling."""
    low, high = max(0, offset - GUARD), min(area.size, offset + len(data) + GUARD)
    seen = area.memory[low:high]
    wanted = b"\xee" * (offset - low) + data + b"\xee" * (high - offset - len(data))
    if seen != wanted:
        at = next(i for i, (a, b) in enumerate(zip(seen, wanted)) if a != b)
        raise Failed(f"{what}: byte {low + at - offset} of {len(data)} is {seen[at]:#04x} instead of {wanted[at]:#04x}")


def pieces(area, offset, length, mr=None):
    """The range as up to three scatter entries of uneven lengths."""
    cuts = sorted({0, length // 3, length // 2 + 1 if length > 2 else length, length})
    return [area.sge(offset + a, b - a, mr) for a, b in zip(cuts, cuts[1:])]


def one_transfer(fabric, pair, source, target, operation, size):
    """Moves `size` random bytes by `operation` and checks all of them."""
    from_at, to_at = 129, 1003
    data = os.urandom(size)
    source.fill()
    target.fill()
    received = None
    if operation == "READ":
        # The left side asks for bytes of the right one: its target is local.
        source.memory[from_at:from_at + size] = data
        pair.post(e.IBV_WR_RDMA_READ, pieces(target, to_at, size), rdma=(source.remote.rkey, source.address + from_at))
    else:
        source.memory[from_at:from_at + size] = data
        rdma = (target.remote.rkey, target.address + to_at) if operation.startswith("WRITE") else None
        if operation in ("SEND", "SEND_IMM", "SEND_SRQ", "SEND_INLINE"):
            pair.receive(pieces(target, to_at, size, target.remote))
        elif operation == "WRITE_IMM":
            # pyverbs wants a scatter entry; a write takes none of it.
            pair.receive([target.sge(AREA - 8, 8, target.remote)])
        opcode = {"WRITE": e.IBV_WR_RDMA_WRITE, "WRITE_IMM": e.IBV_WR_RDMA_WRITE_WITH_IMM, "SEND_IMM": e.IBV_WR_SEND_WITH_IMM}
        pair.post(opcode.get(operation, e.IBV_WR_SEND), pieces(source, from_at, size), rdma=rdma,
                  flags=e.IBV_SEND_INLINE if operation.endswith("INLINE") else 0)
    sent = completion(pair.cq_left)
    expect(sent.wr_id == 11, f"wr_id {sent.wr_id} instead of 11")
    if operation not in ("READ", "WRITE"):
        received = completion(pair.cq_right)
        expect(received.wr_id == 7, f"wr_id {received.wr_id} of the receive instead of 7")
        expect(received.byte_len == size, f"byte_len {received.byte_len} instead of {size}")
    if operation.endswith("IMM"):
        expect(received.imm_data == IMMEDIATE, f"immediate {received.imm_data:#x} instead of {IMMEDIATE:#x}")
    check(target, to_at, data, operation)
    check(source, from_at, data, f"{operation}'s source")


OPERATIONS = ("SEND", "SEND_IMM", "SEND_SRQ", "SEND_INLINE", "WRITE", "WRITE_IMM", "READ")
ATOMICS = ("fetch and add", "compare and swap, equal", "compare and swap, different")


def odp_operations(fabric):
    """What the device says that it does with on-demand paging, of `OPERATIONS` and `ATOMICS`."""
    caps = fabric.context.query_device_ex().odp_caps.rc_odp_caps
    operations = [name for name in OPERATIONS if name != "SEND_SRQ" or caps & e.IBV_ODP_SUPPORT_SRQ_RECV]
    return operations, ATOMICS if caps & e.IBV_ODP_SUPPORT_ATOMIC else ()


def transfers(fabric, access, label, operations=OPERATIONS, atomics=ATOMICS):
    """All operations at all sizes with registrations of one kind."""
    source, target = Area(fabric, AREA, access), Area(fabric, AREA, access)
    srq = SRQ(fabric.peer.pd, SrqInitAttr(SrqAttr(max_wr=32, max_sge=4)))
    plain, shared = Pair(fabric, inline=64), Pair(fabric, srq=srq)
    for operation in operations:
        for size in SIZES if operation != "SEND_INLINE" else (1, 33, 60):
            pair = shared if operation == "SEND_SRQ" else plain
            yield f"{label} {operation} {size}", lambda p=pair, o=operation, s=size: one_transfer(fabric, p, source, target, o, s)
    for name in atomics:
        yield f"{label} {name}", lambda n=name: one_atomic(plain, source, target, n)


def one_atomic(pair, local, remote, name):
    """The old value comes back, the new one is there, both in the byte order of the host."""
    before, operand, swap = 0x0123456789ABCDEF, 0x1111111111111111, 0xA5A5A5A55A5A5A5A
    local.fill()
    remote.fill()
    remote.memory[512:520] = struct.pack("=Q", before)
    if name.startswith("fetch"):
        pair.post(e.IBV_WR_ATOMIC_FETCH_AND_ADD, [local.sge(256, 8)], atomic=(remote.remote.rkey, remote.address + 512, operand, 0))
        after = before + operand
    else:
        compare = before if name.endswith("equal") else before + 1
        pair.post(e.IBV_WR_ATOMIC_CMP_AND_SWP, [local.sge(256, 8)], atomic=(remote.remote.rkey, remote.address + 512, compare, swap))
        after = swap if compare == before else before
    completion(pair.cq_left)
    check(local, 256, struct.pack("=Q", before), "what came back")
    check(remote, 512, struct.pack("=Q", after), "what is there now")


def odp_follows_the_process(fabric):
    """Pages that the process gives back and gets anew are the ones that the device sees."""
    area, other = Area(fabric, 16 * PAGE, ACCESS | e.IBV_ACCESS_ON_DEMAND), Area(fabric, 16 * PAGE)
    pair = Pair(fabric)
    for turn in range(8):
        data = os.urandom(3 * PAGE)
        other.memory[:3 * PAGE] = data
        pair.post(e.IBV_WR_RDMA_WRITE, [other.sge(0, 3 * PAGE)], rdma=(area.remote.rkey, area.address + PAGE + 5))
        completion(pair.cq_left)
        expect(area.memory[PAGE + 5:4 * PAGE + 5] == data, f"turn {turn}: the write is not what the process reads")
        area.memory.madvise(mmap.MADV_DONTNEED, 0, 8 * PAGE)
        other.memory[:3 * PAGE] = b"\xaa" * (3 * PAGE)
        pair.post(e.IBV_WR_RDMA_READ, [other.sge(0, 3 * PAGE)], rdma=(area.remote.rkey, area.address + PAGE))
        completion(pair.cq_left)
        expect(other.memory[:3 * PAGE] == bytes(3 * PAGE), f"turn {turn}: the device still reads pages that were given back")
    pair.close()


def odp_bad_address(fabric):
    """A page that does not exist any more: an error, not a hang and not old data."""
    area, other = Area(fabric, 4 * PAGE, ACCESS | e.IBV_ACCESS_ON_DEMAND), Area(fabric, PAGE)
    pair = Pair(fabric)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    expect(libc.mprotect(area.address, 4 * PAGE, 0) == 0, "mprotect")
    other.fill()
    pair.post(e.IBV_WR_RDMA_READ, [other.sge(0, PAGE)], rdma=(area.remote.rkey, area.address))
    completion(pair.cq_left, e.IBV_WC_REM_ACCESS_ERR)
    expect(other.memory[:] == b"\xee" * PAGE, "bytes came although the page is gone")
    libc.mprotect(area.address, 4 * PAGE, mmap.PROT_READ | mmap.PROT_WRITE)
    pair.close()


def refusal(fabric, status, prepare):
    """A WRITE that must fail with `status` and change nothing. `prepare(source, target)` gives (opcode, sges, rdma)."""
    source, target = Area(fabric, 4 * PAGE), Area(fabric, 4 * PAGE)
    quiet = Area(fabric, 4 * PAGE, e.IBV_ACCESS_LOCAL_WRITE)
    pair = Pair(fabric)
    target.fill()
    quiet.fill()
    opcode, sges, rdma = prepare(source, target, quiet, pair)
    pair.post(opcode, sges, rdma=rdma)
    completion(pair.cq_left, status)
    for area in (target, quiet):
        expect(area.memory[:] == b"\xee" * area.size, "something was written")
    state = pair.left.query(e.IBV_QP_STATE)[0].qp_state
    expect(state == e.IBV_QPS_ERR, f"the queue pair's state is {state}, not error")
    # What is posted to a queue pair in error comes back flushed.
    pair.post(e.IBV_WR_RDMA_WRITE, [source.sge(0, 8)], rdma=(target.remote.rkey, target.address))
    completion(pair.cq_left, e.IBV_WC_WR_FLUSH_ERR)
    pair.close()


def short_receive(source, pair, target):
    pair.receive([target.sge(0, 16, target.remote)])
    return e.IBV_WR_SEND, [source.sge(0, 17)], None


REFUSALS = {
    "an rkey that does not exist": (e.IBV_WC_REM_ACCESS_ERR, lambda s, t, q, p: (
        e.IBV_WR_RDMA_WRITE, [s.sge(0, 64)], (t.remote.rkey ^ 0x55, t.address))),
    "one byte beyond the end": (e.IBV_WC_REM_ACCESS_ERR, lambda s, t, q, p: (
        e.IBV_WR_RDMA_WRITE, [s.sge(0, 65)], (t.remote.rkey, t.address + t.size - 64))),
    "one byte before the start": (e.IBV_WC_REM_ACCESS_ERR, lambda s, t, q, p: (
        e.IBV_WR_RDMA_WRITE, [s.sge(0, 64)], (t.remote.rkey, t.address - 1))),
    "an address that wraps": (e.IBV_WC_REM_ACCESS_ERR, lambda s, t, q, p: (
        e.IBV_WR_RDMA_WRITE, [s.sge(0, 4096)], (t.remote.rkey, 2 ** 64 - 1024))),
    "no right to write": (e.IBV_WC_REM_ACCESS_ERR, lambda s, t, q, p: (
        e.IBV_WR_RDMA_WRITE, [s.sge(0, 64)], (q.remote.rkey, q.address))),
    "an lkey that does not exist": (e.IBV_WC_LOC_PROT_ERR, lambda s, t, q, p: (
        e.IBV_WR_RDMA_WRITE, [SGE(s.address, 64, s.mr.lkey ^ 0x55)], (t.remote.rkey, t.address))),
    "a send longer than the receive": (e.IBV_WC_REM_INV_REQ_ERR, lambda s, t, q, p: short_receive(s, p, t)),
}


def many(fabric):
    """64 queue pairs at once, each with its own bytes."""
    source, target = Area(fabric, 64 * PAGE), Area(fabric, 64 * PAGE)
    data = os.urandom(64 * PAGE)
    source.memory[:] = data
    target.fill()
    pairs = [Pair(fabric) for _ in range(32)]
    for half in range(2):
        for index, pair in enumerate(pairs):
            at = (32 * half + index) * PAGE
            pair.post(e.IBV_WR_RDMA_WRITE, [source.sge(at, PAGE)], rdma=(target.remote.rkey, target.address + at))
    for pair in pairs:
        completion(pair.cq_left)
        completion(pair.cq_left)
        pair.close()
    expect(target.memory[:] == data, "bytes differ")


def cases(fabric, odp):
    """(name, what to do) of each case."""
    yield from transfers(fabric, ACCESS, "pinned")
    yield "64 queue pairs at once", lambda: many(fabric)
    for name, (status, prepare) in REFUSALS.items():
        yield f"refused: {name}", lambda s=status, p=prepare: refusal(fabric, s, p)
    if odp:
        yield from transfers(fabric, ACCESS | e.IBV_ACCESS_ON_DEMAND, "odp", *odp_operations(fabric))
        yield "odp: pages given back and got anew", lambda: odp_follows_the_process(fabric)
        yield "odp: pages without access", lambda: odp_bad_address(fabric)
    elif not RXE:
        yield "an ODP registration is refused", lambda: refused_registration(fabric)


def refused_registration(fabric):
    try:
        Area(fabric, PAGE, ACCESS | e.IBV_ACCESS_ON_DEMAND)
    except PyverbsError:
        return
    raise Failed("it was accepted")


def main():
    """Runs all cases; goes on after a failure."""
    # Whoever ends this for taking too long learns where it was.
    faulthandler.register(signal.SIGTERM, chain=True)
    peer = Fabric(sys.argv[3]) if len(sys.argv) > 3 else None
    fabric = Fabric(sys.argv[1], peer)
    good = bad = 0
    for name, act in cases(fabric, sys.argv[2] == "odp"):
        start = time.monotonic()
        try:
            act()
            good += 1
        except (Failed, PyverbsError) as error:
            bad += 1
            print(f"FAILED: {name}: {error}", flush=True)
        if time.monotonic() - start > SLOW:
            print(f"slow: {name}: {time.monotonic() - start:.0f} s", flush=True)
    print(f"{good} of {good + bad} cases, every byte checked")
    sys.exit(bad != 0)


if __name__ == "__main__":
    main()

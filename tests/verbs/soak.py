#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Mixed traffic of many processes, each byte checked: soak.py DEVICE PEER PROCESSES SECONDS SEED

Half of the processes have both ends of their queue pairs, on DEVICE and on PEER; the others are couples, one end each. They register and deregister
memory, pinned and paged on demand, push pages out, reset queue pairs and make them anew. One after another is killed in the middle and replaced,
its mate with it. The last line counts; what went wrong is a line with FAILED in it, and exit status 1.
"""

import hashlib
import json
import mmap
import os
import random
import signal
import socket
import struct
import sys
import time

import data
from data import ACCESS, PAGE, Area, Fabric, Failed, Pair, expect

try:
    import pyverbs.enums as e
except ImportError:
    import pyverbs.libibverbs_enums as e
from pyverbs.pyverbs_error import PyverbsError
from pyverbs.qp import QPAttr
from pyverbs.wr import SendWR

ODP = ACCESS | e.IBV_ACCESS_ON_DEMAND
MADV_PAGEOUT = 21
SIZE = 64 * PAGE
# For a hang, not for a busy machine.
LIMIT = 300.0
# Seconds between kills.
KILLS = (2.0, 6.0)
COUNTS = ("transfers", "bytes", "registrations", "pageouts", "resets", "queue_pairs")


class Board:
    """Counters of all processes, and whether they are to end, in memory that they share: it outlives who is killed."""

    def __init__(self, processes):
        self.memory = mmap.mmap(-1, (1 + processes * len(COUNTS)) * 8)

    def stop(self):
        self.memory[:8] = struct.pack("=Q", 1)

    def stopped(self):
        return self.memory[:8] != bytes(8)

    def count(self, process, what, more=1):
        at = (1 + process * len(COUNTS) + COUNTS.index(what)) * 8
        self.memory[at:at + 8] = struct.pack("=Q", struct.unpack("=Q", self.memory[at:at + 8])[0] + more)

    def sums(self):
        words = struct.unpack(f"={len(self.memory) // 8}Q", self.memory[:])[1:]
        return {name: sum(words[at::len(COUNTS)]) for at, name in enumerate(COUNTS)}


def completion(cq, status=e.IBV_WC_SUCCESS):
    """As `data.completion`; there are more processes than processors, so it sleeps between its looks."""
    deadline = time.monotonic() + LIMIT
    pause = 0.0
    while time.monotonic() < deadline:
        found, wcs = cq.poll()
        if found:
            expect(wcs[0].status == status, f"completion status {wcs[0].status} (vendor {wcs[0].vendor_err:#x}) instead of {status}")
            return wcs[0]
        time.sleep(pause)
        pause = min(0.005, pause + 0.0002)
    raise Failed(f"no completion within {LIMIT:.0f} s")


data.completion = completion


class Memory(Area):
    """Deregistered when it is said, not when it is collected."""

    def close(self):
        for mr in {self.mr, self.remote}:
            mr.close()


class Alone:
    """A process with both ends."""

    def __init__(self, board, number, fabric, chance):
        self.board, self.number, self.fabric, self.chance = board, number, fabric, chance
        self.pairs = [Pair(fabric) for _ in range(2)]

    def count(self, what, more=1):
        self.board.count(self.number, what, more)

    def turn(self):
        kind = self.chance.choice(("pinned", "odp", "odp", "pageout", "reset", "renew", "atomics"))
        if kind == "reset":
            self.reset(self.chance.choice(self.pairs))
        elif kind == "renew":
            self.renew()
        else:
            self.traffic(kind)

    def area(self, access):
        self.count("registrations", 2)
        return Memory(self.fabric, data.AREA if access == ACCESS else SIZE, access)

    def traffic(self, kind):
        access = ACCESS if kind == "pinned" else ODP
        source, target = self.area(access), self.area(access)
        pair = self.chance.choice(self.pairs)
        for _ in range(self.chance.randint(1, 4)):
            if kind == "atomics":
                data.one_atomic(pair, source, target, self.chance.choice(data.ATOMICS))
                self.moved(8)
            else:
                size = self.chance.choice((1, 64, 4096, 4097, 50000))
                operation = self.chance.choice(("SEND", "SEND_IMM", "WRITE", "READ"))
                data.one_transfer(self.fabric, pair, source, target, operation, size)
                self.moved(size)
            if kind == "pageout":
                self.page_out(pair, source, target)
        for area in (source, target):
            area.close()

    def moved(self, size):
        self.count("transfers")
        self.count("bytes", size)

    def page_out(self, pair, source, target):
        """What was pushed out comes back as it was, by whoever asks first."""
        size, at = 8 * PAGE + 11, self.chance.randrange(PAGE)
        content = os.urandom(size)
        target.fill()
        target.memory[at:at + size] = content
        target.memory.madvise(MADV_PAGEOUT)
        source.memory.madvise(MADV_PAGEOUT)
        self.count("pageouts", 2)
        pair.post(e.IBV_WR_RDMA_READ, [source.sge(3, size)], rdma=(target.remote.rkey, target.address + at))
        completion(pair.cq_left)
        expect(source.memory[3:3 + size] == content, "what came back from swap differs")
        pair.post(e.IBV_WR_RDMA_WRITE, [source.sge(3, size)], rdma=(target.remote.rkey, target.address + 2 * PAGE))
        completion(pair.cq_left)
        expect(target.memory[2 * PAGE:2 * PAGE + size] == content, "a write into pages that had been pushed out")
        self.moved(2 * size)

    def reset(self, pair):
        """With receives that nobody will take any more, which must not come back in the next life."""
        area = self.area(ACCESS)
        for _ in range(3):
            pair.receive([area.sge(0, 64, area.remote)])
        for qp in (pair.left, pair.right):
            qp.modify(QPAttr(qp_state=e.IBV_QPS_RESET), e.IBV_QP_STATE)
        expect(pair.cq_left.poll()[0] == 0 and pair.cq_right.poll()[0] == 0, "a completion of a life that is over")
        pair.left.to_rts(self.fabric.peer.attributes(pair.right.qp_num))
        pair.right.to_rts(self.fabric.attributes(pair.left.qp_num))
        self.count("resets", 2)
        area.close()
        self.traffic("pinned")

    def renew(self):
        self.pairs.pop(self.chance.randrange(len(self.pairs))).close()
        self.pairs.append(Pair(self.fabric))
        self.count("queue_pairs", 2)


class Mate:
    """One end of a couple; the other is a process of its own, behind a socket."""

    def __init__(self, board, number, fabric, chance, stream):
        self.board, self.number, self.fabric, self.chance = board, number, fabric, chance
        self.stream = stream.makefile("rw")
        self.cq = data.CQ(fabric.context, 64)
        cap = data.QPCap(max_send_wr=32, max_recv_wr=32, max_send_sge=4, max_recv_sge=4)
        self.qp = data.QP(fabric.pd, data.QPInitAttr(qp_type=e.IBV_QPT_RC, scq=self.cq, rcq=self.cq, cap=cap, sq_sig_all=0))
        self.tell({"qpn": self.qp.qp_num, "lid": fabric.port.lid})
        mate = self.hear()
        attributes = fabric.attributes(mate["qpn"])
        attributes.ah_attr = data.AHAttr(dlid=mate["lid"], is_global=0, port_num=1)
        self.qp.to_rts(attributes)
        self.area = None

    def tell(self, what):
        self.stream.write(json.dumps(what) + "\n")
        self.stream.flush()

    def hear(self):
        line = self.stream.readline()
        if not line:
            raise EOFError
        return json.loads(line)

    def count(self, what, more=1):
        self.board.count(self.number, what, more)

    def fresh(self):
        """Memory under a new key."""
        if self.area:
            self.area.close()
        self.area = Memory(self.fabric, SIZE, self.chance.choice((ACCESS, ODP)))
        self.area.fill()
        self.count("registrations")


class Target(Mate):
    """Says where its memory is, and looks at what the other says that it has written."""

    def turn(self):
        self.fresh()
        self.tell({"rkey": self.area.mr.rkey, "address": self.area.address})
        while "end" not in (said := self.hear()):
            at, size = said["at"], said["size"]
            seen = hashlib.sha1(self.area.memory[at:at + size]).hexdigest()
            expect(seen == said["sha1"], f"{size} bytes at {at} are not what the other process has sent")
            if self.chance.random() < 0.2:
                self.area.memory.madvise(MADV_PAGEOUT)
                self.count("pageouts")
            self.tell({"seen": at})


class Initiator(Mate):
    """Writes into the other's memory and reads it back."""

    def post(self, opcode, at, size, rkey, address):
        wr = SendWR(11, opcode, 1, 0, [self.area.sge(at, size)], e.IBV_SEND_SIGNALED)
        wr.set_wr_rdma(rkey, address)
        self.qp.post_send(wr)
        completion(self.cq)
        self.count("transfers")
        self.count("bytes", size)

    def turn(self):
        self.fresh()
        there = self.hear()
        for _ in range(self.chance.randint(1, 8)):
            size = self.chance.choice((1, 100, 4096, 20000, SIZE // 2))
            at = self.chance.randrange(SIZE - size)
            content = os.urandom(size)
            self.area.memory[0:size] = content
            self.post(e.IBV_WR_RDMA_WRITE, 0, size, there["rkey"], there["address"] + at)
            self.tell({"at": at, "size": size, "sha1": hashlib.sha1(content).hexdigest()})
            self.hear()
            back = SIZE - size
            self.post(e.IBV_WR_RDMA_READ, back, size, there["rkey"], there["address"] + at)
            expect(self.area.memory[back:back + size] == content, f"{size} bytes read back differ")
        self.tell({"end": True})


def work(board, number, seed, role, stream):
    """A process: until it is told to end, or its mate is gone. Exit status 3: the mate."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    chance = random.Random(seed)
    try:
        peer = Fabric(sys.argv[2])
        if role is Alone:
            worker = Alone(board, number, Fabric(sys.argv[1], peer), chance)
        else:
            worker = role(board, number, peer if role is Target else Fabric(sys.argv[1]), chance, stream)
        while not board.stopped():
            worker.turn()
        if role is not Alone:
            worker.stream.close()
            stream.close()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return 3
    except (Failed, PyverbsError, OSError) as error:
        # Whose mate was killed has work requests that nobody answers.
        if stream is not None and is_gone(stream):
            return 3
        print(f"FAILED: process {number} ({role.__name__}, seed {seed}): {type(error).__name__}: {error}", flush=True)
        return 1
    return 0


def is_gone(stream):
    """Whether the other end of a socket is, which may be a moment away: a process's queue pairs go before its sockets do."""
    stream.settimeout(10)
    try:
        while stream.recv(4096):
            pass
        return True
    except ConnectionResetError:
        return True
    except OSError:
        return False


class Crew:
    """One process, or a couple: what is replaced together."""

    def __init__(self, board, numbers):
        self.board, self.numbers, self.pids, self.life = board, numbers, {}, 0

    def start(self, seed):
        self.life += 1
        ends = socket.socketpair() if len(self.numbers) == 2 else (None,)
        roles = (Target, Initiator) if len(self.numbers) == 2 else (Alone,)
        self.pids = {}
        for number, role, end in zip(self.numbers, roles, ends):
            pid = os.fork()
            if pid == 0:
                for other in ends:
                    if other is not None and other is not end:
                        other.close()
                status = 1
                try:
                    status = work(self.board, number, f"{seed}-{number}-{self.life}", role, end)
                finally:
                    os._exit(status)
            self.pids[number] = pid
        for end in ends:
            if end is not None:
                end.close()

    def end(self, killed=None):
        """Waits for all of it. What each ended with, but for the killed one."""
        statuses = []
        for number, pid in self.pids.items():
            statuses += [(number, status) for status in [wait(pid)] if number != killed]
        return statuses


def wait(pid):
    """The exit status; a process that does not end is killed, and its status is None."""
    deadline = time.monotonic() + LIMIT + 60
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def main():
    """Starts all, kills some, counts."""
    processes, seconds, seed = int(sys.argv[3]), float(sys.argv[4]), sys.argv[5]
    board, chance = Board(processes), random.Random(seed)
    half = processes // 2
    groups = [[number] for number in range(half)] + [[number, number + 1] for number in range(half, processes - 1, 2)]
    crews = [Crew(board, group) for group in groups]
    for crew in crews:
        crew.start(seed)
    kills = failed = 0
    end = time.monotonic() + seconds
    told = time.monotonic() + 60
    while time.monotonic() < end:
        time.sleep(min(chance.uniform(*KILLS), max(0.0, end - time.monotonic())))
        crew = chance.choice(crews)
        victim = chance.choice(crew.numbers)
        os.kill(crew.pids[victim], signal.SIGKILL)
        kills += 1
        # The mate notices by its socket, or by an operation that nobody answers.
        failed += sum(status not in (0, 3) for _, status in crew.end(victim))
        crew.start(seed)
        if time.monotonic() > told:
            told = time.monotonic() + 60
            print(f"@@ progress {board.sums()} kills={kills}", flush=True)
    board.stop()
    for crew in crews:
        for number, status in crew.end():
            if status not in (0, 3):
                failed += 1
                print(f"FAILED: process {number} ended with status {status}", flush=True)
    print("@@ soak " + " ".join(f"{name}={value}" for name, value in board.sums().items()) + f" kills={kills} failed={failed}", flush=True)
    sys.exit(failed != 0)


if __name__ == "__main__":
    main()

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory that goes, comes again and moves; memory files that are sealed; and how long a job took.

use rnic_agent::proto::{Memfd, Op};

use super::{A, Agent, B};

const LEN: u64 = 8192;

#[test]
fn memory_that_was_unmapped_comes_again_empty_at_its_address() {
    let agent = Agent::start();
    let m = agent.ok(Op::AnonBuffer { len: LEN, huge: false }).handle().unwrap();
    assert_eq!(agent.errno(Op::MapAgain { m }), libc::EBUSY, "it is there");
    agent.ok(Op::Store { m, off: 0, len: LEN, pattern: A });
    let before = agent.ok(Op::Whereabouts { m, off: 4096 });
    agent.ok(Op::Munmap { m });
    agent.ok(Op::MapAgain { m });
    assert_eq!(agent.ok(Op::Whereabouts { m, off: 4096 }), before);
    let content = agent.ok(Op::Load { m, off: 0, len: LEN }).content().unwrap();
    assert_eq!(content.letters(), "0", "{content}");
}

#[test]
fn memory_that_moves_keeps_its_bytes_and_leaves_nothing_behind() {
    let agent = Agent::start();
    let m = agent.ok(Op::AnonBuffer { len: LEN, huge: false }).handle().unwrap();
    agent.ok(Op::Store { m, off: 0, len: LEN, pattern: B });
    let moved = agent.ok(Op::MoveMapping { m }).handle().unwrap();
    assert!(agent.ok(Op::Load { m: moved, off: 0, len: LEN }).content().unwrap().is(&B, 0));
    assert_eq!(agent.errno(Op::Load { m, off: 0, len: LEN }), libc::EFAULT);
    assert_eq!(agent.errno(Op::MoveMapping { m }), libc::EINVAL, "it has gone");
}

#[test]
fn a_memory_file_that_nobody_can_write_is_sealed() {
    let agent = Agent::start();
    let h = agent.ok(Op::Memfd { kind: Memfd::Plain, len: LEN }).handle().unwrap();
    let m = agent.ok(Op::Mmap { h, off: 0, len: LEN, write: true, private: false }).handle().unwrap();
    assert_eq!(agent.errno(Op::SealWrite { h }), libc::EBUSY, "a mapping can write it");
    agent.ok(Op::Munmap { m });
    agent.ok(Op::SealWrite { h });
    assert_eq!(agent.errno(Op::Write { h, off: 0, len: LEN, pattern: A }), libc::EPERM);
}

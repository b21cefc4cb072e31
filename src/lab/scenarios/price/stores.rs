// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a wait costs the writer: a store into a page of a file that is dirty, clean, or under writeback; where a file system may let the store go on, and
//! where it has to wait for the write because the disk wants its pages to stay as they are.

use rnic_agent::proto::{FsType, Op, OpenFlags, StoreAfter};

use super::{micros, parts};
use crate::bench::{Bench, PAGE, PAGE_AT, SOURCE, mount};
use crate::finding::Stop;
use crate::plan::Fs;

/// Stores of each kind.
const STORES: u32 = 100;
/// Where the second file system is mounted, whose disk wants stable pages.
const WAITS: &str = "/mnt/waits";
/// The disk's wish.
const WISH: &str = "/sys/block/vdc/queue/stable_writes";
/// Bytes of the second file.
const LEN: u64 = 64 * PAGE;

/// Measures all of them.
pub(super) fn measure(bench: &mut Bench<'_>) -> Result<(), Stop> {
    for (after, state) in [
        (StoreAfter::Store, "a dirty page"),
        (StoreAfter::Fsync, "a clean page"),
        (StoreAfter::Begun, "a page under writeback, which need not wait"),
    ] {
        stores(bench, (bench.file(), bench.map()), PAGE_AT, (after, state))?;
    }
    bench.guest.must(Op::WriteSys { path: WISH.into(), text: "1".into() })?;
    let measured = where_it_waits(bench);
    bench.guest.must(Op::WriteSys { path: WISH.into(), text: "0".into() })?;
    measured
}

/// On a file system whose disk wants stable pages.
fn where_it_waits(bench: &mut Bench<'_>) -> Result<(), Stop> {
    bench.guest.must(Op::Mkfs { fs: FsType::Ext4, dev: SOURCE.into(), opts: vec![] })?;
    bench.guest.must(mount(SOURCE, WAITS, Fs::Ext4, ""))?;
    let flags = OpenFlags { write: true, create: true, ..Default::default() };
    let file = bench.guest.handle(Op::Open { path: format!("{WAITS}/file"), flags })?;
    let pattern = bench.pattern('A');
    bench.guest.must(Op::Write { h: file, off: 0, len: LEN, pattern })?;
    bench.guest.must(Op::Fsync { h: file })?;
    let map = bench.guest.handle(Op::Mmap { h: file, off: 0, len: LEN, write: true, private: false })?;
    stores(bench, (file, map), PAGE, (StoreAfter::Begun, "a page under writeback, which must wait"))?;
    bench.guest.must(Op::Close { h: map })?;
    bench.guest.must(Op::Close { h: file })?;
    bench.guest.must(Op::Umount { dir: WAITS.into() }).map(drop)
}

fn stores(bench: &mut Bench<'_>, (h, m): (u32, u32), off: u64, (after, state): (StoreAfter, &str)) -> Result<(), Stop> {
    let laps = parts::laps(bench, Op::StoreLaps { h, m, off, after, count: STORES })?;
    bench.spread(&format!("store of a byte into {state}"), laps.iter().map(|lap| micros(lap[1])).collect(), "us");
    Ok(())
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guests that are broken on purpose: the lab has to say so. The story around each is that of H12's last part, which alone is SAFE.

use std::time::Duration;

use rnic_agent::proto::Op;

use super::promise::{expected_page, fsync_brings};
use crate::bench::{Bench, PAGE, PAGE_AT, Plant, Promise};
use crate::check::Check;
use crate::controls::Control;
use crate::finding::{Finding, Stop};
use crate::plan::{Folio, Fs, Scenario, Writer};
use crate::verdict::Verdict;
use blk::PowerCut;

/// How long a step of a broken guest is waited for.
const SOON: Duration = Duration::from_secs(10);

const fn plant(id: &'static str, mode: &'static str, title: &'static str, run: Run) -> Scenario {
    Scenario {
        id,
        mode,
        writer: Writer::Disk,
        title,
        filesystems: &[Fs::Ext4],
        disks: super::PLAIN_DISK,
        core: &[],
        control: None,
        folios: &[Folio::Single],
        core_folios: &[],
        named: true,
        story: None,
        run,
    }
}

type Run = fn(&mut Bench<'_>) -> Result<Finding, Stop>;

const OOPS: &str = "plant: a thread of the kernel dies while an O_DIRECT read is held; must be OOPS";
const ONCE: &str = "plant: the same, in the first attempt only; must be FLAKY";
const HANG: &str = "plant: umount does not return; must be HUNG";
const IMAGE: &str = "plant: what a power cut leaves does not mount; must be CORRUPT";
const SILENT: &str = "plant: the guest falls silent; must be HUNG";

const DEAF: &str = "negative control: the same with nobody who hears what the kernels print";
const KEEPS: &str = "negative control: a cruel power cut after a write that no flush covers, which keeps it";

const ORDER: &str =
    "negative control: drawn power cuts after a flush and a write that it does not cover, which lose what was flushed";

/// Byte offset of a page beside the page under test.
const OTHER_AT: u64 = PAGE_AT + 8 * PAGE;

const fn control(plant: Plant, checks: &'static [Check], scenario: Scenario) -> Scenario {
    Scenario { control: Some(Control { plant, checks }), named: false, ..scenario }
}

/// All but the controls only when they are named.
pub(super) const TABLE: &[Scenario] = &[
    plant("C-oops", "plant", OOPS, |bench| held_read(bench, Some(Plant::Oops))),
    plant("C-oops", "plant-once", ONCE, |bench| {
        let plant = (bench.attempt() == 0).then_some(Plant::Oops);
        held_read(bench, plant)
    }),
    plant("C-hang", "plant", HANG, |bench| held_read(bench, Some(Plant::Hang))),
    plant("C-image", "plant", IMAGE, |bench| held_read(bench, Some(Plant::Image))),
    plant("C-silent", "plant", SILENT, |bench| held_read(bench, Some(Plant::Silence))),
    control(Plant::Deaf, &[Check::Kernel], plant("C-deaf", "dio", DEAF, |bench| held_read(bench, None))),
    control(Plant::CutKeeps, &[Check::Cut], plant("C-keep", "cpu", KEEPS, unflushed)),
    control(Plant::DrawnDrops, &[Check::Cut, Check::Harm], plant("C-order", "cpu", ORDER, flushed)),
];

/// What was flushed survives every power cut, whatever became of what was not.
fn flushed(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    bench.store('B')?;
    let fsync = bench.fsync()?;
    // Something to draw from.
    let (m, h, pattern) = (bench.map(), bench.file(), bench.pattern('D'));
    let (off, len) = (OTHER_AT, PAGE);
    bench.guest.must(Op::Store { m, off, len, pattern })?;
    bench.guest.must(Op::SyncFileRange { h, off, len, wait_before: true, write: true, wait_after: true })?;
    let page = expected_page(bench, 'B', PAGE);
    Ok(match bench.promised(&page, "file")? {
        Promise::Kept(cut) => Finding::new(Verdict::Safe, cut.fact, [fsync.fact]),
        Promise::OutOfOrder { drawn, cruel } => Finding::new(Verdict::Lost, drawn.fact, [cruel.fact, fsync.fact]),
        Promise::Broken { cruel, kind } => Finding::new(Verdict::Lost, kind.fact, [cruel.fact, fsync.fact]),
    })
}

/// What has been written and not flushed does not survive a cruel power cut, and what was flushed before does.
fn unflushed(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    bench.store('B')?;
    let fsync = bench.fsync()?;
    bench.store('C')?;
    let (h, off, len) = (bench.file(), PAGE_AT, PAGE);
    bench.guest.must(Op::SyncFileRange { h, off, len, wait_before: true, write: true, wait_after: true })?;
    let cut = bench.cut_and_read(PowerCut::Cruel, "file")?;
    match cut.unreadable() {
        Some(unreadable) => Ok(unreadable),
        None if cut.is(&bench.pattern('C')) => Ok(Finding::new(Verdict::Safe, cut.fact, [fsync.fact])),
        None if cut.is(&bench.pattern('B')) => Ok(Finding::new(Verdict::Benign, cut.fact, [fsync.fact])),
        None => Err(cut.impossible("BC")),
    }
}

/// An O_DIRECT read is held while sync(2) runs; then it completes, and the next fsync must bring it.
fn held_read(bench: &mut Bench<'_>, plant: Option<Plant>) -> Result<Finding, Stop> {
    bench.store('B')?;
    let read = bench.hold_read(PAGE)?;
    if let Some(plant) = plant {
        bench.plant(plant)?;
    }
    let sync = bench.spawn(Op::Sync)?;
    if !bench.wait_job(sync, SOON)?.done {
        return Err(bench.waits("sync", SOON));
    }
    bench.finish_read(&read)?;
    let since = bench.mark("read complete");
    let page = expected_page(bench, 'C', PAGE);
    Ok(match fsync_brings(bench, &page, since)? {
        Ok(facts) => {
            let read = bench.record(read.id)?;
            let read = bench.block(&read);
            Finding::new(Verdict::Safe, read, facts)
        }
        Err(harm) => harm,
    })
}

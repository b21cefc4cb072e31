// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Plants: the guest, or what is shown to the witness, is broken on purpose.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use rnic_agent::proto::Op;
use serde::Deserialize;

use super::{Bench, Cuts, PAGE, stacks, wqe};
use crate::finding::Stop;
use blk::{BlkOp, DiskAction, DiskLedger, DiskRule, HoldPoint, Lever, PowerCut, RequestMatch};
use mlx5::hooks::{NicAction, NicRule, WqeMatch};

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Plant {
    /// The next sync(2) dies in the kernel.
    Oops,
    /// The umount at the row's end does not return: its writes are held.
    Hang,
    /// The images of power cuts have no superblock.
    Image,
    /// All processors stop.
    Silence,
    /// The lever on the disk under test says that it holds and does not.
    LyingLever,
    /// The ledger misses a write of the page under test.
    MissedWrite,
    /// Power cuts lose every write of the pages under test.
    CutDrops,
    /// A cruel power cut keeps what no flush covers.
    CutKeeps,
    /// Drawn power cuts lose every write of the pages under test, flushed or not; the row makes such cuts.
    DrawnDrops,
    /// The ledger misses an RDMA WRITE.
    MissedRdmaWrite,
    /// Nobody hears what the kernels print.
    Deaf,
    /// An RDMA READ brings what the page had at the row's begin.
    OldBytes,
    /// Somebody else writes to the page before it is read.
    ForeignBytes,
    /// Somebody else makes the file system allocate a block.
    Allocated,
    /// Somebody else writes into the memory of a process that is to be undisturbed.
    Disturbed,
    /// The NIC goes on with a key that was freed.
    FreeIgnored,
    /// The NIC does not look at the rights of a key.
    RightsIgnored,
    /// The NIC keeps translations that were taken away.
    ZapIgnored,
    /// A gate at the NIC says that it holds and does not.
    LyingGate,
    /// A page fault's event never reaches the driver.
    LostFault,
    /// The NIC keeps a queue pair that was destroyed.
    #[serde(rename = "leaked-qp")]
    LeakedQueuePair,
    /// The scenario adds rules to the NIC by itself.
    Own,
}

/// Each with its name and one line.
const NAMES: [(Plant, &str, &str); 22] = [
    (Plant::Oops, "oops", "the next sync(2) dies in the kernel"),
    (Plant::Hang, "hang", "the umount at the row's end does not return"),
    (Plant::Image, "image", "the images of power cuts have no superblock"),
    (Plant::Silence, "silence", "all processors stop"),
    (Plant::LyingLever, "lying-lever", "a lever on the disk says that it holds and does not"),
    (Plant::MissedWrite, "missed-write", "the ledger misses a write of the page"),
    (Plant::CutDrops, "cut-drops", "power cuts lose every write of the pages under test"),
    (Plant::CutKeeps, "cut-keeps", "a cruel power cut keeps what no flush covers"),
    (Plant::DrawnDrops, "drawn-drops", "drawn power cuts lose every write of the pages under test"),
    (Plant::MissedRdmaWrite, "missed-rdma-write", "the ledger misses an RDMA WRITE"),
    (Plant::Deaf, "deaf", "nobody hears what the kernels print"),
    (Plant::OldBytes, "old-bytes", "an RDMA READ brings what the page had at the row's begin"),
    (Plant::ForeignBytes, "foreign-bytes", "somebody else writes to the page before it is read"),
    (Plant::Allocated, "allocated", "somebody else makes the file system allocate a block"),
    (Plant::Disturbed, "disturbed", "somebody else writes into the memory of the process that lives on"),
    (Plant::FreeIgnored, "free-ignored", "the NIC goes on with a key that was freed"),
    (Plant::RightsIgnored, "rights-ignored", "the NIC does not look at the rights of a key"),
    (Plant::ZapIgnored, "zap-ignored", "the NIC keeps translations that were taken away"),
    (Plant::LyingGate, "lying-gate", "a gate at the NIC says that it holds and does not"),
    (Plant::LostFault, "lost-fault", "a page fault's event never reaches the driver"),
    (Plant::LeakedQueuePair, "leaked-qp", "the NIC keeps a queue pair that was destroyed"),
    (Plant::Own, "own", "the scenario adds rules to the NIC by itself"),
];

/// DESTROY_QP (contract 5).
const DESTROY_QP: u16 = 0x501;
/// BAD_RES_STATE.
const BAD_STATE: u8 = 0x9;

impl Plant {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Plant> {
        NAMES.iter().map(|(plant, ..)| *plant)
    }

    /// Its name in tables and JSON.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(plant, ..)| *plant == self).map_or("", |(_, name, _)| name)
    }

    /// One line for people.
    pub fn meaning(self) -> &'static str {
        NAMES.iter().find(|(plant, ..)| *plant == self).map_or("", |(.., meaning)| meaning)
    }

    /// The rule of the disk under test that is it, for requests of page `gpa`.
    fn disk_rule(self, gpa: u64) -> Option<DiskRule> {
        let action = match self {
            Plant::LyingLever => DiskAction::LieAboutHold,
            Plant::MissedWrite => DiskAction::HideFromLedger,
            _ => return None,
        };
        Some(DiskRule::new(1, action).on(RequestMatch { page: Some(gpa), ..BlkOp::Write.into() }))
    }

    /// The rule of the NIC that is it.
    fn nic_rule(self) -> Option<NicRule> {
        let (nth, action, what) = match self {
            Plant::FreeIgnored => (EVERY, NicAction::IgnoreFree, WqeMatch::opcode(wqe::UMR)),
            Plant::RightsIgnored => (EVERY, NicAction::IgnoreRights, WqeMatch::default()),
            Plant::ZapIgnored => (EVERY, NicAction::IgnoreZap, WqeMatch::opcode(wqe::UMR)),
            Plant::LyingGate => (EVERY, NicAction::LieAboutHold, WqeMatch::opcode(wqe::RDMA_WRITE)),
            Plant::MissedRdmaWrite => (1, NicAction::HideFromLedger, WqeMatch::opcode(wqe::RDMA_WRITE)),
            Plant::LostFault => (1, NicAction::DropFaultEvent, WqeMatch::default()),
            Plant::LeakedQueuePair => {
                let destroy = WqeMatch { command: Some(DESTROY_QP), ..WqeMatch::default() };
                (1, NicAction::CommandStatus { status: BAD_STATE }, destroy)
            }
            _ => return None,
        };
        Some(NicRule::new(nth, action).on(what))
    }

    /// Whether it breaks the NIC.
    pub fn is_of_nic(self) -> bool {
        self.nic_rule().is_some()
    }

    /// Whether a guest in which it acted takes no further row: the device may have written where it should not, or kept what is gone.
    pub fn spoils(self) -> bool {
        matches!(self, Plant::ZapIgnored | Plant::FreeIgnored | Plant::LeakedQueuePair | Plant::LostFault)
    }
}

/// A rule that fires on every match.
const EVERY: u32 = 0;
/// ud2.
const UNDEFINED: [u8; 2] = [0x0f, 0x0b];
/// The kernel's part of sync(2).
const SYNC: &str = "ksys_sync";
/// Bytes of an image that hold the superblock.
const HEAD: usize = 64 << 10;
/// How long a planted hang lasts.
const HANG: Duration = Duration::from_secs(55);
/// How long a step of a guest that is known to be broken is waited for.
const SHORT: Duration = Duration::from_secs(10);

impl Bench<'_> {
    /// Breaks something.
    pub fn plant(&mut self, plant: Plant) -> Result<(), Stop> {
        self.planted = Some(plant);
        match plant {
            Plant::Oops | Plant::Hang | Plant::Image | Plant::Silence => self.guest.limit_steps(SHORT),
            _ => {}
        }
        match plant {
            Plant::Oops => self.plant_oops()?,
            Plant::Silence => self.guest.pause(),
            Plant::DrawnDrops => self.make_cuts(Cuts::All),
            Plant::Deaf => {
                self.guest.deafen(true);
                self.witness.deafen(true);
                self.acted = true;
            }
            _ => {}
        }
        if let Some(rule) = plant.disk_rule(self.gpa) {
            self.disk_rule = self.guest.fs_disk().injections().add(rule);
        }
        match plant.nic_rule() {
            Some(rule) => self.inject(rule),
            None => Ok(()),
        }
    }

    /// What was planted ends with the row.
    pub fn uproot(&mut self) {
        self.guest.fs_disk().injections().clear();
        self.guest.deafen(false);
        self.witness.deafen(false);
    }

    /// Whether `plant` is this row's, at a place where the lab itself would carry it out.
    pub fn is_planted(&mut self, plant: Plant) -> bool {
        let is = self.planted == Some(plant);
        self.acted |= is;
        is
    }

    /// Whether what was planted has come to bear.
    pub fn plant_acted(&self) -> bool {
        let by_disk = self.disk_rule.and_then(|id| self.guest.fs_disk().injections().rule(id));
        self.acted || by_disk.is_some_and(|rule| rule.fired > 0) || self.injections_fired()
    }

    /// Called with the image of each `cut`: loses the blocks of every write of a watched page. Where a disk writes copies, whose requests
    /// do not name the page, the blocks are told by what is in them.
    pub(super) fn plant_drop(&mut self, cut: PowerCut, image: &Path) -> Result<(), Stop> {
        match self.planted {
            Some(Plant::CutDrops) => {}
            Some(Plant::DrawnDrops) if matches!(cut, PowerCut::Drawn { .. }) => {}
            _ => return Ok(()),
        }
        let failed = |error: std::io::Error| Stop::Failed(format!("{}: {error}", image.display()));
        let file = File::options().read(true).write(true).open(image).map_err(failed)?;
        let mut lost: Vec<u64> = Vec::new();
        for record in self.guest.ledger().requests(self.begun).iter().filter(|record| record.op == BlkOp::Write) {
            lost.extend(record.pages.iter().filter(|touch| touch.at_data.is_some()).map(|touch| touch.lba * 512));
        }
        for ((_, file_at), at) in &self.physical {
            lost.extend(stacks::copies(self.row.disk, &file, *at, *file_at).map_err(failed)?);
        }
        self.acted |= !lost.is_empty();
        lost.iter().try_for_each(|at| file.write_all_at(&[0; PAGE as usize], *at)).map_err(failed)
    }

    /// The same of persistent memory, of which no request tells: the watched pages themselves.
    pub(super) fn plant_drop_pmem(&mut self, image: &Path) -> Result<(), Stop> {
        if self.planted != Some(Plant::CutDrops) {
            return Ok(());
        }
        let failed = |error: std::io::Error| Stop::Failed(format!("{}: {error}", image.display()));
        let file = File::options().write(true).open(image).map_err(failed)?;
        let (pmem, ledger) = (self.guest.pmem()?, self.guest.ledger());
        let watched = |page: &u64| pmem.gpa_of(*page).is_some_and(|gpa| ledger.watches(gpa));
        let lost: Vec<u64> = (0..pmem.size() / PAGE).filter(watched).collect();
        self.acted |= !lost.is_empty();
        lost.iter().try_for_each(|page| file.write_all_at(&[0; PAGE as usize], page * PAGE)).map_err(failed)
    }

    fn plant_oops(&mut self) -> Result<(), Stop> {
        let text = |pattern: &str, file: &str| -> Result<String, Stop> {
            let argv = ["grep", "-m1", "-E", pattern, file].map(String::from).into();
            // A guest that shares its processor reads 200,000 symbols for longer than ten seconds.
            let ran = self.guest.must(Op::Exec { argv, stdin: String::new(), limit_s: 50 })?.exec();
            Ok(ran.map(|ran| ran.out).unwrap_or_default())
        };
        let symbol = |name: &str| -> Result<Option<u64>, Stop> {
            let line = text(&format!(" {name}$"), "/proc/kallsyms")?;
            Ok(line.split(' ').next().and_then(|at| u64::from_str_radix(at, 16).ok()))
        };
        let (start, sync) = (symbol("_text")?, symbol(SYNC)?);
        let line = text("Kernel code", "/proc/iomem")?;
        let physical = line.trim().split('-').next().and_then(|at| u64::from_str_radix(at, 16).ok());
        let place =
            start.zip(sync).zip(physical).and_then(|((start, sync), at)| at.checked_add(sync.checked_sub(start)?));
        match place.is_some_and(|place| self.guest.plant(place, &UNDEFINED)) {
            true => Ok(()),
            false => Err(Stop::Failed(format!("{SYNC} of the guest's kernel cannot be found"))),
        }
    }

    /// Called when nothing is held any more, right before the umount.
    pub(super) fn plant_hang(&mut self) {
        if self.planted == Some(Plant::Hang) {
            let writes: RequestMatch = BlkOp::Write.into();
            // Not among the row's levers: nobody is to know what umount waits for.
            self.guest.fs_disk().arm(Lever::new(writes, HoldPoint::BeforeData, HANG));
        }
    }

    /// Called with each image before the witness sees it.
    pub(super) fn plant_image(&self, image: &Path) -> Result<(), Stop> {
        if self.planted != Some(Plant::Image) {
            return Ok(());
        }
        let wiped = File::options().write(true).open(image).and_then(|file| file.write_all_at(&vec![0; HEAD], 0));
        wiped.map_err(|error| Stop::Failed(format!("{}: {error}", image.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_plant_is_written_as_it_is_named() {
        for plant in Plant::all() {
            let read: Plant = serde_json::from_value(plant.name().into()).unwrap();
            assert_eq!(read, plant);
        }
    }
}

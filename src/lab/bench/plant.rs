// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Plants: the guest, or what is shown to the witness, is broken on purpose.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use rnic_agent::proto::Op;

use super::Bench;
use crate::finding::Stop;
use blk::{BlkOp, HoldPoint, Lever, RequestMatch};

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// The next sync(2) dies in the kernel.
    Oops,
    /// The umount at the row's end does not return: its writes are held.
    Hang,
    /// The images of power cuts have no superblock.
    Image,
    /// All processors stop.
    Silence,
}

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
        self.guest.limit_steps(SHORT);
        match plant {
            Plant::Oops => self.plant_oops(),
            Plant::Silence => {
                self.guest.pause();
                Ok(())
            }
            Plant::Hang | Plant::Image => Ok(()),
        }
    }

    fn plant_oops(&mut self) -> Result<(), Stop> {
        let text = |pattern: &str, file: &str| -> Result<String, Stop> {
            let argv = ["grep", "-m1", "-E", pattern, file].map(String::from).into();
            let ran = self.guest.must(Op::Exec { argv, stdin: String::new(), limit_s: 10 })?.exec();
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
            let writes = RequestMatch { op: Some(BlkOp::Write), page: None, lba: None };
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

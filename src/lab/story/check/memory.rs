// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Kinds of memory: what there is to each, and which steps it takes.

use super::{Checker, Mistake};
use crate::plan::{DiskKind, Fs};
use crate::story::memory::Memory;
use crate::story::step::{Advice, Step};
use crate::story::{FileSpec, Story};

/// Pages of a huge page.
const HUGE: u32 = 512;

pub(super) fn check(story: &Story) -> Result<(), Mistake> {
    let on_disk = story.files.values().filter(|file| file.memory.on_disk()).count();
    if story.filesystems.contains(&Fs::Raw) && (on_disk, story.files.len()) != (1, 1) {
        return Err(Mistake::new(0, "files", "\"raw\" is the block device itself, which is one file"));
    }
    if story.filesystems.contains(&Fs::Raw) && story.disks != [DiskKind::Plain] {
        return Err(Mistake::new(0, "disks", "\"raw\" is the virtio disk itself: its only disk is \"plain\""));
    }
    for (name, FileSpec { pages, memory, .. }) in &story.files {
        let what = match memory {
            memory if memory.on_disk() && story.filesystems.contains(&Fs::None) => {
                "lies on a file system, and the story's `filesystems` have \"none\"; `memory` says what else a file can be"
            }
            Memory::Hugetlb if pages % HUGE != 0 => "is of huge pages: its `pages` are a multiple of 512",
            memory if !memory.named() && !story.processes.is_empty() => {
                "has no name by which another process could open it"
            }
            _ => continue,
        };
        return Err(Mistake::new(0, "files", format!("file \"{name}\" {what}")));
    }
    Ok(())
}

impl Checker<'_> {
    /// The file that a step is about.
    fn file_of(&self, step: &Step) -> Option<&FileSpec> {
        let name = match step {
            Step::Fsync(fsync) => Some(fsync.file.as_str()),
            Step::Unmap(of) | Step::MapAgain(of) | Step::Move(of) => Some(of.file.as_str()),
            Step::Seal(seal) => Some(seal.file.as_str()),
            other => other.page().and_then(|page| self.story.pages.get(page)).map(|page| page.file.as_str()),
        };
        self.story.files.get(name?)
    }

    /// A step must suit the memory that it is about.
    pub(super) fn memory(&self, step: &Step) -> Result<(), Mistake> {
        if matches!(step, Step::Cut(_)) && !self.story.files.values().any(|file| file.memory.on_disk()) {
            return Err(self.mistake("cut", "no file of this story is on a disk"));
        }
        let Some(FileSpec { memory, read_only, .. }) = self.file_of(step) else { return Ok(()) };
        let dontneed = |step: &Step| matches!(step, Step::Advise(advise) if advise.advice == Advice::Dontneed);
        let what = match step {
            Step::Fsync(_) if !memory.on_disk() => "an fsync of memory promises nothing",
            Step::Writeback(_) | Step::DioWrite(_) | Step::Hold(_) if *memory != Memory::File => {
                "this step is for a file of the file system under test that is mapped shared"
            }
            Step::Punch(_) | Step::Truncate(_) if memory.anonymous() || *memory == Memory::Private => {
                "this step is for a file that is mapped shared; `advise` with \"dontneed\" takes anonymous memory away"
            }
            Step::Unmap(_) if memory.on_disk() => {
                "only memory that is no file of the file system under test is unmapped"
            }
            Step::MapAgain(_) | Step::Move(_) if !memory.anonymous() => "this step is for anonymous memory",
            Step::Unmap(of) | Step::MapAgain(of) | Step::Move(of) if of.process.is_some() => {
                "only the agent's own process does this"
            }
            Step::Seal(_) if *memory != Memory::Memfd => "only a memory file can be sealed: `memory = \"memfd\"`",
            Step::Store(_) if *read_only => "the mapping may only be read",
            step if dontneed(step) && *memory == Memory::Private => {
                "what a private mapping shows after \"dontneed\" this program does not know"
            }
            _ => return Ok(()),
        };
        Err(self.mistake("step", what))
    }
}

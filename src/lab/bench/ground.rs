// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a row's files lie on: made and mounted in the guest under test, taken down at the row's end; and what a power cut left of it,
//! mounted in the second guest.

use rnic_agent::client::CallError;
use rnic_agent::proto::{FsType, Op, Value};

use super::{Bench, DIR, stacks};
use crate::fact::What;
use crate::finding::Stop;
use crate::guest::Guest;
use crate::plan::{DiskKind, Folio, Fs, Row};

/// Where the second guest mounts what a power cut left.
pub(super) const CUT_DIR: &str = "/mnt/cut";
/// The virtio disk under test, in either guest.
pub(super) const VIRTIO: &str = "/dev/vdb";
/// Persistent memory, in the guest under test.
pub(super) const PMEM: &str = "/dev/pmem0";
/// The mount option.
const DAX: &str = "dax=always";
/// Bytes of /proc/mounts that are looked at.
const MOUNTS: u32 = 16 << 10;

impl Bench<'_> {
    /// Makes the disk and its file system, which may be `made` already, and mounts it. Rows of memory alone have neither.
    pub(super) fn make_fs(&mut self, mkfs: Option<(FsType, Vec<String>)>, made: bool) -> Result<(), Stop> {
        // The flusher would heal behind the row's back; xfs and btrfs have timers of their own, see mount options.
        self.guest.must(Op::Sysctl { key: "vm.dirty_writeback_centisecs".into(), value: Some("0".into()) })?;
        if self.row.fs == Fs::Raw {
            return self.link(self.guest, DIR, true);
        }
        let Some((fs, opts)) = mkfs else { return Ok(()) };
        if self.row.disk == DiskKind::Pmem {
            self.fresh_pmem()?;
        }
        stacks::up(self.guest, self.row.disk, false)?;
        self.tell_disk();
        let dev = stacks::device(self.row.disk);
        if !made {
            let told = self.guest.must(Op::Mkfs { fs, dev: dev.into(), opts: opts.clone() })?;
            if let Some(exec) = told.exec().filter(|exec| exec.status != 0) {
                return Err(Stop::Failed(format!("mkfs.{} failed: {}", fs.name(), exec.err)));
            }
            if self.row.disk == DiskKind::Plain {
                self.guest.keep_made(fs, &opts)?;
            }
        }
        // btrfs has a timer of its own; and where tags lie apart from data no journal may be halfway when the power goes.
        let opts = match (self.row.disk, self.row.fs) {
            (DiskKind::Pmem, _) => DAX,
            (DiskKind::Plain, Fs::Ext4) => "",
            (_, Fs::Btrfs | Fs::Ext4) => "commit=300",
            _ => "",
        };
        self.guest.must(mount(dev, DIR, self.row.fs, &self.mount_options(opts)))?;
        if self.row.disk == DiskKind::Pmem { self.is_dax() } else { Ok(()) }
    }

    /// `own`, with what the user has to add, for the guest under test.
    pub fn mount_options(&self, own: &str) -> String {
        let more = self.guest.setting().mount.as_deref().unwrap_or_default();
        [own, more].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(",")
    }

    /// xfs turns DAX off where it cannot be had, and mounts.
    fn is_dax(&self) -> Result<(), Stop> {
        let Value::Text(mounts) = self.guest.must(Op::ReadFile { path: "/proc/mounts".into(), max: MOUNTS })? else {
            return Err(Stop::Failed("the agent gave no text".into()));
        };
        let place = format!(" {DIR} ");
        match mounts.lines().any(|line| line.contains(&place) && line.contains(DAX)) {
            true => Ok(()),
            false => Err(Stop::NotRun("this kernel does not mount this file system with DAX".into())),
        }
    }

    /// New persistent memory.
    fn fresh_pmem(&mut self) -> Result<(), Stop> {
        if self.row.folio == Folio::Large {
            return Err(Stop::NotRun("files on persistent memory have no folios in a page cache".into()));
        }
        self.guest.fresh_pmem()
    }

    /// Whether the disk asks for pages that do not change while they are written, on record where that could be so.
    fn tell_disk(&mut self) {
        if self.row.scenario.disks != [DiskKind::Plain]
            && let Some(stable_writes) = stacks::stable_writes(self.guest, self.row.disk)
        {
            let fact = self.now(What::Disk { name: self.row.disk.name().into(), stable_writes });
            self.disk_told = Some(fact);
        }
    }

    /// Unmounts in the guest under test.
    pub(super) fn take_fs_down(&mut self) -> Result<(), Stop> {
        match self.row.fs {
            Fs::None => return Ok(()),
            Fs::Raw => return self.link(self.guest, DIR, false),
            _ => {}
        }
        // A file system that refuses to unmount is reported by the next row's swap at the latest.
        let unmounted = self.guest.call(Op::Umount { dir: DIR.into() });
        if unmounted.is_ok() {
            forget(self.guest, self.row.fs)?;
        }
        unmounted.map_err(|error| self.guest.stop_for("unmounting", &error))?;
        stacks::down(self.guest)
    }

    /// The name of the row's file in `dir` stands for the block device itself; or no longer.
    fn link(&self, guest: &Guest, dir: &str, there: bool) -> Result<(), Stop> {
        let name = self.row.scenario.story.and_then(|story| story.files.keys().next()).map_or("file", String::as_str);
        let command = match there {
            true => format!("mkdir -p {dir} && ln -sfn {VIRTIO} {dir}/{name}"),
            false => format!("rm {dir}/{name}"),
        };
        let argv = vec!["sh".into(), "-c".into(), command.clone()];
        match guest.must(Op::Exec { argv, stdin: String::new(), limit_s: 10 })?.exec() {
            Some(exec) if exec.status == 0 => Ok(()),
            ran => Err(Stop::Failed(format!("{command}: {ran:?}"))),
        }
    }

    /// What a power cut left of the block device, under the row's name for it.
    pub(super) fn link_cut(&self) -> Result<(), Stop> {
        self.link(self.witness, CUT_DIR, true)
    }

    /// Mounts in the second guest what a power cut left on the disk that has been put in.
    pub(super) fn mount_cut(&mut self) -> Result<(), CallError> {
        // An image of persistent memory is a disk like any other to whoever only reads it: the second guest has no such memory.
        let dev = if self.row.disk == DiskKind::Pmem { VIRTIO } else { stacks::device(self.row.disk) };
        self.witness.call(mount(dev, CUT_DIR, self.row.fs, "")).map(drop)
    }

    /// Unmounts it.
    pub(super) fn unmount_cut(&mut self) -> Result<(), Stop> {
        if self.row.fs == Fs::Raw {
            return self.link(self.witness, CUT_DIR, false);
        }
        self.witness.must(Op::Umount { dir: CUT_DIR.into() })?;
        forget(self.witness, self.row.fs)?;
        stacks::down(self.witness)
    }
}

/// What mkfs is told for this row: the row's own options, and what the user has to add. None where a row has no file system to make.
pub(super) fn mkfs(guest: &Guest, row: Row) -> Option<(FsType, Vec<String>)> {
    let more = guest.setting().mkfs.as_deref().unwrap_or_default();
    let opts = stacks::mkfs_options(row).into_iter().chain(more.split_whitespace()).map(Into::into);
    Some((row.fs.made()?, opts.collect()))
}

/// Else the kernel remembers this file system's identity and takes the next image for a stale copy of it.
fn forget(guest: &Guest, fs: Fs) -> Result<(), Stop> {
    if fs != Fs::Btrfs {
        return Ok(());
    }
    guest.must(Op::ForgetDevices).map(drop)
}

/// mount(2) of `dev`.
pub fn mount(dev: &str, dir: &str, fs: Fs, opts: &str) -> Op {
    Op::Mount { dev: dev.into(), dir: dir.into(), fs: fs.name().into(), opts: opts.into(), ro: false }
}

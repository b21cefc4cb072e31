// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The initramfs: the agent as `/init`, kernel modules, and the list of those to load at boot.
//!
//! It is not compressed: in an emulated guest, copying is cheap and decompressing is not.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rnic_agent::modules::{Modules, module_name};

use super::{ImageError, KernelSource, unreadable, vmlinux};

mod cpio;

use cpio::Archive;

/// Loaded at boot. A guest cannot find its disks without them.
pub const BOOT_MODULES: [&str; 4] = ["virtio_pci", "virtio_blk", "ext4", "overlay"];
/// Loaded at boot where the kernel has them.
pub const OPTIONAL_BOOT_MODULES: [&str; 1] = ["pvpanic_mmio"];
/// What a guest may load later without RDMA: file systems, stacked block devices, persistent memory.
pub const LAB_MODULES: [&str; 20] = [
    "xfs",
    "btrfs",
    "loop",
    "dm_mod",
    "dm_integrity",
    "dm_crypt",
    "dm_snapshot",
    "dm_log_writes",
    "dm_flakey",
    "md_mod",
    "raid0",
    "raid1",
    "raid10",
    "raid456",
    "nd_e820",
    "nd_pmem",
    "nd_btt",
    "dax_pmem",
    "device_dax",
    "virtio_pmem",
];
/// What a guest may load later for RDMA: the NIC's drivers, and soft-RoCE over a dummy interface, which needs no NIC (its
/// checksums come from crc32_generic on kernels before 6.12, by a name that no module lists).
pub const RDMA_MODULES: [&str; 9] =
    ["ib_uverbs", "ib_umad", "rdma_cm", "rdma_ucm", "mlx5_core", "mlx5_ib", "rdma_rxe", "crc32_generic", "dummy"];
/// Loaded at boot where there is a NIC, as udev does elsewhere: rdma-core's programs see it at once.
pub const NIC_BOOT_MODULES: [&str; 2] = ["mlx5_ib", "ib_uverbs"];
/// Loaded at boot where there is persistent memory, as udev does elsewhere: a region is made of what the firmware's map calls legacy
/// persistent memory, and a block device of the region. They bring libnvdimm.
pub const PMEM_BOOT_MODULES: [&str; 2] = ["nd_e820", "nd_pmem"];
/// What the NIC's drivers offer to other modules: those that build on it (ib_ipoib, ib_srp, nvme_rdma, rpcrdma and so on).
pub const RDMA_CORE: [&str; 2] = ["ib_core", "mlx5_core"];
/// Without these a remote disk has no block device, a target nothing to serve, and NFS neither server nor client; no module of the
/// NIC's lists them.
pub const RDMA_STORAGE_MODULES: [&str; 6] =
    ["sd_mod", "target_core_iblock", "target_core_file", "null_blk", "nfsd", "nfsv4"];
/// Where drivers of hardware lie. Those of other hardware build on the same core and have nothing to bind to.
const HARDWARE: [&str; 3] = ["drivers/infiniband/hw/", "drivers/infiniband/sw/", "drivers/net/ethernet/"];
/// Files of the module directory that are copied where they exist. The .bin files serve kmod's own modprobe.
const LISTS: [&str; 7] = [
    "modules.builtin",
    "modules.builtin.modinfo",
    "modules.builtin.bin",
    "modules.builtin.alias.bin",
    "modules.order",
    "modules.dep.bin",
    "modules.alias.bin",
];
/// Directories of an empty root.
const DIRS: [&str; 9] = ["dev", "proc", "sys", "run", "tmp", "etc", "root", "newroot", "lib"];

/// What goes in.
pub struct Spec<'a> {
    /// Kernel whose modules are taken.
    pub kernel: &'a KernelSource,
    /// The agent's program, statically linked (`guest/agent/build`).
    pub agent: &'a Path,
    /// Modules that are loaded at boot after [`BOOT_MODULES`], where the kernel has them: names.
    pub boot: &'a [&'a str],
    /// Modules that may be loaded later, beside the boot modules: names. Those that the kernel lacks are reported, not an error.
    pub modules: &'a [&'a str],
    /// Modules that may be loaded later too: all that build on one of these, but for drivers of hardware.
    pub dependents_of: &'a [&'a str],
    /// More files: (path in the initramfs without leading slash, file on the host, mode).
    pub files: &'a [(&'a str, &'a Path, u32)],
}

/// What came out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Built {
    /// Size in bytes.
    pub bytes: u64,
    /// Modules in it.
    pub modules: usize,
    /// Wanted modules that the kernel has neither as modules nor built in.
    pub missing: Vec<String>,
}

/// Builds into an unnamed file in the directory for temporary files; its position is at the beginning.
pub fn build(spec: &Spec) -> Result<(File, Built), ImageError> {
    let dir = std::env::temp_dir();
    let mut file = unnamed_file(&dir).map_err(|source| ImageError::TempDir { dir, source })?;
    let mut writer = BufWriter::with_capacity(1 << 20, &file);
    let built = write(spec, &mut writer)?;
    writer.flush()?;
    drop(writer);
    file.rewind()?;
    Ok((file, built))
}

fn unnamed_file(dir: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    if let Ok(file) = options.clone().custom_flags(libc::O_TMPFILE).open(dir) {
        return Ok(file);
    }
    // File systems without O_TMPFILE.
    let nanos = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos());
    let path = dir.join(format!("rnic-initramfs-{}-{nanos}", std::process::id()));
    let file = options.create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// Writes the archive.
pub fn write(spec: &Spec, out: impl Write) -> Result<Built, ImageError> {
    let mut archive = Archive::new(out);
    DIRS.iter().try_for_each(|dir| archive.directory(dir))?;
    // Before devtmpfs is mounted, the kernel gives PID 1 this as its standard streams.
    archive.character_device("dev/console", 0o600, (5, 1))?;
    let agent = fs::read(spec.agent).map_err(|source| ImageError::NoAgent { path: spec.agent.into(), source })?;
    archive.file("init", 0o755, &agent)?;
    let mut built = Built::default();
    if let Some(dir) = &spec.kernel.modules {
        add_modules(&mut archive, &Tree::read(dir)?, spec, &mut built)?;
    }
    for (name, path, mode) in spec.files {
        archive.file(name, *mode, &fs::read(path).map_err(unreadable(path))?)?;
    }
    built.bytes = archive.finish()?;
    Ok(built)
}

/// A module directory.
struct Tree {
    dir: PathBuf,
    modules: Modules,
    softdep: String,
}

impl Tree {
    fn read(dir: &Path) -> Result<Self, ImageError> {
        let list = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
        let dep = dir.join("modules.dep");
        let dep = fs::read_to_string(&dep).map_err(unreadable(&dep))?;
        let softdep = list("modules.softdep");
        let modules = Modules::parse(&dep, &softdep, &list("modules.alias"), &list("modules.builtin"));
        Ok(Self { dir: dir.into(), modules, softdep })
    }

    /// Paths to load at boot, in order; `more` and the optional ones where they are there.
    fn boot_order(&self, more: &[&str]) -> Result<Vec<&str>, ImageError> {
        let mut order = Vec::new();
        for name in BOOT_MODULES.iter().chain(&OPTIONAL_BOOT_MODULES).chain(more) {
            match self.modules.load_order(name) {
                Ok(paths) => order.extend(paths),
                Err(_) if !BOOT_MODULES.contains(name) => {}
                Err(_) => return Err(ImageError::MissingModule { dir: self.dir.clone(), module: name.to_string() }),
            }
        }
        let mut seen = BTreeSet::new();
        order.retain(|path| seen.insert(*path));
        Ok(order)
    }
}

/// Name of a module once it is decompressed.
fn plain(path: &str) -> &str {
    path.find(".ko").map_or(path, |end| &path[..end + 3])
}

fn add_modules<W: Write>(
    archive: &mut Archive<W>,
    tree: &Tree,
    spec: &Spec,
    built: &mut Built,
) -> Result<(), ImageError> {
    let boot = tree.boot_order(spec.boot)?;
    let mut chosen: BTreeSet<&str> = boot.iter().copied().collect();
    let dependents = tree.modules.dependents(spec.dependents_of);
    let dependents = dependents.into_iter().filter(|path| !HARDWARE.iter().any(|place| path.contains(place)));
    for name in spec.modules.iter().copied().chain(dependents) {
        match tree.modules.load_order(name) {
            Ok(paths) => chosen.extend(paths),
            Err(_) => built.missing.push(name.to_string()),
        }
    }
    built.modules = chosen.len();
    let release = tree.dir.file_name().unwrap_or_default().to_string_lossy();
    let base = format!("lib/modules/{release}");
    let mut renamed = false;
    for path in &chosen {
        let file = tree.dir.join(path);
        let mut bytes = fs::read(&file).map_err(unreadable(&file))?;
        if plain(path) != *path {
            renamed = true;
            bytes = vmlinux::decompress(&bytes, 0).map_err(|source| ImageError::BadModule { path: file, source })?;
        }
        archive.file(&format!("{base}/{}", plain(path)), 0o644, &bytes)?;
    }
    let boot: String = boot.iter().map(|path| format!("{}\n", plain(path))).collect();
    archive.file("etc/rnic-modules", 0o644, boot.as_bytes())?;
    add_lists(archive, tree, &base, &chosen, renamed)
}

/// The text lists, cut down to the modules that are there; and kmod's indexes, unless modules have other names now.
fn add_lists<W: Write>(
    archive: &mut Archive<W>,
    tree: &Tree,
    base: &str,
    chosen: &BTreeSet<&str>,
    renamed: bool,
) -> Result<(), ImageError> {
    let mut dep = String::new();
    for path in chosen {
        let needs: String = tree.modules.needs(path).iter().map(|need| format!(" {}", plain(need))).collect();
        dep += &format!("{}:{needs}\n", plain(path));
    }
    archive.file(&format!("{base}/modules.dep"), 0o644, dep.as_bytes())?;
    archive.file(&format!("{base}/modules.softdep"), 0o644, tree.softdep.as_bytes())?;
    let names: BTreeSet<String> = chosen.iter().map(|path| module_name(path)).collect();
    let ours = tree.modules.aliases().iter().filter(|(_, module)| names.contains(module));
    let aliases: String = ours.map(|(alias, module)| format!("alias {alias} {module}\n")).collect();
    archive.file(&format!("{base}/modules.alias"), 0o644, aliases.as_bytes())?;
    for list in LISTS.iter().filter(|list| !(renamed && list.starts_with("modules.dep"))) {
        if let Ok(bytes) = fs::read(tree.dir.join(list)) {
            archive.file(&format!("{base}/{list}"), 0o644, &bytes)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;

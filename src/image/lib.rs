// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Named kernels and root file systems, and the initramfs that carries the agent.
//!
//! * [`Manifest`]: what `images/prepare` has put into the image cache.
//! * [`resolve_kernel`]: a name ("6.1") or a path to everything that booting it takes.
//! * [`vmlinux`]: kernel files: telling them apart, unpacking a bzImage.
//! * [`initramfs`]: the agent and kernel modules as a newc archive.

use std::path::{Path, PathBuf};

use thiserror::Error;

pub mod initramfs;
mod kernel;
mod manifest;
pub mod vmlinux;

pub use kernel::{KernelSource, resolve_kernel};
pub use manifest::{KernelEntry, Manifest, Package, RootEntry, cache_dir};

/// A kernel, its modules or the image cache cannot be used.
#[derive(Debug, Error)]
pub enum ImageError {
    /// Neither RNIC_CACHE nor XDG_CACHE_HOME nor HOME is set.
    #[error("the image cache has no place: set RNIC_CACHE or HOME")]
    NoCacheDir,
    /// The cache was never filled.
    #[error("the image cache {} is empty: run `rnic prepare`", .0.display())]
    NoManifest(PathBuf),
    /// The cache's list cannot be read.
    #[error("the image cache's list {} cannot be read ({what}): run `rnic prepare --update`", .path.display())]
    BadManifest {
        /// The list.
        path: PathBuf,
        /// Why.
        what: String,
    },
    /// No kernel of this name.
    #[error("no kernel named {name} in the image cache (it has {known}): run `rnic prepare`, or give a path")]
    NoKernel {
        /// As asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// The file is missing or unreadable.
    #[error("the kernel {} cannot be read: {source}", .path.display())]
    KernelFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no kernel, or a damaged one.
    #[error("{} is not a usable kernel: {source}", .path.display())]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// Why.
        source: vmlinux::PayloadError,
    },
    /// No modules.dep where modules should be.
    #[error(
        "{} holds no modules of kernel {release} (no modules.dep): give the directory that `make modules_install \
         INSTALL_MOD_PATH=DIR` wrote, or run `depmod -b DIR {release}`", .dir.display()
    )]
    NoModules {
        /// As given.
        dir: PathBuf,
        /// The kernel's release, or "?".
        release: String,
    },
    /// A module that every guest needs is neither there nor built in.
    #[error(
        "the modules in {} lack {module}, without which a guest finds no disk: build it in or as a module", .dir.display()
    )]
    MissingModule {
        /// Directory of modules.dep.
        dir: PathBuf,
        /// Its name.
        module: String,
    },
    /// The agent's program is missing.
    #[error("the guest agent {} cannot be read ({source}): run `make build`", .path.display())]
    NoAgent {
        /// Where it was looked for.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that belongs into the initramfs cannot be read.
    #[error("{} cannot be read: {source}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A compressed module is damaged.
    #[error("{} cannot be decompressed: {source}", .path.display())]
    BadModule {
        /// The file.
        path: PathBuf,
        /// Why.
        source: vmlinux::PayloadError,
    },
    /// No temporary file can be made.
    #[error("no temporary file can be made in {} ({source}): set TMPDIR to a directory with 1 GB of room", .dir.display())]
    TempDir {
        /// Where.
        dir: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The initramfs cannot be written.
    #[error("the initramfs cannot be written ({0}): set TMPDIR to a directory with 1 GB of room")]
    Write(#[from] std::io::Error),
}

/// Makes an error of a file that could not be read.
fn unreadable(path: &Path) -> impl FnOnce(std::io::Error) -> ImageError + '_ {
    move |source| ImageError::Unreadable { path: path.into(), source }
}

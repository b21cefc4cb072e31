// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From what a person types to what booting takes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::manifest::Manifest;
use super::{ImageError, vmlinux};

/// A kernel and what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelSource {
    /// Name in the cache ("6.1"), or the file's name.
    pub name: String,
    /// `uname -r`; empty when neither modules nor the file tell it.
    pub release: String,
    /// ELF vmlinux or bzImage.
    pub image: PathBuf,
    /// The directory that has modules.dep; None: everything must be built in.
    pub modules: Option<PathBuf>,
    /// Root file system image; None when the cache is empty.
    pub root: Option<PathBuf>,
    /// Debian's version, for kernels of the cache.
    pub package_version: Option<String>,
}

/// Finds a kernel: a name of the cache, or a path (anything with a slash, or an existing file).
///
/// `modules` replaces the modules: a directory with modules.dep, with RELEASE/modules.dep or with lib/modules/RELEASE/modules.dep.
pub fn resolve_kernel(name_or_path: &str, modules: Option<&Path>) -> Result<KernelSource, ImageError> {
    let path = Path::new(name_or_path);
    if name_or_path.contains('/') || path.is_file() {
        return from_path(path, modules, Manifest::load().ok().as_ref());
    }
    from_cache(&Manifest::load()?, name_or_path, modules)
}

fn from_cache(manifest: &Manifest, name: &str, modules: Option<&Path>) -> Result<KernelSource, ImageError> {
    let entry = manifest.kernel(name)?;
    let image = manifest.dir.join(&entry.vmlinux);
    inspect(&image)?;
    let shipped = manifest.dir.join(&entry.modules);
    let modules = module_dir(modules.unwrap_or(&shipped), &entry.release)?;
    Ok(KernelSource {
        name: entry.name.clone(),
        release: entry.release.clone(),
        image,
        modules: Some(modules),
        root: manifest.root(&entry.root),
        package_version: Some(entry.package_version.clone()),
    })
}

fn from_path(path: &Path, modules: Option<&Path>, manifest: Option<&Manifest>) -> Result<KernelSource, ImageError> {
    let found = inspect(path)?;
    let modules = modules.map(|dir| module_dir(dir, found.release.as_deref().unwrap_or_default())).transpose()?;
    let of_modules = || modules.as_ref()?.file_name()?.to_str().map(str::to_owned);
    let release = match found.release.or_else(of_modules) {
        Some(release) => release,
        None => vmlinux::scan_release(path).map_err(super::unreadable(path))?.unwrap_or_default(),
    };
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let root = manifest.and_then(Manifest::newest_root);
    Ok(KernelSource { name, release, image: path.into(), modules, root, package_version: None })
}

fn inspect(path: &Path) -> Result<vmlinux::KernelFile, ImageError> {
    let failed = |source| ImageError::KernelFile { path: path.into(), source };
    let mut file = File::open(path).map_err(failed)?;
    vmlinux::inspect(&mut file).map_err(|source| match source {
        vmlinux::PayloadError::Read(source) => failed(source),
        source => ImageError::NotAKernel { path: path.into(), source },
    })
}

/// The directory with modules.dep that `dir` means. When it holds several kernels' modules, that of `release`.
fn module_dir(dir: &Path, release: &str) -> Result<PathBuf, ImageError> {
    let has_list = |dir: &PathBuf| dir.join("modules.dep").is_file();
    let absolute = fs::canonicalize(dir).unwrap_or_else(|_| dir.into());
    if has_list(&absolute) {
        return Ok(absolute);
    }
    for parent in [absolute.join("lib/modules"), absolute] {
        if !release.is_empty() && has_list(&parent.join(release)) {
            return Ok(parent.join(release));
        }
        let entries = fs::read_dir(&parent).into_iter().flatten().flatten();
        let mut candidates = entries.map(|entry| entry.path()).filter(has_list);
        if let (Some(only), None) = (candidates.next(), candidates.next()) {
            // Another kernel's modules would only fail to load, one by one.
            if release.is_empty() {
                return Ok(only);
            }
        }
    }
    let release = if release.is_empty() { "?" } else { release };
    Err(ImageError::NoModules { dir: dir.into(), release: release.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmlinux::testing::bzimage;

    fn modules_of(root: &Path, release: &str) -> PathBuf {
        let dir = root.join("lib/modules").join(release);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("modules.dep"), "").unwrap();
        fs::canonicalize(dir).unwrap()
    }

    #[test]
    fn module_directories_are_found_by_any_of_their_names() {
        let root = tempfile::tempdir().unwrap();
        let dir = modules_of(root.path(), "6.9");
        for given in [root.path().into(), root.path().join("lib/modules"), dir.clone()] {
            for release in ["6.9", ""] {
                assert_eq!(module_dir(&given, release).unwrap(), dir, "{} {release}", given.display());
            }
        }
        assert!(module_dir(root.path(), "7.0").is_err(), "another kernel's modules are of no use");
        modules_of(root.path(), "6.10");
        assert_eq!(module_dir(root.path(), "6.9").unwrap(), dir);
        for release in ["", "7.0"] {
            let error = module_dir(root.path(), release).unwrap_err().to_string();
            assert!(error.contains("depmod -b"), "{error}");
        }
    }

    #[test]
    fn a_path_gets_its_release_from_its_header() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bzImage");
        fs::write(&path, bzimage(b"\x1f\x8bxx", "6.9.1 (me@here) #1")).unwrap();
        let source = from_path(&path, None, None).unwrap();
        assert_eq!((source.name.as_str(), source.release.as_str()), ("bzImage", "6.9.1"));
        let modules = modules_of(dir.path(), "6.9.1");
        assert_eq!(from_path(&path, Some(dir.path()), None).unwrap().modules, Some(modules));
    }

    #[test]
    fn missing_and_wrong_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nothing");
        let error = from_path(&path, None, None).unwrap_err().to_string();
        assert!(error.contains("nothing cannot be read: No such file"), "{error}");
        fs::write(&path, "#!/bin/sh\n").unwrap();
        let error = from_path(&path, None, None).unwrap_err().to_string();
        assert!(error.contains("not a usable kernel"), "{error}");
        let error = from_path(dir.path(), None, None).unwrap_err().to_string();
        assert!(error.contains("cannot be read"), "{error}");
    }
}

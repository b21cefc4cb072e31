// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The list of what is in the image cache, written by `images/prepare`.

use std::env;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::ImageError;

/// The format that this program reads.
const FORMAT: u32 = 1;

/// Where the image cache is: RNIC_CACHE, else XDG_CACHE_HOME/rnic, else HOME/.cache/rnic.
pub fn cache_dir() -> Result<PathBuf, ImageError> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("RNIC_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("rnic")))
        .or_else(|| set("HOME").map(|dir| dir.join(".cache/rnic")))
        .ok_or(ImageError::NoCacheDir)
}

/// A Debian package that something was made from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Of the .deb.
    pub sha256: String,
}

/// A kernel in the cache. Paths are relative to the cache.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct KernelEntry {
    /// "6.1".
    pub name: String,
    /// `uname -r`.
    pub release: String,
    /// Debian's version of it.
    pub package_version: String,
    /// Debian's suite.
    pub suite: String,
    /// ELF image.
    pub vmlinux: PathBuf,
    /// As shipped.
    pub bzimage: PathBuf,
    /// Directory that has lib/modules/RELEASE.
    pub modules: PathBuf,
    /// Name of the root file system that fits.
    pub root: String,
    /// What it was made from.
    #[serde(default)]
    pub packages: Vec<Package>,
}

/// A root file system in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct RootEntry {
    /// "bookworm".
    pub name: String,
    /// ext4 image, relative to the cache.
    pub image: PathBuf,
    /// What it was made from.
    #[serde(default)]
    pub packages: Vec<Package>,
}

/// The list.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Manifest {
    /// Version of the list's format.
    pub format: u32,
    /// Kernels.
    #[serde(default)]
    pub kernels: Vec<KernelEntry>,
    /// Root file systems.
    #[serde(default)]
    pub roots: Vec<RootEntry>,
    /// The cache that it describes.
    #[serde(skip)]
    pub dir: PathBuf,
}

impl Manifest {
    /// Reads the list of the image cache.
    pub fn load() -> Result<Self, ImageError> {
        Self::load_from(&cache_dir()?)
    }

    /// Reads the list of the cache in `dir`.
    pub fn load_from(dir: &Path) -> Result<Self, ImageError> {
        let path = dir.join("manifest.json");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(ImageError::NoManifest(dir.into()));
            }
            Err(error) => return Err(ImageError::BadManifest { path, what: error.to_string() }),
        };
        let bad = |what: String| ImageError::BadManifest { path: path.clone(), what };
        let manifest: Self = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        if manifest.format != FORMAT {
            return Err(bad(format!("it has format {}, this program reads format {FORMAT}", manifest.format)));
        }
        Ok(Self { dir: dir.into(), ..manifest })
    }

    /// The kernel `name`.
    pub fn kernel(&self, name: &str) -> Result<&KernelEntry, ImageError> {
        self.kernels.iter().find(|kernel| kernel.name == name).ok_or_else(|| {
            let known: Vec<&str> = self.kernels.iter().map(|kernel| kernel.name.as_str()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            ImageError::NoKernel { name: name.into(), known }
        })
    }

    /// Path of the root file system `name`.
    pub fn root(&self, name: &str) -> Option<PathBuf> {
        self.roots.iter().find(|root| root.name == name).map(|root| self.dir.join(&root.image))
    }

    /// Path of the newest root file system: the one for kernels of unknown origin.
    pub fn newest_root(&self) -> Option<PathBuf> {
        self.roots.last().map(|root| self.dir.join(&root.image))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Manifest, ImageError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("manifest.json"), text).unwrap();
        Manifest::load_from(dir.path())
    }

    #[test]
    fn bad_lists_are_named_with_their_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let error = Manifest::load_from(dir.path()).unwrap_err().to_string();
        assert!(error.contains("is empty: run `rnic prepare`"), "{error}");
        for text in ["", "{", "[]", r#"{"format":2}"#, r#"{"format":1,"kernels":[{"name":"x"}]}"#] {
            let error = load(text).unwrap_err().to_string();
            assert!(error.contains("manifest.json") && error.contains("rnic prepare --update"), "{error}");
        }
    }

    #[test]
    fn unknown_kernels_are_answered_with_the_known() {
        let text = r#"{"format":1,"kernels":[
            {"name":"6.1","release":"r","package_version":"1","suite":"s","vmlinux":"v","bzimage":"b","modules":"m","root":"x"}]}"#;
        let error = load(text).unwrap().kernel("6.2").unwrap_err().to_string();
        assert_eq!(error, "no kernel named 6.2 in the image cache (it has 6.1): run `rnic prepare`, or give a path");
    }
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where this program's own parts lie. One rule for all: what a variable names, else what `make install` has put beside the program, else
//! the build tree.

use std::env;
use std::path::{Path, PathBuf};

/// A part of the program that is a file of its own.
#[derive(Debug)]
pub struct Part {
    /// What it is, for a person.
    what: &'static str,
    /// The environment variable that names it.
    variable: &'static str,
    /// Its place below share/rnic of an installation, which is also that in the build tree if `built` says nothing else.
    place: &'static str,
    /// Its place below cargo's target directory.
    built: Option<&'static str>,
    /// How it comes to be there.
    remedy: &'static str,
}

/// The guest agent.
pub const AGENT: Part = Part {
    what: "guest agent",
    variable: "RNIC_AGENT",
    place: "rnic-agent",
    built: Some("guest/x86_64-unknown-linux-gnu/release/rnic-agent"),
    remedy: "run `make build`",
};
/// What brings an emulated host.
pub const WITH_KVM: Part = Part {
    what: "helper that starts an emulated host",
    variable: "RNIC_WITH_KVM",
    place: "images/with-kvm",
    built: None,
    remedy: "run `make install` in the source tree",
};
/// What fills the image cache.
pub const PREPARE: Part = Part {
    what: "program that fills the image cache",
    variable: "RNIC_PREPARE",
    place: "images/prepare",
    built: None,
    remedy: "run `make install` in the source tree",
};

/// Below an installation's PREFIX/bin.
const SHARE: &str = "../share/rnic";

/// Finds a part.
pub fn find(part: &Part) -> Result<PathBuf, super::Error> {
    let named = env::var_os(part.variable).filter(|path| !path.is_empty());
    let program = env::current_exe().map_err(|e| format!("this program does not find its own file: {e}"))?;
    look(part, named.map(PathBuf::from), &program, Path::new(env!("CARGO_MANIFEST_DIR"))).map_err(Into::into)
}

/// `program` is this program's file; `package` is a folder of the tree that it was built in, which may be gone.
fn look(part: &Part, named: Option<PathBuf>, program: &Path, package: &Path) -> Result<PathBuf, String> {
    let Part { what, variable, remedy, .. } = part;
    if let Some(path) = named {
        let there = path.is_file();
        return if there {
            Ok(path)
        } else {
            Err(format!("{variable}={} is not a file: unset it or correct it", path.display()))
        };
    }
    let bin = program.parent().unwrap_or(Path::new("/"));
    let mut tried = vec![bin.join(SHARE).join(part.place)];
    match part.built {
        // DIR/debug/rnic or DIR/release/rnic.
        Some(place) => tried.push(bin.join("..").join(place)),
        None => tried.extend(tree(program).or_else(|| tree(package)).map(|root| root.join(part.place))),
    }
    if let Some(found) = tried.iter().find(|path| path.is_file()) {
        return Ok(found.clone());
    }
    let tried: Vec<String> = tried.iter().map(|path| path.display().to_string()).collect();
    Err(format!("there is no {what} at {}: {remedy}, or set {variable}", tried.join(" or ")))
}

/// The source tree that `path` lies in.
fn tree(path: &Path) -> Option<&Path> {
    path.ancestors().find(|dir| dir.join("Cargo.lock").is_file() && dir.join("images/with-kvm").is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(path: PathBuf) -> PathBuf {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "").unwrap();
        std::fs::canonicalize(path).unwrap()
    }

    fn found(part: &Part, program: &Path, package: &Path) -> PathBuf {
        std::fs::canonicalize(look(part, None, program, package).unwrap()).unwrap()
    }

    #[test]
    fn a_variable_then_the_installation_then_the_tree() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let nowhere = at("nowhere");
        // A build tree.
        touch(at("src/Cargo.lock"));
        let program = touch(at("src/target/debug/rnic"));
        let helper = touch(at("src/images/with-kvm"));
        let agent = touch(at("src/target/guest/x86_64-unknown-linux-gnu/release/rnic-agent"));
        assert_eq!((found(&WITH_KVM, &program, &nowhere), found(&AGENT, &program, &nowhere)), (helper.clone(), agent));
        // A target directory elsewhere.
        let program = touch(at("elsewhere/debug/rnic"));
        assert_eq!(found(&WITH_KVM, &program, &at("src/some/package")), helper);
        // An installation, also when the tree is still there.
        let program = touch(at("usr/bin/rnic"));
        let (helper, agent) = (touch(at("usr/share/rnic/images/with-kvm")), touch(at("usr/share/rnic/rnic-agent")));
        assert_eq!(
            (found(&WITH_KVM, &program, &at("src")), found(&AGENT, &program, &at("src"))),
            (helper, agent.clone())
        );
        // A variable goes before all, and is told of when it is wrong.
        assert_eq!(look(&WITH_KVM, Some(agent.clone()), &program, &nowhere).unwrap(), agent);
        let error = look(&WITH_KVM, Some(nowhere.clone()), &program, &nowhere).unwrap_err();
        assert!(error.contains("RNIC_WITH_KVM=") && error.contains("unset it"), "{error}");
    }

    #[test]
    fn what_is_missing_is_named_with_its_places_and_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let error = look(&AGENT, None, &dir.path().join("bin/rnic"), dir.path()).unwrap_err();
        for word in ["no guest agent", "share/rnic/rnic-agent or ", "release/rnic-agent", "make build", "RNIC_AGENT"] {
            assert!(error.contains(word), "{word}: {error}");
        }
    }
}

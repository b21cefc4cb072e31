// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `tests/bisect` answers as `git bisect run` wants it, with a stand-in for the lab whose kernels are numbers (docs/bisect.md).

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::{env, fs, process};

use super::tree::root;

/// Up to 3 the data are lost, from 5 on the kernel refuses; 4 cannot tell, 8 and 9 cannot be run. From 5 on a second row is not run. Its own status
/// is always 1.
const STAND_IN: &str = r#"#!/bin/sh
while [ $# -gt 0 ]; do case $1 in --kernel) kernel=$2 ;; --json-file) file=$2 ;; esac; shift; done
row() { printf '{"kernel_version":"%s-1","scenario":"H01","fs":"ext4","mode":"odp","folio":"%s","observed":"%s"}' "$kernel" "$1" "$2"; }
case $kernel in
1|2|3) rows=$(row single LOST+WARN) ;;
4) rows=$(row single INCONCLUSIVE) ;;
8) rows=$(row large NOT-RUN) ;;
9) exit 1 ;;
*) rows="$(row single 'REFUSED(EFAULT)'),$(row large NOT-RUN)" ;;
esac
echo "{\"rows\":[$rows]}" >"$file"
exit 1
"#;

struct Lab(PathBuf);

impl Lab {
    fn new(name: &str) -> Self {
        let path = env::temp_dir().join(format!("rnic-bisect-{name}-{}", process::id()));
        fs::write(&path, STAND_IN).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self(path)
    }

    /// What `tests/bisect` answers and its last line.
    fn ask(&self, words: &[&str]) -> (Option<i32>, String) {
        let done = Command::new(root().join("tests/bisect")).args(words).env("RNIC_BIN", &self.0).output().unwrap();
        let out = String::from_utf8(done.stdout).unwrap();
        (done.status.code(), out.lines().last().unwrap_or_default().to_owned())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

#[test]
fn a_step_is_good_bad_or_skipped() {
    let lab = Lab::new("step");
    let status = |words: &[&str]| lab.ask(&[&["step"], words].concat()).0;
    for (kernel, expected) in [("1", 1), ("4", 125), ("5", 0), ("8", 125), ("9", 125)] {
        assert_eq!(status(&[kernel, "--scenario", "H01"]), Some(expected), "kernel {kernel}");
    }
    assert_eq!((status(&["--bad", "^REFUSED", "5"]), status(&["--bad", "^REFUSED", "1"])), (Some(1), Some(0)));
    assert_eq!(status(&[]), Some(125), "a wrong command line judges no kernel");
}

#[test]
fn a_walk_says_where_the_answer_changes() {
    let lab = Lab::new("walk");
    let kernels = ["1", "2", "3", "4", "5", "6", "7"];
    let walk = |from: usize| lab.ask(&[&["walk"], &kernels[from..], &["--", "--scenario", "H01"]].concat());
    assert_eq!(walk(0), (Some(0), "3 is the last that is bad, 5 the first that is good".into()));
    assert_eq!(walk(4).0, Some(125), "nothing changes");
}

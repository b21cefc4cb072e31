// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `rnic run --faults`: a plan reaches the device, the stock driver sees it, and the report says what fired.

use crate::common::Done;
use crate::machine::{exec, value};

/// Refuses the `nth` CREATE_QP.
fn plan(nth: u64) -> tempfile::NamedTempFile {
    let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    let text = format!(
        "title = 'a queue pair is refused'\n[[inject]]\nname = 'refused'\ndevice = 'nic0'\naction = 'command-status'\n\
         command = 'CREATE_QP'\nstatus = 'NO_RES'\nnth = {nth}\n"
    );
    std::fs::write(file.path(), text).unwrap();
    file
}

fn run(nth: u64) -> Done {
    let file = plan(nth);
    let options = ["--nic", "--seed", "1", "--require-fired", "--faults", file.path().to_str().unwrap()];
    let script = "ibv_rc_pingpong -d mlx5_0 2>&1 | head -n 3 | sed 's/^/pingpong=/'; dmesg | grep 'Create QP type' | sed 's/^/dmesg=/'";
    let script = format!("timeout 5 {script}");
    exec("7.3", &options, &script)
}

/// Matches and firings in the report.
fn counts(done: &Done) -> (u64, u64) {
    let row = done.err.lines().find(|line| line.starts_with("refused ")).unwrap_or_else(|| panic!("{}", done.err));
    let numbers: Vec<u64> = row.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    (numbers[0], numbers[1])
}

#[test]
fn a_plan_is_carried_out_and_one_that_never_fired_is_a_failure() {
    let idle = run(1000);
    assert_eq!(idle.code(), 1);
    assert!(idle.err.contains("never fired: refused (line 2,"), "{}", idle.err);
    let (matched, fired) = counts(&idle);
    assert_eq!(fired, 0);
    // The last of them was the program's.
    let done = run(matched);
    assert_eq!(done.code(), 0);
    assert_eq!(counts(&done).1, 1);
    assert!(done.err.contains(&format!("#1 nic0 refused: command CREATE_QP (match {matched})")), "{}", done.err);
    assert_eq!(value(&done.out, "pingpong="), "Couldn't create QP");
    // The driver's own words for it: what firmware refuses a program of its own is no error of the driver's, and it says no more.
    assert!(value(&done.out, "dmesg=").contains("create_qp"), "{}", done.out);
}

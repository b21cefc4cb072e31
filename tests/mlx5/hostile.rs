// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Any bytes as commands, register accesses and work requests: the device answers afterwards. The fuzz targets run the same for longer.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use rnic_testdrive::hostile::Victim;

/// Runs `count` random programs of up to 512 bytes.
fn run(count: u32, mut run: impl FnMut(&mut Victim, &[u8]) -> rnic_testdrive::Result<()>) {
    let mut victim = Victim::new().unwrap();
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let programs = proptest::collection::vec(any::<u8>(), 0..512);
    for index in 0..count {
        let program = programs.new_tree(&mut runner).unwrap().current();
        run(&mut victim, &program).unwrap_or_else(|error| panic!("program {index}: {error}\n{program:02x?}"));
    }
}

#[test]
fn random_commands_are_survived() {
    run(300, Victim::commands);
}

#[test]
fn random_work_requests_are_survived() {
    run(300, Victim::wqes);
}

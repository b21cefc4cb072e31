// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `--keep`: a shell in the guest that the last row left behind.

use rnic_agent::proto::Op;

use super::guest::Guest;
use vmm::VmmError;

/// Starts a shell on the guest's console and joins it to this terminal until it ends or ctrl-A x is typed.
pub fn attach(guest: Guest) -> Result<(), VmmError> {
    let shell = "exec setsid --ctty bash -i </dev/ttyS0 >/dev/ttyS0 2>&1";
    let argv = vec!["sh".into(), "-c".into(), shell.into()];
    eprintln!("rnic: the guest is left running; ctrl-A x ends it");
    let started = guest.spawn(Op::Exec { argv, stdin: String::new(), limit_s: u32::MAX });
    if let Err(why) = started {
        eprintln!("rnic: no shell could be started: {why}");
    }
    vmm::run::join(guest.into_vm())
}

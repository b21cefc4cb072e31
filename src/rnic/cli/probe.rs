// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `rnic kvm-probe`.

use std::process::ExitCode;

use vmm::probe::probe;

/// Exit status 0 when stock kernels can be expected to run under this host's KVM.
pub fn main() -> Result<ExitCode, super::Error> {
    let Some(found) = probe()? else {
        println!("not architectural: the micro-guest did not finish in time");
        return Ok(ExitCode::FAILURE);
    };
    let good = found.architectural();
    println!(
        "{}: ring 0 runs at {:.1} million instructions a second, CS is {:#x} in user code and {:#x} after SYSCALL",
        if good { "architectural" } else { "not architectural" },
        found.ring0_rate / 1e6,
        found.selectors.0,
        found.selectors.1
    );
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

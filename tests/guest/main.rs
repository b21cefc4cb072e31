// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guests under `rnic run`, as a person types it. All of this needs an architectural KVM, so cargo does not run it by
//! itself (`test = false` in Cargo.toml); `make test` builds it and runs it through images/with-kvm:
//!
//!     tests/steps test guest
//!
//! RNIC_BIN names the program under test, RNIC_TEST_SEED repeats a run's random moments.

#[path = "../common/mod.rs"]
mod common;

mod boot;
mod config;
mod control;
mod endings;
mod faults;
mod kill;
mod lab;
mod machine;
mod nic;
mod pmem;
mod pty;
mod repro;
mod storage;
mod subnet;
mod terminal;

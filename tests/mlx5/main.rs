// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The NIC driven in process: no VM, every wait bounded. What each test promises is in SPECIFICATION.md.

mod answers;
mod atomics;
mod audit;
mod bring_up;
mod bug_classes;
mod caps;
mod commands;
mod completion;
mod datagrams;
mod errors;
mod fields;
mod holds;
mod hostile;
mod keys;
mod ledger;
mod lengths;
mod lives;
mod loopback;
mod objects;
mod odp;
mod plants;
mod port;
mod power;
mod public_reports;
mod resets;
mod retries;
mod rule_three;
mod scene;
mod sequence;
mod shared_receive;
mod standstill;
mod states;
mod taking;
mod two_nics;

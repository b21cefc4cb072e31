// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The NIC driven in process (design.md, "Tests" 2): no VM, every wait bounded.

mod bring_up;
mod bug_classes;
mod completion;
mod datagrams;
mod errors;
mod holds;
mod hostile;
mod keys;
mod loopback;
mod odp;
mod retries;
mod rule_three;
mod scene;
mod shared_receive;

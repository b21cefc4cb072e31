// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The lab: scenarios on unmodified kernels, judged by evidence.
//!
//! * [`plan`]: which rows there are; [`scenarios`]: their steps, told at a [`mod@bench`]. [`story`]: scenarios as data, judged by [`model`].
//! * [`machine`]: a machine with our devices, for guests of the lab and for `rnic run`. [`guest`]: one with an agent; each kernel gets a guest under test and a second one, the witness, which mounts
//!   what a power cut left behind.
//! * [`fact`]: what was seen, typed, in the ledger's order; everything that is reported is made of it.
//! * [`oracle`]: judgements on the ledger; [`complaints`]: what the guest kernel had to say.
//! * [`check`]: what stands between evidence and verdict, by name; [`controls`]: what is broken on purpose so that they are seen to notice.
//! * [`verdict`], [`finding`], [`expect`], [`report`]: words, expectations, and reports as tables, JSON, KTAP, JUnit and a page with timelines. Oracles never see an expectation.
//! * [`runner`]: puts it together; [`journal`]: what has ended, for a run that goes on after its host's death.
//! * [`campaign`]: rows by the thousand, over seeds, in shards that are merged, under plans of injections, and again.

pub mod bench;
pub mod campaign;
pub mod check;
pub mod complaints;
pub mod console;
pub mod controls;
pub mod expect;
pub mod fact;
pub mod finding;
pub mod guest;
pub mod journal;
pub mod machine;
pub mod model;
pub mod oracle;
pub mod plan;
pub mod report;
pub mod runner;
pub mod scenarios;
pub mod story;
pub mod thread;
pub mod verdict;

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Plans of injections: a TOML file that says which device misbehaves how, and when (docs/faults.md).
//!
//! * [`Plan`] reads a file; a mistake in it is one sentence with its line and key. [`Meant`]: the rows of the lab that it is for.
//! * `words`: the vocabulary, one row an action, which the documentation is compared with.
//! * [`Nth`]: on which match, or on one that the seed draws.
//! * `keys`: a table of the file, whose keys are taken one by one.
//! * [`Outcome`]: what became of an injection.
//!
//! An injection is a rule of one device ([`probe::Rules`]) and acts only there. A plan and a seed give the same rules in every run: what
//! is drawn by chance is drawn by match number, never by time.

mod keys;
mod nth;
mod outcome;
mod plan;
mod words;

pub use keys::Mistake;
pub use nth::Nth;
pub use outcome::{Outcome, Summary, join};
pub use plan::{Device, Injection, Kind, Meant, Plan, PlanError};
pub use words::{Word, words};

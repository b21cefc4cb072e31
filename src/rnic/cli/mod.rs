// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One file a command; an error is one sentence that `main` prints.

pub mod control;
mod faults;
mod host;
pub mod lab;
pub mod log;
pub mod manual;
mod parts;
mod places;
pub mod prepare;
pub mod probe;
pub mod reports;
pub mod run;
mod values;

/// Any room's error, shown as its sentence.
pub type Error = Box<dyn std::error::Error>;

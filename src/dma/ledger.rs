// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Placeholder until the ledger's room is built.

/// The ledger.
#[derive(Debug, Default)]
pub struct Ledger;

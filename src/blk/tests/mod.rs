// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device as a driver sees it.

mod basic;
mod drawn;
mod hostile;
mod injected;
mod levers;
mod negotiated;
mod power_cut;
mod public_reports;
mod transport_public_reports;

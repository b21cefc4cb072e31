// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The NIC's wire layouts: what drivers and the device exchange, as data. No logic lives here.
//!
//! One module an object family, in it one module a structure: `spec::cq::cqe::WQE_COUNTER.get(&cqe)`. Every field is
//! declared once; names and positions are the device contract's (its section numbers are given). Commands are named
//! after their opcode, `create_in` being CREATE's input and `create_out` its output; the header that they share is in
//! [`cmd`]. Fields' values are `u32`, as [`bits::Field::get`] gives them, unless a module says otherwise.

#[macro_use]
pub mod layout;

/// Reading and writing one field.
pub mod bits;
/// Capabilities: `cmd_hca_cap`, atomic, ODP (contract 5).
pub mod caps;
/// Command queue, mailboxes, headers, status codes, opcodes (contract 3).
pub mod cmd;
/// Completion queues and CQEs (contract 6.2, 7.5).
pub mod cq;
/// User contexts and umems.
pub mod devx;
/// Event queues and EQEs (contract 6.1, 7.7, 9.2).
pub mod eq;
/// Initialization segment and health buffer (contract 2).
pub mod init;
/// Management datagrams and the records of subnet administration (contract 11).
pub mod mad;
/// Memory keys, translation entries, UMR (contract 6.6, 8).
pub mod mkey;
/// Page faults and their resumption (contract 9).
pub mod odp;
/// Queue pairs and address paths (contract 6.3, 6.4).
pub mod qp;
/// Registers behind ACCESS_REG (contract 4.3).
pub mod reg;
/// Commands of small objects and of the whole device (contract 4.1, 6.7).
pub mod small;
/// Shared receive queues: RMP and XRC SRQ (contract 6.5).
pub mod srq;
/// UAR pages, doorbells, doorbell records, BAR layout (contract 1.2, 7.1).
pub mod uar;
/// The port: HCA vport context, GIDs, P_Keys (contract 4.4).
pub mod vport;
/// Send and receive work requests (contract 7.3, 7.4).
pub mod wqe;

pub use bits::{Field, Field64};

#[cfg(test)]
mod tests;

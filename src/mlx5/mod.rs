// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The NIC: a ConnectX-class (mlx5) RDMA device for unmodified drivers. Nothing here knows of KVM.
//!
//! * [`spec`]: wire layouts, opcodes, bit fields. Data only.

pub mod spec;

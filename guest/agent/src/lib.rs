// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The agent channel, one definition for both ends, and what host oracles share with the guest.
//!
//! * [`proto`]: requests, replies and events. [`proto::Op`] is the list of all that the agent can do.
//! * [`frame`]: one message a line, `<crc32 hex 8> <json>\n`; a reader that survives garbage.
//! * [`client`]: the host's end: send a request, wait for its reply, receive events.
//! * [`pattern`]: page contents that say who wrote them ([`pattern::fill`], [`pattern::identify`]).
//! * [`modules`]: kernel modules by name.
//! * [`acked`]: the block format of the durability writer, checkable from the raw disk image.
//!
//! The channel is a 16550 (ttyS1): each byte costs an exit, so names on the wire are short. Requests run each on a
//! thread of its own in the guest; replies may come in any order.

pub mod acked;
pub mod client;
pub mod frame;
pub mod modules;
pub mod pattern;
pub mod proto;

pub use client::{CallError, Client};
pub use pattern::{Content, Pattern, Run};
pub use proto::{Event, Failure, Hello, Message, Op, Reply, Request, Value};

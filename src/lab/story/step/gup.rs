// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Steps of other users of get_user_pages than a plain O_DIRECT read.

use serde::Deserialize;

use super::{Outcome, returns};

/// The call by which an O_DIRECT read is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// pread(2).
    #[default]
    Pread,
    /// IORING_OP_READ.
    IoUring,
    /// IORING_REGISTER_BUFFERS of the page, then IORING_OP_READ_FIXED: a pin that lasts as long as the registration.
    IoUringFixed,
}

/// See [`Step::Fix`](super::Step::Fix) and [`Step::Umem`](super::Step::Umem).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fix {
    /// Name of the file.
    pub file: String,
    /// The registration's name.
    pub name: String,
    /// What may come of it.
    #[serde(default = "returns")]
    pub allow: Vec<Outcome>,
    /// The process that does it; by default the agent's own.
    #[serde(default)]
    pub process: Option<String>,
}

/// See [`Step::Vmsplice`](super::Step::Vmsplice).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vmsplice {
    /// Name of the page.
    pub page: String,
    /// The pipe's name.
    pub name: String,
    /// The process that does it; by default the agent's own.
    #[serde(default)]
    pub process: Option<String>,
}

/// See [`Step::VmWrite`](super::Step::VmWrite).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmWrite {
    /// Name of the page.
    pub page: String,
    /// The writer's letter.
    pub tag: char,
    /// The process into whose mapping it is written.
    pub into: String,
    /// It runs beside the steps that follow, under this name.
    #[serde(default)]
    pub background: Option<String>,
    /// What may come of it.
    #[serde(default = "returns")]
    pub allow: Vec<Outcome>,
    /// The process that writes; by default the agent's own.
    #[serde(default)]
    pub process: Option<String>,
}

/// See [`Step::XdpReceive`](super::Step::XdpReceive).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct XdpReceive {
    /// Name of the page. Its first 3584 bytes are written: a packet has no more beside what the kernel leaves free.
    pub page: String,
    /// The writer's letter.
    pub tag: char,
    /// The socket, of an earlier `umem`.
    pub name: String,
}

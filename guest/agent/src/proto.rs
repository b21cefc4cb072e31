// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Messages of the agent channel.
//!
//! Host to guest: [`Request`]. Guest to host: [`Message`], that is [`Hello`] once at start, a [`Reply`] for each request, and
//! [`Event`]s that nobody asked for. Offsets and lengths are bytes, handles are numbers that the agent gives out and that
//! [`Op::Reset`] drops all at once.

use serde::{Deserialize, Serialize};

mod args;
mod mm;
mod op;
mod value;
mod verbs;

pub use args::*;
pub use mm::*;
pub use op::*;
pub use value::*;
pub use verbs::*;

/// Version of this protocol; both ends must agree.
pub const VERSION: u32 = 3;

/// A request from the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the host, repeated in the reply.
    pub id: u32,
    /// Run as a job: the reply is `Value::Handle(job)` at once, the result comes from [`Op::Wait`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bg: bool,
    /// What to do.
    pub op: Op,
}

/// Anything the guest sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// The agent has started.
    #[serde(rename = "h")]
    Hello(Hello),
    /// Answer to a request.
    #[serde(rename = "r")]
    Reply(Reply),
    /// News.
    #[serde(rename = "e")]
    Event(Event),
}

/// The agent has started and takes requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// `uname -r`.
    pub release: String,
    /// CPUs online.
    pub cpus: u32,
    /// [`VERSION`] of the agent.
    pub version: u32,
    /// CLOCK_BOOTTIME when PID 1 entered user space, milliseconds.
    pub boot_ms: u64,
    /// CLOCK_BOOTTIME when this message was made (modules loaded, root mounted), milliseconds.
    pub ready_ms: u64,
}

/// Answer to the request `id`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The request's.
    pub id: u32,
    /// What came out.
    #[serde(rename = "v")]
    pub result: Result<Value, Failure>,
}

/// News from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// An [`Op::AckedWriter`]'s groups 1..=`n` were flushed, and the flush was acknowledged.
    #[serde(rename = "a")]
    Acked {
        /// Number of acknowledged groups.
        n: u64,
    },
    /// The command of `rnic.exec=` or the shell has ended; the guest powers off.
    #[serde(rename = "x")]
    Exit {
        /// Exit status; 128 + signal number when a signal ended it.
        status: i32,
    },
}

/// A refused or failed request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{what} (errno {errno})")]
pub struct Failure {
    /// Linux errno; 0 when none fits.
    #[serde(rename = "e")]
    pub errno: i32,
    /// One sentence.
    #[serde(rename = "w")]
    pub what: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Pattern, frame};

    #[test]
    fn every_shape_survives_its_frame() {
        let ops = [
            Op::Ping,
            Op::Exec { argv: vec!["true".into()], stdin: String::new(), limit_s: 5 },
            Op::Open { path: "/x".into(), flags: OpenFlags { direct: true, ..Default::default() } },
            Op::Store { m: 1, off: 4096, len: 4096, pattern: Pattern::new(u64::MAX, 'C') },
            Op::Madvise { m: 1, off: 0, len: 4096, advice: Advice::Pageout },
            Op::DmesgSince { mark: u64::MAX, level: 4 },
        ];
        for (id, op) in ops.into_iter().enumerate() {
            let request = Request { id: id as u32, bg: id % 2 == 0, op };
            let line = frame::encode(&request).unwrap();
            assert_eq!(frame::decode(&line[..line.len() - 1]), frame::Line::Message(request));
        }
        let reply = Message::Reply(Reply { id: 1, result: Err(Failure { errno: 5, what: "fsync".into() }) });
        let line = frame::encode(&reply).unwrap();
        assert_eq!(frame::decode(&line[..line.len() - 1]), frame::Line::Message(reply));
    }

    #[test]
    fn lines_stay_short() {
        let store = Op::Store { m: 1, off: 4096, len: 4096, pattern: Pattern::new(u64::MAX, 'C') };
        let len = frame::encode(&Request { id: 100, bg: true, op: store }).unwrap().len();
        assert!(len < 120, "{len} bytes, each a VM exit");
    }
}

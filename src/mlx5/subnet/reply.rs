// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Answers: a record, or a table of them in segments of 200 bytes, of which the first goes at once and the others as they are acknowledged
//! (RMPP: IBTA 13.6).

use std::collections::VecDeque;

use super::Mad;
use mlx5_spec::mad::{MAD_SIZE, mad, method, rmpp_flags, rmpp_type};

/// Bytes of records in a segment.
const ROOM: usize = MAD_SIZE - mad::DATA;
/// What RMPP counts as payload in each segment beside them: administration's header.
const HEADER: usize = mad::DATA - 0x24;
/// Tables that wait for an acknowledgement: a port that never answers has its oldest forgotten.
const MOST: usize = 64;

/// The answer to `request` with `record`, which is cut where a datagram ends: no record is longer.
pub(super) fn answer(request: &Mad, status: u32, record: &[u8]) -> Mad {
    let mut reply = head(request);
    mad::STATUS.set(&mut reply, status);
    reply[mad::DATA..].iter_mut().zip(record).for_each(|(to, from)| *to = *from);
    reply
}

/// What an answer begins with.
pub(super) fn head(request: &Mad) -> Mad {
    let mut reply = [0; MAD_SIZE];
    reply[..mad::DATA].copy_from_slice(&request[..mad::DATA]);
    // A Set is answered by what a Get would be.
    let answered = match mad::METHOD.get(request) {
        method::SET => method::GET,
        other => other,
    };
    mad::METHOD.set(&mut reply, answered | method::RESPONSE);
    reply
}

/// The segments of a table of records of `size` bytes each.
pub(super) fn table(request: &Mad, records: &[Vec<u8>], size: usize) -> Vec<Mad> {
    // From record to record in units of 8 bytes.
    let step = size.next_multiple_of(8);
    let mut bytes = Vec::with_capacity(step * records.len());
    for record in records {
        bytes.extend(record);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    let count = bytes.len().div_ceil(ROOM).max(1);
    let last = bytes.len() - (count - 1) * ROOM;
    let segment = |number: usize| {
        let mut reply = head(request);
        mad::ATTRIBUTE_OFFSET.set(&mut reply, (step / 8) as u32);
        mad::RMPP_VERSION.set(&mut reply, 1);
        mad::RMPP_TYPE.set(&mut reply, rmpp_type::DATA);
        let (first, end) = (number == 1, number == count);
        let flags =
            rmpp_flags::ACTIVE | if first { rmpp_flags::FIRST } else { 0 } | if end { rmpp_flags::LAST } else { 0 };
        mad::RMPP_FLAGS.set(&mut reply, flags);
        mad::SEGMENT_NUMBER.set(&mut reply, number as u32);
        // The first tells of the whole, the last of itself.
        let payload = match (first, end) {
            (true, _) => bytes.len() + count * HEADER,
            (_, true) => last + HEADER,
            _ => 0,
        };
        mad::PAYLOAD_LENGTH_NEW_WINDOW.set(&mut reply, payload as u32);
        let part = bytes.get((number - 1) * ROOM..).unwrap_or_default();
        reply[mad::DATA..].iter_mut().zip(part).for_each(|(to, from)| *to = *from);
        reply
    };
    (1..=count).map(segment).collect()
}

/// Tables under way.
#[derive(Debug, Default)]
pub(super) struct Transfers(VecDeque<Transfer>);

#[derive(Debug)]
struct Transfer {
    lid: u16,
    transaction: u64,
    segments: Vec<Mad>,
    /// Segments that have gone.
    sent: usize,
}

impl Transfers {
    /// A new table: what goes at once.
    pub(super) fn begin(&mut self, lid: u16, request: &Mad, segments: Vec<Mad>) -> Vec<Mad> {
        self.forget(lid, request);
        let first = segments.first().copied();
        if segments.len() > 1 {
            if self.0.len() == MOST {
                self.0.pop_front();
            }
            let transaction = mad::TRANSACTION_ID.get(request);
            self.0.push_back(Transfer { lid, transaction, segments, sent: 1 });
        }
        first.into_iter().collect()
    }

    /// An acknowledgement has come: what goes now.
    pub(super) fn acknowledged(&mut self, lid: u16, ack: &Mad) -> Vec<Mad> {
        let Some(at) = self.find(lid, ack) else { return Vec::new() };
        let transfer = &mut self.0[at];
        if mad::SEGMENT_NUMBER.get(ack) as usize >= transfer.segments.len() {
            self.0.remove(at);
            return Vec::new();
        }
        let window = (mad::PAYLOAD_LENGTH_NEW_WINDOW.get(ack) as usize).min(transfer.segments.len());
        let due = transfer.segments.get(transfer.sent..window.max(transfer.sent)).unwrap_or_default().to_vec();
        transfer.sent += due.len();
        due
    }

    /// The other side gives it up.
    pub(super) fn ended(&mut self, lid: u16, mad: &Mad) -> Vec<Mad> {
        self.forget(lid, mad);
        Vec::new()
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    fn find(&self, lid: u16, about: &Mad) -> Option<usize> {
        let transaction = mad::TRANSACTION_ID.get(about);
        self.0.iter().position(|transfer| (transfer.lid, transfer.transaction) == (lid, transaction))
    }

    fn forget(&mut self, lid: u16, about: &Mad) {
        if let Some(at) = self.find(lid, about) {
            self.0.remove(at);
        }
    }
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Q counters: what happens to the queue pairs that a driver has put together under a number (contract 6.7). Linux shows them below
//! /sys/class/infiniband/*/ports/1/hw_counters; the meanings are those of NVIDIA's list of counters.

use super::bus::Counter;
use super::users::{Used, Users};
use mlx5_spec::bits::Field;
use mlx5_spec::cq::syndrome;
use mlx5_spec::small::query_q_counter_out as out;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// WRITEs that have come.
    WriteRequests,
    /// READs that have come.
    ReadRequests,
    /// Atomics that have come.
    AtomicRequests,
    /// Messages that found no receive WQE.
    OutOfBuffer,
    /// Requests ahead of what was expected.
    OutOfSequence,
    /// Requests that had come before.
    DuplicateRequest,
    /// RNR NAKs that came back.
    RnrNak,
    /// NAKs "PSN sequence error" that came back.
    SequenceNak,
    /// Acknowledgements that did not come in time.
    AckTimeout,
    /// RNR retries that were used up.
    RnrRetriesExceeded,
    /// Transport retries that were used up.
    RetriesExceeded,
    /// A receive WQE was too short.
    ResponderLength,
    /// A READ's or atomic's answer did not fit.
    RequesterLength,
    /// A receive WQE was not to be executed.
    ResponderQp,
    /// A send WQE was not to be executed.
    RequesterQp,
    /// A receive WQE's list was not to be written.
    ResponderProtection,
    /// A send WQE's list was not to be used.
    RequesterProtection,
    /// Receive completions in error, flushes among them.
    ResponderError,
    /// Send completions in error, flushes among them.
    RequesterError,
    /// A window was not to be bound, or a key not to be changed.
    Binding,
    /// An answer made no sense.
    BadResponse,
    /// NAKs "invalid request" that came back.
    InvalidRequestNak,
    /// Requests that were answered so.
    InvalidRequest,
    /// NAKs "remote access error" that came back.
    AccessNak,
    /// Requests that were answered so.
    Access,
    /// NAKs "remote operational error" that came back.
    OperationNak,
    /// A completion queue overran.
    CqOverflow,
    /// Receive WQEs that were flushed.
    ResponderFlush,
    /// Send WQEs that were flushed.
    RequesterFlush,
}

/// Where QUERY_Q_COUNTER tells of each. No NAK is implied here: an answer is never lost.
const FIELDS: [(Count, Field); 29] = [
    (Count::WriteRequests, out::RX_WRITE_REQUESTS),
    (Count::ReadRequests, out::RX_READ_REQUESTS),
    (Count::AtomicRequests, out::RX_ATOMIC_REQUESTS),
    (Count::OutOfBuffer, out::OUT_OF_BUFFER),
    (Count::OutOfSequence, out::OUT_OF_SEQUENCE),
    (Count::DuplicateRequest, out::DUPLICATE_REQUEST),
    (Count::RnrNak, out::RNR_NAK_RETRY_ERR),
    (Count::SequenceNak, out::PACKET_SEQ_ERR),
    (Count::AckTimeout, out::LOCAL_ACK_TIMEOUT_ERR),
    (Count::RnrRetriesExceeded, out::REQ_RNR_RETRIES_EXCEEDED),
    (Count::RetriesExceeded, out::REQ_TRANSPORT_RETRIES_EXCEEDED),
    (Count::ResponderLength, out::RESP_LOCAL_LENGTH_ERROR),
    (Count::RequesterLength, out::REQ_LOCAL_LENGTH_ERROR),
    (Count::ResponderQp, out::RESP_LOCAL_QP_ERROR),
    (Count::RequesterQp, out::LOCAL_OPERATION_ERROR),
    (Count::ResponderProtection, out::RESP_LOCAL_PROTECTION),
    (Count::RequesterProtection, out::REQ_LOCAL_PROTECTION),
    (Count::ResponderError, out::RESP_CQE_ERROR),
    (Count::RequesterError, out::REQ_CQE_ERROR),
    (Count::Binding, out::REQ_MW_BINDING),
    (Count::BadResponse, out::REQ_BAD_RESPONSE),
    (Count::InvalidRequestNak, out::REQ_REMOTE_INVALID_REQUEST),
    (Count::InvalidRequest, out::RESP_REMOTE_INVALID_REQUEST),
    (Count::AccessNak, out::REQ_REMOTE_ACCESS_ERRORS),
    (Count::Access, out::RESP_REMOTE_ACCESS_ERRORS),
    (Count::OperationNak, out::REQ_REMOTE_OPERATION_ERRORS),
    (Count::CqOverflow, out::CQ_OVERFLOW),
    (Count::ResponderFlush, out::RESP_CQE_FLUSH_ERROR),
    (Count::RequesterFlush, out::REQ_CQE_FLUSH_ERROR),
];

/// How a send WQE's syndrome counts, beside its being an error.
const SEND: [(u32, Count); 11] = [
    (syndrome::LOCAL_LENGTH_ERR, Count::RequesterLength),
    (syndrome::LOCAL_QP_OP_ERR, Count::RequesterQp),
    (syndrome::LOCAL_PROT_ERR, Count::RequesterProtection),
    (syndrome::WR_FLUSH_ERR, Count::RequesterFlush),
    (syndrome::MW_BIND_ERR, Count::Binding),
    (syndrome::BAD_RESP_ERR, Count::BadResponse),
    (syndrome::REMOTE_INVAL_REQ_ERR, Count::InvalidRequestNak),
    (syndrome::REMOTE_ACCESS_ERR, Count::AccessNak),
    (syndrome::REMOTE_OP_ERR, Count::OperationNak),
    (syndrome::TRANSPORT_RETRY_EXC_ERR, Count::RetriesExceeded),
    (syndrome::RNR_RETRY_EXC_ERR, Count::RnrRetriesExceeded),
];

/// The same of a receive WQE.
const RECEIVE: [(u32, Count); 4] = [
    (syndrome::LOCAL_LENGTH_ERR, Count::ResponderLength),
    (syndrome::LOCAL_QP_OP_ERR, Count::ResponderQp),
    (syndrome::LOCAL_PROT_ERR, Count::ResponderProtection),
    (syndrome::WR_FLUSH_ERR, Count::ResponderFlush),
];

/// A set of them.
#[derive(Debug, Default)]
pub struct QCounters {
    users: Users,
    counts: [Counter; FIELDS.len()],
}

impl QCounters {
    /// Counts one.
    pub fn add(&self, what: Count) {
        self.counts[what as usize].add(1);
    }

    /// A send WQE (`sent`) or a receive WQE is completed in error.
    pub fn add_error(&self, sent: bool, syndrome: u32) {
        let (whole, table) = match sent {
            true => (Count::RequesterError, SEND.as_slice()),
            false => (Count::ResponderError, RECEIVE.as_slice()),
        };
        self.add(whole);
        if let Some((_, what)) = table.iter().find(|(known, _)| *known == syndrome) {
            self.add(*what);
        }
    }

    /// Each with its field. `clear`: they begin anew.
    pub fn read(&self, clear: bool) -> impl Iterator<Item = (Field, u64)> {
        FIELDS.iter().map(move |(what, field)| {
            let counter = &self.counts[*what as usize];
            (*field, if clear { counter.take() } else { counter.get() })
        })
    }
}

impl Used for QCounters {
    fn users(&self) -> &Users {
        &self.users
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_count_has_its_own_field() {
        for (at, (what, field)) in FIELDS.iter().enumerate() {
            let set = QCounters::default();
            set.add(*what);
            let told: Vec<_> = set.read(true).filter(|(_, count)| *count != 0).collect();
            assert_eq!(told.len(), 1);
            assert!(told.iter().all(|(other, _)| told_by(other) == told_by(field)), "{what:?} {at}");
            assert!(set.read(false).all(|(_, count)| count == 0), "they have begun anew");
        }
    }

    fn told_by(field: &Field) -> [u8; out::SIZE] {
        let mut bytes = [0; out::SIZE];
        field.set(&mut bytes, u32::MAX);
        bytes
    }
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Packet sequence numbers of connected services (IBTA 9.7.1, 9.7.5.1, 9.8.2.2): whether a message that arrives is the one that its
//! responder expects. Messages move in parts of any size here, so what is compared is the PSN of the packet that a part begins in, and
//! within a message its byte.

use std::sync::atomic::{AtomicU64, Ordering};

/// PSNs have 24 bits.
pub const MASK: u32 = 0xff_ffff;
/// Up to this far behind what is expected a PSN is a duplicate; else it is ahead (IBTA 9.7.1.1).
const HALF: u32 = 1 << 23;

/// Packets of a message of `bytes` bytes at path MTU `mtu`; one that carries nothing is a packet too.
pub fn packets(bytes: u64, mtu: u32) -> u32 {
    bytes.div_ceil(u64::from(mtu.max(1))).max(1) as u32
}

/// Packets that `bytes` bytes of a message fill. Most parts are whole messages, which need no division.
fn whole_packets(bytes: u64, mtu: u32) -> u32 {
    if bytes == 0 { 0 } else { (bytes / u64::from(mtu.max(1))) as u32 }
}

/// A part of a message, as its requester numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// PSN of the message's first packet.
    pub first: u32,
    /// Bytes of the message before the part.
    pub done: u64,
    /// Bytes of the message.
    pub total: u64,
    /// Path MTU in bytes.
    pub mtu: u32,
}

impl Part {
    fn packets_before(&self) -> u32 {
        whole_packets(self.done, self.mtu)
    }

    /// Packets of the whole message.
    pub fn packets(&self) -> u32 {
        packets(self.total, self.mtu)
    }
}

/// What a responder makes of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is the next, or a READ that is answered once more: execute it.
    Execute,
    /// All of the message has been here before, and it is the last that was: acknowledge it and do nothing (IBTA 9.7.5.1.2).
    Acknowledge,
    /// Something before it has not arrived: NAK "PSN sequence error".
    Ahead,
    /// A duplicate that nobody can answer: drop it.
    Drop,
    /// Its number is right and its place in the message is not: NAK "invalid request" (IBTA 9.7.4.1.1).
    OutOfOrder,
}

/// What a responder expects next. A life of a queue pair begins with the default.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// Packets of whole messages that have arrived.
    packets: u32,
    /// Bytes that have arrived of the message that is under way: at most 2^30 (cap log_max_msg).
    middle: u32,
    /// The last READ that was taken: its first response's PSN and how many.
    read: (u32, u32),
}

impl Expected {
    /// Packets that have arrived, of which those of a message that is under way are whole.
    pub fn received(&self, mtu: u32) -> u32 {
        self.packets.wrapping_add(whole_packets(self.middle.into(), mtu))
    }

    /// PSN of the next packet, given QPC.next_rcv_psn and the path MTU.
    fn psn(&self, initial: u32, mtu: u32) -> u32 {
        initial.wrapping_add(self.received(mtu)) & MASK
    }

    /// A SEND, RDMA WRITE or atomic of a reliable connection. `initial`: QPC.next_rcv_psn.
    pub fn request(&self, initial: u32, part: &Part) -> Verdict {
        let here = self.psn(initial, part.mtu);
        let ahead = part.first.wrapping_add(part.packets_before()).wrapping_sub(here) & MASK;
        let last_before = part.first.wrapping_add(part.packets()) & MASK == here && self.middle == 0;
        match ahead {
            0 if part.done == u64::from(self.middle) => Verdict::Execute,
            0 => Verdict::OutOfOrder,
            1..HALF => Verdict::Ahead,
            _ if part.done == 0 && last_before => Verdict::Acknowledge,
            _ => Verdict::Drop,
        }
    }

    /// An RDMA READ, whose responses have the PSNs from its own on. What is left of one that has begun is asked for anew.
    pub fn read(&mut self, initial: u32, part: &Part) -> Verdict {
        let here = self.psn(initial, part.mtu);
        let at = part.first.wrapping_add(part.packets_before()) & MASK;
        match at.wrapping_sub(here) & MASK {
            0 if self.middle > 0 => Verdict::OutOfOrder,
            0 => {
                let left = part.packets().saturating_sub(part.packets_before()).max(1);
                self.packets = self.packets.wrapping_add(left);
                self.read = (at, left);
                Verdict::Execute
            }
            1..HALF => Verdict::Ahead,
            _ if at.wrapping_sub(self.read.0) & MASK < self.read.1 => Verdict::Execute,
            _ => Verdict::Drop,
        }
    }

    /// A message of an unreliable connection: each first packet begins anew, whatever came before; others must follow what they belong to
    /// (IBTA 9.8.2.2.1).
    pub fn unreliable(&mut self, initial: u32, part: &Part) -> Verdict {
        if part.done == 0 {
            *self = Self { packets: part.first.wrapping_sub(initial), ..Self::default() };
        }
        match self.request(initial, part) {
            Verdict::Execute => Verdict::Execute,
            _ => Verdict::Drop,
        }
    }

    /// So many bytes more of a message have arrived.
    #[must_use]
    pub fn moved(self, bytes: u64) -> Self {
        Self { middle: self.middle.saturating_add(bytes as u32), ..self }
    }

    /// A message of so many packets has arrived whole.
    #[must_use]
    pub fn completed(self, packets: u32) -> Self {
        Self { packets: self.packets.wrapping_add(packets), middle: 0, ..self }
    }
}

/// Where a responder keeps what it expects. One writes: the engine of the one requester that the queue pair is connected to, which asks and
/// tells in one step. Others read it, for QUERY_QP. Hence no lock, and no order with anything else.
#[derive(Debug, Default)]
pub struct Sequence {
    /// `packets` above `middle`: a reader sees both of one time.
    here: AtomicU64,
    /// First PSN of the last READ above its number of responses.
    read: AtomicU64,
}

impl Sequence {
    /// What is expected now.
    pub fn get(&self) -> Expected {
        let (packets, middle) = halves(self.here.load(Ordering::Relaxed));
        Expected { packets, middle, read: halves(self.read.load(Ordering::Relaxed)) }
    }

    /// What is expected from now on, if it differs from what `get` returned.
    pub fn set(&self, was: &Expected, now: &Expected) {
        let join = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
        if (now.packets, now.middle) != (was.packets, was.middle) {
            self.here.store(join(now.packets, now.middle), Ordering::Relaxed);
        }
        if now.read != was.read {
            self.read.store(join(now.read.0, now.read.1), Ordering::Relaxed);
        }
    }
}

/// The upper and the lower half.
fn halves(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MTU: u32 = 1024;

    fn part(first: u32, done: u64, total: u64) -> Part {
        Part { first, done, total, mtu: MTU }
    }

    #[test]
    fn numbers_wrap_and_split_into_next_ahead_and_duplicate() {
        let mut expected = Expected::default();
        let initial = 0xff_fffe;
        assert_eq!(expected.request(initial, &part(initial, 0, 3000)), Verdict::Execute);
        assert_eq!(expected.request(initial, &part(0, 0, 10)), Verdict::Ahead);
        expected = expected.completed(3);
        assert_eq!(expected.psn(initial, MTU), 1);
        assert_eq!(expected.request(initial, &part(1, 0, 10)), Verdict::Execute);
        // The same again, and one that only begins like it.
        assert_eq!(expected.request(initial, &part(initial, 0, 3000)), Verdict::Acknowledge);
        assert_eq!(expected.request(initial, &part(initial, 0, 2000)), Verdict::Drop);
        assert_eq!(expected.request(initial, &part(0x80_0001, 0, 10)), Verdict::Drop);
        assert_eq!(expected.request(initial, &part(0x80_0000, 0, 10)), Verdict::Ahead);
    }

    #[test]
    fn a_middle_follows_its_own_beginning() {
        let mut expected = Expected::default();
        expected = expected.moved(1500);
        assert_eq!(expected.psn(7, MTU), 8);
        assert_eq!(expected.request(7, &part(7, 1500, 4000)), Verdict::Execute);
        assert_eq!(expected.request(7, &part(7, 1400, 4000)), Verdict::OutOfOrder);
        // Another message with the right number, in the middle of this one.
        assert_eq!(expected.request(7, &part(8, 0, 10)), Verdict::OutOfOrder);
        // A middle whose beginning another life took.
        assert_eq!(Expected::default().request(8, &part(7, 1500, 4000)), Verdict::OutOfOrder);
        assert_eq!(Expected::default().request(7, &part(7, 1500, 4000)), Verdict::Ahead);
    }

    #[test]
    fn reads_take_a_number_for_each_response_and_are_answered_again() {
        let mut expected = Expected::default();
        assert_eq!(expected.read(5, &part(5, 0, 3000)), Verdict::Execute);
        assert_eq!(expected.psn(5, MTU), 8);
        assert_eq!(expected.read(5, &part(5, 2048, 3000)), Verdict::Execute);
        assert_eq!(expected.psn(5, MTU), 8);
        assert_eq!(expected.read(5, &part(4, 0, 10)), Verdict::Drop);
        assert_eq!(expected.read(5, &part(9, 0, 10)), Verdict::Ahead);
        // A fresh life takes what is left of one as a request of its own, if the number suits.
        let mut fresh = Expected::default();
        assert_eq!(fresh.read(7, &part(5, 2048, 3000)), Verdict::Execute);
        assert_eq!(fresh.psn(7, MTU), 8);
    }

    #[test]
    fn unreliable_messages_begin_anew_and_go_on_only_where_they_stopped() {
        let mut expected = Expected::default();
        assert_eq!(expected.unreliable(0, &part(77, 0, 3000)), Verdict::Execute);
        expected = expected.moved(2000);
        assert_eq!(expected.unreliable(0, &part(77, 2000, 3000)), Verdict::Execute);
        assert_eq!(Expected::default().unreliable(0, &part(77, 2000, 3000)), Verdict::Drop);
        assert_eq!(expected.unreliable(0, &part(80, 0, 10)), Verdict::Execute);
    }
    #[test]
    fn what_is_kept_is_what_was_told() {
        let (kept, fresh) = (Sequence::default(), Expected::default());
        assert_eq!(kept.get(), fresh);
        let mut read = fresh.completed(u32::MAX).moved(1 << 30);
        kept.set(&fresh, &read);
        assert_eq!(kept.get(), read);
        read = read.completed(2);
        assert_eq!(read.read(0xff_ffff, &part(0, 0, 3000)), Verdict::Execute);
        kept.set(&kept.get(), &read);
        assert_eq!((kept.get(), read.received(MTU)), (read, 4));
    }
}

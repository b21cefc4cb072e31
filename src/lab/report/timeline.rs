// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The timeline of an attempt: what each actor did, in the order of the ledger. The bench brings what the ledger has
//! (`src/lab/bench/timeline.rs`); here it is joined with the facts, and what the verdict rests on is marked.

use serde::{Deserialize, Serialize};

use super::Attempt;
use crate::fact::{Fact, FactId, Facts, What};
use probe::ledger::Seq;

mod facts;

pub use facts::{block, lane_of_step, nic_text};

/// Most moments that a report keeps of an attempt.
pub const MOST: usize = 500;

/// Who acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// Steps of the scenario.
    Cpu,
    /// Of these, fsync(2).
    Fsync,
    /// The NIC: its reads and writes of watched pages, work requests that are done or held.
    Nic,
    /// Page faults of the NIC, until they are answered.
    Fault,
    /// Changes of memory keys: translations that are replaced or taken away.
    Mkey,
    /// Requests of the disks that have to do with the pages under test.
    Disk,
    /// Power cuts, and what they left.
    Cut,
    /// Injections that fired.
    Injection,
    /// What a guest's kernel said.
    Kernel,
    /// Of a newer version of this program.
    #[serde(other)]
    Other,
}

/// Something that happened. Names in JSON are stable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// When, or when it began, in the ledger's order.
    pub seq: Seq,
    /// When it was over, of what took its time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<Seq>,
    /// It had begun and was not over when the attempt ended.
    #[serde(default, skip_serializing_if = "is_false")]
    pub open: bool,
    /// Who acted.
    pub lane: Lane,
    /// What: a few words, and where there is more to say, ": " and the rest.
    pub text: String,
    /// Guest physical address of the page that it was about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<u64>,
    /// The verdict rests on it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ground: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it")]
fn is_false(value: &bool) -> bool {
    !value
}

impl Moment {
    /// A moment without duration.
    pub fn at(seq: Seq, lane: Lane, text: impl Into<String>) -> Self {
        Self { seq, end: None, open: false, lane, text: text.into(), page: None, ground: false }
    }

    /// From `seq` to `end`.
    pub fn span(seq: Seq, end: Seq, lane: Lane, text: impl Into<String>) -> Self {
        Self { end: Some(end).filter(|end| *end > seq), ..Self::at(seq, lane, text) }
    }

    /// The same, about the page with this base.
    pub fn of_page(self, page: Option<u64>) -> Self {
        Self { page, ..self }
    }

    /// Its last number.
    pub fn last(&self) -> Seq {
        self.end.unwrap_or(self.seq)
    }

    /// The few words.
    pub fn label(&self) -> &str {
        self.text.split_once(": ").map_or(&self.text, |(label, _)| label)
    }

    /// Whether both tell the same: a request of a disk by its number, what else a device did by its place.
    fn tells(&self, other: &Moment) -> bool {
        self.lane == other.lane && self.seq == other.seq && (self.lane != Lane::Disk || self.label() == other.label())
    }
}

/// A timeline as a report keeps it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Timeline {
    /// In the ledger's order.
    pub moments: Vec<Moment>,
    /// How many more there were.
    pub left_out: usize,
}

impl Timeline {
    /// What the ledger has and what the facts say, with what the verdict rests on (`grounds`) marked.
    pub fn new(events: Vec<Moment>, facts: &Facts, grounds: &[FactId]) -> Self {
        let mut moments = events;
        for (fact, place) in facts.list().iter().zip(0..) {
            let ground = grounds.iter().any(|id| id.place() == place);
            join(&mut moments, fact, ground);
        }
        moments.sort_by_key(|moment| (moment.seq, moment.end, moment.lane));
        Self { moments, left_out: 0 }.nearest(MOST)
    }

    /// Of an attempt: its own, or what its facts tell where it has none (reports that are older than timelines).
    pub fn of(attempt: &Attempt) -> Self {
        match attempt.timeline.is_empty() {
            true => Self::new(Vec::new(), &attempt.facts, attempt.ground_facts()),
            false => Self { moments: attempt.timeline.clone(), left_out: attempt.timeline_left_out },
        }
    }

    /// From `count` moments before what the verdict rests on to so many after it; all of them where nothing is marked.
    pub fn around(mut self, count: usize) -> Self {
        let ground = |moment: &Moment| moment.ground;
        if let (Some(first), Some(last)) = (self.moments.iter().position(ground), self.moments.iter().rposition(ground))
        {
            let range = first.saturating_sub(count)..(last + 1 + count).min(self.moments.len());
            self.left_out += self.moments.len() - range.len();
            self.moments = self.moments.drain(range).collect();
        }
        self
    }

    /// At most `most` moments: those that the verdict rests on, and what is nearest to them; without such, the newest.
    pub fn nearest(self, most: usize) -> Self {
        if self.moments.len() <= most {
            return self;
        }
        let grounds: Vec<Seq> =
            self.moments.iter().filter(|moment| moment.ground).flat_map(|moment| [moment.seq, moment.last()]).collect();
        let distance = |moment: &Moment| match moment.ground {
            true => 0,
            false => {
                let near = |ground: &Seq| ground.abs_diff(moment.seq).min(ground.abs_diff(moment.last()));
                grounds.iter().map(near).min().unwrap_or(Seq::MAX - moment.seq).max(1)
            }
        };
        let mut places: Vec<_> = self.moments.iter().map(distance).zip(0..).collect();
        places.sort_unstable();
        let mut kept: Vec<usize> = places.into_iter().take(most).map(|(_, place)| place).collect();
        kept.sort_unstable();
        let left_out = self.left_out + self.moments.len() - kept.len();
        Self { moments: kept.into_iter().filter_map(|place| self.moments.get(place).cloned()).collect(), left_out }
    }
}

/// Adds what `fact` tells, unless an event is the same thing: then the event stays, and says what the fact says of a step's end.
fn join(moments: &mut Vec<Moment>, fact: &Fact, ground: bool) {
    let told = facts::moments(fact);
    let ends_step = matches!(fact.what, What::Returned { .. } | What::Completion { .. });
    let is_cut = matches!(fact.what, What::Cut { .. } | What::Twice { .. });
    for one in told {
        let step =
            |known: &&mut Moment| ends_step && matches!(known.lane, Lane::Cpu | Lane::Fsync) && known.last() == one.seq;
        if let Some(known) = moments.iter_mut().find(|known| known.tells(&one) && !is_cut) {
            known.ground |= ground;
        } else if let Some(known) = moments.iter_mut().find(step) {
            known.ground |= ground;
        } else {
            // The lab's own mark of a cut says less than what was found.
            moments
                .retain(|known| !(is_cut && known.lane == Lane::Cut && known.seq == one.seq && facts::is_mark(known)));
            moments.push(Moment { ground, ..one });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fact::Found;

    fn sorted(moments: &[Moment]) -> bool {
        moments.windows(2).all(|pair| pair[0].seq <= pair[1].seq)
    }

    #[test]
    fn events_and_facts_become_one_order_in_which_nothing_is_twice() {
        let mut facts = Facts::default();
        let block = What::Block {
            id: 488,
            op: "write".into(),
            gpa: Some(0x5000),
            lba: 8,
            arrived: 10,
            data: Some(12),
            completed: Some(13),
            status: Some(0),
            changed: Some(false),
            held: vec![(10, Some(11))],
            medium: None,
        };
        let write = facts.add(10, block.clone());
        let fsync = facts.add(30, What::Returned { step: "fsync".into(), errno: None });
        facts.add(30, What::NoBlock { op: "write".into(), gpa: 0x5000, since: 20 });
        let found = Found::Content("B*8".into());
        let cut = facts.add(31, What::Cut { cut: "kind".into(), file: "file".into(), at: 0, found });
        facts.add(0, What::Note { text: "of no moment".into() });
        let mut events = super::block(&block);
        events.push(Moment::span(15, 30, Lane::Fsync, "fsync: returned 0"));
        events.push(Moment::at(31, Lane::Cut, "power cut (Kind) of disk 1"));
        let Timeline { moments, left_out } = Timeline::new(events, &facts, &[write, fsync, cut]);
        let told: Vec<_> = moments.iter().map(|m| (m.seq, m.end, m.label(), m.ground)).collect();
        assert_eq!(
            told,
            [
                (10, Some(11), "write 488 held", true),
                (10, Some(13), "write 488", true),
                (12, None, "write 488's data", true),
                (15, Some(30), "fsync", true),
                (20, Some(30), "no write", false),
                (31, None, "kind cut B*8", true),
            ]
        );
        assert!(sorted(&moments) && left_out == 0);
    }

    #[test]
    fn what_is_left_out_is_what_lies_farthest_from_the_verdict() {
        let moments = (1..=1000)
            .map(|seq| Moment { ground: seq == 400 || seq == 900, ..Moment::at(seq, Lane::Nic, "nic write") })
            .collect();
        let kept = Timeline { moments, left_out: 3 }.nearest(10);
        let seqs: Vec<_> = kept.moments.iter().map(|moment| moment.seq).collect();
        assert_eq!((seqs, kept.left_out), (vec![398, 399, 400, 401, 402, 898, 899, 900, 901, 902], 993));
        let seqs = |timeline: Timeline| timeline.moments.iter().map(|moment| moment.seq).collect::<Vec<_>>();
        let moments = (1..=9).map(|seq| Moment { ground: seq == 5 || seq == 6, ..Moment::at(seq, Lane::Nic, "") });
        let all = Timeline { moments: moments.collect(), left_out: 0 };
        assert_eq!((all.clone().around(1).left_out, seqs(all.clone().around(1))), (5, vec![4, 5, 6, 7]));
        assert_eq!(seqs(all.around(100)).len(), 9);
        let moments = (1..=1000).map(|seq| Moment::at(seq, Lane::Nic, "nic write")).collect();
        let kept = Timeline { moments, left_out: 0 }.nearest(2);
        assert_eq!(kept.moments.iter().map(|moment| moment.seq).collect::<Vec<_>>(), [999, 1000]);
    }

    #[test]
    fn a_lane_of_a_newer_report_is_no_mistake() {
        let read: Moment = serde_json::from_str(r#"{"seq":1,"lane":"gpu","text":"it computes"}"#).unwrap();
        assert_eq!(read, Moment::at(1, Lane::Other, "it computes"));
        assert_eq!(
            serde_json::to_string(&Moment::at(1, Lane::Cpu, "x")).unwrap(),
            r#"{"seq":1,"lane":"cpu","text":"x"}"#
        );
    }
}

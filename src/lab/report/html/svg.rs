// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A timeline as a drawing: a lane an actor, time from left to right in the order of sequence numbers. A place is as wide as the words of what
//! the verdict rests on; other words are written where they have room.

use std::collections::{BTreeMap, BTreeSet};

use super::super::timeline::{Lane, Moment};
use super::escape;
use probe::ledger::Seq;

/// The lanes from above, with their names.
const LANES: [(Lane, &str); 10] = [
    (Lane::Cpu, "CPU steps"),
    (Lane::Fsync, "fsync"),
    (Lane::Nic, "NIC"),
    (Lane::Fault, "page faults"),
    (Lane::Mkey, "keys, zaps"),
    (Lane::Disk, "disk"),
    (Lane::Cut, "power cut"),
    (Lane::Injection, "injections"),
    (Lane::Kernel, "kernel"),
    (Lane::Other, "other"),
];
/// Pixels: where time begins, between places, and of a line.
const LEFT: f64 = 96.0;
const STEP: f64 = 12.0;
const LINE: f64 = 20.0;
const HEAD: f64 = 22.0;
/// Of a letter of 11 pixels, about so wide at most, and of a bold one.
const LETTER: f64 = 6.4;
const BOLD: f64 = 7.4;
/// Letters of a label.
const LETTERS: usize = 36;
/// Lines of a lane; what does not fit shares the last.
const LINES: usize = 12;

/// A moment in few words. What a step came to is worth more words than where a device was.
pub(super) fn label(moment: &Moment) -> String {
    let of_step = matches!(moment.lane, Lane::Cpu | Lane::Fsync);
    let text = if of_step && moment.text.chars().count() <= LETTERS { &moment.text } else { moment.label() };
    match text.chars().count() <= LETTERS {
        true => text.into(),
        false => text.chars().take(LETTERS - 1).chain(['\u{2026}']).collect(),
    }
}

/// A moment in words.
pub(super) fn sentence(moment: &Moment) -> String {
    let until = match (moment.end, moment.open) {
        (Some(end), _) => format!(" to #{end}"),
        (None, true) => " on".into(),
        (None, false) => String::new(),
    };
    format!("#{}{until}: {}", moment.seq, moment.text)
}

/// Where a moment is drawn.
struct Placed<'a> {
    moment: &'a Moment,
    lane: usize,
    line: usize,
}

/// The drawing. `id` is unique in the page.
pub(super) fn svg(moments: &[Moment], id: &str) -> String {
    let lanes: Vec<_> = LANES.iter().filter(|(lane, _)| moments.iter().any(|moment| moment.lane == *lane)).collect();
    let (placed, lines) = place(moments, &lanes.iter().map(|(lane, _)| *lane).collect::<Vec<_>>());
    let (at, right) = columns(&placed);
    let mut tops = Vec::new();
    let mut bottom = HEAD;
    for count in &lines {
        tops.push(bottom);
        bottom += *count as f64 * LINE + 8.0;
    }
    let mut text = format!(
        "<svg class=\"timeline\" role=\"img\" aria-labelledby=\"{id}\" width=\"{right:.0}\" height=\"{bottom:.0}\" viewBox=\"0 0 {right:.0} {bottom:.0}\">\
         <title id=\"{id}\">Page timeline of {} moments; below in words</title>",
        moments.len()
    );
    for ((lane, name), top) in lanes.iter().zip(&tops) {
        let (y, line) = (top + 14.0, top - 4.0);
        text.push_str(&format!("<path class=\"edge\" d=\"M0 {line:.0}H{right:.0}\"/><text class=\"lane {}\" x=\"4\" y=\"{y:.0}\">{name}</text>", class(*lane)));
    }
    text.push_str(&guides(&placed, &at, bottom));
    for (one, written) in placed.iter().zip(written(&placed, &at, right)) {
        let top = tops.get(one.lane).copied().unwrap_or(HEAD) + one.line as f64 * LINE;
        text.push_str(&draw(one.moment, &at, (top, right), written));
    }
    text.push_str("</svg>");
    text
}

/// Gives each moment a line of its lane in which nothing else goes on; and how many lines each lane has.
fn place<'a>(moments: &'a [Moment], lanes: &[Lane]) -> (Vec<Placed<'a>>, Vec<usize>) {
    let mut busy: Vec<Vec<Seq>> = vec![Vec::new(); lanes.len()];
    let mut placed = Vec::new();
    let mut order: Vec<&Moment> = moments.iter().collect();
    order.sort_by_key(|moment| (moment.seq, moment.end));
    for moment in order {
        let Some(lane) = lanes.iter().position(|lane| *lane == moment.lane) else { continue };
        let lines = &mut busy[lane];
        let free = lines.iter().position(|until| *until < moment.seq);
        let line = free.unwrap_or_else(|| lines.len().min(LINES - 1));
        let until = if moment.open { Seq::MAX } else { moment.last() };
        match lines.get_mut(line) {
            Some(known) => *known = until.max(*known),
            None => lines.push(until),
        }
        placed.push(Placed { moment, lane, line });
    }
    (placed, busy.iter().map(|lines| lines.len()).collect())
}

/// Where each number is from left to right, and where the drawing ends: a moment begins right of the words of the one before it in its line.
fn columns(placed: &[Placed<'_>]) -> (BTreeMap<Seq, f64>, f64) {
    let numbers: BTreeSet<Seq> = placed.iter().flat_map(|one| [one.moment.seq, one.moment.last()]).collect();
    let mut taken: BTreeMap<(usize, usize), f64> = BTreeMap::new();
    let mut beginning = placed.iter().peekable();
    let (mut at, mut x, mut right) = (BTreeMap::new(), LEFT, LEFT + STEP);
    for number in numbers {
        x += STEP;
        let mut here = Vec::new();
        while let Some(one) = beginning.next_if(|one| one.moment.seq == number) {
            x = taken.get(&(one.lane, one.line)).copied().unwrap_or(0.0).max(x);
            here.push(one);
        }
        for one in here {
            let wide = if one.moment.ground { width(one.moment) } else { STEP };
            taken.insert((one.lane, one.line), x + wide + 2.0);
            right = (x + wide).max(right);
        }
        at.insert(number, x);
    }
    (at, right.max(x + STEP) + 4.0)
}

/// Pixels from where a moment begins to the end of its words.
fn width(moment: &Moment) -> f64 {
    let letter = if moment.ground { BOLD } else { LETTER };
    label(moment).chars().count() as f64 * letter + 16.0
}

/// For each moment whether its words have room, before the next one in its line begins.
fn written(placed: &[Placed<'_>], at: &BTreeMap<Seq, f64>, right: f64) -> Vec<bool> {
    let mut next: BTreeMap<(usize, usize), f64> = BTreeMap::new();
    let room = |one: &Placed<'_>| {
        let x = at.get(&one.moment.seq).copied().unwrap_or(LEFT);
        let until = next.insert((one.lane, one.line), x).unwrap_or(right);
        one.moment.ground || x + width(one.moment) <= until
    };
    let mut all: Vec<bool> = placed.iter().rev().map(room).collect();
    all.reverse();
    all
}

/// A line through all lanes where something begins that the verdict rests on, with its number where there is room.
fn guides(placed: &[Placed<'_>], at: &BTreeMap<Seq, f64>, bottom: f64) -> String {
    let mut free = LEFT;
    let mut text = String::new();
    let grounds: BTreeSet<Seq> = placed.iter().filter(|one| one.moment.ground).map(|one| one.moment.seq).collect();
    for number in grounds {
        let Some(x) = at.get(&number) else { continue };
        text.push_str(&format!("<path class=\"guide\" d=\"M{x:.0} {HEAD}V{bottom:.0}\"/>"));
        if *x >= free {
            let words = format!("#{number}");
            text.push_str(&format!("<text class=\"number\" x=\"{x:.0}\" y=\"12\">{words}</text>"));
            free = x + words.len() as f64 * LETTER + 6.0;
        }
    }
    text
}

fn draw(moment: &Moment, at: &BTreeMap<Seq, f64>, (top, right): (f64, f64), written: bool) -> String {
    let x = at.get(&moment.seq).copied().unwrap_or(LEFT);
    let end = match moment.open {
        true => Some(right),
        false => moment.end.and_then(|end| at.get(&end).copied()),
    };
    let (y, middle) = (top + 14.0, top + 10.0);
    let shape = match end {
        Some(end) => format!(
            "<rect x=\"{x:.0}\" y=\"{:.0}\" width=\"{:.0}\" height=\"16\" rx=\"3\"/>",
            top + 2.0,
            (end - x).max(6.0)
        ),
        None => format!("<circle cx=\"{x:.0}\" cy=\"{middle:.0}\" r=\"5\"/>"),
    };
    let from = if end.is_some() { x + 4.0 } else { x + 8.0 };
    let words = match written {
        true => format!("<text x=\"{from:.0}\" y=\"{y:.0}\">{}</text>", escape(&label(moment))),
        false => String::new(),
    };
    let ground = if moment.ground { " g" } else { "" };
    let open = if moment.open { " open" } else { "" };
    // Something that did not happen.
    let none = if moment.label().starts_with("no ") { " none" } else { "" };
    format!(
        "<g class=\"m {}{ground}{open}{none}\" data-seq=\"{}\"><title>{}</title>{shape}{words}</g>",
        class(moment.lane),
        moment.seq,
        escape(&sentence(moment))
    )
}

/// How the style calls a lane.
fn class(lane: Lane) -> &'static str {
    match lane {
        Lane::Cpu => "cpu",
        Lane::Fsync => "fsync",
        Lane::Nic => "nic",
        Lane::Fault => "fault",
        Lane::Mkey => "mkey",
        Lane::Disk => "disk",
        Lane::Cut => "cut",
        Lane::Injection => "injection",
        Lane::Kernel => "kernel",
        Lane::Other => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_of(moments: &[Moment]) -> BTreeMap<Seq, f64> {
        let lanes: Vec<Lane> = LANES.iter().map(|(lane, _)| *lane).collect();
        columns(&place(moments, &lanes).0).0
    }

    #[test]
    fn a_later_number_stands_farther_right_whatever_is_written_there() {
        let moments: Vec<_> = (1..60)
            .map(|seq| {
                Moment::span(
                    seq * 3,
                    seq * 3 + seq % 7,
                    if seq % 2 == 0 { Lane::Nic } else { Lane::Disk },
                    "some words",
                )
            })
            .collect();
        let at: Vec<f64> = at_of(&moments).into_values().collect();
        assert!(at.windows(2).all(|pair| pair[0] < pair[1]), "{at:?}");
    }

    #[test]
    fn what_goes_on_at_once_has_lines_of_its_own() {
        let moments = [
            Moment::span(1, 9, Lane::Disk, "write 1"),
            Moment::span(2, 5, Lane::Disk, "write 2"),
            Moment::at(6, Lane::Disk, "write 3"),
            Moment { open: true, ..Moment::at(7, Lane::Nic, "held") },
            Moment::at(8, Lane::Nic, "nic write"),
        ];
        let (placed, lines) = place(&moments, &[Lane::Nic, Lane::Disk]);
        let places: Vec<_> = placed.iter().map(|one| (one.lane, one.line)).collect();
        assert_eq!((places, lines), (vec![(1, 0), (1, 1), (1, 1), (0, 0), (0, 1)], vec![2, 2]));
    }

    #[test]
    fn words_never_run_into_each_other_and_those_of_the_verdict_are_there() {
        let moments: Vec<_> = (1..40)
            .map(|seq| Moment { ground: seq % 5 == 0, ..Moment::at(seq, Lane::Disk, format!("write {}", seq * 1000)) })
            .collect();
        let (placed, _) = place(&moments, &[Lane::Disk]);
        let (at, right) = columns(&placed);
        let written = written(&placed, &at, right);
        let shown: Vec<_> = placed.iter().zip(&written).filter(|(_, written)| **written).map(|(one, _)| one).collect();
        assert!(placed.iter().zip(&written).all(|(one, written)| *written || !one.moment.ground));
        let x = |one: &Placed<'_>| at[&one.moment.seq];
        assert!(shown.windows(2).all(|pair| x(pair[0]) + width(pair[0].moment) <= x(pair[1]) + 0.01));
    }

    #[test]
    fn many_at_once_share_the_last_line() {
        let moments: Vec<_> = (1..100).map(|seq| Moment::span(seq, 1000, Lane::Disk, "write")).collect();
        assert_eq!(place(&moments, &[Lane::Disk]).1, [LINES]);
        assert!(svg(&moments, "t").len() < 40_000);
    }

    #[test]
    fn moments_are_drawn_in_their_order_and_the_marked_ones_are_marked() {
        let moments = [
            Moment { ground: true, ..Moment::at(5, Lane::Nic, "nic <write>: qp 1") },
            Moment::at(2, Lane::Cpu, "store B"),
        ];
        let text = svg(&moments, "t");
        let (first, second) = (text.find("data-seq=\"2\"").unwrap(), text.find("data-seq=\"5\"").unwrap());
        assert!(first < second && text.contains("class=\"m nic g\"") && text.contains("nic &lt;write&gt;"));
    }

    #[test]
    fn a_label_is_short_and_says_what_it_can() {
        let of = |text: &str| label(&Moment::at(1, Lane::Cpu, text));
        assert_eq!(of("fsync: returned 0"), "fsync: returned 0");
        assert_eq!(of("nic write: qp 0x43 mkey 0x10304 wrote GPA 0x3289000"), "nic write");
        assert_eq!(of(&"x".repeat(50)).chars().count(), LETTERS);
    }
}

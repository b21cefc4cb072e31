// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One cycle of on-demand paging by part: something takes the page away, and an RDMA WRITE brings it again. The guest's clock times both calls, a clock
//! of the host what the device does of them ([`mlx5::hooks::NicMoments`]), and a tracer in the guest's kernel what the driver and memory management do.
//! The clocks are not compared with each other, only durations.

use mlx5::hooks::{MomentKind, NicMoment, NicMoments};
use rnic_agent::client::CallError;
use rnic_agent::proto::{Between, Op, VerbsOp, Wr};

use super::{LIMIT_MS, micros, traced};
use crate::bench::Bench;
use crate::finding::Stop;

/// Cycles that are measured without a tracer.
const LAPS: u32 = 100;

/// What a cycle is.
#[derive(Clone, Copy)]
pub(super) struct Cycle {
    /// Heads the names of its figures.
    pub what: &'static str,
    /// The call that takes the page away, in words.
    pub call: &'static str,
    /// That call.
    pub between: Between,
    /// The work request after it.
    pub wr: Wr,
    /// The key of the page.
    pub rkey: u32,
}

/// Measures `cycle`, with the parts that its kind of registration has.
pub(super) fn measure(bench: &mut Bench<'_>, cycle: Cycle) -> Result<(), Stop> {
    let Cycle { what, call, .. } = cycle;
    // The first of them makes what the others find.
    run(bench, cycle, 4)?;
    let since = bench.mark(&format!("{what}: laps begin"));
    let laps = run(bench, cycle, LAPS)?;
    let parts = Parts::of(&bench.guest.ledger().moments(since), bench.qpn(), cycle.rkey);
    bench.spread(&format!("{what}: {call}"), laps.iter().map(|lap| micros(lap[0])).collect(), "us");
    bench.spread(
        &format!("{what}: RDMA WRITE, posted to completed"),
        laps.iter().map(|lap| micros(lap[1])).collect(),
        "us",
    );
    if !bench.registration().is_odp() {
        return Ok(());
    }
    let share = parts.share(&laps);
    let Parts { zaps, faults, translations, placed } = parts;
    for (part, times) in [
        ("zap, in the device", zaps),
        ("fault raised to resumed", faults),
        ("translation, in the device", translations),
        ("resumed to payload in place, in the device", placed),
    ] {
        bench.spread(&format!("{what}: {part}"), times.into_iter().map(micros).collect(), "us");
    }
    bench.spread(&format!("{what}: share of the device"), share, "%");
    traced::measure(bench, cycle, &laps)
}

/// `count` cycles: nanoseconds of the call and of the work request, of each.
pub(super) fn run(bench: &Bench<'_>, cycle: Cycle, count: u32) -> Result<Vec<[u64; 2]>, Stop> {
    let (p, Cycle { wr, between, .. }) = (bench.pair_handle()?, cycle);
    laps(bench, Op::Verbs(VerbsOp::Laps { p, wr, count, limit_ms: LIMIT_MS, between }))
}

/// What `op` measured.
pub(super) fn laps(bench: &Bench<'_>, op: Op) -> Result<Vec<[u64; 2]>, Stop> {
    let value = match bench.guest.call(op) {
        Err(CallError::Failed(failure)) => return Err(Stop::Inconclusive(failure.what)),
        other => other.map_err(|error| bench.guest.stop_for("measuring", &error))?,
    };
    value.laps().ok_or_else(|| Stop::Failed("the agent gave no laps".into()))
}

/// What the device saw of the cycles: nanoseconds.
#[derive(Debug, Default, PartialEq)]
struct Parts {
    /// Changes of the key while no page fault is open.
    zaps: Vec<u64>,
    /// Page faults, until their driver has answered.
    faults: Vec<u64>,
    /// Changes of the key within each page fault.
    translations: Vec<u64>,
    /// From the answer to the payload.
    placed: Vec<u64>,
}

impl Parts {
    /// Of those of one queue pair and one key.
    fn of(moments: &[NicMoment], qpn: u32, rkey: u32) -> Self {
        let mut parts = Self::default();
        let (mut open, mut within, mut answered) = (None, 0, None);
        for moment in moments {
            match moment.kind {
                MomentKind::Faulted { token } if moment.qpn == qpn => (open, within) = (Some((token, moment.at_ns)), 0),
                MomentKind::Updated { index, begun_ns } if index == rkey >> 8 => {
                    let took = moment.at_ns.saturating_sub(begun_ns);
                    match open {
                        Some(_) => within += took,
                        None => parts.zaps.push(took),
                    }
                }
                MomentKind::Answered { token } => {
                    if let Some((_, raised)) = open.take_if(|(raised, _)| *raised == token) {
                        parts.faults.push(moment.at_ns.saturating_sub(raised));
                        parts.translations.push(within);
                        answered = Some(moment.at_ns);
                    }
                }
                MomentKind::Placed if moment.qpn == qpn => {
                    parts.placed.extend(answered.take().map(|at| moment.at_ns.saturating_sub(at)));
                }
                _ => {}
            }
        }
        parts
    }

    /// Percent of each of `laps` that the device took of it. Nothing where the laps were not one zap and one fault each.
    fn share(&self, laps: &[[u64; 2]]) -> Vec<f64> {
        let Self { zaps, faults, translations, placed } = self;
        if [zaps, faults, translations, placed].iter().any(|part| part.len() != laps.len()) {
            return Vec::new();
        }
        let device = zaps.iter().zip(translations).zip(placed).map(|((zap, map), rest)| zap + map + rest);
        device.zip(laps).map(|(device, lap)| device as f64 * 100.0 / (lap[0] + lap[1]).max(1) as f64).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cycle_falls_into_its_parts() {
        let at = |qpn, at_ns, kind| NicMoment { seq: at_ns, qpn, at_ns, kind };
        let update = |index, begun_ns| MomentKind::Updated { index, begun_ns };
        let moments = [
            at(1, 110, update(7, 100)),
            at(1, 115, update(8, 100)),
            at(9, 200, MomentKind::Faulted { token: 5 }),
            at(3, 201, MomentKind::Faulted { token: 6 }),
            at(1, 230, update(7, 225)),
            at(3, 240, MomentKind::Answered { token: 6 }),
            at(9, 250, MomentKind::Answered { token: 5 }),
            at(9, 257, MomentKind::Placed),
            // A second packet of the same message.
            at(9, 258, MomentKind::Placed),
        ];
        let parts = Parts::of(&moments, 9, 0x700);
        let expected = Parts { zaps: vec![10], faults: vec![50], translations: vec![5], placed: vec![7] };
        assert_eq!(parts, expected);
        assert_eq!(parts.share(&[[100, 120]]), [10.0]);
        assert!(parts.share(&[[1, 1], [1, 1]]).is_empty());
    }
}

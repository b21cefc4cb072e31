// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the driver and memory management do of a cycle, by the function graph tracer of the guest's kernel. It makes a cycle slower; by how much is
//! a figure of its own.

use rnic_agent::proto::Op;

use super::micros;
use super::parts::{Cycle, run};
use crate::bench::Bench;
use crate::finding::Stop;

/// Where tracefs is mounted.
const DIR: &str = "/mnt/tracing";
/// Cycles of one reading, whose text has to fit into an answer of the agent.
const CHUNK: u32 = 15;
/// Readings.
const CHUNKS: u32 = 4;
/// Most of one reading.
const TEXT: u32 = 48 << 10;

/// Functions by name, in whose context they are meant, and what they are.
const PARTS: [(&str, Context, &str); 6] = [
    ("mlx5_ib_invalidate_range", Context::Caller, "notifier called to returned"),
    ("mlx5r_umr_post_send_wait", Context::Caller, "of which zap posted to awaited"),
    ("mlx5_ib_eqe_pf_action", Context::Worker, "fault worker, resume command included"),
    ("ib_umem_odp_map_dma_and_lock", Context::Worker, "of which memory management finds the page"),
    ("mlx5r_umr_post_send_wait", Context::Worker, "of which translation posted to awaited"),
    ("mlx5_ib_page_fault_resume", Context::Worker, "of which resume command"),
];

/// Whose thread runs a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Context {
    /// That of the call that takes the page away.
    Caller,
    /// The driver's own.
    Worker,
}

/// A call of a function.
#[derive(Debug, Clone, PartialEq)]
struct Call {
    context: Context,
    name: String,
    us: f64,
}

/// Measures `cycle`, which took `laps` without a tracer.
pub(super) fn measure(bench: &mut Bench<'_>, cycle: Cycle, laps: &[[u64; 2]]) -> Result<(), Stop> {
    bench.guest.must(Op::Mount {
        dev: "tracefs".into(),
        dir: DIR.into(),
        fs: "tracefs".into(),
        opts: String::new(),
        ro: false,
    })?;
    let measured = chunks(bench, cycle);
    write(bench, "current_tracer", "nop");
    bench.guest.must(Op::Umount { dir: DIR.into() })?;
    let (calls, slow) = measured?;
    let what = cycle.what;
    for (name, context, part) in PARTS {
        let times = calls.iter().filter(|call| call.name == name && call.context == context).map(|call| call.us);
        bench.spread(&format!("{what}: {part} (traced)"), times.collect(), "us");
    }
    let whole = |laps: &[[u64; 2]]| {
        let mut all: Vec<_> = laps.iter().map(|lap| micros(lap[0] + lap[1])).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or_default()
    };
    let (plain, slow) = (whole(laps), whole(&slow));
    if plain > 0.0 {
        bench.figure(&format!("{what}: a cycle with the tracer, of one without"), slow / plain, "times");
    }
    Ok(())
}

/// Calls, and the cycles in which they were made.
fn chunks(bench: &Bench<'_>, cycle: Cycle) -> Result<(Vec<Call>, Vec<[u64; 2]>), Stop> {
    for (name, ..) in PARTS {
        // A kernel that lacks one has no figure of it.
        write(bench, "set_ftrace_filter", name);
    }
    let (mut calls, mut laps) = (Vec::new(), Vec::new());
    for _ in 0..CHUNKS {
        write(bench, "current_tracer", "function_graph");
        for option in ["funcgraph-tail", "funcgraph-proc"] {
            write(bench, "trace_options", option);
        }
        laps.extend(run(bench, cycle, CHUNK)?);
        let text = bench.guest.must(Op::ReadFile { path: format!("{DIR}/trace"), max: TEXT })?.text();
        calls.extend(text.unwrap_or_default().lines().filter_map(parse));
        // Another tracer begins with an empty buffer.
        write(bench, "current_tracer", "nop");
    }
    Ok((calls, laps))
}

fn write(bench: &Bench<'_>, file: &str, text: &str) {
    // What is missing in the end is missing among the figures.
    drop(bench.guest.call(Op::WriteSys { path: format!("{DIR}/{file}"), text: text.into() }));
}

/// The end of a call: ` 1) kworker-87 | ! 123.456 us | } /* name [module] */`, or `name [module]();`.
fn parse(line: &str) -> Option<Call> {
    let mut columns = line.splitn(3, '|');
    let (who, time, what) = (columns.next()?, columns.next()?, columns.next()?.trim());
    let us = time.trim().strip_suffix("us")?.split_whitespace().last()?.parse().ok()?;
    let name = match what.strip_prefix('}') {
        Some(tail) => tail.trim_start().trim_start_matches("/*"),
        None => what,
    };
    let name = name.trim_start().split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next()?.to_owned();
    let worker = who.split(')').nth(1)?.trim_start().starts_with("kworker");
    Some(Call { context: if worker { Context::Worker } else { Context::Caller }, name, us })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_calls_are_read() {
        let call = |context, name: &str, us| Some(Call { context, name: name.into(), us });
        let nested = " 1)  rnic-ag-82    | ! 123.456 us  |  } /* mlx5_ib_invalidate_range [mlx5_ib] */";
        assert_eq!(parse(nested), call(Context::Caller, "mlx5_ib_invalidate_range", 123.456));
        let leaf = " 0)  kworker-40    |   7.100 us    |    mlx5_cmd_exec [mlx5_core]();";
        assert_eq!(parse(leaf), call(Context::Worker, "mlx5_cmd_exec", 7.1));
        for none in
            ["# tracer: function_graph", " 1)  rnic-ag-82    |               |  mlx5_cmd_exec() {", " 0)  a  =>  b"]
        {
            assert_eq!(parse(none), None);
        }
    }
}

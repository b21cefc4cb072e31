// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the data path costs, by hand: `cargo test --release --lib engine::tests::price -- --ignored --nocapture --test-threads 1`.
//! One thread, no doorbells: the engine's own work with mkey check, section, CQE and ledger on.

use super::super::requester::{Cx, Requester, Turn};
use super::super::transfer::Scratch;
use super::*;
use mlx5_spec::wqe::opcode;

/// Executes all that is posted; the engines' threads are not running.
fn drain(guest: &Guest, requester: &mut Requester, scratch: &mut Scratch) {
    let mut cx = Cx { hca: &guest.hca, engine: 0, scratch };
    while requester.turn(&mut cx) == Turn::Again {}
}

/// Nanoseconds of a WQE `wqe`: the median of `rounds` times `batch` of them, the last of a batch signaled. (The median, since others
/// use the machine as well.)
fn time(guest: &Guest, wqe: &Wqe, rounds: u32, batch: u32) -> f64 {
    let (a, _b) = guest.rc_pair();
    let mut requester = Requester::new(a.qp.clone());
    let mut scratch = Scratch::default();
    let quiet = wqe.clone().with(ctrl::CE, 0);
    let mut spent = Vec::new();
    for _ in 0..rounds {
        (1..batch).for_each(|_| guest.put(&a, &quiet));
        guest.put(&a, wqe);
        guest.set_word(a.record + 4, u32::from(a.sent.get()));
        let start = Instant::now();
        drain(guest, &mut requester, &mut scratch);
        spent.push(start.elapsed());
        assert_eq!(guest.outcome(&a.send_cq).1, 0);
    }
    median(spent) / f64::from(batch)
}

fn median(mut spent: Vec<Duration>) -> f64 {
    spent.sort_unstable();
    spent[spent.len() / 2].as_nanos() as f64
}

#[test]
#[ignore = "a measurement"]
fn rate_and_bandwidth() {
    let guest = Guest::new();
    guest.hca.engines.stop();
    let (from, to) = (guest.alloc(1 << 20), guest.alloc(1 << 20));
    let pages = |base: u64| (0..256).map(|page| Some(base + page * PAGE)).collect::<Vec<_>>();
    let (lkey, rkey) = (guest.paged(0, &pages(from)).key(), guest.paged(0, &pages(to)).key());
    for batch in [1, 32] {
        let wqe = Wqe::new(opcode::RDMA_WRITE).remote(rkey, 64).data(lkey, 0, 8);
        let nanos = time(&guest, &wqe, 3000, batch);
        println!("8-byte WRITE, batches of {batch}: {nanos:.0} ns, {:.2} M WQEs/s", 1e3 / nanos);
    }
    for len in [4096u32, 65536, 1 << 20] {
        let wqe = Wqe::new(opcode::RDMA_WRITE).remote(rkey, 0).data(lkey, 0, len);
        let rounds = (1u32 << 29) / len / 8;
        let ours = f64::from(len) / time(&guest, &wqe, rounds, 8);
        let (source, mut target) = (vec![1u8; len as usize], vec![0u8; len as usize]);
        let copy = || {
            let start = Instant::now();
            for _ in 0..8 {
                std::hint::black_box(&mut target[..]).copy_from_slice(std::hint::black_box(&source));
            }
            start.elapsed()
        };
        let memcpy = f64::from(len) / (median(std::iter::repeat_with(copy).take(rounds as usize).collect()) / 8.0);
        println!("{len:>8} bytes WRITE: {ours:.2} GB/s, memcpy {memcpy:.2} GB/s, ratio {:.2}", ours / memcpy);
    }
}

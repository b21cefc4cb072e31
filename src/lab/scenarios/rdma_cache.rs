// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! H36: what a registration does to the page cache.

use rnic_agent::proto::Op;

use super::rdma::refused;
use crate::bench::{Bench, FILE_LEN, PAGE, PAGE_AT, Plant};
use crate::finding::{Finding, Stop};
use crate::oracle;
use crate::verdict::Verdict;

/// H36: an RDMA READ of a hole. On a writable registration the driver asks for write access even for a READ.
pub fn hole(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    let file = bench.open("sparse", true)?;
    bench.guest.must(Op::Ftruncate { h: file, len: FILE_LEN })?;
    let map = bench.guest.handle(Op::Mmap { h: file, off: 0, len: FILE_LEN, write: true, private: false })?;
    let access = bench.registration().access();
    let mr = match bench.register_map(map, FILE_LEN, access)? {
        Ok(mr) => mr,
        Err(errno) => return Ok(refused(bench, errno)),
    };
    bench.use_mr(mr);
    let blocks = |bench: &Bench<'_>| {
        let value = bench.guest.must(Op::Fiemap { h: file, sync: true })?;
        value.extents().ok_or_else(|| Stop::Failed("the agent gave no extents".into()))
    };
    let before = blocks(bench)?;
    if !before.is_empty() {
        return Err(Stop::Inconclusive(format!("registration alone allocated {} extents", before.len())));
    }
    if bench.is_planted(Plant::ForeignBytes) {
        let pattern = bench.pattern('F');
        bench.guest.must(Op::Store { m: map, off: PAGE_AT, len: PAGE, pattern })?;
    }
    let (completion, read, seen) = bench.rdma_read()?;
    if !completion.ok() {
        return Err(Stop::Inconclusive("the RDMA READ failed".into()));
    }
    if bench.is_planted(Plant::Allocated) {
        bench.guest.must(Op::Touch { m: map, off: PAGE_AT, write: true })?;
    }
    bench.guest.must(Op::Fsync { h: file })?;
    let after = blocks(bench)?;
    let covers = after.iter().any(|e| e.logical <= PAGE_AT && PAGE_AT - e.logical < e.len);
    let paging = oracle::nic::paging(&bench.nic_records(bench.begun), mr.rkey);
    let paging = bench.now(paging);
    let extents = after.len();
    let allocated = bench.note(match covers {
        true => {
            format!("after fsync the file has {extents} extents, one of them where the hole was: the READ allocated it")
        }
        false => format!("after fsync the file has {extents} extents, none where the hole was"),
    });
    let zero = read == rnic_agent::pattern::identify(&vec![0; PAGE as usize]);
    let verdict = match (zero, covers) {
        (false, _) => Verdict::Stale,
        (true, true) => Verdict::Benign,
        (true, false) => Verdict::Safe,
    };
    Ok(Finding::new(verdict, seen, [paging, allocated]))
}

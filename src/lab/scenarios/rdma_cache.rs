// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! H13 and H36: what the page cache does to a registration, and what a registration does to the page cache.

use rnic_agent::proto::{Op, OpenFlags};

use super::rdma::{clean, refused};
use crate::bench::{Bench, DIR, FILE_LEN, PAGE, PAGE_AT, status};
use crate::oracle;
use crate::verdict::{Finding, Stop, Verdict};

/// H13: an O_DIRECT write takes the clean page out of the page cache; the mapping gets a new one, a pin keeps the old.
pub fn replaced(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    bench.store('B')?;
    if let Err(errno) = bench.register()? {
        return Ok(refused(bench, errno));
    }
    if let Err(errno) = clean(bench)? {
        return Ok(Finding::with_errno(Verdict::Lost, Some(errno)));
    }
    let old = bench.gpa;
    direct_write(bench)?;
    let mapping = bench.load()?;
    bench.locate()?;
    let new = bench.gpa;
    let since = bench.mark("page replaced");
    let (wc, read) = bench.rdma_read()?;
    if !wc.ok() {
        return Err(Stop::Inconclusive(format!("the RDMA READ ended with \"{}\"", status(&wc))));
    }
    let records = bench.nic_records(since);
    let source = [new, old].into_iter().find_map(|page| oracle::nic::last_read(&records, page));
    let source = source.map_or("not in the ledger".into(), oracle::nic::describe);
    bench.say(format!(
        "an O_DIRECT write of D moved the page from GPA {old:#x} to {new:#x}; the mapping shows {mapping}; RDMA READ gave {read} ({source})"
    ));
    if !mapping.is(&bench.pattern('D'), PAGE_AT) {
        return Err(Stop::Inconclusive("the mapping does not show what was written by O_DIRECT".into()));
    }
    let fresh = read.is(&bench.pattern('D'), PAGE_AT);
    if !bench.registration().writable() {
        return Ok(Finding::new(if fresh { Verdict::Safe } else { Verdict::Stale }));
    }
    let wc = bench.rdma_write('C')?;
    let seen = bench.load()?;
    bench.say(format!("then RDMA WRITE C ended with {}; the mapping shows {seen}", status(&wc)));
    let visible = seen.is(&bench.pattern('C'), PAGE_AT);
    match (wc.ok(), visible, fresh) {
        (true, true, true) => Ok(Finding::new(Verdict::Safe)),
        (true, true, false) => Ok(Finding::new(Verdict::Stale)),
        (true, false, _) => Ok(Finding::new(Verdict::Split)),
        (false, ..) => Ok(Finding::new(Verdict::ErrCqe)),
    }
}

fn direct_write(bench: &mut Bench<'_>) -> Result<(), Stop> {
    let flags = OpenFlags { write: true, direct: true, ..Default::default() };
    let h = bench.guest.handle(Op::Open { path: format!("{DIR}/file"), flags })?;
    let pattern = bench.pattern('D');
    bench.mark("O_DIRECT write begin");
    bench.guest.must(Op::Write { h, off: PAGE_AT, len: PAGE, pattern })?;
    bench.mark("O_DIRECT write end");
    bench.guest.must(Op::Close { h }).map(drop)
}

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
    let (wc, read) = bench.rdma_read()?;
    if !wc.ok() {
        return Err(Stop::Inconclusive(format!("the RDMA READ ended with \"{}\"", status(&wc))));
    }
    bench.guest.must(Op::Fsync { h: file })?;
    let after = blocks(bench)?;
    let covers = after.iter().any(|e| e.logical <= PAGE_AT && PAGE_AT - e.logical < e.len);
    let paging = oracle::nic::paging(&bench.nic_records(bench.begun), mr.rkey);
    bench.say(format!(
        "RDMA READ of a hole gave {read} ({paging}); after fsync the file has {} extents{}",
        after.len(),
        if covers { ", one of them where the hole was: the READ allocated it" } else { "" },
    ));
    let zero = read == rnic_agent::pattern::identify(&vec![0; PAGE as usize]);
    match (zero, covers) {
        (false, _) => Ok(Finding::new(Verdict::Stale)),
        (true, true) => Ok(Finding::new(Verdict::Benign)),
        (true, false) => Ok(Finding::new(Verdict::Safe)),
    }
}

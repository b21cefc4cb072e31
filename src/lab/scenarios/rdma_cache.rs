// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! H13 and H36: what the page cache does to a registration, and what a registration does to the page cache.

use rnic_agent::proto::{Op, OpenFlags, Page};

use super::rdma::{clean, refused};
use crate::bench::{Bench, DIR, FILE_LEN, PAGE, PAGE_AT, Plant};
use crate::fact::What;
use crate::finding::{Finding, Stop};
use crate::oracle;
use crate::verdict::Verdict;

/// H13: an O_DIRECT write takes the clean page out of the page cache; the mapping gets a new one, a pin keeps the old.
pub fn replaced(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    bench.store('B')?;
    if let Err(errno) = bench.register()? {
        return Ok(refused(bench, errno));
    }
    if let Err(harm) = clean(bench)? {
        return Ok(harm);
    }
    let before = bench.page()?;
    let mut facts = vec![bench.now(What::folio("before the O_DIRECT write", &before, None))];
    let old = bench.gpa;
    direct_write(bench)?;
    // Without a pin the frame is free, and the next page may get it: that the page has left the mapping is what shows.
    let taken = !bench.page()?.present;
    let shown = Page { present: !taken, ..before };
    facts.push(bench.now(What::folio("after the O_DIRECT write", &shown, None)));
    let (mapping, seen) = bench.load()?;
    bench.locate()?;
    let after = bench.page()?;
    facts.extend([bench.now(What::folio("read again", &after, None)), seen]);
    let new = bench.gpa;
    if !mapping.is(&bench.pattern('D'), PAGE_AT) {
        return Err(Stop::Inconclusive("the mapping does not show what was written by O_DIRECT".into()));
    }
    if !taken && new == old {
        return Err(Stop::Inconclusive("the O_DIRECT write did not take the page out of the page cache".into()));
    }
    let since = bench.mark("page replaced");
    let (completion, read, seen) = bench.rdma_read()?;
    if !completion.ok() {
        return Err(Stop::Inconclusive("the RDMA READ failed".into()));
    }
    let records = bench.nic_records(since);
    let source = [new, old].into_iter().find_map(|page| oracle::nic::last_read(&records, page));
    facts.extend(source.map(|source| bench.nic(source)));
    // The old frame, free by now, may have got the same bytes: whoever wrote by O_DIRECT had them in some page.
    let from_old = old != new && source.is_some_and(|source| oracle::nic::is_of(source, old));
    let fresh = read.is(&bench.pattern('D'), PAGE_AT) && !from_old;
    if !fresh {
        bench.find(Finding::new(Verdict::Stale, seen, facts.clone()));
    }
    if !bench.registration().writable() {
        return Ok(Finding::new(if fresh { Verdict::Safe } else { Verdict::Stale }, seen, facts));
    }
    let completion = bench.rdma_write('C')?;
    let (page, shown) = bench.load()?;
    facts.extend([seen, completion.fact]);
    let visible = page.is(&bench.pattern('C'), PAGE_AT);
    let verdict = match (completion.ok(), visible) {
        (true, true) => Verdict::Safe,
        (true, false) => Verdict::Split,
        (false, _) => Verdict::ErrCqe,
    };
    Ok(Finding::new(verdict, shown, facts))
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

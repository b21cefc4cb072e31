// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether a power cut's image has what the ledger says that it must have: the disk's own record of the requests against the bytes that the
//! witness is given. A verdict rests on the image, so the image is evidence too.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use blk::{BlkOp, PageTouch, PowerCut, RequestRecord};
use probe::ledger::{PAGE_SIZE, PageHash, Seq};

/// Bytes of a sector.
const SECTOR: u64 = 512;

/// What an image must have at a sector: the bytes of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Must<'a> {
    touch: &'a PageTouch,
    id: u64,
}

/// The first watched page whose blocks in `image`, a `cut` at `at` of disk `disk`, do not have what the last write has that survives such a
/// cut. Pages of which the ledger cannot tell are passed over: those with a request under way.
///
/// # Errors
/// The image cannot be read.
pub fn disagrees(
    records: &[RequestRecord],
    disk: u8,
    image: &File,
    cut: PowerCut,
    at: Seq,
) -> io::Result<Option<String>> {
    let records: Vec<_> = records.iter().filter(|record| record.disk == disk && record.arrived < at).collect();
    let mut blocks: Vec<u64> = records.iter().flat_map(|record| watched(record)).map(|touch| touch.lba).collect();
    blocks.sort_unstable();
    blocks.dedup();
    for lba in blocks {
        let Some(must) = allowed(&records, lba, cut, at) else { continue };
        let mut bytes = vec![0; PAGE_SIZE as usize];
        image.read_exact_at(&mut bytes, lba * SECTOR)?;
        let found = Some(PageHash::of(0, &bytes));
        if must.iter().all(|must| must.touch.at_data != found) {
            let ids = must.iter().map(|must| must.id.to_string()).collect::<Vec<_>>().join(" or ");
            return Ok(Some(format!(
                "the image of the {cut} power cut at #{at} does not have at sector {lba} what blk write {ids} put there, the last that such a cut keeps",
            )));
        }
    }
    Ok(None)
}

/// The writes of which an image must have one's bytes at `lba`: of a drawn cut that of the last that a flush covers, or of any later one; of
/// another one write. `None` where that is not known.
fn allowed<'a>(records: &[&'a RequestRecord], lba: u64, cut: PowerCut, at: Seq) -> Option<Vec<Must<'a>>> {
    let floor = match cut {
        PowerCut::Kind | PowerCut::Cruel => return survivor(records, lba, cut, at).map(|must| vec![must]),
        // Where a write tears, sectors come from several.
        PowerCut::Drawn { tear: true, .. } => return None,
        PowerCut::Drawn { tear: false, .. } => survivor(records, lba, PowerCut::Cruel, at)?,
    };
    let from = records.iter().find(|record| record.id == floor.id)?.data;
    let later = covering(records, lba).filter(|record| record.status == Some(0) && record.data > from);
    let later = later.map(|record| must_of(record, lba)).collect::<Option<Vec<_>>>()?;
    Some(std::iter::once(floor).chain(later).collect())
}

/// Whole pages of a write whose bytes are known.
fn watched(record: &RequestRecord) -> impl Iterator<Item = &PageTouch> {
    let whole = |touch: &&PageTouch| u64::from(touch.len) == PAGE_SIZE && touch.lba_offset == 0;
    let known = |touch: &&PageTouch| record.op == BlkOp::Write && touch.at_data.is_some();
    record.pages.iter().filter(whole).filter(known)
}

/// The write whose bytes an image must have at `lba`. `None` where that is not known.
fn survivor<'a>(records: &[&'a RequestRecord], lba: u64, cut: PowerCut, at: Seq) -> Option<Must<'a>> {
    let mut last: Option<&'a RequestRecord> = None;
    for record in covering(records, lba) {
        // Under way when the power went, or completed at that very moment: then nobody knows.
        record.completed.filter(|completed| *completed < at)?;
        if record.medium.is_some() {
            return None;
        }
        if record.status != Some(0) || cut == PowerCut::Cruel && !flushed(records, record, at) {
            continue;
        }
        if last.is_none_or(|last| last.data < record.data) {
            last = Some(record);
        }
    }
    must_of(last?, lba)
}

fn must_of(record: &RequestRecord, lba: u64) -> Option<Must<'_>> {
    let touch = watched(record).find(|touch| touch.lba == lba)?;
    Some(Must { touch, id: record.id })
}

/// Requests that change a sector of the block at `lba`, wherever their data went: of those that went astray nobody knows what they left.
fn covering<'a>(records: &[&'a RequestRecord], lba: u64) -> impl Iterator<Item = &'a RequestRecord> {
    let block = lba..lba + PAGE_SIZE / SECTOR;
    let meets = move |range: &Range<u64>| range.start < block.end && block.start < range.end;
    let covers = move |record: &&RequestRecord| {
        record.op.changes_disk() && record.ranges.iter().chain(&record.medium).any(&meets)
    };
    records.iter().copied().filter(covers)
}

/// Whether a flush that had completed at `at` covers `write`.
fn flushed(records: &[&RequestRecord], write: &RequestRecord, at: Seq) -> bool {
    records.iter().any(|flush| {
        flush.op == BlkOp::Flush
            && flush.status == Some(0)
            // One that only said so has none.
            && flush.stored.is_some()
            && write.completed.is_some_and(|completed| completed < flush.arrived)
            && flush.completed.is_some_and(|completed| completed < at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const LBA: u64 = 800;

    fn request(id: u64, op: BlkOp, arrived: Seq, bytes: Option<u8>) -> RequestRecord {
        let touch = bytes.map(|byte| PageTouch {
            gpa: 0x5000,
            offset: 0,
            len: 4096,
            lba: LBA,
            lba_offset: 0,
            at_arrival: None,
            at_data: Some(PageHash::of(0, &[byte; 4096])),
            at_completion: None,
        });
        RequestRecord {
            id,
            disk: 1,
            op,
            lba: LBA,
            len: 4096,
            ranges: touch.iter().map(|_| LBA..LBA + 8).collect(),
            pages: touch.into_iter().collect(),
            pages_known: true,
            arrived,
            data_begin: Some(arrived),
            data: Some(arrived + 1),
            stored: Some(arrived + 1),
            medium: None,
            completed: Some(arrived + 2),
            aborted: None,
            status: Some(0),
            holds: Vec::new(),
        }
    }

    fn image(byte: u8) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![0; (LBA * SECTOR) as usize]).unwrap();
        file.write_all(&[byte; 4096]).unwrap();
        file
    }

    /// A, flushed; then B, not flushed; the power goes at 50.
    fn story() -> Vec<RequestRecord> {
        vec![
            request(1, BlkOp::Write, 10, Some(b'A')),
            request(2, BlkOp::Flush, 20, None),
            request(3, BlkOp::Write, 30, Some(b'B')),
        ]
    }

    fn agrees(records: &[RequestRecord], byte: u8, cut: PowerCut) -> bool {
        disagrees(records, 1, &image(byte), cut, 50).unwrap().is_none()
    }

    #[test]
    fn a_cruel_cut_keeps_what_a_flush_covers_and_a_kind_one_all() {
        let records = story();
        assert!(agrees(&records, b'A', PowerCut::Cruel) && agrees(&records, b'B', PowerCut::Kind));
        // It dropped too much, or kept too much.
        assert!(!agrees(&records, 0, PowerCut::Cruel) && !agrees(&records, b'A', PowerCut::Kind));
        assert!(!agrees(&records, b'B', PowerCut::Cruel));
    }

    #[test]
    fn a_flush_counts_when_it_came_after_the_write_and_has_completed() {
        let mut records = story();
        // It came while the write was under way.
        records.push(request(4, BlkOp::Flush, 31, None));
        assert!(agrees(&records, b'A', PowerCut::Cruel));
        records.push(RequestRecord { completed: None, ..request(5, BlkOp::Flush, 40, None) });
        assert!(agrees(&records, b'A', PowerCut::Cruel));
        records.push(request(6, BlkOp::Flush, 41, None));
        assert!(agrees(&records, b'B', PowerCut::Cruel) && !agrees(&records, b'A', PowerCut::Cruel));
    }

    #[test]
    fn a_drawn_cut_keeps_what_a_flush_covers_or_something_later() {
        let mut records = story();
        records.push(request(4, BlkOp::Write, 35, Some(b'C')));
        let drawn = |tear| PowerCut::Drawn { seed: 1, nth: 1, tear };
        for byte in [b'A', b'B', b'C'] {
            assert!(agrees(&records, byte, drawn(false)));
        }
        assert!(!agrees(&records, 0, drawn(false)));
        // Once a flush covers the last there is one answer.
        records.push(request(5, BlkOp::Flush, 40, None));
        assert!(agrees(&records, b'C', drawn(false)) && !agrees(&records, b'A', drawn(false)));
        assert!(!agrees(&records, b'B', drawn(false)));
        // Of sectors that come by themselves the hashes of whole blocks say nothing.
        assert!(agrees(&records, b'B', drawn(true)));
    }

    #[test]
    fn what_injections_made_of_requests_is_believed() {
        // The flush only said that it had flushed.
        let mut records = story();
        records.push(RequestRecord { stored: None, ..request(4, BlkOp::Flush, 40, None) });
        assert!(agrees(&records, b'A', PowerCut::Cruel) && !agrees(&records, b'B', PowerCut::Cruel));
        // The second write went elsewhere; a third came from elsewhere.
        let mut records = story();
        records[2].medium = Some(0..8);
        assert!(agrees(&records, b'A', PowerCut::Kind) && agrees(&records, b'B', PowerCut::Kind));
        let mut astray = request(4, BlkOp::Write, 40, Some(b'C'));
        let elsewhere = 0..8;
        (astray.ranges, astray.pages, astray.medium) = (vec![elsewhere], Vec::new(), Some(LBA..LBA + 8));
        let records = [story(), vec![astray]].concat();
        assert!(agrees(&records, b'C', PowerCut::Kind));
    }

    #[test]
    fn where_the_ledger_cannot_tell_nothing_is_said() {
        let mut records = story();
        records.push(RequestRecord { completed: None, ..request(4, BlkOp::Write, 45, Some(b'C')) });
        assert!([b'A', b'B', b'C', 0].into_iter().all(|byte| agrees(&records, byte, PowerCut::Kind)));
        // Somebody wrote there whose bytes nobody looked at; another disk's requests do not count.
        let mut records = story();
        records.push(RequestRecord { pages: Vec::new(), ..request(4, BlkOp::Write, 40, Some(b'C')) });
        assert!(agrees(&records, b'C', PowerCut::Kind));
        records.iter_mut().for_each(|record| record.disk = 2);
        assert!(agrees(&records, b'X', PowerCut::Kind));
    }
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The RDMA side of the bench: a device with two queue pairs connected to each other, anonymous buffers to write from and to
//! read into, and the registration of the file mapping under test.

use std::time::Duration;

use rnic_agent::client::CallError;
use rnic_agent::pattern::Content;
use rnic_agent::proto::{MrInfo, NicInfo, Op, PairInfo, Value, VerbsOp, Wc, Wr, WrKind, access};

use super::{Bench, FILE_LEN, PAGE, PAGE_AT};
use crate::fact::{FactId, What};
use crate::finding::Stop;
use crate::guest::Via;
use crate::plan::{Registration, Writer};

/// Entries of each queue.
const DEPTH: u32 = 16;
/// How long a work request may take that waits for nothing held.
pub const COMPLETION_LIMIT: Duration = Duration::from_secs(20);
/// How long a work request is waited for at all: it may be queued before what it waits for.
const LONG_LIMIT: Duration = Duration::from_secs(60);
/// Contexts opened in search of an engine of one's own.
const ENGINE_TRIES: u32 = 4;
/// Looks at a port that is not active yet.
const ACTIVE_TRIES: u32 = 100;

/// Send WQE opcodes (contract 7.3).
pub mod wqe {
    /// RDMA WRITE.
    pub const RDMA_WRITE: u8 = 0x08;
    /// UMR.
    pub const UMR: u8 = 0x25;
}

/// Anonymous memory registered with the device.
#[derive(Debug, Clone, Copy)]
struct Region {
    map: u32,
    mr: MrInfo,
}

/// An open device at work.
#[derive(Debug)]
pub struct Verbs {
    nic: u32,
    info: NicInfo,
    pair: PairInfo,
    /// Of other processes.
    others: Vec<u32>,
    sources: Vec<(char, Region)>,
    sink: Option<Region>,
    /// The registration of the file mapping.
    mr: Option<MrInfo>,
}

/// Work requests of a peer that is to be stopped.
const ENDLESS: u32 = 1 << 20;

impl Bench<'_> {
    /// Opens the row's RDMA device, if it has one.
    pub(super) fn open_verbs(&mut self) -> Result<(), Stop> {
        let via = match self.row.scenario.writer {
            Writer::Disk => return Ok(()),
            Writer::Nic(_) => Via::Nic,
            Writer::Rxe(_) => Via::Rxe,
        };
        let name = self.guest.rdma_device(via)?;
        let nic = self.guest.handle(Op::Verbs(VerbsOp::Open { name: Some(name.into()) }))?;
        let info = self.active(nic)?;
        if self.registration().is_odp() && !info.has_odp() {
            return Err(Stop::NotRun(format!("{name} offers no on-demand paging")));
        }
        let pair = self.guest.must(Op::Verbs(VerbsOp::Pair { nic, depth: DEPTH }))?.pair();
        let pair = pair.ok_or_else(|| Stop::Failed("the agent gave no pair".into()))?;
        self.verbs = Some(Verbs { nic, info, pair, others: Vec::new(), sources: Vec::new(), sink: None, mr: None });
        Ok(())
    }

    /// Sees to it that the row's work requests run on another engine of the NIC than the driver's updates of translations, which an engine
    /// that stands still on purpose would hold up too.
    pub fn own_engine(&mut self) -> Result<(), Stop> {
        for _ in 0..ENGINE_TRIES {
            if self.shares_engine() == Some(false) {
                return Ok(());
            }
            // Another context has other UAR pages, by which queue pairs belong to engines. The first stays open till the row's end.
            self.open_verbs()?;
        }
        Err(Stop::Inconclusive("every queue pair shares its engine with the driver's updates of translations".into()))
    }

    /// Whether the queue pair that posts belongs to the engine of a queue pair for UMRs. `None` where that cannot be seen.
    fn shares_engine(&self) -> Option<bool> {
        let all = self.handle()?.inspect();
        let engines = all["engines"].as_u64().filter(|count| *count > 0)?;
        let qps = all["qps"]["list"].as_array()?;
        let engine = |qp: &serde_json::Value| qp["uar"].as_u64().map(|uar| uar % engines);
        let ours = engine(qps.iter().find(|qp| qp["qpn"].as_u64() == Some(self.qpn().into()))?)?;
        let mut updates = qps.iter().filter(|qp| qp["service"].as_str().is_some_and(|name| name.contains("UMR")));
        Some(updates.any(|qp| engine(qp) == Some(ours)))
    }

    /// The device once its port is active.
    fn active(&self, nic: u32) -> Result<NicInfo, Stop> {
        let mut info = NicInfo::default();
        for _ in 0..ACTIVE_TRIES {
            let value = self.guest.must(Op::Verbs(VerbsOp::Info { nic }))?;
            info = value.nic().ok_or_else(|| Stop::Failed("the agent gave no device".into()))?;
            if info.state == 4 {
                return Ok(info);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Err(Stop::Failed(format!("the port of {} does not become active (state {})", info.name, info.state)))
    }

    /// How the row registers memory. Rows without RDMA do not ask.
    pub fn registration(&self) -> Registration {
        self.row.scenario.writer.registration().unwrap_or(Registration::Pinned)
    }

    /// Whether the row's device is ours, so that the ledger knows what it does.
    pub fn nic_is_ours(&self) -> bool {
        matches!(self.row.scenario.writer, Writer::Nic(_))
    }

    fn verbs(&self) -> Result<&Verbs, Stop> {
        self.verbs.as_ref().ok_or_else(|| Stop::Failed("this row has no RDMA device".into()))
    }

    /// QPN that work requests are posted on.
    pub fn qpn(&self) -> u32 {
        self.verbs.as_ref().map_or(0, |verbs| verbs.pair.qpns[0])
    }

    /// QPNs of the row's pairs; none without a device.
    pub fn qpns(&self) -> Vec<u32> {
        self.verbs.as_ref().map_or(Vec::new(), |verbs| [&verbs.pair.qpns, verbs.others.as_slice()].concat())
    }

    /// Another process has this pair too, or `ended` with it.
    pub fn note_pair(&mut self, pair: &PairInfo, ended: bool) {
        if let Some(verbs) = &mut self.verbs {
            verbs.others.retain(|qpn| !pair.qpns.contains(qpn));
            verbs.others.extend(pair.qpns.iter().filter(|_| !ended));
        }
    }

    // ---- memory ----

    /// Registers the file mapping as the row says; the errno where the kernel refuses.
    pub fn register(&mut self) -> Result<Result<MrInfo, i32>, Stop> {
        let (map, access) = (self.map, self.registration().access());
        let result = self.register_map(map, FILE_LEN, access)?;
        if let (Ok(mr), Some(verbs)) = (&result, &mut self.verbs) {
            verbs.mr = Some(*mr);
        }
        Ok(result)
    }

    /// Registers `len` bytes of any mapping.
    pub fn register_map(&self, map: u32, len: u64, access: u32) -> Result<Result<MrInfo, i32>, Stop> {
        let nic = self.verbs()?.nic;
        self.register_by(Op::Verbs(VerbsOp::Reg { nic, m: map, off: 0, len, access }))
    }

    /// Registers as `op` says, which another process may have to carry out.
    pub fn register_by(&self, op: Op) -> Result<Result<MrInfo, i32>, Stop> {
        self.mark("ibv_reg_mr begin");
        let result = self.guest.call(op);
        self.mark("ibv_reg_mr end");
        match result {
            Ok(value) => value.mr().map(Ok).ok_or_else(|| Stop::Failed("the agent gave no memory region".into())),
            Err(CallError::Failed(failure)) => Ok(Err(failure.errno)),
            Err(error) => Err(self.guest.stop_for("ibv_reg_mr", &error)),
        }
    }

    /// Takes `mr` for the registration under test.
    pub fn use_mr(&mut self, mr: MrInfo) {
        if let Some(verbs) = &mut self.verbs {
            verbs.mr = Some(mr);
        }
    }

    /// The key of the registration under test.
    pub fn rkey(&self) -> Result<u32, Stop> {
        Ok(self.mr()?.rkey)
    }

    fn mr(&self) -> Result<MrInfo, Stop> {
        self.verbs()?.mr.ok_or_else(|| Stop::Failed("nothing is registered yet".into()))
    }

    /// The agent's handle of the registration under test.
    pub fn mr_handle(&self) -> Result<u32, Stop> {
        self.mr().map(|mr| mr.handle)
    }

    /// Deregisters the file mapping.
    pub fn deregister(&mut self) -> Result<(), Stop> {
        let mr = self.mr()?.handle;
        self.mark("ibv_dereg_mr begin");
        self.guest.must(Op::Verbs(VerbsOp::Dereg { mr }))?;
        self.mark("ibv_dereg_mr end");
        Ok(())
    }

    /// Anonymous pinned memory.
    fn region(&self) -> Result<Region, Stop> {
        self.region_of(FILE_LEN)
    }

    fn region_of(&self, len: u64) -> Result<Region, Stop> {
        let map = self.guest.handle(Op::AnonBuffer { len, huge: false })?;
        let access = access::LOCAL_WRITE | access::REMOTE_WRITE | access::REMOTE_READ;
        let mr = self.register_map(map, len, access)?;
        let mr = mr.map_err(|errno| Stop::Failed(format!("anonymous memory cannot be registered: errno {errno}")))?;
        Ok(Region { map, mr })
    }

    /// The buffer whose page under test holds `tag`.
    fn source(&mut self, tag: char) -> Result<Region, Stop> {
        if let Some((_, region)) = self.verbs()?.sources.iter().find(|(known, _)| *known == tag) {
            return Ok(*region);
        }
        let region = self.region()?;
        let pattern = self.pattern(tag);
        self.guest.must(Op::Store { m: region.map, off: PAGE_AT, len: PAGE, pattern })?;
        if let Some(verbs) = &mut self.verbs {
            verbs.sources.push((tag, region));
        }
        Ok(region)
    }

    fn sink(&mut self) -> Result<Region, Stop> {
        if let Some(region) = self.verbs()?.sink {
            return Ok(region);
        }
        let region = self.region()?;
        if let Some(verbs) = &mut self.verbs {
            verbs.sink = Some(region);
        }
        Ok(region)
    }

    /// `len` bytes of registered anonymous memory, pinned: its mapping, and the registration.
    pub fn anonymous_map(&self, len: u64) -> Result<(u32, MrInfo), Stop> {
        self.region_of(len).map(|region| (region.map, region.mr))
    }

    /// The device's name.
    pub fn device_name(&self) -> Result<String, Stop> {
        Ok(self.verbs()?.info.name.clone())
    }

    /// The agent's handle of the device, for steps that measure.
    pub fn nic_handle(&self) -> Result<u32, Stop> {
        Ok(self.verbs()?.nic)
    }

    /// The agent's handle of the pair of queue pairs, for steps that measure.
    pub fn pair_handle(&self) -> Result<u32, Stop> {
        Ok(self.verbs()?.pair.handle)
    }

    /// `len` bytes of registered anonymous memory, pinned.
    pub fn anonymous(&self, len: u64) -> Result<MrInfo, Stop> {
        self.region_of(len).map(|region| region.mr)
    }

    // ---- work requests on the page under test ----

    fn wr(&self, kind: WrKind, local: Region) -> Result<Wr, Stop> {
        Ok(Wr {
            kind,
            end: 0,
            local: local.mr.handle,
            local_off: PAGE_AT,
            len: PAGE as u32,
            remote: self.mr()?.handle,
            remote_off: PAGE_AT,
            value: 0,
            swap: 0,
        })
    }

    /// Makes ready what a WRITE of `tag` needs, so that later steps map nothing.
    pub fn prepare_write(&mut self, tag: char) -> Result<(), Stop> {
        self.source(tag).map(drop)
    }

    /// RDMA WRITE of `tag` to the page under test, and its completion.
    pub fn rdma_write(&mut self, tag: char) -> Result<Completion, Stop> {
        let source = self.source(tag)?;
        let wr = self.wr(WrKind::Write, source)?;
        self.finish_wr(wr, &format!("RDMA WRITE {tag}"))
    }

    /// RDMA READ of the page under test: its completion, and what was read.
    pub fn rdma_read(&mut self) -> Result<(Completion, Content, FactId), Stop> {
        let sink = self.sink()?;
        let wr = self.wr(WrKind::Read, sink)?;
        let wc = self.finish_wr(wr, "RDMA READ")?;
        let value = self.guest.must(Op::Load { m: sink.map, off: PAGE_AT, len: PAGE })?;
        let content = value.content().ok_or_else(|| Stop::Failed("the agent gave no content".into()))?;
        let fact = self.seen("RDMA READ", "file", &Ok(content.clone()));
        Ok((wc, content, fact))
    }

    /// Posts a work request and waits for its completion.
    pub fn finish_wr(&mut self, wr: Wr, what: &str) -> Result<Completion, Stop> {
        let (p, limit_ms) = (self.verbs()?.pair.handle, COMPLETION_LIMIT.as_millis() as u32);
        self.finish_by(Op::Verbs(VerbsOp::Do { p, wr, limit_ms }), what)
    }

    /// The same, as `op` says, which another process may have to carry out.
    pub fn finish_by(&mut self, op: Op, what: &str) -> Result<Completion, Stop> {
        self.mark(&format!("{what} begin"));
        let result = self.guest.call(op);
        self.completion(what, result)
    }

    /// Posts an RDMA WRITE of `tag` and does not wait; the job that waits for its completion.
    pub fn start_write(&mut self, tag: char) -> Result<u32, Stop> {
        let source = self.source(tag)?;
        let wr = self.wr(WrKind::Write, source)?;
        let p = self.verbs()?.pair.handle;
        self.mark(&format!("RDMA WRITE {tag} posted"));
        self.guest.must(Op::Verbs(VerbsOp::Post { p, wr }))?;
        self.spawn(Op::Verbs(VerbsOp::Poll { p, end: 0, limit_ms: LONG_LIMIT.as_millis() as u32 }))
    }

    /// A peer that writes `tag` to the page under test again and again, or reads it where it may not write, until that fails; the job.
    pub fn start_stream(&mut self, tag: char) -> Result<u32, Stop> {
        let (kind, local) = match self.registration().writable() {
            true => (WrKind::Write, self.source(tag)?),
            false => (WrKind::Read, self.sink()?),
        };
        let (wr, p) = (self.wr(kind, local)?, self.verbs()?.pair.handle);
        self.mark(&format!("the peer's {kind:?}s begin"));
        let limit_ms = LONG_LIMIT.as_millis() as u32;
        self.spawn(Op::Verbs(VerbsOp::Batch { p, wr, count: ENDLESS, depth: 1, limit_ms, between: None }))
    }

    /// The completion that `job` waits for, if it comes within `limit`.
    pub fn wait_write(&mut self, job: u32, limit: Duration) -> Result<Option<Completion>, Stop> {
        let state = self.wait_job(job, limit)?;
        match state.result {
            None => Ok(None),
            Some(result) => self.completion("RDMA WRITE", result.map_err(CallError::Failed)).map(Some),
        }
    }

    fn completion(&mut self, what: &str, result: Result<Value, CallError>) -> Result<Completion, Stop> {
        match result {
            Ok(value) => {
                let wc = value.wc().ok_or_else(|| Stop::Failed("the agent gave no completion".into()))?;
                let at = self.mark(&format!("{what} completed: {}", status(&wc)));
                let fact = self.fact(at, What::completion(what, &wc));
                Ok(Completion { wc, fact })
            }
            Err(CallError::Failed(failure)) if failure.errno == libc::ETIMEDOUT => {
                Err(Stop::Inconclusive(format!("{what}: {}", failure.what)))
            }
            Err(error) => Err(self.guest.stop_for(what, &error)),
        }
    }

    /// What the mapping shows.
    pub fn load(&mut self) -> Result<(Content, FactId), Stop> {
        let value = self.guest.must(Op::Load { m: self.map, off: PAGE_AT, len: PAGE })?;
        let content = value.content().ok_or_else(|| Stop::Failed("the agent gave no content".into()))?;
        let fact = self.seen("the mapping", "file", &Ok(content.clone()));
        Ok((content, fact))
    }

    /// Puts on record what somebody read of the page under test of `file`.
    pub fn seen(&mut self, by: &str, file: &str, read: &Result<Content, i32>) -> FactId {
        self.now(What::Seen { by: by.into(), file: file.into(), at: PAGE_AT, found: crate::fact::Found::of(read) })
    }
}

/// A work request's completion.
#[derive(Debug, Clone)]
pub struct Completion {
    /// As the device gave it.
    pub wc: Wc,
    /// It is on record.
    pub fact: FactId,
}

impl Completion {
    /// Whether it is of a success.
    pub fn ok(&self) -> bool {
        self.wc.ok()
    }
}

/// "success", or the error in words with the device's own code.
fn status(wc: &Wc) -> String {
    if wc.ok() { "success".into() } else { format!("{} (vendor error {:#x})", wc.status, wc.vendor_err) }
}

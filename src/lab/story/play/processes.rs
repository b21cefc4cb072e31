// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Other processes of the agent. Each opens and maps the story's files itself, so that one page of the page cache is seen by several.

use std::collections::BTreeMap;
use std::time::Duration;

use rnic_agent::proto::{Advice as Madvice, JobState, MrInfo, Op, OpenFlags, Value};

use super::jobs::Effect;
use super::levers::Read;
use super::rdma::Device;
use super::stage::path_of;
use super::{Play, Running};
use crate::bench::{Bench, Disk, PAGE, PROMPT, SOURCE, errno_of};
use crate::fact::{FactId, What};
use crate::finding::Stop;
use crate::plan::Folio;
use crate::story::Story;
use crate::story::step::Step;

/// Longest wait for a read in another process: less than its agent waits for a step.
const READ_MS: u32 = 280_000;
/// From the order to kill to the signal, at most.
const SIGNAL: Duration = Duration::from_millis(100);

/// Who does a step; `None`: the agent's own process.
pub(super) type By<'a> = Option<&'a str>;

/// A file as a process has it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Opened {
    pub(super) handle: u32,
    pub(super) map: u32,
    /// The registration of the mapping.
    pub(super) mr: Option<MrInfo>,
}

/// A process beside the agent's own.
pub(super) struct Process {
    handle: u32,
    source: u32,
    files: BTreeMap<String, Opened>,
    device: Option<Device>,
}

impl Process {
    /// Starts one, with every file open and mapped, and the pages that its steps name touched.
    pub(super) fn start(bench: &mut Bench<'_>, story: &Story, name: &str) -> Result<Self, Stop> {
        let user = story.processes.get(name).is_some_and(|spec| spec.user);
        let handle = bench.guest.handle(Op::Process { user })?;
        if user {
            give_to_user(bench, story)?;
        }
        let within = |op: Op| bench.guest.must(Op::In { p: handle, op: Box::new(op) });
        let handle_of = |op: Op| {
            within(op)?.handle().ok_or_else(|| Stop::Failed(format!("the agent in process {name} gave no handle")))
        };
        let direct = OpenFlags { direct: true, ..Default::default() };
        let source = handle_of(Op::Open { path: SOURCE.into(), flags: direct })?;
        let mut files = BTreeMap::new();
        for (file, spec) in &story.files {
            let (len, flags) = (u64::from(spec.pages) * PAGE, OpenFlags { write: true, ..Default::default() });
            let h = handle_of(Op::Open { path: path_of(file, spec.memory), flags })?;
            if user {
                // Its new owner is on disk too.
                within(Op::Fsync { h })?;
            }
            let map = handle_of(Op::Mmap { h, off: 0, len, write: true, private: false })?;
            if bench.row().folio == Folio::Single {
                within(Op::Madvise { m: map, off: 0, len, advice: Madvice::Random })?;
            }
            files.insert(file.clone(), Opened { handle: h, map, mr: None });
        }
        let steps = || story.steps.iter().map(|step| step.get_ref()).filter(|step| step.process() == Some(name));
        for page in steps().filter_map(|step| step.page()).filter_map(|page| story.pages.get(page)) {
            let (m, off) = (files[&page.file].map, u64::from(page.at) * PAGE);
            within(Op::Touch { m, off, write: false })?;
        }
        let device = steps().any(Step::is_rdma).then(|| Device::open(bench, within)).transpose()?;
        if let Some(device) = &device {
            bench.note_pair(&device.pair, false);
        }
        Ok(Self { handle, source, files, device })
    }
}

impl Play<'_, '_> {
    fn process(&self, name: &str) -> Result<&Process, Stop> {
        self.processes.get(name).ok_or_else(|| Stop::Failed(format!("there is no process {name}")))
    }

    /// `op` in this process.
    pub(super) fn within(&self, by: By<'_>, op: Op) -> Result<Op, Stop> {
        let Some(name) = by else { return Ok(op) };
        Ok(Op::In { p: self.process(name)?.handle, op: Box::new(op) })
    }

    /// The file as this process has it.
    pub(super) fn opened(&self, by: By<'_>, file: &str) -> Result<Opened, Stop> {
        let Some(name) = by else { return self.file(file).map(|file| file.opened) };
        let opened = self.process(name)?.files.get(file).copied();
        opened.ok_or_else(|| Stop::Failed(format!("process {name} has no file {file}")))
    }

    /// The mapping of the file in this process has another registration now, or none.
    pub(super) fn registered(&mut self, by: By<'_>, file: &str, mr: Option<MrInfo>) {
        let opened = match by {
            None => self.files.get_mut(file).map(|file| &mut file.opened),
            Some(name) => self.processes.get_mut(name).and_then(|process| process.files.get_mut(file)),
        };
        if let Some(opened) = opened {
            opened.mr = mr;
        }
    }

    /// The RDMA device and the pair of queue pairs of this process.
    pub(super) fn device(&self, by: By<'_>) -> Result<(u32, u32), Stop> {
        let Some(name) = by else { return Ok((self.bench.nic_handle()?, self.bench.pair_handle()?)) };
        let device = self.process(name)?.device.as_ref().map(|device| (device.nic, device.pair.handle));
        device.ok_or_else(|| Stop::Failed(format!("process {name} has no RDMA device")))
    }

    /// The file of a page as this process has it, and the page's offset.
    pub(super) fn opened_at(&mut self, by: By<'_>, page: &str) -> Result<(Opened, u64), Stop> {
        let (file, at) = (self.place(page)?.file.clone(), self.place(page)?.at);
        Ok((self.opened(by, &file)?, at))
    }

    /// The disk that O_DIRECT reads come from, as this process has it.
    pub(super) fn source_of(&self, by: By<'_>) -> Result<u32, Stop> {
        by.map_or_else(|| Ok(self.bench.source_handle()), |name| Ok(self.process(name)?.source))
    }

    /// Starts a read, which is a job by itself. One of another process is a job there, and a job here waits for it.
    pub(super) fn start_read(&self, by: By<'_>, read: Op) -> Result<u32, Stop> {
        let job = self.bench.guest.handle(self.within(by, read)?)?;
        match by {
            None => Ok(job),
            Some(_) => self.bench.spawn(self.within(by, Op::Wait { job, limit_ms: READ_MS })?),
        }
    }

    /// A step of this process has failed: with an error of the kernel's, if the process is still there to tell.
    pub(super) fn is_there(&self, by: By<'_>) -> Result<(), Stop> {
        let Some(name) = by else { return Ok(()) };
        let answer = self.bench.guest.call(self.within(by, Op::Ping)?);
        answer.map(drop).map_err(|error| Stop::Failed(format!("process {name} does not answer: {error}")))
    }

    /// Starts those that were killed in the last round.
    pub(super) fn revive(&mut self) -> Result<(), Stop> {
        for name in self.story.processes.keys() {
            if !self.processes.contains_key(name) {
                let process = Process::start(self.bench, self.story, name)?;
                self.processes.insert(name.clone(), process);
            }
        }
        Ok(())
    }

    /// kill -9. A thread that waits for a disk ends after its request, so reads that are held go on once the signal has come.
    pub(super) fn kill(&mut self, name: &str) -> Result<(), Stop> {
        self.end_what_has_returned(name)?;
        let (p, what) = (self.process(name)?.handle, format!("kill -9 of process {name}"));
        let (begun, others): (BTreeMap<_, _>, _) =
            std::mem::take(&mut self.running).into_iter().partition(|(_, running)| running.by() == Some(name));
        self.running = others;
        self.bench.mark(&what);
        let job = self.bench.spawn(Op::Kill { p })?;
        self.bench.wait_job(job, SIGNAL)?;
        for running in begun.values() {
            if let Running::Read(Read { held: Some((lever, _)), .. }) = running {
                self.bench.release(Disk::Source, *lever)?;
            }
        }
        let state = self.bench.wait_job(job, PROMPT)?;
        match errno_of(&state) {
            None => return Err(self.bench.waits(&what, PROMPT)),
            Some(Err(errno)) => return Err(Stop::Failed(format!("{what}: errno {errno}"))),
            Some(Ok(())) => {}
        }
        let at = self.bench.mark(&format!("process {name} has ended"));
        let fact = self.bench.fact(at, What::Returned { step: what, errno: None });
        if let Some(device) = self.processes.remove(name).and_then(|process| process.device) {
            self.bench.note_pair(&device.pair, true);
        }
        self.bench.guest.must(Op::Close { h: p })?;
        begun.into_iter().try_for_each(|(name, running)| self.ends_with_it(&name, running, fact))
    }

    /// What had returned before the kill counts as it always does.
    fn end_what_has_returned(&mut self, process: &str) -> Result<(), Stop> {
        let jobs: Vec<_> = self.running.iter().filter(|(_, running)| running.by() == Some(process)).collect();
        let jobs: Vec<_> =
            jobs.into_iter().filter_map(|(name, running)| Some((name.clone(), running.job()?))).collect();
        for (name, job) in jobs {
            if self.bench.wait_job(job, Duration::ZERO)?.done {
                match self.running.get(&name) {
                    Some(Running::Read(_)) => self.finish(&name)?,
                    _ => self.wait(&name)?,
                }
            }
        }
        Ok(())
    }

    /// A step of a process that was killed. What it wrote may be there or not; it promised nothing.
    fn ends_with_it(&mut self, name: &str, running: Running, killed: FactId) -> Result<(), Stop> {
        let (page, write) = match running {
            Running::Read(read) => {
                if let Some((_, id)) = read.held {
                    self.aim(&read.page)?;
                    let record = self.bench.record(id)?;
                    let fact = self.bench.block(&record);
                    self.place(&read.page)?.trail.push(fact);
                }
                self.meet(&read.page);
                (read.page, name.to_owned())
            }
            Running::Job(job) => match job.effect {
                Effect::Store(page)
                | Effect::Replace { page, .. }
                | Effect::From { page, .. }
                | Effect::Rdma { page, .. } => (page, job.what),
                Effect::Fsync(_) | Effect::Writeback | Effect::Truncate { .. } | Effect::Nothing => return Ok(()),
            },
            Running::Hold { .. } | Running::Ring { .. } | Running::Pipe { .. } | Running::Ended => return Ok(()),
        };
        self.place(&page)?.model.abandon(&write);
        self.place(&page)?.trail.push(killed);
        // It may have put another page in its place.
        self.touch(None, &page)?;
        self.locate(None, &page)
    }

    /// Sees to it that a process has the page in its page tables.
    pub(super) fn touch(&mut self, by: By<'_>, page: &str) -> Result<(), Stop> {
        let (opened, off) = self.opened_at(by, page)?;
        let touch = self.within(by, Op::Touch { m: opened.map, off, write: false })?;
        self.bench.guest.must(touch).map(drop)
    }
}

/// The files are an ordinary user's, who may read the other disk and use RDMA devices, as on machines with udev.
fn give_to_user(bench: &Bench<'_>, story: &Story) -> Result<(), Stop> {
    let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut own = words(&["chown", "65534:65534"]);
    own.extend(story.files.iter().map(|(file, spec)| path_of(file, spec.memory)));
    let uverbs = "chmod a+rw /dev/infiniband/uverbs* 2>/dev/null || true";
    for argv in [own, words(&["chmod", "a+r", SOURCE]), words(&["sh", "-c", uverbs])] {
        let ended = bench.guest.must(Op::Exec { argv, stdin: String::new(), limit_s: 10 })?.exec();
        if let Some(failed) = ended.filter(|exec| exec.status != 0) {
            return Err(Stop::Failed(format!("giving the files to a user: {}", failed.err)));
        }
    }
    Ok(())
}

/// For texts: nothing, or whose it is.
pub(super) fn of(by: By<'_>) -> String {
    by.map_or_else(String::new, |name| format!(" of process {name}"))
}

/// What came of a read; see [`Play::start_read`].
pub(super) fn read_state(state: JobState) -> JobState {
    match state.result.as_deref() {
        Some(Ok(Value::Job(theirs))) => theirs.clone(),
        _ => state,
    }
}

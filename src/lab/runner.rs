// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Runs rows on kernels: two guests a kernel, rows told as they come.

mod attempts;
mod play;

use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

use super::expect::{self, Version};
use super::fact::{Facts, Role, What};
use super::finding::{Finding, Stop};
use super::guest::{Guest, GuestParts};
use super::plan::{DiskKind, Row, Writer};
use super::report::{Attempt, Figure, Report, RowResult};
use super::verdict::{Observed, Verdict};
use attempts::Attempts;
use image::KernelSource;
use mlx5::{EnginePolicy, NicConfig};
use play::play;

/// A kernel with what its guests need.
pub struct KernelPlan {
    /// The kernel.
    pub kernel: KernelSource,
    /// Its initramfs.
    pub initramfs: Arc<std::fs::File>,
    /// Its rows.
    pub rows: Vec<Row>,
}

/// What a run needs.
pub struct LabConfig {
    /// Kernels in the order they were asked for.
    pub kernels: Vec<KernelPlan>,
    /// Rows that have ended before, in another run: not run again, and part of the report.
    pub done: Vec<RowResult>,
    /// Kernels that run side by side, each with two guests of two vCPUs.
    pub jobs: usize,
    /// All nonces derive from it.
    pub seed: u64,
    /// Rows are negative controls: one that is none fails, and is not run.
    pub selftest: bool,
    /// A directory for disks; must exist.
    pub work: PathBuf,
    /// Copy guest consoles to standard error.
    pub verbose: bool,
}

/// News from a run.
pub enum News {
    /// Something slow began: kernel, what.
    Phase(String, String),
    /// A row ended.
    Row(Box<RowResult>),
    /// A kernel cannot be tested.
    Broken(String, String),
}

/// Runs everything; `tell` gets news as they come. Returns the report and, when `keep`, the last guest that is alive.
pub fn run(mut config: LabConfig, keep: bool, mut tell: impl FnMut(&News)) -> (Report, Option<Guest>) {
    let host = host_line();
    let seed = config.seed;
    let kept = Mutex::new(None);
    config.done.retain(|done| {
        let of =
            |plan: &KernelPlan| plan.rows.iter().any(|row| done.is_of(row, &plan.kernel.name, label(&plan.kernel)));
        config.kernels.iter().any(of)
    });
    let config = config;
    let mut rows = config.done.clone();
    let queue = Mutex::new(config.kernels.iter());
    std::thread::scope(|scope| {
        let (sender, receiver) = channel();
        for _ in 0..config.jobs.clamp(1, config.kernels.len().max(1)) {
            let (sender, queue, config, kept) = (sender.clone(), &queue, &config, &kept);
            scope.spawn(move || {
                loop {
                    let next = queue.lock().next();
                    let Some(plan) = next else { return };
                    let guest = run_kernel(config, plan, &sender);
                    if let Some(guest) = guest {
                        let mut slot = kept.lock();
                        match keep {
                            true => *slot = Some(guest),
                            false => guest.stop(),
                        }
                    }
                }
            });
        }
        drop(sender);
        for news in receiver {
            tell(&news);
            if let News::Row(row) = news {
                rows.push(*row);
            }
        }
    });
    let report = Report { rnic: env!("CARGO_PKG_VERSION").into(), host, seed, rows };
    (report, kept.into_inner())
}

/// A kernel's full version.
fn label(kernel: &KernelSource) -> &str {
    kernel.package_version.as_deref().unwrap_or(&kernel.release)
}

/// The upstream version of a kernel of ours, by which expectations go; `None` for a user's own.
pub fn version(kernel: &KernelSource) -> Option<Version> {
    kernel.package_version.as_deref().map(|named| expect::parse_version(named).unwrap_or_default())
}

/// The host as a report names it.
pub fn host_line() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let module =
        ["kvm_amd", "kvm_intel"].into_iter().find(|name| std::path::Path::new("/sys/module").join(name).exists());
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("", |text| text.trim_start_matches([' ', '\t', ':']));
    format!("Linux {}, {}, CPU {}", kernel.trim(), module.unwrap_or("no KVM module"), cpu.trim())
}

/// The guest under test, and the one that mounts what a power cut left.
struct Guests {
    test: Guest,
    witness: Guest,
}

/// Data path threads of a lab guest's NIC: an odd number, since a process's UAR pages come by eights and decide which engine serves it.
const ENGINES: u8 = 3;

/// Workers of a file system run beside the step that they race with, as on real machines. The witness, which only mounts, has one vCPU.
const TEST_CPUS: u8 = 2;

/// Where an attempt's number goes in its row's index, so that its data differ.
const RETRY_SHIFT: u32 = 32;

struct KernelRun<'a> {
    config: &'a LabConfig,
    rows: &'a [Row],
    parts: GuestParts,
    version: Version,
    known: bool,
    label: String,
    news: &'a Sender<News>,
}

fn run_kernel(config: &LabConfig, plan: &KernelPlan, news: &Sender<News>) -> Option<Guest> {
    let kernel = &plan.kernel;
    let parts = GuestParts {
        kernel: kernel.clone(),
        initramfs: plan.initramfs.clone(),
        work: config.work.clone(),
        verbose: config.verbose,
        cpus: TEST_CPUS,
        nic: None,
        pmem: false,
    };
    let named = kernel.package_version.as_deref();
    let run = KernelRun {
        config,
        rows: &plan.rows,
        parts,
        version: version(kernel).unwrap_or_default(),
        known: named.is_some(),
        label: label(kernel).to_string(),
        news,
    };
    run.rows()
}

impl KernelRun<'_> {
    fn name(&self) -> &str {
        &self.parts.kernel.name
    }

    fn tell(&self, news: News) {
        // The receiver outlives all senders' threads.
        drop(self.news.send(news));
    }

    fn phase(&self, what: &str) {
        self.tell(News::Phase(self.name().into(), what.into()));
    }

    fn rows(&self) -> Option<Guest> {
        let ended = |row: &Row| self.config.done.iter().any(|done| done.is_of(row, self.name(), &self.label));
        // Each row keeps its number, and with it its data, whichever of them have ended before.
        let rows: Vec<_> = self.rows.iter().zip(0..).filter(|(row, _)| !ended(row)).collect();
        let (rows, bare): (Vec<_>, Vec<_>) =
            rows.into_iter().partition(|(row, _)| !self.config.selftest || row.control.is_some());
        let why = "this row can say that all is well, and nothing shows that it would notice otherwise";
        self.not_run(&bare, Verdict::Missed, why);
        if rows.is_empty() {
            return None;
        }
        let mut guests = match self.boot_both() {
            Ok(guests) => guests,
            Err(stop) => {
                self.none_run(&rows, &stop);
                return None;
            }
        };
        for (at, &(row, index)) in rows.iter().enumerate() {
            let (observed, ended) = self.row(&mut guests, row, index);
            let last = at + 1 == rows.len();
            let renewed = if last { Ok(()) } else { self.renew(&mut guests, row, &observed) };
            self.tell(News::Row(Box::new(ended)));
            if let Err(stop) = renewed {
                self.none_run(&rows[at + 1..], &stop);
                return None;
            }
        }
        guests.witness.stop();
        Some(guests.test)
    }

    /// Runs a row, once more if its evidence was not enough or the kernel broke.
    fn row(&self, guests: &mut Guests, row: &Row, index: u64) -> (Observed, RowResult) {
        self.phase(&format!("{} {} on {} ({} folios)", row.scenario.id, row.scenario.mode, row.fs.name(), row.folio));
        let mut attempts = Attempts::default();
        let mut figures;
        loop {
            let (begun, number) = (Instant::now(), attempts.count());
            // Another attempt has other data.
            let nonce = nonce(self.config.seed, self.name(), index | number << RETRY_SHIFT);
            let played = play(&mut guests.test, &mut guests.witness, row, (nonce, number), &self.config.work);
            attempts.add(&played, begun.elapsed().as_secs_f64());
            figures = played.figures.clone();
            if !attempts.another() || self.renew(guests, row, &played.observed()).is_err() {
                break;
            }
        }
        let observed = attempts.observed();
        // What the next row finds depends on how the last attempt left the guests.
        let last = attempts.last();
        (last, self.result(row, &observed, attempts.list(), figures))
    }

    fn tag(&self, role: Role) -> String {
        format!("{}-{role}", self.name().replace('/', "_"))
    }

    fn boot_both(&self) -> Result<Guests, Stop> {
        // One after the other: two at once gain little, and are what an emulated host dies of (docs/findings.md).
        self.phase("booting the test guest");
        let test = self.boot(Role::Test)?;
        self.phase("booting the witness");
        Ok(Guests { test, witness: self.boot(Role::Witness)? })
    }

    /// Boots a guest; once more if it does not come up.
    fn boot(&self, role: Role) -> Result<Guest, Stop> {
        // The witness only mounts images. Without RDMA rows nobody needs a NIC.
        let rdma = role == Role::Test && self.rows.iter().any(|row| matches!(row.scenario.writer, Writer::Nic(_)));
        let parts = GuestParts {
            cpus: if role == Role::Test { TEST_CPUS } else { 1 },
            pmem: role == Role::Test && self.rows.iter().any(|row| row.disk == DiskKind::Pmem),
            nic: rdma.then(|| NicConfig { engines: EnginePolicy::Threads(ENGINES), ..NicConfig::default() }),
            ..self.parts.clone()
        };
        Guest::boot(&parts, role, &self.tag(role)).or_else(|stop| {
            log::warn!("{stop}; trying once more");
            Guest::boot(&parts, role, &self.tag(role))
        })
    }

    /// New guests in place of those that are gone, and of one whose kernel has complained or whose device was broken on purpose.
    fn renew(&self, guests: &mut Guests, row: &Row, after: &Observed) -> Result<(), Stop> {
        if row.control.is_some_and(|control| control.plant.spoils())
            || after.complained
            || after.verdict.is_collapse()
            || !guests.test.alive()
        {
            self.phase("booting a new test guest");
            self.replace(&mut guests.test, Role::Test)?;
        }
        if !guests.witness.alive() {
            self.phase("booting a new witness");
            self.replace(&mut guests.witness, Role::Witness)?;
        }
        Ok(())
    }

    fn replace(&self, guest: &mut Guest, role: Role) -> Result<(), Stop> {
        std::mem::replace(guest, self.boot(role)?).stop();
        Ok(())
    }

    /// No guest, no rows: each is told as not run, the reason once.
    fn none_run(&self, rows: &[(&Row, u64)], why: &Stop) {
        self.tell(News::Broken(self.name().into(), why.to_string()));
        self.not_run(rows, Verdict::Inconclusive, "not run: this kernel's guests did not come up");
    }

    fn not_run(&self, rows: &[(&Row, u64)], verdict: Verdict, why: &str) {
        for (row, _) in rows {
            let mut facts = Facts::default();
            let fact = facts.add(0, What::Unsound { why: why.into(), check: None });
            let finding = Finding::new(verdict, fact, []);
            let observed = finding.observed();
            let findings = vec![(&finding).into()];
            let attempt = Attempt { observed: observed.to_string(), facts, findings, ..Attempt::default() };
            self.tell(News::Row(Box::new(self.result(row, &observed, vec![attempt], Vec::new()))));
        }
    }

    fn result(&self, row: &Row, observed: &Observed, attempts: Vec<Attempt>, figures: Vec<Figure>) -> RowResult {
        let expected = match self.known {
            _ if self.config.selftest => Some(expect::CAUGHT),
            true => expect::expected(row, self.version),
            false => None,
        };
        RowResult { figures, ..RowResult::new(row, self.name(), &self.label, expected, observed, attempts) }
    }
}

/// A nonce that no other row of this or another run has, except under the same seed.
fn nonce(seed: u64, kernel: &str, index: u64) -> u64 {
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(index + 1);
    for byte in kernel.bytes() {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    state
}

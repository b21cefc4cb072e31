// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One job at a kernel: its two guests, renewed when a row has left them spoilt, and the rows that it takes from the queue.

use parking_lot::Mutex;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use super::attempts::Attempts;
use super::nonce::nonce;
use super::play::{Data, play};
use super::queue::Queue;
use super::{LabConfig, News, label, version};
use crate::bench::outlasts;
use crate::campaign::Numbered;
use crate::expect::{self, Version};
use crate::fact::{Facts, Role, What};
use crate::finding::{Finding, Stop};
use crate::guest::{Guest, GuestParts, MadeDisks};
use crate::plan::{DiskKind, Row, Writer};
use crate::report::{Attempt, Figure, RowResult};
use crate::verdict::{Observed, Verdict};
use inject::Outcome;
use mlx5::{EnginePolicy, NicConfig};

/// The guest under test, and the one that mounts what a power cut left.
struct Guests {
    test: Guest,
    witness: Guest,
}

/// How a row left the guest under test.
struct Left {
    observed: Observed,
    /// A device may not be what it was.
    spoilt: bool,
}

/// Whether a row that ran under these injections leaves a device that may not be what it was.
fn spoils(row: &Row, injections: &[Outcome]) -> bool {
    row.control.is_some_and(|control| control.plant.spoils()) || injections.iter().any(outlasts)
}

/// Data path threads of a lab guest's NIC: an odd number, since a process's UAR pages come by eights and decide which engine serves it.
const ENGINES: u8 = 3;

/// Workers of a file system run beside the step that they race with, as on real machines. The witness, which only mounts, has one vCPU.
const TEST_CPUS: u8 = 2;

/// A job at a kernel.
pub(super) struct KernelRun<'a> {
    config: &'a LabConfig,
    /// Its place among the kernels.
    at: usize,
    parts: GuestParts,
    version: Version,
    known: bool,
    label: String,
    news: &'a Sender<News>,
}

impl<'a> KernelRun<'a> {
    /// At kernel number `at` of the configuration.
    pub(super) fn new(config: &'a LabConfig, at: usize, news: &'a Sender<News>) -> Self {
        let kernel = &config.kernels[at].kernel;
        let parts = GuestParts {
            kernel: kernel.clone(),
            initramfs: config.kernels[at].initramfs.clone(),
            work: config.work.clone(),
            verbose: config.verbose,
            cpus: TEST_CPUS,
            nic: None,
            pmem: false,
            setting: config.setting.clone(),
            made: MadeDisks::default(),
        };
        let (version, known) = (version(kernel).unwrap_or_default(), kernel.package_version.is_some());
        Self { config, at, parts, version, known, label: label(kernel).to_string(), news }
    }
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

    /// Takes rows until there are none left. Its guest under test, if that is alive at the end.
    pub(super) fn rows(&self, queue: &Mutex<Queue>) -> Option<Guest> {
        let mut next = self.take(queue);
        let ended = match next {
            Some(_) => self.boot_both().and_then(|mut guests| {
                while let Some(row) = next {
                    let after = self.run(&mut guests, row);
                    next = self.take(queue);
                    if next.is_some() {
                        self.renew(&mut guests, &after)?;
                    }
                }
                guests.witness.stop();
                Ok(guests.test)
            }),
            None => {
                queue.lock().leave(self.at);
                return None;
            }
        };
        match ended {
            Ok(guest) => {
                queue.lock().leave(self.at);
                Some(guest)
            }
            Err(stop) => {
                let rows = {
                    let mut queue = queue.lock();
                    next.into_iter().for_each(|row| queue.put_back(self.at, row));
                    queue.give_up(self.at)
                };
                self.none_run(&rows, &stop);
                None
            }
        }
    }

    /// The next row that can run. One that the self-test wants and that has no control fails at once.
    fn take(&self, queue: &Mutex<Queue>) -> Option<Numbered> {
        loop {
            let row = queue.lock().next(self.at)?;
            if !self.config.setting.selftest || row.1.control.is_some() {
                return Some(row);
            }
            let why = "this row can say that all is well, and nothing shows that it would notice otherwise";
            self.not_run(&[row], Verdict::Missed, why);
        }
    }

    /// Runs a row, once more if its evidence was not enough or the kernel broke, unless a plan had a hand in it. What the next row finds depends
    /// on how the last attempt left the guests.
    fn run(&self, guests: &mut Guests, (number, row): Numbered) -> Left {
        let seeded = row.seed.map_or_else(String::new, |seed| format!(", seed {seed}"));
        self.phase(&format!("{row}{seeded}"));
        let seed = row.seed.unwrap_or(self.config.seed);
        let deadline =
            self.config.setting.row_limit.and_then(|limit| Instant::now().checked_add(Duration::from_secs(limit)));
        let mut attempts = Attempts::default();
        let (mut figures, mut left);
        loop {
            let begun = Instant::now();
            // Another attempt has other data.
            let nonce = nonce(seed, self.name(), &row, attempts.count());
            let data = Data {
                nonce,
                attempt: attempts.count(),
                plan: self.config.plan.as_ref().map(|plan| (plan, seed)),
                cuts: self.config.setting.cuts,
                deadline,
            };
            let played = play(&mut guests.test, &mut guests.witness, &row, &data, &self.config.work);
            attempts.add(&played, begun.elapsed().as_secs_f64());
            left = Left { observed: played.observed(), spoilt: spoils(&row, &played.injections) };
            figures = played.figures;
            let time = deadline.is_none_or(|end| Instant::now() < end);
            if !attempts.another() || !time || self.renew(guests, &left).is_err() {
                break;
            }
        }
        let (observed, injections) = (attempts.observed(), attempts.injections());
        let result = self.result((number, &row), &observed, attempts.list(), figures).under_plan(injections, &observed);
        self.tell(News::Row(Box::new(result)));
        left
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
        // The witness only mounts images. Without RDMA rows, and a plan that is of a NIC, nobody needs one.
        let rows = || self.config.kernels[self.at].rows.iter().map(|(_, row)| row);
        let planned = self.config.plan.as_ref().is_some_and(inject::Plan::is_of_nic);
        let rdma = role == Role::Test && (planned || rows().any(|row| matches!(row.scenario.writer, Writer::Nic(_))));
        let parts = GuestParts {
            cpus: if role == Role::Test { TEST_CPUS } else { 1 },
            pmem: role == Role::Test && rows().any(|row| row.disk == DiskKind::Pmem),
            nic: rdma.then(|| NicConfig { engines: EnginePolicy::Threads(ENGINES), ..NicConfig::default() }),
            ..self.parts.clone()
        };
        Guest::boot(&parts, role, &self.tag(role)).or_else(|stop| {
            log::warn!("{stop}; trying once more");
            Guest::boot(&parts, role, &self.tag(role))
        })
    }

    /// New guests in place of those that are gone, and of one whose kernel has complained or whose device was broken on purpose.
    fn renew(&self, guests: &mut Guests, after: &Left) -> Result<(), Stop> {
        let Left { observed, spoilt } = after;
        if *spoilt || observed.complained || observed.verdict.is_collapse() || !guests.test.alive() {
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
    fn none_run(&self, rows: &[Numbered], why: &Stop) {
        self.tell(News::Broken(self.name().into(), why.to_string()));
        self.not_run(rows, Verdict::Inconclusive, "not run: this kernel's guests did not come up");
    }

    fn not_run(&self, rows: &[Numbered], verdict: Verdict, why: &str) {
        for (number, row) in rows {
            let mut facts = Facts::default();
            let fact = facts.add(0, What::Unsound { why: why.into(), check: None });
            let finding = Finding::new(verdict, fact, []);
            let observed = finding.observed();
            let findings = vec![(&finding).into()];
            let attempt = Attempt { observed: observed.to_string(), facts, findings, ..Attempt::default() };
            self.tell(News::Row(Box::new(self.result((*number, row), &observed, vec![attempt], Vec::new()))));
        }
    }

    fn result(
        &self,
        (number, row): (u64, &Row),
        observed: &Observed,
        attempts: Vec<Attempt>,
        figures: Vec<Figure>,
    ) -> RowResult {
        let expected = match self.known {
            _ if self.config.setting.selftest => Some(expect::CAUGHT),
            true => expect::expected(row, self.version),
            false => None,
        };
        let result = RowResult::new(row, self.name(), &self.label, expected, observed, attempts);
        RowResult { figures, number: Some(number), ..result }
    }
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Runs rows on kernels: two guests a job, rows told as they come.

mod attempts;
mod kernel;
mod nonce;
mod play;
mod queue;

use parking_lot::Mutex;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use super::campaign::{Numbered, Setting, Shard};
use super::expect::{self, Version};
use super::guest::Guest;
use super::journal::build;
use super::report::{Report, RowResult};
use image::KernelSource;
use inject::Plan;
use kernel::KernelRun;
use queue::Queue;

/// A kernel with what its guests need.
pub struct KernelPlan {
    /// The kernel.
    pub kernel: KernelSource,
    /// Its initramfs.
    pub initramfs: Arc<std::fs::File>,
    /// Its rows, each with its number in the whole run.
    pub rows: Vec<Numbered>,
}

/// What a run needs.
pub struct LabConfig {
    /// Kernels in the order they were asked for.
    pub kernels: Vec<KernelPlan>,
    /// Rows that have ended before, in another run: not run again, and part of the report.
    pub done: Vec<RowResult>,
    /// Rows that run side by side, each job with two guests of its own.
    pub jobs: usize,
    /// All nonces of rows without a seed of their own derive from it.
    pub seed: u64,
    /// What all rows run under.
    pub setting: Setting,
    /// The plan of the setting, read.
    pub plan: Option<Plan>,
    /// Which part of a run the rows are.
    pub shard: Option<Shard>,
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
    let kept = Mutex::new(None);
    let (mut rows, left) = sort_out(&config.kernels, std::mem::take(&mut config.done));
    let (config, queue) = (config, Mutex::new(Queue::new(left)));
    std::thread::scope(|scope| {
        let (sender, receiver) = channel();
        for _ in 0..config.jobs.max(1) {
            let (sender, queue, config, kept) = (sender.clone(), &queue, &config, &kept);
            scope.spawn(move || {
                for guest in job(config, queue, &sender) {
                    match keep {
                        true => drop(kept.lock().replace(guest).map(Guest::stop)),
                        false => guest.stop(),
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
    (report(config, rows), kept.into_inner())
}

/// The report, as one job would have made it.
fn report(config: LabConfig, mut rows: Vec<RowResult>) -> Report {
    rows.sort_by_key(|row| row.number);
    let LabConfig { seed, setting, plan, shard, .. } = config;
    let plan = plan.map(|plan| format!("{} ({})", plan.path.display(), plan.title));
    let (rnic, host) = (env!("CARGO_PKG_VERSION").into(), host_line());
    Report { rnic, build: build(), host, seed, plan, setting, shard, missing: Vec::new(), rows }
}

/// What has ended before, with its number in this run, and what is left of each kernel's rows. A row that ended twice counts once; one
/// that is none of this run's does not count.
fn sort_out(kernels: &[KernelPlan], done: Vec<RowResult>) -> (Vec<RowResult>, Vec<Vec<Numbered>>) {
    let mut by_name: HashMap<_, Vec<RowResult>> = HashMap::new();
    for row in done {
        by_name.entry((row.scenario.clone(), row.mode.clone(), row.seed)).or_default().push(row);
    }
    let mut ended = Vec::new();
    let left = kernels.iter().map(|KernelPlan { kernel, rows, .. }| {
        let runs = |&(number, row): &Numbered| {
            let name = (row.scenario.id.into(), row.scenario.mode.into(), row.seed);
            let Some(rows) = by_name.get_mut(&name) else { return true };
            let Some(at) = rows.iter().position(|one| one.is_of(&row, &kernel.name, label(kernel))) else {
                return true;
            };
            ended.push(RowResult { number: Some(number), ..rows.swap_remove(at) });
            false
        };
        rows.iter().copied().filter(runs).collect()
    });
    let left = left.collect();
    (ended, left)
}

/// One job: kernel after kernel, as long as there is work. Yields its guests as it leaves them.
fn job<'a>(
    config: &'a LabConfig,
    queue: &'a Mutex<Queue>,
    news: &'a Sender<News>,
) -> impl Iterator<Item = Guest> + use<'a> {
    let join = || queue.lock().join();
    std::iter::from_fn(join).filter_map(move |at| KernelRun::new(config, at, news).rows(queue))
}

/// A kernel's full version.
pub fn label(kernel: &KernelSource) -> &str {
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

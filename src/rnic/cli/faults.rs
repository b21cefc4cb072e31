// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `--faults`: a plan of injections, from the command line to the report at the end.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use inject::{Plan, Summary};
use lab::machine::Devices;
use probe::firings;

use super::host::Errand;
use super::lab::clock_seed;

/// Firings that are printed one by one.
const SHOWN: usize = 20;

/// Options of every command that takes a plan.
#[derive(Debug, Default, Args)]
pub struct FaultArgs {
    /// A plan of injections: devices misbehave as it says (docs/faults.md).
    #[arg(long, value_name = "FILE")]
    pub faults: Option<PathBuf>,
    /// What the plan's probabilities are drawn by [default: from the clock].
    #[arg(long)]
    pub seed: Option<u64>,
    /// Exit status 1 if an injection of the plan never fired.
    #[arg(long)]
    pub require_fired: bool,
}

/// A plan that is to be carried out.
#[derive(Debug, Clone)]
pub struct Faults {
    /// The plan.
    pub plan: Plan,
    /// What is drawn by.
    pub seed: u64,
    required: bool,
}

impl FaultArgs {
    /// The plan, if one was given.
    pub fn read(&self) -> Result<Option<Faults>, super::Error> {
        let Some(path) = &self.faults else {
            // Not clap's to check: the plan may be named in the file of --config.
            return match self.seed.is_some() || self.require_fired {
                true => Err("--seed and --require-fired are of a plan: name one with --faults".into()),
                false => Ok(None),
            };
        };
        let (plan, seed) = (Plan::read(path)?, self.seed.unwrap_or_else(clock_seed));
        Ok(Some(Faults { plan, seed, required: self.require_fired }))
    }

    /// What an emulated host needs for it: the file, and the same seed.
    pub fn pack(&self, errand: &mut Errand, faults: Option<&Faults>) {
        errand.reads.extend(self.faults.clone());
        if let Some(faults) = faults.filter(|_| self.seed.is_none()) {
            errand.options.extend(["--seed".into(), faults.seed.to_string().into()]);
        }
    }
}

impl Faults {
    /// Says on standard error what became of the plan. The exit status where one is required that never fired.
    pub fn report(&self, devices: &Devices) -> Option<ExitCode> {
        let summary = devices.injected(&self.plan);
        let Plan { path, title, .. } = &self.plan;
        eprintln!("rnic: injections of {} ({title}), seed {}\n{summary}", path.display(), self.seed);
        let all = firings(&devices.ledger, 0);
        for firing in all.iter().take(SHOWN) {
            let (number, device, name, matched) = (firing.number, &firing.device, &firing.name, firing.matched);
            eprintln!("#{number} {device} {name}: {} (match {matched})", firing.occasion);
        }
        if all.len() > SHOWN {
            eprintln!("and {} more", all.len() - SHOWN);
        }
        let idle = idle(&summary).filter(|_| self.required)?;
        eprintln!("rnic: {idle}");
        Some(ExitCode::FAILURE)
    }
}

/// A sentence about injections that never fired, if there are any.
pub fn idle(summary: &Summary) -> Option<String> {
    let idle = summary.idle().map(|one| format!("{} (line {}, {} matches)", one.name, one.line, one.matched));
    let idle: Vec<_> = idle.collect();
    (!idle.is_empty()).then(|| format!("what --require-fired wants to see never fired: {}", idle.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_goes_with_a_plan_and_into_an_emulated_host() {
        let none = FaultArgs { seed: Some(1), ..FaultArgs::default() };
        assert!(none.read().unwrap_err().to_string().contains("name one with --faults"));
        assert!(FaultArgs::default().read().unwrap().is_none());
        let plan = concat!(env!("CARGO_MANIFEST_DIR"), "/../../faults/no-resources.toml");
        let packed = |seed| {
            let args = FaultArgs { faults: Some(plan.into()), seed, require_fired: false };
            let (mut errand, faults) = (Errand::default(), args.read().unwrap());
            args.pack(&mut errand, faults.as_ref());
            (errand.options, faults.unwrap().seed)
        };
        assert_eq!(packed(Some(7)), (Vec::new(), 7), "it is among the words already");
        let (options, drawn) = packed(None);
        assert_eq!(options, ["--seed".into(), std::ffi::OsString::from(drawn.to_string())]);
    }
}

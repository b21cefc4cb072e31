// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Processes: they are there, and nobody asks one that was killed.

use std::collections::BTreeMap;

use super::{Checker, Mistake, Named, there_are};
use crate::story::Story;
use crate::story::step::Step;

/// Processes beside the agent's own: each is one more agent in the guest's memory.
const MAX_PROCESSES: usize = 4;

pub(super) fn check(story: &Story) -> Result<(), Mistake> {
    let count = story.processes.len();
    if count <= MAX_PROCESSES {
        return Ok(());
    }
    let what = format!("there are {count} processes; {MAX_PROCESSES} will do beside the agent's own");
    Err(Mistake::new(0, "processes", what))
}

impl Checker<'_> {
    /// The process that does a step, or that it is done to.
    pub(super) fn process(&self, step: &Step) -> Result<(), Mistake> {
        step.process().map_or(Ok(()), |name| self.is_process("process", name))
    }

    /// The process that `key` names is there.
    pub(super) fn is_process(&self, key: &str, name: &str) -> Result<(), Mistake> {
        if !self.story.processes.contains_key(name) {
            let there_are = there_are(self.story.processes.keys());
            return Err(self.mistake(key, format!("there is no process \"{name}\"; {there_are}")));
        }
        let kills = |step: &Step| matches!(step, Step::Kill(kill) if kill.process == name);
        if self.before().any(kills) {
            return Err(self.mistake(key, format!("an earlier step has killed process \"{name}\"")));
        }
        Ok(())
    }

    /// What a process that is killed had begun has ended with it.
    pub(super) fn kill(&self, process: &str, names: &mut BTreeMap<String, Named>) {
        let of_it = |name: &str| self.before().filter(|step| step.name() == Some(name)).last().and_then(Step::process);
        names.retain(|name, _| of_it(name) != Some(process));
    }
}

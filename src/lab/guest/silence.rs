// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that has stopped working, and what it still says.

use std::sync::atomic::Ordering;

use rnic_agent::client::CallError;
use rnic_agent::proto::{Op, Value};

use super::Guest;
use crate::complaints::{self, Complaint};
use crate::fact::Role;
use crate::finding::{Silence, Stop};
use vmm::Console;

/// Lines kept of a console's end.
const MAX_TAIL: usize = 30;
/// What the lab's own lines in a kernel's log begin with.
pub const SPOKEN: &str = "rnic-lab: line";
/// Lines kept of a dump of blocked tasks.
const MAX_DUMP: usize = 60;

impl Guest {
    /// A call's failure as a stop: the guest's end explains it better than the call can.
    pub fn stop_for(&self, step: &str, error: &CallError) -> Stop {
        match (self.vm.outcome(), error) {
            _ if self.vm.has_panicked() => Stop::Panicked(Box::new(self.silence(step, "panicked"))),
            (Some(outcome), _) => {
                Stop::Failed(format!("{outcome} during {step}; its console ends: {}", tail(&self.console)))
            }
            _ if self.silent.load(Ordering::Relaxed) => {
                let places = [self.vm.whereabouts(), self.vm.whereabouts()].concat();
                Stop::Silent(Box::new(Silence { places, ..self.silence(step, "fell silent") }))
            }
            // Not the guest's fault, as far as anybody knows: whoever takes its file system down next finds out.
            (None, CallError::Timeout(_)) if self.out_of_time() => {
                Stop::Inconclusive(format!("the row's time was over (--row-limit) during {step}"))
            }
            (None, CallError::Timeout(_)) => self.hung(step),
            (None, _) => Stop::Failed(format!("step {step}: {error}")),
        }
    }

    /// A step does not return and nothing is held that it may wait for; the kernel is asked which tasks are blocked.
    pub fn hung(&self, step: &str) -> Stop {
        self.give_up();
        let blocked = self.blocked_tasks();
        Stop::Hung(Box::new(Silence { blocked, ..self.silence(step, "answers, and its step does not return") }))
    }

    fn silence(&self, during: &str, why: &str) -> Silence {
        let (guest, during, why) = (self.role, during.into(), why.into());
        Silence { guest, during, why, console: tail(&self.console), blocked: Vec::new(), places: Vec::new() }
    }

    /// Which tasks wait in the kernel, and where (sysrq-w). Empty if the guest does not say.
    pub fn blocked_tasks(&self) -> Vec<String> {
        let dump = || {
            let mark = self.call(Op::DmesgMark).ok()?.num()?;
            self.call(Op::WriteSys { path: "/proc/sysrq-trigger".into(), text: "w".into() }).ok()?;
            match self.call(Op::DmesgSince { mark, level: 7 }).ok()? {
                Value::Lines(lines) => Some(lines.lines),
                _ => None,
            }
        };
        let text = |line: &String| line.split_once('>').map_or(line.as_str(), |(_, text)| text).trim().to_string();
        // The task and its calls; registers and guesses of the unwinder are nobody's evidence.
        let tells = |line: &String| line.starts_with("task:") || line.contains("+0x") && !line.starts_with('?');
        dump().unwrap_or_default().iter().map(text).filter(tells).take(MAX_DUMP).collect()
    }

    /// What its kernel has said since the last time that somebody asked, and counts; and whether a line that the lab itself had put into the
    /// kernel's log just before was heard. Without it, that nothing was said means nothing.
    pub fn hear(&self) -> (Vec<Complaint>, bool) {
        let line = format!("{SPOKEN} {}", self.spoken.fetch_add(1, Ordering::Relaxed));
        let spoke = self.call(Op::WriteSys { path: "/dev/kmsg".into(), text: format!("<6>{line}\n") }).is_ok();
        let (mut said, mark) = match self.deaf.load(Ordering::Relaxed) {
            true => (Vec::new(), self.heard.load(Ordering::Relaxed)),
            false => complaints::since(self, self.heard.load(Ordering::Relaxed)),
        };
        self.heard.fetch_max(mark, Ordering::Relaxed);
        let heard = said.iter().any(|complaint| complaint.line == line);
        said.retain(|complaint| !complaint.line.starts_with(SPOKEN));
        // Of a guest that does not answer its console tells.
        (said, heard || !spoke)
    }

    /// For a plant: from now on nothing is heard; or all again.
    pub fn deafen(&self, deaf: bool) {
        self.deaf.store(deaf, Ordering::Relaxed);
    }

    /// Whether it is the one under test.
    pub fn role(&self) -> Role {
        self.role
    }
}

/// The last lines of a console.
pub(super) fn tail(console: &Console) -> String {
    let text = console.text();
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(MAX_TAIL)..].join("\n")
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Injections that come and go while a machine runs. They are read as a plan is (docs/faults.md), so that a mistake has its sentence.

use std::collections::BTreeSet;
use std::path::Path;

use inject::Plan;
use probe::{Action, MAX_RULES, Match, Rule, Rules, firings_page};
use serde::Serialize;
use serde_json::{Value, json};

use super::events;
use super::orders::Machine;
use super::protocol::Args;
use crate::cli::lab::clock_seed;

/// What the text of an order is called in its mistakes.
const UNNAMED: &str = "the plan";

impl Machine {
    /// The order `fault-list`: what is armed, what was, and firings by pages.
    pub(super) fn fault_list(&self, mut args: Args) -> Result<Value, String> {
        let (since, limit) = events::page(&mut args)?;
        let now = self.devices.ledger.now();
        let (mut rules, mut disarmed) = (Vec::new(), Vec::new());
        for (index, nic) in self.nics().enumerate() {
            list(nic.injections(), &format!("nic{index}"), &mut rules, &mut disarmed);
        }
        for (index, disk) in self.disks().iter().enumerate() {
            list(disk.injections(), &format!("disk{index}"), &mut rules, &mut disarmed);
        }
        let found = firings_page(&self.devices.ledger, since, limit);
        let mut firings: Vec<_> = found.iter().map(|firing| (firing.seq, json!(firing))).collect();
        let next = events::next(&mut firings, limit, since, now);
        let firings: Vec<Value> = firings.into_iter().map(|(_, firing)| firing).collect();
        Ok(json!({"rules": rules, "disarmed": disarmed, "firings": firings, "next": next}))
    }

    /// The order `fault-arm`: all injections of a plan, or none.
    pub(super) fn fault_arm(&self, mut args: Args) -> Result<Value, String> {
        let (text, objects) = (args.text("plan")?, args.objects("inject")?);
        let seed = args.number("seed", u64::MAX)?;
        let file = args.text("file")?.unwrap_or_else(|| UNNAMED.into());
        let text = match (text, objects) {
            (Some(text), None) => text,
            // Read as TOML, too: there is one reader.
            (None, Some(objects)) => toml::to_string(&json!({"inject": objects}))
                .map_err(|error| format!("\"inject\" cannot be written as TOML: {error}"))?,
            _ => {
                return Err(
                    "fault-arm needs either \"plan\", a text in TOML, or \"inject\", a table or a list of them".into(),
                );
            }
        };
        let _changes = self.changes.lock();
        let first = self.injections.load(std::sync::atomic::Ordering::Acquire) + 1;
        let plan = Plan::parse_numbered(Path::new(&file), &text, first).map_err(|error| error.to_string())?;
        plan.fits(self.nics().count(), self.disks().len()).map_err(|error| error.to_string())?;
        self.check_names(&plan)?;
        let seed = seed.unwrap_or_else(clock_seed);
        self.check_room(&plan, seed)?;
        self.number(plan.injections.len());
        let mut armed = Vec::new();
        for (index, nic) in (0..).zip(self.nics()) {
            add(nic.injections(), plan.nic_rules(index, seed), &format!("nic{index}"), &mut armed);
        }
        for (index, disk) in (0..).zip(self.disks()) {
            add(disk.injections(), plan.disk_rules(index, seed), &format!("disk{index}"), &mut armed);
        }
        Ok(json!({"armed": armed, "seed": seed}))
    }

    /// The order `fault-disarm`: those of a name, or all.
    pub(super) fn fault_disarm(&self, mut args: Args) -> Result<Value, String> {
        let (name, all) = (args.text("name")?, args.flag("all")?);
        if name.is_some() == all {
            return Err("fault-disarm needs either \"name\" or \"all\": true".into());
        }
        let _changes = self.changes.lock();
        let wanted = |other: &str| name.as_ref().is_none_or(|name| name == other);
        let mut disarmed = Vec::new();
        for (index, nic) in self.nics().enumerate() {
            remove(nic.injections(), wanted, &format!("nic{index}"), &mut disarmed);
        }
        for (index, disk) in self.disks().iter().enumerate() {
            remove(disk.injections(), wanted, &format!("disk{index}"), &mut disarmed);
        }
        match name.filter(|_| disarmed.is_empty()) {
            Some(name) => {
                let names: Vec<_> = self.names().into_iter().collect();
                let there =
                    if names.is_empty() { "none is armed".into() } else { format!("armed are {}", names.join(", ")) };
                Err(format!("no injection is named {name:?}: {there}"))
            }
            None => Ok(json!({"disarmed": disarmed})),
        }
    }

    /// Names of all that are armed.
    fn names(&self) -> BTreeSet<String> {
        let nics = self.nics().flat_map(|nic| nic.injections().rules()).map(|rule| rule.name);
        let disks = self.disks().iter().flat_map(|disk| disk.injections().rules()).map(|rule| rule.name);
        nics.chain(disks).collect()
    }

    fn check_names(&self, plan: &Plan) -> Result<(), String> {
        let names = self.names();
        match plan.injections.iter().find(|injection| names.contains(&injection.name)) {
            None => Ok(()),
            Some(taken) => Err(format!(
                "{}, line {}: \"name\" is that of an injection that is armed already: {} (disarm it, or choose another)",
                plan.path.display(),
                taken.line,
                taken.name
            )),
        }
    }

    fn check_room(&self, plan: &Plan, seed: u64) -> Result<(), String> {
        let full = |device: String, there: usize, more: usize| match there + more > MAX_RULES {
            true => Err(format!("{device} has {there} injections and room for {MAX_RULES}: disarm some first")),
            false => Ok(()),
        };
        for (index, nic) in (0..).zip(self.nics()) {
            full(format!("nic{index}"), nic.injections().rules().len(), plan.nic_rules(index, seed).len())?;
        }
        for (index, disk) in (0..).zip(self.disks()) {
            full(format!("disk{index}"), disk.injections().rules().len(), plan.disk_rules(index, seed).len())?;
        }
        Ok(())
    }
}

fn describe<M: Serialize, A: Serialize>(rule: &Rule<M, A>, device: &str) -> Value {
    let mut told = json!(rule);
    if let Some(keys) = told.as_object_mut() {
        // What is not given says nothing.
        keys.retain(|_, value| !value.is_null());
        keys.insert("device".into(), device.into());
    }
    told
}

fn list<M, A>(rules: &Rules<M, A>, device: &str, armed: &mut Vec<Value>, disarmed: &mut Vec<Value>)
where
    M: Match + Serialize,
    A: Action + Serialize,
{
    armed.extend(rules.rules().iter().map(|rule| describe(rule, device)));
    disarmed.extend(rules.removed().iter().map(|rule| describe(rule, device)));
}

fn add<M: Match, A: Action>(rules: &Rules<M, A>, new: Vec<Rule<M, A>>, device: &str, armed: &mut Vec<Value>) {
    for rule in new {
        let name = rule.name.clone();
        if let Some(id) = rules.add(rule) {
            armed.push(json!({"device": device, "id": id, "name": name}));
        }
    }
}

fn remove<M: Match, A: Action>(
    rules: &Rules<M, A>,
    wanted: impl Fn(&str) -> bool,
    device: &str,
    disarmed: &mut Vec<Value>,
) {
    for rule in rules.rules().iter().filter(|rule| wanted(&rule.name)) {
        if let Some(rule) = rules.remove(rule.id) {
            let (id, name, matched, fired) = (rule.id, rule.name, rule.matched, rule.fired);
            disarmed.push(json!({"device": device, "id": id, "name": name, "matched": matched, "fired": fired}));
        }
    }
}

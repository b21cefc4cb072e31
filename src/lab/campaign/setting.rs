// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What all rows of a run run under, beside kernel and seed.

use std::path::{Path, PathBuf};

use inject::{Plan, PlanError};
use serde::{Deserialize, Serialize};

use crate::bench::Cuts;

/// A plan as it was read: a report that has it can be replayed without the file.
#[derive(Debug, Clone, Eq, Serialize, Deserialize)]
pub struct PlanText {
    /// The file.
    pub path: PathBuf,
    /// What is in it.
    pub text: String,
}

impl PartialEq for PlanText {
    /// A plan that lies elsewhere is the same plan.
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl PlanText {
    /// Reads a file, and what it says.
    ///
    /// # Errors
    /// It cannot be read, or something is wrong in it.
    pub fn read(path: &Path) -> Result<(Self, Plan), PlanError> {
        let text = std::fs::read_to_string(path).map_err(|error| PlanError::Read { path: path.into(), error })?;
        let plan = Self { path: path.into(), text };
        Ok((plan.clone(), plan.plan()?))
    }

    /// What it says.
    ///
    /// # Errors
    /// Something is wrong in it.
    pub fn plan(&self) -> Result<Plan, PlanError> {
        Plan::parse(&self.path, &self.text)
    }
}

/// What all rows of a run run under. Names in JSON are stable.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Setting {
    /// The plan of injections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanText>,
    /// Appended to the kernel command line of both guests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// RAM of the guest under test in bytes, where it is not the usual.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Further options of mkfs, of each file system under test.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mkfs: Option<String>,
    /// Further options of mount(8).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mount: Option<String>,
    /// Seconds after which a row is ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub row_limit: Option<u64>,
    /// Power cuts that a row makes where it asks what one leaves.
    #[serde(skip_serializing_if = "Cuts::are_two")]
    pub cuts: Cuts,
    /// Rows are negative controls.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub selftest: bool,
}

impl Setting {
    /// Whether nothing is special.
    pub fn is_usual(&self) -> bool {
        *self == Self::default()
    }

    /// The first option by which two of them differ.
    pub fn differs(&self, other: &Self) -> Option<&'static str> {
        let same = [
            ("--faults", self.plan == other.plan),
            ("--cmdline", self.cmdline == other.cmdline),
            ("--memory", self.memory == other.memory),
            ("--mkfs", self.mkfs == other.mkfs),
            ("--mount", self.mount == other.mount),
            ("--row-limit", self.row_limit == other.row_limit),
            ("--cuts", self.cuts == other.cuts),
            ("--selftest", self.selftest == other.selftest),
        ];
        same.iter().find(|(_, same)| !same).map(|(option, _)| *option)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: &str = "title = 't'\n[[inject]]\ndevice = 'disk1'\naction = 'io-error'\n";

    #[test]
    fn a_difference_is_named_by_its_option() {
        let text = |text: &str| Some(PlanText { path: "a.toml".into(), text: text.into() });
        let usual = Setting::default();
        let others = [
            Setting { plan: text(PLAN), ..Setting::default() },
            Setting { cmdline: Some("quiet".into()), ..Setting::default() },
            Setting { memory: Some(1 << 30), ..Setting::default() },
            Setting { mkfs: Some("-b 4096".into()), ..Setting::default() },
            Setting { mount: Some("data=journal".into()), ..Setting::default() },
            Setting { row_limit: Some(60), ..Setting::default() },
            Setting { cuts: Cuts::All, ..Setting::default() },
            Setting { selftest: true, ..Setting::default() },
        ];
        let named: Vec<_> = others.iter().map(|other| usual.differs(other).unwrap()).collect();
        assert_eq!(named.join(" "), "--faults --cmdline --memory --mkfs --mount --row-limit --cuts --selftest");
        assert!(others.iter().all(|other| !other.is_usual() && other.differs(other).is_none()));
        let elsewhere = PlanText { path: "b.toml".into(), text: PLAN.into() };
        assert_eq!(others[0].differs(&Setting { plan: Some(elsewhere), ..Setting::default() }), None);
        assert_eq!(others[0].differs(&Setting { plan: text("other"), ..Setting::default() }), Some("--faults"));
    }

    #[test]
    fn it_is_read_again_and_what_is_usual_is_not_written() {
        let usual = serde_json::to_string(&Setting::default()).unwrap();
        assert_eq!(usual, "{}");
        let plan = PlanText { path: "a.toml".into(), text: PLAN.into() };
        assert_eq!(plan.plan().unwrap().title, "t");
        let setting = Setting { plan: Some(plan), memory: Some(1 << 30), selftest: true, ..Setting::default() };
        let again: Setting = serde_json::from_str(&serde_json::to_string(&setting).unwrap()).unwrap();
        assert_eq!(again, setting);
    }
}

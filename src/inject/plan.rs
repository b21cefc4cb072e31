// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A plan: read, checked, and turned into rules for the devices of a machine.

use std::fmt;
use std::path::{Path, PathBuf};

use blk::DiskRule;
use mlx5::hooks::NicRule;
use probe::{Chance, Rule};
use serde::Deserialize;
use thiserror::Error;
use toml::Spanned;

use crate::keys::{Keys, Mistake, Raw};
use crate::nth::Nth;
use crate::words::{COMMON, Does, Word, disk_match, nic_match, words};

/// At most this many injections a plan: a table of rules has room for them.
const MAX_INJECTIONS: usize = 64;

/// Kinds of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// An RDMA NIC.
    Nic,
    /// A disk.
    Disk,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nic => "nic",
            Self::Disk => "disk",
        })
    }
}

/// Which devices: "nic", all of them; "nic1", the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Of which kind.
    pub kind: Kind,
    /// Its number in the machine, from 0; `None`: each of them.
    pub index: Option<u8>,
}

impl Device {
    fn parse(text: &str) -> Option<Self> {
        [Kind::Nic, Kind::Disk].into_iter().find_map(|kind| {
            let index = text.strip_prefix(&kind.to_string())?;
            let index = if index.is_empty() { None } else { Some(index.parse().ok()?) };
            Some(Self { kind, index })
        })
    }

    fn is(self, kind: Kind, index: u8) -> bool {
        self.kind == kind && self.index.is_none_or(|own| own == index)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            Some(index) => write!(f, "{}{index}", self.kind),
            None => write!(f, "{}", self.kind),
        }
    }
}

/// One injection of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Injection {
    /// Its name, which no other of the plan has.
    pub name: String,
    /// Line of the plan at which it begins.
    pub line: usize,
    /// Where.
    pub device: Device,
    /// Name of the action.
    pub action: &'static str,
    ruled: Ruled,
    /// On which match; drawn anew for each device and seed.
    nth: Nth,
    /// Part of the matches, in millionths.
    ppm: Option<u32>,
}

impl Injection {
    /// The name of the injection that has to fire before this one's matches count.
    fn after(&self) -> Option<&str> {
        match &self.ruled {
            Ruled::Nic(rule) => rule.after.as_deref(),
            Ruled::Disk(rule) => rule.after.as_deref(),
        }
    }
}

/// Rows of the lab that a plan is meant for: what `rnic lab` runs under it where the command line names none. Empty: any.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Meant {
    /// Scenarios.
    pub scenario: Vec<String>,
    /// Modes.
    pub mode: Vec<String>,
    /// File systems.
    pub fs: Vec<String>,
    /// Folio sizes.
    pub folio: Vec<String>,
    /// Kernels by name.
    pub kernel: Vec<String>,
}

/// As a rule, without name and chance.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Ruled {
    Nic(NicRule),
    Disk(DiskRule),
}

/// A plan that cannot be used. Each is one sentence.
#[derive(Debug, Error)]
pub enum PlanError {
    /// The file cannot be read.
    #[error("{}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Something is wrong in it.
    #[error("{}, line {line}: {what}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What, with the key.
        what: String,
    },
}

/// A plan of injections.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The file that it is from.
    pub path: PathBuf,
    /// What it is, in a person's words.
    pub title: String,
    /// In the order of the file.
    pub injections: Vec<Injection>,
    /// Its table `[lab]`.
    pub meant: Meant,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanFile {
    #[serde(default)]
    title: String,
    #[serde(default)]
    inject: Vec<Spanned<Raw>>,
    #[serde(default)]
    lab: Meant,
}

impl Plan {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or something is wrong in it.
    pub fn read(path: &Path) -> Result<Self, PlanError> {
        let text = std::fs::read_to_string(path).map_err(|error| PlanError::Read { path: path.into(), error })?;
        Self::parse(path, &text)
    }

    /// Reads a file's text.
    ///
    /// # Errors
    /// Something is wrong in it.
    pub fn parse(path: &Path, text: &str) -> Result<Self, PlanError> {
        Self::parse_numbered(path, text, 1)
    }

    /// The same for a plan that comes after others: injections without a name are called by numbers from `first` on.
    ///
    /// # Errors
    /// Something is wrong in it.
    pub fn parse_numbered(path: &Path, text: &str, first: usize) -> Result<Self, PlanError> {
        let wrong = |line, what| PlanError::Wrong { path: path.into(), line, what };
        let line = |at: usize| text.bytes().take(at).filter(|&byte| byte == b'\n').count() + 1;
        let file: PlanFile = toml::from_str(text).map_err(|error| {
            let what = error.message().lines().collect::<Vec<_>>().join(", ");
            wrong(error.span().map_or(1, |span| line(span.start)), what)
        })?;
        if file.inject.is_empty() || file.inject.len() > MAX_INJECTIONS {
            let what =
                format!("a plan has 1 to {MAX_INJECTIONS} tables [[inject]], and this one {}", file.inject.len());
            return Err(wrong(1, what));
        }
        let mut injections: Vec<Injection> = Vec::new();
        for (number, table) in (first..).zip(file.inject) {
            let keys = Keys::new(table);
            let begins = line(keys.at());
            let injection = injection(keys, (number, begins)).map_err(|mistake| {
                let Mistake { at, key, what } = mistake;
                let what = if key.is_empty() { format!("this injection {what}") } else { format!("\"{key}\" {what}") };
                wrong(line(at), what)
            })?;
            if let Some(other) = injections.iter().find(|other| other.name == injection.name) {
                let what = format!("\"name\" is that of the injection in line {} already: {}", other.line, other.name);
                return Err(wrong(begins, what));
            }
            injections.push(injection);
        }
        if let Some((line, what)) = injections.iter().find_map(|injection| out_of_order(injection, &injections)) {
            return Err(wrong(line, what));
        }
        Ok(Self { path: path.into(), title: file.title, injections, meant: file.lab })
    }

    /// Whether a machine with so many devices has those that are named.
    ///
    /// # Errors
    /// One is not there.
    pub fn fits(&self, nics: usize, disks: usize) -> Result<(), PlanError> {
        let Some((Injection { device, line, .. }, count)) = self.missing(nics, disks) else { return Ok(()) };
        let kind = device.kind;
        let what = format!("\"device\" is {device}, and the machine has {count} of that kind (--{kind} adds one)");
        Err(PlanError::Wrong { path: self.path.clone(), line: *line, what })
    }

    /// The first injection whose device a machine with so many does not have, and how many of that kind it has.
    pub fn missing(&self, nics: usize, disks: usize) -> Option<(&Injection, usize)> {
        let count = |injection: &Injection| if injection.device.kind == Kind::Nic { nics } else { disks };
        let lacks = |injection: &&Injection| count(injection) <= injection.device.index.map_or(0, usize::from);
        self.injections.iter().find(lacks).map(|injection| (injection, count(injection)))
    }

    /// Whether it is for NICs at all.
    pub fn is_of_nic(&self) -> bool {
        self.injections.iter().any(|injection| injection.device.kind == Kind::Nic)
    }

    /// Rules for NIC number `index`; whatever is drawn is drawn by `seed`.
    pub fn nic_rules(&self, index: u8, seed: u64) -> Vec<NicRule> {
        let rules = self.of(Kind::Nic, index, seed).filter_map(|(injection, nth, chance)| match &injection.ruled {
            Ruled::Nic(rule) => Some(Rule { name: injection.name.clone(), nth, chance, ..rule.clone() }),
            Ruled::Disk(_) => None,
        });
        rules.collect()
    }

    /// The same for disk number `index`.
    pub fn disk_rules(&self, index: u8, seed: u64) -> Vec<DiskRule> {
        let rules = self.of(Kind::Disk, index, seed).filter_map(|(injection, nth, chance)| match &injection.ruled {
            Ruled::Disk(rule) => Some(Rule { name: injection.name.clone(), nth, chance, ..rule.clone() }),
            Ruled::Nic(_) => None,
        });
        rules.collect()
    }

    fn of(&self, kind: Kind, index: u8, seed: u64) -> impl Iterator<Item = (&Injection, u32, Option<Chance>)> {
        let own = (0..).zip(&self.injections).filter(move |(_, injection)| injection.device.is(kind, index));
        own.map(move |(number, injection): (u64, _)| {
            // Two injections, and two devices with the same one, draw apart.
            let seed = seed ^ (number << 8 | u64::from(index)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (injection, injection.nth.drawn(seed), injection.ppm.map(|ppm| Chance { ppm, seed }))
        })
    }
}

/// What is wrong with what it comes after: it would wait for ever.
fn out_of_order(injection: &Injection, all: &[Injection]) -> Option<(usize, String)> {
    let mut after = injection.after()?;
    for _ in all {
        let Some(other) = all.iter().find(|other| other.name == after) else {
            let what = format!("must be the name of another injection of this plan, and none is called {after}");
            return Some((injection.line, format!("\"after\" {what}")));
        };
        after = other.after()?;
    }
    Some((injection.line, "\"after\" leads in a circle: each of them would wait for another".into()))
}

/// One table.
fn injection(mut keys: Keys, (number, line): (usize, usize)) -> Result<Injection, Mistake> {
    let name = keys.text("name")?.unwrap_or_else(|| format!("injection {number}"));
    let missing = |keys: &Keys, key: &str, what: &str| keys.mistake(format!("needs the key \"{key}\": {what}"));
    let device = keys.word("device", ["nic", "nic0", "disk", "disk0", "and so on"], Device::parse)?;
    let device = device.ok_or_else(|| missing(&keys, "device", "nic or disk, or one of them, such as disk1"))?;
    let own = || words().iter().filter(move |word| word.kind == device.kind);
    let word = keys.word("action", own().map(|word| word.name), |name| own().find(|word| word.name == name))?;
    let word: &Word = word.ok_or_else(|| missing(&keys, "action", "what the device does (docs/faults.md)"))?;
    let ruled = match (word.make)(&mut keys)? {
        Does::Nic(action) => Ruled::Nic(counted(&mut keys, nic_match, action, word)?),
        Does::Disk(action) => Ruled::Disk(counted(&mut keys, disk_match, action, word)?),
    };
    let nth = keys.nth("nth")?.unwrap_or(Nth::Fixed(0));
    let ppm = keys.probability("probability")?;
    let known: Vec<&str> =
        COMMON.into_iter().chain(word.takes.iter().map(|(key, _)| *key)).chain(word.matches.iter().copied()).collect();
    keys.end(&known)?;
    Ok(Injection { name, line, device, action: word.name, ruled, nth, ppm })
}

/// The rule without what a seed draws: what it happens to, and on which of the matches.
fn counted<M: Default, A>(
    keys: &mut Keys,
    matches: fn(&mut Keys, &Word) -> Result<M, Mistake>,
    action: A,
    word: &Word,
) -> Result<Rule<M, A>, Mistake> {
    let what = matches(keys, word)?;
    let (every, within_ms, after) =
        (keys.number("every")?.unwrap_or(0), keys.number("within_ms")?, keys.text("after")?);
    // On which match, and which part, is drawn for each device and seed.
    Ok(Rule { what, every, within_ms, after, ..Rule::new(0, action) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use blk::{BlkOp, DiskAction, RequestMatch};
    use mlx5::hooks::{NicAction, WqeMatch};
    use mlx5_spec::cmd::Opcode;

    fn plan(text: &str) -> Result<Plan, String> {
        Plan::parse(Path::new("plan.toml"), text).map_err(|error| error.to_string())
    }

    const BOTH: &str = "title = 'two'\n\
        [[inject]]\nname = 'hang'\ndevice = 'nic0'\naction = 'command-hang'\ncommand = 'CREATE_QP'\nnth = 2\n\
        [[inject]]\ndevice = 'disk'\naction = 'io-error'\nop = 'write'\nlba = [8, 16]\nprobability = 0.25\n";

    #[test]
    fn a_plan_becomes_rules_of_the_devices_that_it_names() {
        let plan = plan(BOTH).unwrap();
        let hang = NicRule::new(2, NicAction::CommandHang).on(WqeMatch::command(Opcode::CREATE_QP));
        assert_eq!(plan.nic_rules(0, 7), [Rule { name: "hang".into(), ..hang }]);
        assert_eq!(plan.nic_rules(1, 7), []);
        let rules = [0, 1].map(|index| plan.disk_rules(index, 7).pop().unwrap());
        let what = RequestMatch { lba: Some(8..16), ..BlkOp::Write.into() };
        assert_eq!(
            (&rules[0].what, rules[0].action, rules[0].name.as_str()),
            (&what, DiskAction::Status(1), "injection 2")
        );
        let chances = rules.map(|rule| rule.chance.unwrap());
        assert!(chances.iter().all(|chance| chance.ppm == 250_000));
        assert_ne!(chances[0].seed, chances[1].seed, "two disks draw apart");
        assert_eq!(plan.disk_rules(0, 7)[0].chance, Some(chances[0]), "a seed gives the same rules");
        assert_ne!(plan.disk_rules(0, 8)[0].chance, Some(chances[0]));
    }

    #[test]
    fn a_mistake_is_one_sentence_with_line_and_key() {
        let nic = |rest: &str| format!("[[inject]]\ndevice = 'nic'\n{rest}");
        for (text, line, word) in [
            ("", 1, "1 to 64 tables"),
            ("titel = 'x'\n[[inject]]\n", 1, "titel"),
            ("[[inject]]\naction = 'io-error'\n", 1, "needs the key \"device\""),
            ("[[inject]]\ndevice = 'gpu'\n", 2, "\"device\" must be one of"),
            (&nic("action = 'io-error'\n"), 3, "\"action\" must be one of command-status"),
            (&nic("action = 'command-delay'\n"), 1, "needs the key \"ms\""),
            (&nic("action = 'command-delay'\nms = -1\n"), 4, "\"ms\" must be a whole number"),
            (&nic("action = 'command-status'\nstatus = 'BAD'\n"), 4, "\"status\" must be one of INTERNAL_ERR"),
            (&nic("action = 'command-hang'\nprobabilty = 0.5\n"), 4, "\"probabilty\" is no key here"),
            (&nic("action = 'command-hang'\nprobability = 2\n"), 4, "\"probability\" must be a number from 0 to 1"),
            // Of a page fault's event the opcode is not known: such a condition would mean nothing.
            (&nic("action = 'fault-event-lost'\nopcode = 'SEND'\n"), 4, "\"opcode\" is no key here"),
            ("[[inject]]\ndevice = 'disk'\naction = 'io-error'\nlba = [8, 8]\n", 4, "\"lba\" must be [first, end]"),
            (
                &format!("{BOTH}[[inject]]\nname = 'hang'\ndevice = 'nic'\naction = 'strict-arm'\n"),
                14,
                "line 2 already",
            ),
            (&nic("action = 'command-hang'\nnth = [0, 3]\n"), 4, "\"nth\" must be a whole number, or [first, last]"),
            (&nic("action = 'command-hang'\nname = 'a'\nafter = 'a'\n"), 1, "\"after\" leads in a circle"),
            (
                &format!(
                    "{}{}",
                    nic("action = 'strict-arm'\nname = 'a'\nafter = 'b'\n"),
                    nic("action = 'command-hang'\nname = 'b'\nafter = 'a'\n")
                ),
                1,
                "\"after\" leads in a circle",
            ),
            (&format!("{BOTH}[[inject]]\ndevice = 'nic'\naction = 'strict-arm'\nafter = 'hung'\n"), 14, "called hung"),
            ("[[inject]]\ndevice = 'nic\n", 2, ""),
        ] {
            let said = plan(text).unwrap_err();
            assert!(said.starts_with(&format!("plan.toml, line {line}: ")) && said.contains(word), "{text}\n{said}");
            assert!(!said.contains('\n'), "{said}");
        }
    }

    #[test]
    fn one_injection_comes_after_another_at_an_address() {
        let text = format!(
            "{BOTH}[[inject]]\ndevice = 'nic'\naction = 'late-dma'\naddress = [0x1000, 0x3000]\nafter = 'injection 2'\n"
        );
        let rules = plan(&text).unwrap().nic_rules(0, 1);
        assert_eq!((rules[0].after.as_deref(), rules[1].after.as_deref()), (None, Some("injection 2")));
        assert_eq!(rules[1].what, WqeMatch { address: Some(0x1000..0x3000), ..WqeMatch::default() });
    }

    #[test]
    fn a_disk_s_requests_are_meant_by_the_page_under_test() {
        let rule = |value| {
            let text = format!("[[inject]]\ndevice = 'disk'\naction = 'torn-write'\nsectors = 1\nwatched = {value}\n");
            plan(&text).map(|plan| plan.disk_rules(0, 1)[0].what.watched)
        };
        assert_eq!((rule("true"), rule("false")), (Ok(true), Ok(false)));
        assert!(rule("1").unwrap_err().contains("line 5: \"watched\" must be"));
    }

    #[test]
    fn a_seed_draws_where_it_strikes() {
        let plan = plan("[[inject]]\ndevice = 'disk'\naction = 'io-error'\nnth = [3, 12]\n").unwrap();
        let nth = |disk, seed| plan.disk_rules(disk, seed)[0].nth;
        assert!((0..50).all(|seed| (3..=12).contains(&nth(1, seed)) && nth(1, seed) == nth(1, seed)));
        assert!((0..50).any(|seed| nth(1, seed) != nth(1, 0)), "seeds differ");
        assert!((0..50).any(|seed| nth(1, seed) != nth(2, seed)), "two disks draw apart");
    }

    #[test]
    fn a_plan_says_for_which_rows_it_is() {
        let text = format!("{BOTH}[lab]\nscenario = ['H01']\nmode = ['odp', 'pinned']\nkernel = ['7.3']\n");
        let meant = plan(&text).unwrap().meant;
        assert_eq!(
            (meant.scenario, meant.mode.len(), meant.kernel, meant.fs),
            (vec!["H01".into()], 2, vec!["7.3".into()], Vec::<String>::new())
        );
        let said = plan(&format!("{BOTH}[lab]\nscenarios = ['H01']\n")).unwrap_err();
        assert!(said.starts_with("plan.toml, line 15: ") && said.contains("scenarios"), "{said}");
    }

    #[test]
    fn what_has_no_name_is_called_by_a_number_that_goes_on() {
        let plan = Plan::parse_numbered(Path::new("p"), BOTH, 4).unwrap();
        assert_eq!(plan.injections.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["hang", "injection 5"]);
    }

    #[test]
    fn a_device_that_is_not_there_is_said() {
        let plan = plan(BOTH).unwrap();
        assert!(plan.fits(1, 1).is_ok());
        let said = plan.fits(0, 1).unwrap_err().to_string();
        assert!(said.contains("line 2") && said.contains("nic0") && said.contains("--nic adds one"), "{said}");
        assert!(plan.fits(1, 0).is_err());
    }

    #[test]
    fn every_plan_that_is_shipped_can_be_read() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../faults");
        let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
        assert!(!files.is_empty());
        for path in files {
            let plan = Plan::read(&path).unwrap();
            assert!(!plan.title.is_empty(), "{}", path.display());
        }
    }
}

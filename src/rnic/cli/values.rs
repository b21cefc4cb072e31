// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Option values in the style of cloud-hypervisor: `size=1G`, `path=disk.img,readonly=on`. The TOML file says the same with the
//! same names.

use std::path::PathBuf;
use std::str::FromStr;

use blk::DiskConfig;
use mlx5::{Model, NicConfig};
use pmem::PmemConfig;
use serde::Deserialize;

/// A number of bytes: "512M", "1G", "4096".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
            "" => 0,
            "K" => 10,
            "M" => 20,
            "G" => 30,
            unit => return Err(format!("unknown unit {unit:?} in size {text:?}; use K, M or G")),
        };
        let number: u64 =
            digits.parse().map_err(|_| format!("{text:?} is not a size; write for example 512M or 1G"))?;
        number.checked_mul(1 << shift).map(Size).ok_or_else(|| format!("size {text:?} is too large"))
    }
}

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// `--memory size=1G` (or just `1G`).
pub fn memory(text: &str) -> Result<Size, String> {
    text.strip_prefix("size=").unwrap_or(text).parse()
}

/// A disk, as `--disk path=…,readonly=on` or as a `[[disk]]` table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Raw image or block device.
    pub path: PathBuf,
    /// Refuse writes.
    #[serde(default)]
    pub readonly: bool,
    /// Queues, 1 to 8.
    #[serde(default = "one")]
    pub queues: u16,
    /// Serial number the guest sees.
    #[serde(default)]
    pub serial: String,
}

fn one() -> u16 {
    1
}

impl FromStr for Disk {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut disk = Disk { path: PathBuf::new(), readonly: false, queues: 1, serial: String::new() };
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("path", path)) => disk.path = path.into(),
                Some(("readonly", value)) => disk.readonly = switch(value)?,
                Some(("queues", n)) => disk.queues = n.parse().map_err(|_| format!("queues={n} is not a number"))?,
                Some(("serial", serial)) => disk.serial = serial.into(),
                _ => {
                    return Err(format!("{part:?} is not an option of a disk; use path=, readonly=, queues=, serial="));
                }
            }
        }
        if disk.path.as_os_str().is_empty() {
            return Err("a disk needs path=FILE".into());
        }
        Ok(disk)
    }
}

/// Persistent memory, as `--pmem size=256M`, `--pmem path=FILE,size=256M` or as a `[[pmem]]` table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pmem {
    /// The file whose bytes it has; without one, a temporary file.
    pub path: Option<PathBuf>,
    /// Its size, where no file says it.
    pub size: Option<Size>,
}

impl FromStr for Pmem {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut pmem = Pmem { path: None, size: None };
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("path", path)) if !path.is_empty() => pmem.path = Some(path.into()),
                Some(("size", size)) => pmem.size = Some(size.parse()?),
                _ => return Err(format!("{part:?} is not an option of persistent memory; use size=SIZE or path=FILE")),
            }
        }
        Ok(pmem)
    }
}

impl From<Pmem> for PmemConfig {
    fn from(pmem: Pmem) -> Self {
        PmemConfig { path: pmem.path, size: pmem.size.map(|size| size.0) }
    }
}

fn switch(value: &str) -> Result<bool, String> {
    match value {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err(format!("{value:?} is neither on nor off")),
    }
}

fn hot(value: &str) -> Result<bool, String> {
    match value {
        "hot" => Ok(true),
        "exit" => Ok(false),
        _ => Err(format!("{value:?} is neither doorbells=hot nor doorbells=exit")),
    }
}

impl From<Disk> for DiskConfig {
    fn from(disk: Disk) -> Self {
        DiskConfig { readonly: disk.readonly, queues: disk.queues, serial: disk.serial, ..DiskConfig::new(disk.path) }
    }
}

/// The NIC, as `--nic odp=off,model=cx5,log=commands` or as a `[nic]` table with the same names.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "NicTable")]
pub struct Nic(NicConfig);

impl Nic {
    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "odp" => self.0.odp = switch(value)?,
            "model" => self.0.model = model(value)?,
            "log" => self.0.log_commands = command_log(value)?,
            "engines" => self.0.engines = value.parse()?,
            "doorbells" => self.0.hot_doorbells = hot(value)?,
            _ => {
                return Err(format!(
                    "{name:?} is not an option of the NIC; use odp=, model=, log=, engines=, doorbells="
                ));
            }
        }
        Ok(())
    }
}

impl FromStr for Nic {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut nic = Nic::default();
        for part in text.split(',').filter(|_| !text.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            nic.set(name, value)?;
        }
        Ok(nic)
    }
}

impl From<Nic> for NicConfig {
    fn from(nic: Nic) -> Self {
        nic.0
    }
}

/// `engines = 2` or `engines = "inline"`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Engines {
    Count(u8),
    Policy(String),
}

/// The `[nic]` table of the TOML file.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct NicTable {
    odp: Option<bool>,
    model: Option<String>,
    log: Option<String>,
    engines: Option<Engines>,
    doorbells: Option<String>,
}

impl TryFrom<NicTable> for Nic {
    type Error = String;

    fn try_from(table: NicTable) -> Result<Self, String> {
        let mut nic = Nic::default();
        let odp = table.odp.map(|odp| String::from(if odp { "on" } else { "off" }));
        let engines = table.engines.map(|engines| match engines {
            Engines::Count(count) => count.to_string(),
            Engines::Policy(policy) => policy,
        });
        let all = [
            ("odp", odp),
            ("model", table.model),
            ("log", table.log),
            ("engines", engines),
            ("doorbells", table.doorbells),
        ];
        for (name, value) in all {
            value.map_or(Ok(()), |value| nic.set(name, &value))?;
        }
        Ok(nic)
    }
}

fn model(value: &str) -> Result<Model, String> {
    let found = Model::ALL.iter().find(|(_, name, _)| *name == value);
    found.map(|(model, ..)| *model).ok_or_else(|| {
        let all = Model::ALL.map(|(_, name, id)| format!("model={name} (15b3:{id:x})"));
        format!("{value:?} is not a model of the NIC; use {}", all.join(" or "))
    })
}

fn command_log(value: &str) -> Result<bool, String> {
    match value {
        "commands" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("{value:?} is nothing that the NIC can log; use log=commands or log=off")),
    }
}

/// What follows when the guest asks for a reset: `exit`, `restart`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Reboot {
    /// The run ends with a status of its own.
    Exit,
    /// The machine is reset and the guest boots again.
    Restart,
}

impl FromStr for Reboot {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "exit" => Ok(Reboot::Exit),
            "restart" => Ok(Reboot::Restart),
            _ => Err(format!("{text:?} is nothing that can follow a reset; use exit or restart")),
        }
    }
}

impl TryFrom<String> for Reboot {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Where the console goes: `tty`, `null`, `file=PATH`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Serial {
    /// This terminal.
    Tty,
    /// Nowhere.
    Null,
    /// A file.
    File(PathBuf),
}

impl FromStr for Serial {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "tty" => Ok(Serial::Tty),
            None if text == "null" => Ok(Serial::Null),
            Some(("file", path)) if !path.is_empty() => Ok(Serial::File(path.into())),
            _ => Err(format!("{text:?} is not a place for the console; use tty, null or file=PATH")),
        }
    }
}

impl TryFrom<String> for Serial {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use mlx5::EnginePolicy;

    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(memory("size=1G"), Ok(Size(1 << 30)));
        assert_eq!(memory("512M"), Ok(Size(512 << 20)));
        assert!(memory("size=1X").unwrap_err().contains("use K, M or G"));
        assert!(memory("99999999999G").unwrap_err().contains("too large"));
        assert!(memory("size=").is_err());
    }

    #[test]
    fn disks() {
        let disk: Disk = "path=a.img,readonly=on,queues=2".parse().unwrap();
        assert_eq!((disk.readonly, disk.queues), (true, 2));
        assert!("readonly=on".parse::<Disk>().unwrap_err().contains("path="));
        assert!("path=a,colour=red".parse::<Disk>().unwrap_err().contains("colour"));
        assert!("path=a,readonly=maybe".parse::<Disk>().is_err());
    }

    #[test]
    fn persistent_memory() {
        let parse = |text: &str| text.parse::<Pmem>().map(PmemConfig::from);
        let config = |path: Option<&str>, size| PmemConfig { path: path.map(PathBuf::from), size };
        assert_eq!(parse("size=256M"), Ok(config(None, Some(256 << 20))));
        assert_eq!(parse("path=a.img"), Ok(config(Some("a.img"), None)));
        assert_eq!(parse("path=a.img,size=1G"), Ok(config(Some("a.img"), Some(1 << 30))));
        assert_eq!(
            toml::from_str::<Pmem>("path = 'a.img'\nsize = '1G'").unwrap(),
            "path=a.img,size=1G".parse().unwrap()
        );
        for (text, word) in [("", "size=SIZE"), ("256M", "size=SIZE"), ("path=", "path=FILE"), ("size=2X", "K, M or G")]
        {
            assert!(parse(text).unwrap_err().contains(word), "{text}");
        }
    }

    #[test]
    fn who_runs_the_engines() {
        for (text, toml, policy) in [
            ("engines=auto", "engines = 'auto'", EnginePolicy::Auto),
            ("engines=inline", "engines = 'inline'", EnginePolicy::Inline),
            ("engines=16", "engines = 16", EnginePolicy::Threads(16)),
        ] {
            let wanted = NicConfig { engines: policy, ..NicConfig::default() };
            assert_eq!(text.parse::<Nic>().map(NicConfig::from), Ok(wanted.clone()));
            assert_eq!(toml::from_str::<Nic>(toml).map(NicConfig::from).unwrap(), wanted);
        }
    }

    #[test]
    fn nics() {
        let parse = |text: &str| text.parse::<Nic>().map(NicConfig::from);
        assert_eq!(parse(""), Ok(NicConfig::default()));
        let all = NicConfig {
            model: Model::Cx5,
            odp: false,
            log_commands: true,
            engines: EnginePolicy::Threads(1),
            hot_doorbells: true,
        };
        assert_eq!(parse("odp=off,model=cx5,log=commands,engines=1,doorbells=hot"), Ok(all.clone()));
        for (text, word) in [
            ("odp", "neither on nor off"),
            ("odp=", "neither on nor off"),
            ("model=cx7", "model=cx5vf"),
            ("log=all", "log=commands"),
            ("doorbells=on", "doorbells=hot nor doorbells=exit"),
            ("engines=0", "auto, inline or 1 to 16"),
            ("engines=17", "1 to 16"),
            ("engines=many", "1 to 16"),
            ("speed=fast", "use odp="),
            ("odp=on,", "use odp="),
        ] {
            assert!(parse(text).unwrap_err().contains(word), "{text}");
        }
        let table = |text: &str| toml::from_str::<Nic>(text).map(NicConfig::from);
        assert_eq!(table("").unwrap(), NicConfig::default());
        assert_eq!(table("odp = false\nmodel = 'cx5'\nlog = 'commands'\nengines = 1\ndoorbells = 'hot'").unwrap(), all);
        assert!(table("engines = 17").unwrap_err().message().contains("1 to 16"));
        assert!(table("speed = 1").is_err());
    }

    #[test]
    fn consoles() {
        assert_eq!("file=a.log".parse(), Ok(Serial::File("a.log".into())));
        assert!("printer".parse::<Serial>().is_err());
    }
}

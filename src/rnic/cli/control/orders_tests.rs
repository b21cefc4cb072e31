// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Orders to a machine with two disks, whose vCPUs nobody has started. With vCPUs and a NIC: tests/guest/control.rs.

use std::fs::File;

use blk::{BlkOp, DiskAction, DiskConfig, RequestShape};
use lab::machine::MachineConfig;
use probe::MAX_RULES;
use probe::ledger::{Ledger, Note};

use super::*;

struct Scene {
    _dir: tempfile::TempDir,
    machine: Machine,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk = |name: &str| {
            let path = dir.path().join(name);
            File::create(&path).unwrap().set_len(1 << 20).unwrap();
            DiskConfig::new(path)
        };
        let config = MachineConfig {
            kernel: "none".into(),
            initramfs: None,
            cmdline: String::new(),
            cpus: 1,
            memory: 64 << 20,
            disks: vec![disk("a"), disk("b")],
            pmems: Vec::new(),
            nics: Vec::new(),
            console: Box::new(std::io::sink()),
            injections: None,
        };
        let (_, devices) = config.open().unwrap();
        let (remote, _) = vmm::orders::orders();
        Self { _dir: dir, machine: Machine::new(Arc::new(devices), remote, 0) }
    }

    fn ask(&self, request: Value) -> Result<Value, String> {
        let text = request.to_string();
        self.machine.answer(Request::parse(text.as_bytes()).unwrap()).result
    }

    fn refused(&self, request: Value, words: &[&str]) {
        let said = self.ask(request.clone()).unwrap_err();
        assert!(words.iter().all(|word| said.contains(word)) && !said.contains('\n'), "{request}: {said}");
    }

    fn arm(&self, plan: &str) -> Result<Value, String> {
        self.ask(json!({"order": "fault-arm", "plan": plan, "seed": 1, "file": "p.toml"}))
    }

    fn rules(&self) -> Vec<Value> {
        self.ask(json!({"order": "fault-list"})).unwrap()["rules"].as_array().unwrap().clone()
    }

    /// Whether a write to a disk would fail.
    fn write_fails(&self, disk: usize) -> bool {
        let write = RequestShape { op: BlkOp::Write, lba: &[], memory: &[], ledger: &Ledger::new() };
        let rules = self.machine.disks()[disk].injections();
        rules.consult(&write, |action| matches!(action, DiskAction::Status(_))).is_some()
    }
}

const WRITES: &str = "[[inject]]\nname = 'writes'\ndevice = 'disk'\naction = 'io-error'\nop = 'write'\n";

#[test]
fn what_is_no_order_or_no_key_of_one_is_said() {
    let scene = Scene::new();
    scene.refused(json!({"order": "stop"}), &["\"stop\" is no order", "ping, pause", "power-off"]);
    scene.refused(json!({"order": "ping", "loud": true}), &["\"loud\" is no key of the order ping, which has none"]);
    scene.refused(json!({"order": "ledger", "sinse": 1}), &["\"sinse\" is no key", "since, limit"]);
    scene.refused(json!({"order": "ledger", "since": "1"}), &["\"since\"", "whole number"]);
    scene.refused(json!({"order": "ledger", "limit": 1001}), &["\"limit\"", "0 to 1000"]);
    scene.refused(json!({"order": "port", "state": "left"}), &["\"state\"", "up, down"]);
    scene.refused(json!({"order": "port", "nic": 3, "state": "up"}), &["no nic3", "0", "--nic adds one"]);
    scene.refused(json!({"order": "fault-arm"}), &["either \"plan\"", "\"inject\""]);
    scene.refused(json!({"order": "fault-arm", "plan": "", "inject": {}}), &["either \"plan\""]);
    scene.refused(json!({"order": "fault-arm", "inject": [1]}), &["an object or a list of objects"]);
    scene.refused(json!({"order": "fault-disarm"}), &["either \"name\" or \"all\""]);
    scene.refused(json!({"order": "fault-disarm", "name": "x", "all": true}), &["either"]);
    assert_eq!(scene.ask(json!({"order": "ping"})).unwrap(), greeting());
}

#[test]
fn a_machine_that_has_ended_says_so() {
    let scene = Scene::new();
    for order in ["pause", "resume", "inspect"] {
        scene.refused(json!({"order": order}), &["the machine has ended"]);
    }
    let last = scene.machine.answer(Request::parse(br#"{"order": "power-off"}"#).unwrap());
    assert!(last.result.is_ok() && last.then.is_some());
}

#[test]
fn the_ledger_and_the_counters_are_told() {
    let scene = Scene::new();
    let seq = scene.machine.devices.ledger.stamp(Note::new("here"));
    let page = scene.ask(json!({"order": "ledger", "since": seq, "limit": 1})).unwrap();
    assert_eq!(page["events"], json!([{"seq": seq, "note": "here"}]));
    assert_eq!(page["next"], json!(seq + 1));
    let counters = scene.ask(json!({"order": "counters"})).unwrap();
    assert_eq!((counters["disks"].as_array().unwrap().len(), &counters["disks"][1]["completed"]), (2, &json!(0)));
}

#[test]
fn injections_come_fire_and_go() {
    let scene = Scene::new();
    assert!(!scene.write_fails(0));
    let armed = scene.arm(WRITES).unwrap();
    let both = json!([{"device": "disk0", "id": 1, "name": "writes"}, {"device": "disk1", "id": 1, "name": "writes"}]);
    assert_eq!((&armed["armed"], &armed["seed"]), (&both, &json!(1)));
    assert!(scene.write_fails(0) && scene.write_fails(0) && scene.write_fails(1));
    let list = scene.ask(json!({"order": "fault-list", "limit": 2})).unwrap();
    let rule = &list["rules"][0];
    assert_eq!((&rule["device"], &rule["name"], &rule["fired"]), (&json!("disk0"), &json!("writes"), &json!(2)));
    let firings = list["firings"].as_array().unwrap();
    assert_eq!((firings.len(), &firings[1]["occasion"]), (2, &json!("Write")));
    let more = scene.ask(json!({"order": "fault-list", "since": list["next"]})).unwrap();
    assert_eq!(more["firings"][0]["device"], json!("disk1"));
    scene.refused(
        json!({"order": "fault-disarm", "name": "reads"}),
        &["no injection is named \"reads\"", "armed are writes"],
    );
    let gone = scene.ask(json!({"order": "fault-disarm", "name": "writes"})).unwrap();
    let counts: Vec<_> =
        gone["disarmed"].as_array().unwrap().iter().map(|one| one["fired"].as_u64().unwrap()).collect();
    assert_eq!(counts, [2, 1]);
    assert!(!scene.write_fails(0) && scene.rules().is_empty());
    assert_eq!(scene.ask(json!({"order": "fault-list"})).unwrap()["disarmed"][0]["fired"], 2);
    scene.refused(json!({"order": "fault-disarm", "name": "writes"}), &["none is armed"]);
}

#[test]
fn a_wrong_plan_is_told_by_line_and_key_and_arms_nothing() {
    let scene = Scene::new();
    let said = |plan: &str| scene.arm(plan).unwrap_err();
    assert!(
        said("[[inject]]\ndevice = 'disk'\naction = 'io-error'\nopp = 'write'\n")
            .starts_with("p.toml, line 4: \"opp\" is no key")
    );
    assert!(
        said(&format!("{WRITES}[[inject]]\ndevice = 'disk'\naction = 'explode'\n"))
            .starts_with("p.toml, line 8: \"action\"")
    );
    assert!(said("").contains("1 to 64 tables"));
    let nic = said("[[inject]]\ndevice = 'nic0'\naction = 'command-hang'\n");
    assert!(nic.contains("line 1") && nic.contains("has 0 of that kind"), "{nic}");
    let unnamed = scene.ask(json!({"order": "fault-arm", "plan": "x"})).unwrap_err();
    assert!(unnamed.starts_with("the plan, line 1: "), "{unnamed}");
    assert!(scene.rules().is_empty() && !scene.write_fails(1));
}

#[test]
fn a_name_is_one_injection_and_those_without_are_numbered_on() {
    let scene = Scene::new();
    scene.arm(WRITES).unwrap();
    let taken = scene.arm(WRITES).unwrap_err();
    assert!(taken.starts_with("p.toml, line 1: \"name\"") && taken.contains("writes"), "{taken}");
    let unnamed = "[[inject]]\ndevice = 'disk1'\naction = 'unsupported'\n";
    let name = |answer: Result<Value, String>| answer.unwrap()["armed"][0]["name"].clone();
    assert_eq!((name(scene.arm(unnamed)), name(scene.arm(unnamed))), (json!("injection 2"), json!("injection 3")));
    // The same in JSON, one or several.
    let one = json!({"device": "disk0", "action": "io-error", "lba": [8, 16], "probability": 0.5});
    assert_eq!(name(scene.ask(json!({"order": "fault-arm", "inject": one}))), json!("injection 4"));
    let wrong = json!([one, {"device": "disk0", "action": "io-error", "lba": [8]}]);
    scene.refused(json!({"order": "fault-arm", "inject": wrong}), &["\"lba\" must be [first, end]"]);
    scene.refused(json!({"order": "fault-arm", "inject": {"device": null}}), &["\"inject\" cannot be written as TOML"]);
    assert_eq!(
        scene.ask(json!({"order": "fault-disarm", "all": true})).unwrap()["disarmed"].as_array().unwrap().len(),
        5
    );
}

#[test]
fn a_device_with_no_room_takes_none_of_a_plan() {
    let scene = Scene::new();
    let rule =
        |number: usize| format!("[[inject]]\nname = 'n{number}'\ndevice = 'disk0'\naction = 'io-error'\nnth = 9\n");
    for begin in (0..MAX_RULES).step_by(64) {
        scene.arm(&(begin..begin + 64).map(rule).collect::<String>()).unwrap();
    }
    let both = scene.arm(&WRITES.replace("'disk'", "'disk0'").replace("writes", "more")).unwrap_err();
    assert!(both.contains("disk0 has 256 injections"), "{both}");
    let said = scene.arm(WRITES).unwrap_err();
    assert!(said.contains("disarm some first") && !scene.write_fails(1), "{said}");
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Killing `rnic run` at random moments of a write workload: nothing that a flush acknowledged is lost, and the next start on
//! the same disk is not hindered.
//!
//! The guest runs our agent as an ordinary process: its acknowledged-write job writes numbered blocks in groups, flushes each, and
//! says so on the console, where this test reads it. The agent's program comes on a second disk.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use rnic_agent::acked::{BLOCK, Plan, Report, check_acked};
use rnic_agent::frame::{self, Line};
use rnic_agent::proto::{Event, Message, Op, Request};

use crate::common::{Running, rnic};
use crate::machine::{Disk, END_LIMIT, LIMIT, rnic_run};

/// Moments at which a run is killed, and how often.
const SIGNALS: [(&str, Option<i32>); 10] = [
    ("KILL", None),
    ("TERM", Some(143)),
    ("KILL", None),
    ("INT", Some(130)),
    ("KILL", None),
    ("TERM", Some(143)),
    ("KILL", None),
    ("INT", Some(130)),
    ("KILL", None),
    ("TERM", Some(143)),
];
/// Longest time from the first acknowledgement to the kill, ms.
const LONGEST_MS: u64 = 1500;
const BLOCKS: u64 = 256;
const GROUP: u64 = 4;

/// splitmix64.
struct Random(u64);

impl Random {
    fn seeded() -> Self {
        let clock = || std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
        let seed =
            std::env::var("RNIC_TEST_SEED").ok().map_or_else(clock, |text| text.parse().expect("RNIC_TEST_SEED"));
        println!("RNIC_TEST_SEED={seed}");
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// The agent's program, padded to whole sectors: a disk that the guest copies it from.
fn agent_disk() -> Disk {
    let own = rnic();
    let beside = own.parent().unwrap().join("../guest/x86_64-unknown-linux-gnu/release/rnic-agent");
    let path = std::env::var_os("RNIC_AGENT").map_or(beside, Into::into);
    let mut bytes =
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; run guest/agent/build", path.display()));
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    let disk = Disk::new(512);
    std::fs::write(&disk.path, bytes).unwrap();
    disk
}

/// What the guest runs: the agent on one end of a socket pair, our request on the other, its answers to the console.
fn script(plan: Plan) -> String {
    let op = Op::AckedWriter { path: "/dev/vdb".into(), plan, max_s: 100, max_groups: 0 };
    let request = frame::encode(&Request { id: 1, bg: true, op }).unwrap();
    let hex: String = request.iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "cat /dev/vdc >/run/agent; chmod +x /run/agent; exec python3 -c 'import socket,subprocess,os\n\
         a,b=socket.socketpair()\n\
         p=subprocess.Popen([\"/run/agent\",\"--port\",\"-\"],stdin=b)\n\
         a.sendall(bytes.fromhex(\"{hex}\"))\n\
         while True: os.write(1,a.recv(4096))'"
    )
}

/// The highest group that the console's text acknowledges. A line that was cut is not counted.
fn acknowledged(console: &str) -> u64 {
    let lines = console.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    let acks = lines.filter_map(|line| match frame::decode::<Message>(line.trim_end_matches('\r').as_bytes()) {
        Line::Message(Message::Event(Event::Acked { n })) => Some(n),
        _ => None,
    });
    acks.max().unwrap_or(0)
}

fn check(image: &Path, plan: &Plan, groups: u64) -> Report {
    let file = File::open(image).unwrap();
    check_acked(plan, groups, |at, block| file.read_exact_at(block, at)).unwrap()
}

/// Starts the workload, kills it after a while; returns the groups that were acknowledged.
fn killed(disk: &Disk, agent: &Disk, plan: Plan, (signal, status): (&str, Option<i32>), after: Duration) -> u64 {
    let (data, program) = (disk.option(""), agent.option(",readonly=on"));
    let mut command = rnic_run("6.1", &["--disk", &data, "--disk", &program, "--exec", &script(plan)]);
    let mut running = Running::start(&mut command);
    let start = std::time::Instant::now();
    while acknowledged(&running.out()) == 0 {
        assert!(start.elapsed() < LIMIT, "nothing was acknowledged: {}", running.out());
        running.assert_alive();
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(after);
    running.signal(signal);
    let done = running.finish(END_LIMIT);
    assert_eq!(done.status.code(), status, "SIG{signal}: {done:?}");
    acknowledged(&done.out)
}

#[test]
fn no_acknowledged_flush_is_lost() {
    let mut random = Random::seeded();
    let (disk, agent) = (Disk::new(BLOCKS * BLOCK as u64), agent_disk());
    for (round, how) in SIGNALS.into_iter().enumerate() {
        // The blocks of earlier rounds have another nonce: they cannot pass for this one's.
        let plan = Plan { nonce: random.next(), blocks: BLOCKS, group: GROUP };
        let after = Duration::from_millis(random.next() % LONGEST_MS);
        let groups = killed(&disk, &agent, plan, how, after);
        let report = check(&disk.path, &plan, groups);
        println!("round {round}: SIG{} {after:?} after the first of {groups} groups: {report}", how.0);
        assert!(groups > 0 && report.intact(), "round {round}: {report}");
        assert!(report.required > 0 && report.newest_group >= groups, "round {round}: {report}");
        if round == 0 {
            the_check_can_fail(&disk, &plan, groups);
        }
    }
}

/// On a copy: one damaged block, one block missing, one group too many acknowledged. Each must be reported.
fn the_check_can_fail(disk: &Disk, plan: &Plan, groups: u64) {
    let copy = disk.path.with_file_name("copy.img");
    // The last block of the last acknowledged group: no group in flight overwrites it.
    let at = plan.slot(groups * plan.group - 1) * BLOCK as u64;
    for (bytes, torn, lost) in [(vec![0x55; 8], 1, 0), (vec![0; BLOCK], 0, 1)] {
        std::fs::copy(&disk.path, &copy).unwrap();
        let offset = if torn == 1 { at + 100 } else { at };
        File::options().write(true).open(&copy).unwrap().write_all_at(&bytes, offset).unwrap();
        let report = check(&copy, plan, groups);
        assert_eq!((report.torn, report.lost), (torn, lost), "{report}");
    }
    let newest = check(&disk.path, plan, groups).newest_group;
    assert!(!check(&disk.path, plan, newest + 1 + BLOCKS / GROUP).intact(), "groups that never were are not missed");
    std::fs::remove_file(copy).unwrap();
}

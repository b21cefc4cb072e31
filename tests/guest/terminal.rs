// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `rnic run` on a terminal: a shell one can work in, and the terminal as it was, however the run ends.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::machine::{END_LIMIT, LIMIT, rnic_run};
use crate::pty::{Pty, Settings};

/// A word on the screen comes a moment before the program behind it is ready for keys.
const SETTLE: Duration = Duration::from_secs(1);

/// A shell in a guest on a terminal of its own.
struct Shell {
    pty: Pty,
    found: Settings,
    child: Child,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Shell {
    fn start() -> Self {
        let pty = Pty::new();
        let found = pty.settings();
        let end = || Stdio::from(pty.terminal.try_clone().unwrap());
        let child = rnic_run("6.1", &[]).stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (sink, mut from) = (seen.clone(), pty.person.try_clone().unwrap());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = from.read(&mut buffer) {
                sink.lock().unwrap().extend_from_slice(&buffer[..n]);
            }
        });
        Self { pty, found, child, seen }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }

    fn type_in(&mut self, keys: &str) {
        self.pty.person.write_all(keys.as_bytes()).unwrap();
    }

    fn expect(&self, text: &str) {
        let start = Instant::now();
        while !self.text().contains(text) {
            assert!(start.elapsed() < LIMIT, "no {text:?} in:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn status(&mut self) -> i32 {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or_else(|| panic!("{status}"));
            }
            assert!(start.elapsed() < END_LIMIT, "it does not end:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        drop((self.child.kill(), self.child.wait()));
    }
}

#[test]
fn a_shell_with_keys_of_its_own_until_ctrl_a_x() {
    let mut shell = Shell::start();
    shell.expect("# ");
    assert_ne!(shell.pty.settings(), shell.found, "the terminal is raw while the guest has it");
    shell.type_in("stty size; echo $((6 * 7))-answer\r");
    shell.expect("33 101");
    shell.expect("42-answer");
    // Ctrl-c and ctrl-a (twice) belong to the guest.
    shell.type_in("echo sleep''ing; sleep 1000\r");
    shell.expect("sleeping");
    std::thread::sleep(SETTLE);
    shell.type_in("\x03");
    std::thread::sleep(SETTLE);
    shell.type_in("echo $?-status\r");
    shell.expect("130-status");
    shell.type_in("echo wait''ing; read -rn1 key; printf '<%d>\\n' \"'$key\"\r");
    shell.expect("waiting");
    std::thread::sleep(SETTLE);
    shell.type_in("\x01\x01");
    shell.expect("<1>");
    shell.type_in("\x01x");
    assert_eq!(shell.status(), 0);
    assert_eq!(shell.pty.settings(), shell.found, "the terminal is not as it was");
}

#[test]
fn the_end_of_the_shell_is_a_power_off() {
    let mut shell = Shell::start();
    shell.expect("# ");
    shell.type_in("exit\r");
    assert_eq!(shell.status(), 0);
    assert_eq!(shell.pty.settings(), shell.found, "the terminal is not as it was");
}

#[test]
fn sigterm_gives_the_terminal_back() {
    let mut shell = Shell::start();
    shell.expect("# ");
    let kill = format!("kill -TERM {}", shell.child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    assert_eq!(shell.status(), 143);
    assert_eq!(shell.pty.settings(), shell.found, "the terminal is not as it was");
}

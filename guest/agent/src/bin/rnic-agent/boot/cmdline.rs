// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `rnic.*` on the kernel command line.

use std::fs;

use super::note;

/// What to do when everything is in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Serve the channel only.
    Agent,
    /// An interactive shell on ttyS0.
    Shell,
    /// One command on ttyS0.
    Exec(String),
}

/// The options.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `rnic.mode=agent|shell` or `rnic.exec=BASE64`.
    pub mode: Option<Mode>,
    /// `rnic.root=none`: stay in the initramfs.
    pub no_root: bool,
    /// `rnic.rows=`, `rnic.cols=`: size of the console.
    pub rows: Option<u16>,
    /// See `rows`.
    pub cols: Option<u16>,
    /// `rnic.term=`: kind of the console.
    pub term: Option<String>,
}

impl Options {
    /// Reads /proc/cmdline.
    pub fn read() -> Self {
        let (options, complaints) = Self::parse(&fs::read_to_string("/proc/cmdline").unwrap_or_default());
        complaints.iter().for_each(note);
        options
    }

    /// Takes a command line apart; also returns a sentence for each option that makes no sense.
    fn parse(line: &str) -> (Self, Vec<String>) {
        let mut options = Self::default();
        let mut complaints = Vec::new();
        for (key, value) in line.split_whitespace().filter_map(|word| word.strip_prefix("rnic.")?.split_once('=')) {
            let understood = match (key, value) {
                ("mode", "agent") => options.set_mode(Mode::Agent),
                ("mode", "shell") => options.set_mode(Mode::Shell),
                ("exec", text) => decode_base64(text).is_some_and(|command| options.set_mode(Mode::Exec(command))),
                ("root", "none") => {
                    options.no_root = true;
                    true
                }
                ("rows", n) => set(&mut options.rows, n.parse().ok()),
                ("cols", n) => set(&mut options.cols, n.parse().ok()),
                ("term", name) => set(&mut options.term, Some(name.to_owned())),
                _ => false,
            };
            if !understood {
                complaints.push(format!("rnic.{key}={value} on the kernel command line is not understood"));
            }
        }
        (options, complaints)
    }

    fn set_mode(&mut self, mode: Mode) -> bool {
        self.mode = Some(mode);
        true
    }
}

fn set<T>(slot: &mut Option<T>, value: Option<T>) -> bool {
    let understood = value.is_some();
    *slot = value;
    understood
}

/// Standard or URL-safe alphabet, padding optional; the bytes must be UTF-8.
fn decode_base64(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let (mut bits, mut held) = (0u32, 0);
    for c in text.trim_end_matches('=').bytes() {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_nonsense_is_named() {
        let (options, complaints) = Options::parse(
            "console=ttyS0 quiet rnic.mode=shell rnic.rows=40 rnic.cols=x rnic.term=xterm-256color rnic.root=none rnic.q=1",
        );
        assert_eq!(options.mode, Some(Mode::Shell));
        assert_eq!((options.rows, options.cols, options.no_root), (Some(40), None, true));
        assert_eq!(options.term.as_deref(), Some("xterm-256color"));
        assert_eq!(complaints.len(), 2, "{complaints:?}");
    }

    #[test]
    fn base64() {
        for (text, expected) in [
            ("", ""),
            ("ZQ==", "e"),
            ("ZWM", "ec"),
            ("ZWNobyBoaSA+IC9kZXYvbnVsbA==", "echo hi > /dev/null"),
            ("w7_Dvw", "ÿÿ"),
        ] {
            assert_eq!(decode_base64(text).as_deref(), Some(expected));
        }
        assert_eq!(decode_base64("Z Q"), None);
        assert_eq!(decode_base64("/w"), None, "not UTF-8");
        let (options, _) = Options::parse("rnic.exec=ZWM=");
        assert_eq!(options.mode, Some(Mode::Exec("ec".into())));
    }
}

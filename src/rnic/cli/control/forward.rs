// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A machine in an emulated host: its control socket is served here, and each order goes on through a port of that host, to the process in
//! there that has the machine (images/with-kvm `--socket`).

use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::protocol::{Line, Lines, MAX_ANSWER, MAX_LINE, Request};
use super::server::{Answer, Backend};

/// How long the machine gets for an answer; the start of the emulated host is part of it.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks whether the emulated host has made its end.
const GLANCE: Duration = Duration::from_millis(50);
/// How folders for it begin.
const TEMPORARY: &str = "rnic-control-";

/// The way into the emulated host.
pub struct Forward {
    /// Where QEMU is to listen.
    socket: PathBuf,
    patience: Duration,
    link: Mutex<Link>,
}

#[derive(Default)]
struct Link {
    lines: Option<Lines<UnixStream>>,
    last: u64,
}

/// A folder of ours alone, which goes away with this value: threads that serve clients may outlive it.
pub struct Folder(PathBuf);

impl Folder {
    /// Makes one.
    ///
    /// # Errors
    /// There is no place for temporary files.
    pub fn new() -> io::Result<Self> {
        let mut number = 0;
        loop {
            let folder = std::env::temp_dir().join(format!("{TEMPORARY}{}-{number}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&folder) {
                Ok(()) => return Ok(Self(folder)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < 64 => number += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Where a socket can be in it.
    pub fn socket(&self) -> PathBuf {
        self.0.join("s")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

impl Forward {
    /// A way whose end is to be made at `socket`.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket, patience: PATIENCE, link: Mutex::default() }
    }
}

impl Backend for Forward {
    fn answer(&self, request: Request) -> Answer {
        let mut link = self.link.lock();
        let until = Instant::now() + self.patience;
        let result = link.ask(&request, &self.socket, until);
        if matches!(&result, Err(Lost::Gone)) {
            link.lines = None;
        }
        result.unwrap_or_else(|lost| Err(lost.to_string())).into()
    }
}

/// No answer came.
enum Lost {
    Gone,
    Late,
    TooLong,
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Gone => "the emulated host has ended, or not begun",
            Self::Late => "no answer came out of the emulated host in time; the order may still be carried out",
            Self::TooLong => "the order is too long once it is written anew",
        })
    }
}

impl Link {
    fn ask(&mut self, request: &Request, socket: &Path, until: Instant) -> Result<Result<Value, String>, Lost> {
        self.last += 1;
        let id = json!(self.last);
        let line = request.line(&id);
        if line.len() > MAX_LINE {
            return Err(Lost::TooLong);
        }
        if self.lines.is_none() {
            self.lines = Some(Lines::new(connect(socket, until)?, MAX_ANSWER));
        }
        let lines = self.lines.as_mut().ok_or(Lost::Gone)?;
        let mut stream = lines.stream();
        stream.set_write_timeout(Some(left(until)?)).map_err(|_| Lost::Gone)?;
        // Half an order in the way would spoil the next one: then the way is given up.
        stream.write_all(&line).map_err(|_| Lost::Gone)?;
        loop {
            lines.stream().set_read_timeout(Some(left(until)?)).map_err(|_| Lost::Gone)?;
            let text = match lines.next() {
                Ok(Line::Whole(text)) => text,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Err(Lost::Late);
                }
                _ => return Err(Lost::Gone),
            };
            // Answers to orders that were given up come, too.
            if let Ok(mut answer) = serde_json::from_slice::<Value>(&text)
                && answer["id"] == id
            {
                return Ok(match answer.get_mut("ok").map(Value::take) {
                    Some(value) => Ok(value),
                    None => Err(answer["error"].as_str().unwrap_or("the machine gave no reason").to_owned()),
                });
            }
        }
    }
}

fn left(until: Instant) -> Result<Duration, Lost> {
    until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()).ok_or(Lost::Late)
}

fn connect(socket: &Path, until: Instant) -> Result<UnixStream, Lost> {
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(_) => std::thread::sleep(left(until).map_err(|_| Lost::Gone)?.min(GLANCE)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;

    fn patient(folder: &Folder, patience: Duration) -> Forward {
        Forward { patience, ..Forward::new(folder.socket()) }
    }

    fn request(order: &str) -> Request {
        Request { id: json!("client's"), order: order.into(), args: serde_json::Map::new() }
    }

    fn ask(way: &Forward, order: &str) -> Result<Value, String> {
        way.answer(request(order)).result
    }

    /// Answers each order with what `answer` makes of its number and name.
    fn inside(way: &Forward, answer: fn(u64, &str) -> String) {
        let listener = UnixListener::bind(&way.socket).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                for line in BufReader::new(stream.try_clone().unwrap()).lines() {
                    let Ok(line) = line else { break };
                    let asked: Value = serde_json::from_str(&line).unwrap();
                    let text = answer(asked["id"].as_u64().unwrap(), asked["order"].as_str().unwrap());
                    if (&stream).write_all(text.as_bytes()).is_err() || text.is_empty() {
                        break;
                    }
                }
            }
        });
    }

    #[test]
    fn answers_belong_to_their_orders() {
        let folder = Folder::new().unwrap();
        let way = patient(&folder, Duration::from_secs(20));
        inside(&way, |id, order| match order {
            "bad" => format!("{{\"id\": {id}, \"error\": \"because\"}}\n"),
            // A late answer to an older order goes before.
            _ => format!("{{\"id\": {}, \"ok\": \"old\"}}\nnoise\n{{\"id\": {id}, \"ok\": [{id}]}}\n", id - 1),
        });
        assert_eq!(ask(&way, "a"), Ok(json!([1])));
        assert_eq!((ask(&way, "bad"), ask(&way, "b")), (Err("because".into()), Ok(json!([3]))));
        let place = folder.0.clone();
        drop(folder);
        assert!(!place.exists());
    }

    #[test]
    fn a_host_that_is_not_there_or_silent_or_gone_is_said() {
        let folder = Folder::new().unwrap();
        let way = patient(&folder, Duration::from_millis(200));
        assert!(ask(&way, "a").unwrap_err().contains("ended, or not begun"));
        inside(&way, |id, order| match order {
            "silence" => "\n".into(),
            // It ends.
            "end" => String::new(),
            _ => format!("{{\"id\": {id}, \"ok\": {id}}}\n"),
        });
        assert!(ask(&way, "silence").unwrap_err().contains("may still be carried out"));
        assert!(ask(&way, "end").unwrap_err().contains("ended"));
        assert_eq!(ask(&way, "c"), Ok(json!(4)), "the way is made anew");
        let mut long = request("x");
        long.args.insert("plan".into(), "x".repeat(MAX_LINE).into());
        assert!(way.answer(long).result.unwrap_err().contains("too long"));
    }
}

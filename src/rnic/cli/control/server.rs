// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who answers on a control socket: a thread for each of a few clients. Whatever a client does, or does not do, is its own trouble: lines are
//! bounded, answers have a time to be taken, and none of these threads is one that the machine waits for.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::protocol::{Line, Lines, MAX_LINE, Request, greeting, line, refusal};
use super::socket::Listener;

/// Clients at a time.
pub const MAX_CLIENTS: usize = 8;
/// How long a client may leave an answer lying.
const TAKEN: Duration = Duration::from_secs(5);
/// How often a port is looked at while nobody is at its other end.
const GLANCE: Duration = Duration::from_millis(50);
/// Glances until a port's device must be there.
const APPEARS: u32 = 200;

/// Who carries out orders.
pub trait Backend: Send + Sync {
    /// Carries out one, or says why not.
    fn answer(&self, request: Request) -> Answer;
}

/// The answer to an order.
pub struct Answer {
    /// What `ok` or `error` says.
    pub result: Result<Value, String>,
    /// What is done once the answer has been given.
    pub then: Option<Box<dyn FnOnce() + Send>>,
}

impl From<Result<Value, String>> for Answer {
    fn from(result: Result<Value, String>) -> Self {
        Self { result, then: None }
    }
}

/// A socket that is served. Dropping it takes the socket away; clients that are connected stay so.
pub struct Server {
    listener: Arc<Listener>,
    over: Arc<AtomicBool>,
}

impl Server {
    /// Serves `listener` on a thread of its own.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(listener: Listener, backend: Arc<dyn Backend>) -> io::Result<Self> {
        let (listener, over) = (Arc::new(listener), Arc::<AtomicBool>::default());
        let (socket, done) = (listener.socket.try_clone()?, over.clone());
        let accept = move || {
            let clients = Arc::<AtomicUsize>::default();
            while !done.load(Ordering::Acquire) {
                match socket.accept() {
                    Ok((stream, _)) => welcome(stream, &clients, &backend),
                    // No descriptor is free, for now.
                    Err(_) => std::thread::sleep(GLANCE),
                }
            }
        };
        std::thread::Builder::new().name("control".into()).spawn(accept)?;
        Ok(Self { listener, over })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        // The thread looks up.
        drop(UnixStream::connect(self.listener.path()));
    }
}

/// One of the places for clients.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn welcome(mut stream: UnixStream, clients: &Arc<AtomicUsize>, backend: &Arc<dyn Backend>) {
    let others = clients.fetch_add(1, Ordering::AcqRel);
    let place = Place(clients.clone());
    if stream.set_write_timeout(Some(TAKEN)).is_err() {
        return;
    }
    if others >= MAX_CLIENTS {
        let why = format!("{MAX_CLIENTS} clients are connected already: end one of them");
        // A new connection has room for it.
        drop(stream.write_all(&line(&json!({"error": why}))));
        return;
    }
    let backend = backend.clone();
    let serve = move || {
        let _place = place;
        if let Ok(reader) = stream.try_clone()
            && stream.write_all(&line(&greeting())).is_ok()
        {
            converse(&mut Lines::new(reader, MAX_LINE), &mut stream, &*backend);
        }
    };
    if let Err(error) = std::thread::Builder::new().name("control-client".into()).spawn(serve) {
        log::warn!("a client of the control socket gets no thread: {error}");
    }
}

/// Answers until the lines end, or the other side does not keep to the protocol, or takes no answers.
fn converse(lines: &mut Lines<impl Read>, to: &mut impl Write, backend: &dyn Backend) {
    loop {
        let last = match lines.next() {
            Ok(Line::Whole(text)) if text.iter().all(u8::is_ascii_whitespace) => continue,
            Ok(Line::Whole(text)) => {
                let (reply, then) = reply(&text, backend);
                let given = to.write_all(&line(&reply)).and_then(|()| to.flush());
                if let Some(then) = then {
                    then();
                }
                if given.is_err() {
                    return;
                }
                continue;
            }
            Ok(Line::TooLong) => format!("a line has at most {MAX_LINE} bytes: nothing more is read"),
            Ok(Line::Cut) => "the last line has no end and was not carried out".to_owned(),
            Ok(Line::End) | Err(_) => return,
        };
        // Whoever has gone does not hear it.
        drop(to.write_all(&line(&refusal(&Value::Null, &last))));
        return;
    }
}

fn reply(text: &[u8], backend: &dyn Backend) -> (Value, Option<Box<dyn FnOnce() + Send>>) {
    let request = match Request::parse(text) {
        Ok(request) => request,
        Err((id, why)) => return (refusal(&id, &why), None),
    };
    let id = request.id.clone();
    let Answer { result, then } = backend.answer(request);
    match result {
        Ok(value) => (json!({"id": id, "ok": value}), then),
        Err(why) => (refusal(&id, &why), then),
    }
}

/// Serves a port of an emulated host, at whose other end there is one client at a time. No greeting: `ping` has it.
///
/// # Errors
/// There is no thread to be had.
pub fn serve_port(path: &Path, backend: Arc<dyn Backend>) -> io::Result<()> {
    let path = path.to_owned();
    let serve = move || {
        let open = || File::options().read(true).write(true).open(&path);
        let mut glances = 0..APPEARS;
        let port = loop {
            match open() {
                Ok(port) => break port,
                Err(_) if glances.next().is_some() => std::thread::sleep(GLANCE),
                Err(error) => return log::warn!("control port {}: {error}", path.display()),
            }
        };
        loop {
            converse(&mut Lines::new(&port, MAX_LINE), &mut &port, &*backend);
            // Nobody is there, yet or any more: a port has no other way to say so.
            std::thread::sleep(GLANCE);
        }
    };
    std::thread::Builder::new().name("control".into()).spawn(serve).map(drop)
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;

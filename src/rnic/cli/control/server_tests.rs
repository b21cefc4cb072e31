// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Clients of every kind, and that none of them is another's trouble.

use std::io::{BufRead, BufReader};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use super::*;

/// Gives back what it is asked; "huge" gets more than any buffer of a socket holds.
struct Echo;

impl Backend for Echo {
    fn answer(&self, request: Request) -> Answer {
        match request.order.as_str() {
            "huge" => Ok(json!("x".repeat(4 << 20))).into(),
            "refuse" => Err("no".to_owned()).into(),
            _ => Ok(Value::Object(request.args)).into(),
        }
    }
}

struct Scene {
    _dir: tempfile::TempDir,
    path: PathBuf,
    server: Option<Server>,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let server = Server::start(Listener::bind(&path).unwrap(), Arc::new(Echo)).unwrap();
        Self { _dir: dir, path, server: Some(server) }
    }

    /// Connected, greeting not yet heard.
    fn client(&self) -> Client {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Client { reader: BufReader::new(stream.try_clone().unwrap()), stream }
    }

    /// The server still serves.
    fn is_well(&self) {
        let mut client = self.client();
        assert_eq!(client.hear(), greeting());
        assert_eq!(client.ask(r#"{"id": 1, "order": "x", "key": 2}"#), json!({"id": 1, "ok": {"key": 2}}));
    }
}

struct Client {
    reader: BufReader<UnixStream>,
    stream: UnixStream,
}

impl Client {
    fn hear(&mut self) -> Value {
        let mut text = String::new();
        self.reader.read_line(&mut text).unwrap();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?}"))
    }

    fn ask(&mut self, line: &str) -> Value {
        self.stream.write_all(format!("{line}\n").as_bytes()).unwrap();
        self.hear()
    }

    /// The error to `bytes`, whatever they are.
    fn refused(&mut self, bytes: &[u8]) -> String {
        self.stream.write_all(bytes).unwrap();
        let said = self.hear();
        said["error"].as_str().unwrap_or_else(|| panic!("{said}")).to_owned()
    }

    /// The server ends this connection, at the latest when `piece` has been written so many times.
    fn is_cut_off(&mut self, piece: &[u8], times: usize) -> bool {
        self.stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
        let error = (0..times).find_map(|_| self.stream.write_all(piece).err());
        // Not that the server has merely stopped to read.
        error.is_some_and(|error| !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
    }

    /// The server has closed this connection.
    fn is_over(&mut self) {
        let mut text = String::new();
        assert!(!matches!(self.reader.read_line(&mut text), Ok(1..)), "{text}");
    }
}

#[test]
fn orders_are_answered_in_turn_and_the_socket_goes_away() {
    let mut scene = Scene::new();
    let mut client = scene.client();
    assert_eq!(client.hear()["protocol"], json!(1));
    // Two in one piece, one in two, an empty line between.
    client.stream.write_all(b"{\"order\": \"a\"}\n\n{\"order\": \"refuse\", \"id\": \"n\"}\n{\"order\": ").unwrap();
    assert_eq!(client.hear(), json!({"id": null, "ok": {}}));
    assert_eq!(client.hear(), json!({"id": "n", "error": "no"}));
    assert_eq!(client.ask(r#""b", "id": {"any": 1}}"#), json!({"id": {"any": 1}, "ok": {}}));
    drop(scene.server.take());
    assert!(!scene.path.exists());
}

#[test]
fn what_is_no_request_is_refused_and_the_connection_stays() {
    let scene = Scene::new();
    let mut client = scene.client();
    client.hear();
    for (bytes, word) in [
        (&b"hello\n"[..], "one JSON object"),
        (b"\xff\xfe\n", "UTF-8"),
        (b"[1]\n", "another value"),
        (b"{\"id\": 1}\n", "needs the key"),
        (b"{\"order\": 1}\n", "must be a text"),
        (b"\0\n", "one JSON object"),
    ] {
        let said = client.refused(bytes);
        assert!(said.contains(word), "{said}");
    }
    assert_eq!(client.ask(r#"{"order": "x"}"#)["ok"], json!({}));
}

#[test]
fn a_line_without_end_is_not_carried_out() {
    let scene = Scene::new();
    let mut client = scene.client();
    client.hear();
    client.stream.write_all(b"{\"order\": \"x\"}").unwrap();
    client.stream.shutdown(Shutdown::Write).unwrap();
    let said = client.hear();
    assert!(said["error"].as_str().unwrap().contains("not carried out"), "{said}");
    client.is_over();
    scene.is_well();
}

#[test]
fn a_line_that_is_too_long_ends_its_connection_only() {
    let scene = Scene::new();
    let mut client = scene.client();
    client.hear();
    // The longest line goes.
    let (head, tail) = ("{\"order\": \"x\", \"key\": \"", "\"}");
    let fill = |size: usize| format!("{head}{}{tail}\n", "y".repeat(size - head.len() - tail.len() - 1));
    client.stream.write_all(fill(MAX_LINE).as_bytes()).unwrap();
    assert_eq!(client.hear()["ok"]["key"].as_str().unwrap().len(), MAX_LINE - head.len() - tail.len() - 1);
    client.stream.write_all(fill(MAX_LINE + 1).as_bytes()).unwrap();
    assert!(client.hear()["error"].as_str().unwrap().contains("at most 65536 bytes"));
    client.is_over();
    // One that never ends is not kept: the server stops reading.
    let mut client = scene.client();
    client.hear();
    assert!(client.is_cut_off(&vec![b'z'; 1 << 20], 8));
    scene.is_well();
}

#[test]
fn who_does_not_read_is_given_up_and_holds_nobody_up() {
    let scene = Scene::new();
    let mut deaf = scene.client();
    deaf.stream.write_all(b"{\"order\": \"huge\"}\n").unwrap();
    scene.is_well();
    // More orders than it reads answers: in the end nobody reads them either.
    assert!(deaf.is_cut_off(&[b'\n'; 4096], 10_000));
    scene.is_well();
}

#[test]
fn there_are_eight_places_and_each_is_given_back() {
    let scene = Scene::new();
    let mut silent: Vec<Client> = (0..MAX_CLIENTS).map(|_| scene.client()).collect();
    silent.iter_mut().for_each(|client| assert_eq!(client.hear(), greeting()));
    let mut ninth = scene.client();
    assert!(ninth.hear()["error"].as_str().unwrap().contains("8 clients are connected"));
    ninth.is_over();
    silent.pop();
    let tries = (0..500).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        scene.client().hear() == greeting()
    });
    assert!(tries, "the place of one that has gone is free again");
}

#[test]
fn what_follows_an_answer_comes_after_it() {
    struct Last(Arc<AtomicBool>);
    impl Backend for Last {
        fn answer(&self, _: Request) -> Answer {
            let done = self.0.clone();
            Answer { result: Ok(json!({})), then: Some(Box::new(move || done.store(true, Ordering::Release))) }
        }
    }
    /// Notes whether it was done when the answer was given.
    struct Out(Arc<AtomicBool>, Vec<bool>);
    impl Write for Out {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1.push(self.0.load(Ordering::Acquire));
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let done = Arc::<AtomicBool>::default();
    let mut out = Out(done.clone(), Vec::new());
    let order = &b"{\"order\": \"power-off\"}\n"[..];
    converse(&mut Lines::new(order, MAX_LINE), &mut out, &Last(done.clone()));
    assert_eq!((out.1, done.load(Ordering::Acquire)), (vec![false], true));
}

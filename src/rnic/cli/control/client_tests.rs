// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The client against servers of every kind, and its command line.

use super::*;
use clap::Parser;
use std::os::unix::net::UnixListener;

/// Asks a server that says `greeting`, then `answer` once it has read something.
fn with_server(greeting: &'static str, answer: &'static str) -> Result<Value, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        // A client may go as soon as it has heard enough.
        let _ = stream.write_all(greeting.as_bytes());
        if !answer.is_empty() && stream.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {
            let _ = stream.write_all(answer.as_bytes());
            let _ = stream.read(&mut [0; 64]);
        }
        // A silent one stays a while.
        if greeting.is_empty() {
            let _ = stream.read(&mut [0; 64]);
        }
    });
    let request = Request { id: json!(1), order: "ping".into(), args: Map::new() };
    let heard = ask(&path, &request, Duration::from_millis(500)).map_err(|error| error.to_string());
    server.join().unwrap();
    heard
}

const HELLO: &str = "{\"rnic\": \"0\", \"protocol\": 1}\n";

#[test]
fn servers_of_every_kind() {
    assert_eq!(with_server(HELLO, "{\"id\": 1, \"ok\": [3]}\n"), Ok(json!([3])));
    for (greeting, answer, word) in [
        (HELLO, "{\"id\": 1, \"error\": \"because of it\"}\n", "because of it"),
        (HELLO, "{\"id\": 1}\n", "neither \"ok\" nor \"error\""),
        (HELLO, "nonsense\n", "the answer is no JSON object"),
        (HELLO, "half", "did not come"),
        (HELLO, "", "ended"),
        ("{\"error\": \"8 clients\"}\n", "", "8 clients"),
        ("{\"protocol\": 2}\n", "", "speaks protocol 2"),
        ("{\"hello\": 2}\n", "", "not of rnic"),
        ("220 smtp ready\n", "", "the greeting is no JSON object"),
        ("", "", "the greeting did not come"),
    ] {
        let said = with_server(greeting, answer).unwrap_err();
        assert!(said.contains(word) && !said.contains('\n'), "{greeting:?} {answer:?}: {said}");
    }
    let request = Request { id: json!(1), order: "ping".into(), args: Map::new() };
    let nobody = |path: &str| ask(Path::new(path), &request, PATIENCE).unwrap_err().to_string();
    assert!(nobody("/nowhere/s").contains("is a machine running"));
    assert!(nobody(&"x".repeat(200)).contains("at most 107"));
    let long = Request { order: "x".repeat(MAX_LINE), ..request };
    assert!(ask(Path::new("s"), &long, PATIENCE).unwrap_err().to_string().contains("may have 65536"));
}

#[derive(Parser)]
struct Program {
    #[command(flatten)]
    args: CtlArgs,
}

fn request(words: &[&str]) -> Result<(String, Value), clap::error::ErrorKind> {
    let program = Program::try_parse_from([&["ctl", "s"], words].concat()).map_err(|error| error.kind())?;
    let request = program.args.order.request().unwrap();
    Ok((request.order, Value::Object(request.args)))
}

#[test]
fn words_become_orders() {
    let dir = tempfile::tempdir().unwrap();
    let plan = dir.path().join("p.toml");
    std::fs::write(&plan, "[[inject]]\n").unwrap();
    let plan = plan.to_str().unwrap();
    for (words, order, args) in [
        (&["pause"][..], "pause", json!({})),
        (&["ledger", "--since", "4", "--limit", "2"], "ledger", json!({"since": 4, "limit": 2})),
        (&["port", "1", "down"], "port", json!({"nic": 1, "state": "down"})),
        (&["port", "0"], "port", json!({"nic": 0})),
        (&["fault", "list"], "fault-list", json!({})),
        (&["fault", "arm", plan, "--seed", "7"], "fault-arm", json!({"plan": "[[inject]]\n", "file": plan, "seed": 7})),
        (&["fault", "disarm", "x"], "fault-disarm", json!({"name": "x"})),
        (&["fault", "disarm", "--all"], "fault-disarm", json!({"all": true})),
        (&["power-off"], "power-off", json!({})),
    ] {
        assert_eq!(request(words), Ok((order.into(), args)), "{words:?}");
    }
    for words in
        [&["fault", "disarm"][..], &["fault", "disarm", "x", "--all"], &["port", "0", "sideways"], &["stop"], &[]]
    {
        assert!(request(words).is_err(), "{words:?}");
    }
}

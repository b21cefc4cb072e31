// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The words of the control socket (docs/control.md): JSON, one object a line each way.

use std::io::{self, Read};

use serde_json::{Map, Value, json};

/// Version of the protocol: changed when a client of an older one would be wrong.
pub const PROTOCOL: u64 = 1;
/// Longest line that a client may send, in bytes, its end included.
pub const MAX_LINE: usize = 64 << 10;
/// Longest answer that a client takes.
pub const MAX_ANSWER: usize = 64 << 20;

/// What a server says first, and `ping` again.
pub fn greeting() -> Value {
    json!({"rnic": env!("CARGO_PKG_VERSION"), "protocol": PROTOCOL})
}

/// What a server says in place of an answer.
pub fn refusal(id: &Value, why: &str) -> Value {
    json!({"id": id, "error": why})
}

/// An object as its line.
pub fn line(value: &Value) -> Vec<u8> {
    let mut line = value.to_string().into_bytes();
    line.push(b'\n');
    line
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Comes back with the answer.
    pub id: Value,
    /// Which order.
    pub order: String,
    /// All other keys.
    pub args: Map<String, Value>,
}

impl Request {
    /// Reads a line.
    ///
    /// # Errors
    /// The `id`, as far as there is one, and what is wrong.
    pub fn parse(line: &[u8]) -> Result<Self, (Value, String)> {
        let nobody = |why: String| (Value::Null, why);
        let text =
            std::str::from_utf8(line).map_err(|_| nobody("a request is a line of UTF-8, and this is not".into()))?;
        let value =
            serde_json::from_str(text).map_err(|error| nobody(format!("a request is one JSON object: {error}")))?;
        let Value::Object(mut args) = value else {
            return Err(nobody("a request is one JSON object, and this is another value".into()));
        };
        let id = args.remove("id").unwrap_or(Value::Null);
        match args.remove("order") {
            Some(Value::String(order)) => Ok(Self { id, order, args }),
            Some(_) => Err((id, "\"order\" must be a text".into())),
            None => Err((id, "a request needs the key \"order\"".into())),
        }
    }

    /// As a line, under another `id`.
    pub fn line(&self, id: &Value) -> Vec<u8> {
        let mut object = self.args.clone();
        object.insert("id".into(), id.clone());
        object.insert("order".into(), self.order.clone().into());
        line(&Value::Object(object))
    }
}

/// The keys of an order, taken one by one.
pub struct Args {
    order: String,
    left: Map<String, Value>,
}

impl Args {
    /// Those of `request`, all of which must be `known`.
    ///
    /// # Errors
    /// One is not.
    pub fn new(request: Request, known: &[&str]) -> Result<Self, String> {
        let Request { order, args: left, .. } = request;
        match left.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) if known.is_empty() => Err(format!("{key:?} is no key of the order {order}, which has none")),
            Some(key) => Err(format!("{key:?} is no key of the order {order}; those that are: {}", known.join(", "))),
            None => Ok(Self { order, left }),
        }
    }

    fn read<T>(
        &mut self,
        key: &str,
        wanted: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, String> {
        let Some(value) = self.left.remove(key) else { return Ok(None) };
        read(&value).map(Some).ok_or_else(|| format!("{key:?} of the order {} must be {wanted}", self.order))
    }

    /// A whole number, at most `most`.
    pub fn number(&mut self, key: &str, most: u64) -> Result<Option<u64>, String> {
        let read = |value: &Value| value.as_u64().filter(|number| *number <= most);
        self.read(key, &format!("a whole number from 0 to {most}"), read)
    }

    /// A text.
    pub fn text(&mut self, key: &str) -> Result<Option<String>, String> {
        self.read(key, "a text", |value| value.as_str().map(str::to_owned))
    }

    /// One of `words`, and which.
    pub fn word(&mut self, key: &str, words: &[&str]) -> Result<Option<usize>, String> {
        let find = |value: &Value| words.iter().position(|word| value.as_str() == Some(word));
        self.read(key, &format!("one of {}", words.join(", ")), find)
    }

    /// true, or false where it is not there.
    pub fn flag(&mut self, key: &str) -> Result<bool, String> {
        Ok(self.read(key, "true or false", Value::as_bool)?.unwrap_or(false))
    }

    /// An object, or a list of them.
    pub fn objects(&mut self, key: &str) -> Result<Option<Vec<Value>>, String> {
        let read = |value: &Value| match value {
            Value::Object(_) => Some(vec![value.clone()]),
            Value::Array(all) => all.iter().all(Value::is_object).then(|| all.clone()),
            _ => None,
        };
        self.read(key, "an object or a list of objects", read)
    }
}

/// What a stream has for a reader of lines.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// A line, without its end.
    Whole(Vec<u8>),
    /// More than fits into a line.
    TooLong,
    /// The stream has ended within a line.
    Cut,
    /// The stream has ended.
    End,
}

/// Cuts a stream into lines and never keeps more than one of them and a piece.
pub struct Lines<R> {
    from: R,
    most: usize,
    kept: Vec<u8>,
    /// Bytes of `kept` that have been looked through.
    seen: usize,
}

impl<R: Read> Lines<R> {
    /// Of at most `most` bytes.
    pub fn new(from: R, most: usize) -> Self {
        Self { from, most, kept: Vec::new(), seen: 0 }
    }

    /// Where they come from.
    pub fn stream(&self) -> &R {
        &self.from
    }

    /// Waits for the next.
    ///
    /// # Errors
    /// The stream cannot be read. What has come stays for the next call.
    pub fn next(&mut self) -> io::Result<Line> {
        let mut piece = [0; 4096];
        loop {
            if let Some(at) = self.kept[self.seen..].iter().position(|byte| *byte == b'\n') {
                let rest = self.kept.split_off(self.seen + at + 1);
                let mut line = std::mem::replace(&mut self.kept, rest);
                self.seen = 0;
                line.pop();
                return Ok(if line.len() < self.most { Line::Whole(line) } else { Line::TooLong });
            }
            self.seen = self.kept.len();
            if self.kept.len() >= self.most {
                return Ok(Line::TooLong);
            }
            match self.from.read(&mut piece) {
                Ok(0) => return Ok(if self.kept.is_empty() { Line::End } else { Line::Cut }),
                Ok(count) => self.kept.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_an_object_with_an_order() {
        let request = Request::parse(br#"{"id": [1, "a"], "order": "ledger", "since": 3}"#).unwrap();
        assert_eq!((request.id.clone(), request.order.as_str()), (json!([1, "a"]), "ledger"));
        let again = Request::parse(request.line(&json!(7)).strip_suffix(b"\n").unwrap()).unwrap();
        assert_eq!((again.id, again.args), (json!(7), request.args));
        for (line, id, word) in [
            (&b"\xff{}"[..], Value::Null, "UTF-8"),
            (b"{", Value::Null, "one JSON object: EOF"),
            (b"[]", Value::Null, "another value"),
            (b"{} {}", Value::Null, "trailing"),
            (br#"{"id": 5}"#, json!(5), "needs the key \"order\""),
            (br#"{"id": 5, "order": 6}"#, json!(5), "must be a text"),
            ("[".repeat(1000).as_bytes(), Value::Null, "recursion"),
        ] {
            let (given, why) = Request::parse(line).unwrap_err();
            assert!(given == id && why.contains(word) && !why.contains('\n'), "{given} {why}");
        }
    }

    #[test]
    fn keys_are_known_and_have_their_types() {
        let args = |text: &str| {
            let request = Request::parse(text.as_bytes()).unwrap();
            Args::new(request, &["since", "state", "all", "name"])
        };
        let mut good = args(r#"{"order": "x", "since": 5, "state": "down", "all": true, "name": "n"}"#).unwrap();
        assert_eq!((good.number("since", 5), good.word("state", &["up", "down"])), (Ok(Some(5)), Ok(Some(1))));
        assert_eq!(
            (good.flag("all"), good.text("name"), good.number("since", 5)),
            (Ok(true), Ok(Some("n".into())), Ok(None))
        );
        let unknown = args(r#"{"order": "x", "sinse": 5}"#).err().unwrap();
        assert_eq!(unknown, "\"sinse\" is no key of the order x; those that are: since, state, all, name");
        let bad = r#"{"order": "x", "since": -1, "state": 3, "all": 1, "name": {}}"#;
        let said = [
            args(bad).unwrap().number("since", 9).unwrap_err(),
            args(bad).unwrap().word("state", &["up", "down"]).unwrap_err(),
            args(bad).unwrap().flag("all").unwrap_err(),
            args(bad).unwrap().text("name").unwrap_err(),
        ];
        let wanted = ["a whole number from 0 to 9", "one of up, down", "true or false", "a text"];
        assert!(said.iter().zip(wanted).all(|(said, wanted)| said.ends_with(wanted)), "{said:?}");
    }

    /// Gives a byte at a time.
    struct Drops<'a>(&'a [u8]);

    impl Read for Drops<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.0.len().min(1);
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    #[test]
    fn lines_are_cut_at_their_ends_and_bounded() {
        let all = |text: &str| {
            let mut whole = Vec::new();
            let mut drops = Vec::new();
            let (mut at_once, mut slowly) = (Lines::new(text.as_bytes(), 4), Lines::new(Drops(text.as_bytes()), 4));
            for (lines, next) in [
                (&mut whole, &mut (|| at_once.next()) as &mut dyn FnMut() -> io::Result<Line>),
                (&mut drops, &mut || slowly.next()),
            ] {
                loop {
                    lines.push(next().unwrap());
                    if !matches!(lines.last(), Some(Line::Whole(_))) {
                        break;
                    }
                }
            }
            assert_eq!(whole, drops);
            whole
        };
        let line = |text: &str| Line::Whole(text.into());
        assert_eq!(all("ab\n\nabc\n"), [line("ab"), line(""), line("abc"), Line::End]);
        assert_eq!(all("ab\nab"), [line("ab"), Line::Cut]);
        assert_eq!(all("abcd\n"), [Line::TooLong], "its end counts");
        assert_eq!(all("ab\nabcdefgh"), [line("ab"), Line::TooLong]);
    }
}

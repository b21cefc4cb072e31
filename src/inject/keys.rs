// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One table of a plan, whose keys are taken one by one: whatever is left over, nobody knows.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::{Spanned, Value};

use crate::nth::Nth;

/// A table as the TOML reader gives it.
pub type Raw = BTreeMap<Spanned<String>, Spanned<Value>>;

/// Something is wrong with a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Place in the text, in bytes.
    pub at: usize,
    /// The key; empty: the table as a whole.
    pub key: String,
    /// What, in words that follow the key.
    pub what: String,
}

/// Keys that are not taken yet.
pub struct Keys {
    at: usize,
    left: Raw,
}

impl Keys {
    /// All keys of a table that begins at byte `at`.
    pub fn new(table: Spanned<Raw>) -> Self {
        Self { at: table.span().start, left: table.into_inner() }
    }

    /// Place of the table.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Something is wrong with the table.
    pub fn mistake(&self, what: impl Into<String>) -> Mistake {
        Mistake { at: self.at, key: String::new(), what: what.into() }
    }

    fn take(&mut self, key: &str) -> Option<(usize, Value)> {
        let name = self.left.keys().find(|name| name.get_ref() == key)?.clone();
        let value = self.left.remove(&name)?;
        Some((name.span().start, value.into_inner()))
    }

    /// The value of `key` as `read` understands it; `wanted` says what that is.
    fn read<T>(
        &mut self,
        key: &str,
        wanted: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, Mistake> {
        let Some((at, value)) = self.take(key) else { return Ok(None) };
        match read(&value) {
            Some(value) => Ok(Some(value)),
            None => Err(Mistake { at, key: key.into(), what: format!("must be {wanted}, and is {value}") }),
        }
    }

    /// A text.
    pub fn text(&mut self, key: &str) -> Result<Option<String>, Mistake> {
        self.read(key, "a text", |value| value.as_str().map(str::to_owned))
    }

    /// A whole number that is not negative.
    pub fn number<N: TryFrom<i64>>(&mut self, key: &str) -> Result<Option<N>, Mistake> {
        let most = i128::from(i64::MAX).min((1 << (size_of::<N>() * 8).min(63)) - 1);
        let wanted = format!("a whole number from 0 to {most}");
        self.read(key, &wanted, |value| value.as_integer().and_then(|number| N::try_from(number).ok()))
    }

    /// Yes or no; no where it is not given.
    pub fn flag(&mut self, key: &str) -> Result<bool, Mistake> {
        self.read(key, "true or false", Value::as_bool).map(|flag| flag.unwrap_or(false))
    }

    /// On which match: a number, or a range of which the seed draws one.
    pub fn nth(&mut self, key: &str) -> Result<Option<Nth>, Mistake> {
        self.read(key, Nth::WANTED, Nth::read)
    }

    /// A number that must be there.
    pub fn needed<N: TryFrom<i64>>(&mut self, key: &str, what: &str) -> Result<N, Mistake> {
        let missing = self.mistake(format!("needs the key \"{key}\": {what}"));
        self.number(key)?.ok_or(missing)
    }

    /// A probability, 0 to 1, in millionths.
    pub fn probability(&mut self, key: &str) -> Result<Option<u32>, Mistake> {
        let read = |value: &Value| {
            let part = value.as_float().or_else(|| value.as_integer().map(|whole| whole as f64))?;
            (0.0..=1.0).contains(&part).then_some((part * 1e6).round() as u32)
        };
        self.read(key, "a number from 0 to 1", read)
    }

    /// One of the words that `find` knows; `words` names them for people.
    pub fn word<T>(
        &mut self,
        key: &str,
        words: impl IntoIterator<Item = &'static str>,
        find: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, Mistake> {
        let wanted = format!("one of {}", words.into_iter().collect::<Vec<_>>().join(", "));
        self.read(key, &wanted, |value| find(value.as_str()?))
    }

    /// One of the words that `find` knows, or a whole number from 1 to 255.
    pub fn word_or_byte(
        &mut self,
        key: &str,
        words: impl IntoIterator<Item = &'static str>,
        find: impl FnOnce(&str) -> Option<u8>,
    ) -> Result<Option<u8>, Mistake> {
        let wanted = format!("a number from 1 to 255 or one of {}", words.into_iter().collect::<Vec<_>>().join(", "));
        let byte = |value: &Value| u8::try_from(value.as_integer()?).ok().filter(|byte| *byte != 0);
        self.read(key, &wanted, |value| byte(value).or_else(|| find(value.as_str()?)))
    }

    /// `[first, end]`, two whole numbers, of which the second is not part of it.
    pub fn range(&mut self, key: &str) -> Result<Option<Range<u64>>, Mistake> {
        let read = |value: &Value| match value.as_array()?.as_slice() {
            [first, end] => {
                let number = |value: &Value| value.as_integer().and_then(|number| u64::try_from(number).ok());
                Some(number(first)?..number(end)?).filter(|range| !range.is_empty())
            }
            _ => None,
        };
        self.read(key, "[first, end], where end is larger than first", read)
    }

    /// No key may be left. `known`: the keys that could have been.
    pub fn end(self, known: &[&str]) -> Result<(), Mistake> {
        match self.left.into_keys().next() {
            None => Ok(()),
            Some(name) => {
                let what = format!("is no key here; those that are: {}", known.join(", "));
                Err(Mistake { at: name.span().start, key: name.into_inner(), what })
            }
        }
    }
}

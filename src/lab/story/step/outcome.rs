// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What may come of a step.

use serde::Deserialize;

use crate::verdict::errno_name;

/// What may come of a step. Nothing else may: it ends the row.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Outcome {
    /// "returns": it does what it is for.
    Returns,
    /// "waits": in the background, until what is held goes on.
    Waits,
    /// "errno:EIO": it fails with this error.
    Errno(i32),
    /// "error:remote access error": a work request completes with this status (ibv_wc_status_str(3)).
    Status(String),
}

impl TryFrom<String> for Outcome {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let errno = |name: &str| (1..200).find(|number| errno_name(*number) == name);
        match (text.as_str(), text.split_once(':')) {
            ("returns", _) => Ok(Self::Returns),
            ("waits", _) => Ok(Self::Waits),
            (_, Some(("errno", name))) => errno(name).map(Self::Errno).ok_or_else(|| {
                format!(
                    "`allow`: \"{name}\" is no error that this program has a name for; \"errno N\" is one by its number"
                )
            }),
            (_, Some(("error", status))) => Ok(Self::Status(status.into())),
            _ => Err(format!("`allow`: \"{text}\" is no outcome; there are returns, waits, errno:NAME, error:STATUS")),
        }
    }
}

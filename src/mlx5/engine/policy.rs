// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who runs the engines: `engines=` of the NIC.

use std::fmt;
use std::str::FromStr;

/// Who runs the engines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EnginePolicy {
    /// As [`EnginePolicy::resolve`] chooses.
    #[default]
    Auto,
    /// The vCPU that rings a doorbell, before it goes back into the guest. A thread each for the rest.
    Inline,
    /// So many threads, 1 to 16, each of which polls a while before it sleeps.
    Threads(u8),
}

/// The most engines that a NIC may have.
const MOST: u8 = dma::MAX_ENGINES as u8;
/// Without a word about it.
const DEFAULT: u8 = 2;

impl EnginePolicy {
    /// What `auto` means for a guest of `vcpus` on this host. Where vCPUs and engines share cores, a guest that spins for a completion
    /// may take the core from the thread that is to write it: docs/performance.md, where a round trip is a sixth shorter without it.
    pub fn resolve(self, vcpus: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        match self {
            Self::Auto if cores <= vcpus.saturating_add(1) => Self::Inline,
            Self::Auto => Self::Threads(DEFAULT),
            chosen => chosen,
        }
    }

    /// How many engines there are, 1 to 16.
    pub fn count(self) -> usize {
        match self {
            Self::Auto | Self::Inline => usize::from(DEFAULT),
            Self::Threads(count) => usize::from(count.clamp(1, MOST)),
        }
    }
}

impl FromStr for EnginePolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let count = text.parse().ok().filter(|count| (1..=MOST).contains(count));
        match text {
            "auto" => Ok(Self::Auto),
            "inline" => Ok(Self::Inline),
            _ => count
                .map(Self::Threads)
                .ok_or_else(|| format!("engines={text} is not possible; use auto, inline or 1 to {MOST}")),
        }
    }
}

impl fmt::Display for EnginePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Inline => f.write_str("inline"),
            Self::Threads(count) => write!(f, "{count}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_depends_on_the_cores_and_nothing_else_does() {
        let cores = std::thread::available_parallelism().unwrap().get();
        assert_eq!(EnginePolicy::Auto.resolve(cores), EnginePolicy::Inline);
        assert_eq!(EnginePolicy::Auto.resolve(usize::MAX), EnginePolicy::Inline);
        let roomy = cores.checked_sub(2).map(|vcpus| EnginePolicy::Auto.resolve(vcpus));
        assert!(roomy.is_none_or(|policy| policy == EnginePolicy::Threads(DEFAULT)));
        for chosen in [EnginePolicy::Inline, EnginePolicy::Threads(3)] {
            assert_eq!((chosen.resolve(0), chosen.resolve(usize::MAX)), (chosen, chosen));
        }
    }

    #[test]
    fn policies_are_written_as_they_are_read() {
        for policy in [EnginePolicy::Auto, EnginePolicy::Inline, EnginePolicy::Threads(1), EnginePolicy::Threads(16)] {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        for bad in ["", "0", "17", "many", "-1"] {
            assert!(bad.parse::<EnginePolicy>().unwrap_err().contains("auto, inline or 1 to 16"));
        }
    }
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Makes programs, runs them, keeps those that got new answers.

use std::path::Path;
use std::time::{Duration, Instant};

use rnic_testdrive::hostile::Victim;

use crate::trail::{self, Trail};
use crate::{Arguments, Target};

const MAX_PROGRAM: usize = 1024;
/// How often it tells that it lives.
const REPORT: Duration = Duration::from_secs(5);

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

fn step(victim: &mut Victim, target: Target, program: &[u8]) -> Result<(), String> {
    match target {
        Target::Commands => victim.commands(program),
        Target::Wqes => victim.wqes(program),
    }
    .map_err(|error| error.to_string())
}

/// Runs the programs of a trail.
pub fn replay(target: Target, file: &Path) -> Result<(), String> {
    let programs = trail::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let mut victim = Victim::new().map_err(|error| error.to_string())?;
    for (index, program) in programs.iter().enumerate() {
        println!("program {} of {}, {} bytes", index + 1, programs.len(), program.len());
        step(&mut victim, target, program)?;
    }
    Ok(())
}

/// Fuzzes for the time that is wanted.
pub fn run(arguments: &Arguments) -> Result<(), String> {
    let place = arguments.place();
    let mut corpus = load(&place.join("corpus"));
    let mut random = Random(arguments.seed);
    let mut trail = Trail::create(&place).map_err(|error| error.to_string())?;
    let mut victim = Victim::new().map_err(|error| error.to_string())?;
    let begun = Instant::now();
    let (mut count, mut told) = (0u64, begun);
    println!("{} programs in the corpus", corpus.len());
    let mut seeds = corpus.clone();
    while begun.elapsed().as_secs() < arguments.seconds {
        let program = seeds.pop().unwrap_or_else(|| invent(&mut random, &corpus));
        trail.push(&program).map_err(|error| error.to_string())?;
        step(&mut victim, arguments.target, &program)?;
        if victim.is_fresh() {
            trail.clear().map_err(|error| error.to_string())?;
        }
        count += 1;
        if victim.take_news() && !corpus.contains(&program) {
            let name = format!("{:016x}", fingerprint(&program));
            // A corpus that cannot be kept is no reason to stop.
            let _ = std::fs::write(place.join("corpus").join(name), &program);
            corpus.push(program);
        }
        if told.elapsed() > REPORT {
            told = Instant::now();
            println!("{count} programs, {} in the corpus", corpus.len());
        }
    }
    println!("{count} programs, {} in the corpus, no crash and no hang", corpus.len());
    Ok(())
}

/// A new program, mostly from an old one.
fn invent(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let old = corpus.get(random.below(corpus.len())).filter(|_| random.below(4) != 0);
    let Some(mut program) = old.cloned() else {
        let len = random.below(MAX_PROGRAM / 2);
        return random.bytes(len);
    };
    for _ in 0..=random.below(4) {
        let at = random.below(program.len());
        match random.below(6) {
            0 => program.truncate(at),
            1 => {
                let len = random.below(32);
                let bytes = random.bytes(len);
                program.splice(at..at, bytes);
            }
            2 => {
                let other = &corpus[random.below(corpus.len())];
                program.truncate(at);
                program.extend(&other[random.below(other.len() + 1).min(other.len())..]);
            }
            3 => {
                let end = (at + random.below(16)).min(program.len());
                program.drain(at..end);
            }
            _ => {
                let byte = random.next() as u8;
                if let Some(old) = program.get_mut(at) {
                    *old = if byte.is_multiple_of(2) { byte } else { *old ^ 1 << (byte >> 1 & 7) };
                }
            }
        }
    }
    program.truncate(MAX_PROGRAM);
    program
}

fn load(folder: &Path) -> Vec<Vec<u8>> {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut programs: Vec<_> = files.filter_map(|file| std::fs::read(file.path()).ok()).collect();
    programs.sort();
    programs
}

/// FNV-1a.
fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

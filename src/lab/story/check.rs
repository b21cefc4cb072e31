// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the format alone cannot say of a story: names that exist, steps that fit together.

use std::collections::BTreeMap;

use super::step::{Outcome, Step};
use super::{Story, line_of};

mod gup;
mod memory;
mod processes;

/// Pages that a story may name: each is watched.
const MAX_PAGES: usize = 32;
/// Steps that a story may have.
const MAX_STEPS: usize = 200;
/// Reads that are held at once: what a page may hold while they are open doubles with each.
const MAX_READS: usize = 8;
/// Writes of a page that a hold may count.
const MAX_WRITES: u32 = 8;
/// Rounds of a race, and trials.
const MAX_ROUNDS: u32 = 100;
/// Reads of all rounds together: each has its page on the source disk.
const MAX_SOURCE: usize = 4000;
/// Pages of a file.
const MAX_FILE: u32 = 4096;

/// What is wrong, and where.
pub(super) struct Mistake {
    /// Byte of the text; 0: of the whole.
    at: usize,
    key: String,
    what: String,
}

impl Mistake {
    fn new(at: usize, key: &str, what: impl Into<String>) -> Self {
        Self { at, key: key.into(), what: what.into() }
    }

    pub(super) fn sentence(&self, text: &str) -> String {
        format!("line {}, `{}`: {}", line_of(text, self.at), self.key, self.what)
    }
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    Read,
    Hold,
    Background,
    Fixed,
    Umem,
    Pipe,
}

pub(super) fn check(story: &Story) -> Result<(), Mistake> {
    places(story)?;
    processes::check(story)?;
    memory::check(story)?;
    if story.steps.len() > MAX_STEPS {
        return Err(Mistake::new(0, "step", format!("there are more than {MAX_STEPS} steps")));
    }
    for expect in &story.expects {
        if let Some((key, what)) = expect.get_ref().mistake() {
            return Err(Mistake::new(expect.span().start, key, what));
        }
    }
    let mut names = BTreeMap::new();
    for step in &story.steps {
        Checker { story, at: step.span().start }.step(step.get_ref(), &mut names)?;
    }
    rounds(story, &names)
}

/// Several rounds follow each other: nothing may be open in between.
fn rounds(story: &Story, open: &BTreeMap<String, Named>) -> Result<(), Mistake> {
    let key = if story.race.is_some() { "race" } else { "trials" };
    if story.race.is_some() && story.trials != 1 {
        return Err(Mistake::new(0, "trials", "a race has rounds; give it no trials"));
    }
    if !(1..=MAX_ROUNDS).contains(&story.rounds()) {
        let what = format!("the steps would be played {} times; 1 to {MAX_ROUNDS} will do", story.rounds());
        return Err(Mistake::new(0, key, what));
    }
    let reads = story.steps.iter().filter(|step| matches!(step.get_ref(), Step::DioRead(_))).count();
    if reads * story.most_rounds() as usize > MAX_SOURCE {
        return Err(Mistake::new(0, key, format!("there are more than {MAX_SOURCE} reads in all rounds")));
    }
    match open.keys().next() {
        Some(name) if story.most_rounds() > 1 => {
            let what = format!("\"{name}\" has not ended when the steps end, and they are played again");
            Err(Mistake::new(0, key, what))
        }
        _ => Ok(()),
    }
}

fn places(story: &Story) -> Result<(), Mistake> {
    if story.filesystems.is_empty() {
        return Err(Mistake::new(0, "filesystems", "names no file system"));
    }
    if let Some(mode) = story.core_modes.iter().find(|mode| !story.registrations.iter().any(|one| one.name() == **mode))
    {
        return Err(Mistake::new(0, "core_modes", format!("\"{mode}\" is none of the story's registrations")));
    }
    if story.pages.len() > MAX_PAGES {
        return Err(Mistake::new(0, "pages", format!("there are more than {MAX_PAGES} pages")));
    }
    if let Some((name, file)) = story.files.iter().find(|(_, file)| !(1..=MAX_FILE).contains(&file.pages)) {
        let what = format!("file \"{name}\" has {} pages; it may have 1 to {MAX_FILE}", file.pages);
        return Err(Mistake::new(0, "files", what));
    }
    if story.buffers.len() > MAX_PAGES {
        return Err(Mistake::new(0, "buffers", format!("there are more than {MAX_PAGES} buffers")));
    }
    if let Some((name, buffer)) = story.buffers.iter().find(|(_, buffer)| !story.pages.contains_key(&buffer.page)) {
        let what = format!("buffer \"{name}\" is of page \"{}\"; {}", buffer.page, there_are(story.pages.keys()));
        return Err(Mistake::new(0, "buffers", what));
    }
    for (name, page) in &story.pages {
        let Some(file) = story.files.get(&page.file) else {
            let what = format!("page \"{name}\" is of file \"{}\"; {}", page.file, there_are(story.files.keys()));
            return Err(Mistake::new(0, "pages", what));
        };
        if page.at >= file.pages {
            let what = format!("page \"{name}\" is page {} of a file of {} pages", page.at, file.pages);
            return Err(Mistake::new(0, "pages", what));
        }
    }
    Ok(())
}

fn there_are<'a>(names: impl Iterator<Item = &'a String>) -> String {
    match names.map(String::as_str).collect::<Vec<_>>().join(", ") {
        none if none.is_empty() => "there is none".into(),
        list => format!("there are {list}"),
    }
}

struct Checker<'a> {
    story: &'a Story,
    at: usize,
}

impl Checker<'_> {
    fn mistake(&self, key: &str, what: impl Into<String>) -> Mistake {
        Mistake::new(self.at, key, what)
    }

    /// The steps before this one.
    fn before(&self) -> impl Iterator<Item = &Step> {
        let before = self.story.steps.iter().take_while(|other| other.span().start < self.at);
        before.map(|other| other.get_ref())
    }

    fn step(&self, step: &Step, names: &mut BTreeMap<String, Named>) -> Result<(), Mistake> {
        self.outcomes(step)?;
        self.race(step, names)?;
        self.process(step)?;
        self.memory(step)?;
        self.through(step)?;
        if let Some(page) = step.page() {
            self.page(page)?;
        }
        self.buffer(step)?;
        if let Some(tag) = step.tag() {
            self.tag(tag)?;
        }
        if let Some(name) = step.background() {
            self.name("background", name, Named::Background, names)?;
        }
        match step {
            Step::Store(_) | Step::RdmaWrite(_) | Step::DioWrite(_) | Step::Punch(_) | Step::Truncate(_) => {}
            Step::VmWrite(write) => self.is_process("into", &write.into)?,
            Step::Fix(_) | Step::Unfix(_) | Step::Umem(_) | Step::XdpReceive(_) | Step::CloseUmem(_) => {
                self.registered(step, names)?;
            }
            Step::Vmsplice(splice) => self.name("name", &splice.name, Named::Pipe, names)?,
            Step::PipeRead(name) => {
                self.known(&name.name, &[Named::Pipe], names)?;
                names.remove(&name.name);
            }
            Step::Load(_) | Step::RdmaRead(_) | Step::Writeback(_) | Step::Advise(_) => {}
            Step::Fsync(fsync) => self.file(&fsync.file)?,
            Step::DioRead(read) => {
                if read.bytes == 0 || read.bytes > 4096 || read.bytes % 512 != 0 {
                    return Err(self.mistake("bytes", format!("{} is not a multiple of 512 up to 4096", read.bytes)));
                }
                if names.values().filter(|is| **is == Named::Read).count() >= MAX_READS {
                    return Err(
                        self.mistake("dio_read", format!("{MAX_READS} reads are held already; finish one first"))
                    );
                }
                self.reads_into(read, names)?;
                self.name("name", &read.name, Named::Read, names)?;
            }
            Step::Hold(hold) => self.name("name", &hold.name, Named::Hold, names)?,
            Step::Deliver(name) => self.known(&name.name, &[Named::Read, Named::Hold], names)?,
            Step::Finish(name) => {
                self.known(&name.name, &[Named::Read, Named::Hold], names)?;
                names.remove(&name.name);
            }
            Step::Wait(name) => {
                self.known(&name.name, &[Named::Background], names)?;
                names.remove(&name.name);
            }
            Step::Interrupt(name) => self.interrupt(&name.name, names)?,
            Step::Kill(kill) => self.kill(&kill.process, names),
            Step::Register(register) => self.file(&register.file)?,
            Step::Deregister(of) => self.file(&of.file)?,
            Step::Unmap(of) | Step::MapAgain(of) | Step::Move(of) => self.file(&of.file)?,
            Step::Seal(seal) => self.file(&seal.file)?,
            Step::Change(_) | Step::DropCaches(_) | Step::Cut(_) => {}
        }
        if step.is_rdma() && self.story.registrations.is_empty() {
            return Err(self.mistake("step", "this step wants an RDMA device: give the story `registrations`"));
        }
        Ok(())
    }

    /// What may come of a step must be able to come of it.
    fn outcomes(&self, step: &Step) -> Result<(), Mistake> {
        let allow = step.allow();
        if allow.contains(&Outcome::Waits) && (step.background().is_none() || matches!(step, Step::Fsync(_))) {
            let what =
                "\"waits\" is for a store, write or punch with `background`: who waits in the foreground is waited for";
            return Err(self.mistake("allow", what));
        }
        let status = allow.iter().any(|outcome| matches!(outcome, Outcome::Status(_)));
        let errno = allow.iter().any(|outcome| matches!(outcome, Outcome::Errno(_)));
        match (status, errno, matches!(step, Step::RdmaWrite(_))) {
            (true, _, false) => Err(self.mistake("allow", "\"error:...\" is the status of a work request")),
            (_, true, true) => {
                Err(self.mistake("allow", "a work request has no errno; \"error:STATUS\" is its status"))
            }
            _ => Ok(()),
        }
    }

    /// In a race nothing is held, and nobody could say which of two writers of a page was the last.
    fn race(&self, step: &Step, names: &BTreeMap<String, Named>) -> Result<(), Mistake> {
        if self.story.race.is_none() {
            return Ok(());
        }
        if matches!(step, Step::Hold(_) | Step::Deliver(_)) {
            return Err(self.mistake("race", "in a race nothing is held"));
        }
        let Some(page) = step.writes() else { return Ok(()) };
        let open =
            |other: &&Step| other.writes() == Some(page) && other.name().is_some_and(|name| names.contains_key(name));
        match self.before().find(open) {
            Some(_) => {
                let what =
                    format!("an earlier step still writes page \"{page}\": nobody could say whose bytes come last");
                Err(self.mistake("race", what))
            }
            None => Ok(()),
        }
    }

    /// A registration that a step names has been made before.
    fn through(&self, step: &Step) -> Result<(), Mistake> {
        let Some(name) = step.through() else { return Ok(()) };
        if !step.is_rdma() {
            return Err(self.mistake("through", "only a step of an RDMA device goes through a registration"));
        }
        let names = |step: &Step| matches!(step, Step::Register(register) if register.name.as_deref() == Some(name));
        if self.before().any(names) {
            return Ok(());
        }
        Err(self.mistake("through", format!("no earlier step registers anything as \"{name}\"")))
    }

    /// The thread that a signal goes to is one of the agent's own process.
    fn interrupt(&self, name: &str, names: &BTreeMap<String, Named>) -> Result<(), Mistake> {
        self.known(name, &[Named::Background], names)?;
        let step = self.before().filter(|step| step.name() == Some(name)).last();
        match step.and_then(Step::process) {
            Some(process) => {
                let what =
                    format!("\"{name}\" is a step of process \"{process}\"; only the agent's own can be interrupted");
                Err(self.mistake("interrupt", what))
            }
            None => Ok(()),
        }
    }

    fn page(&self, name: &str) -> Result<(), Mistake> {
        if self.story.pages.contains_key(name) {
            return Ok(());
        }
        Err(self.mistake("page", format!("there is no page \"{name}\"; {}", there_are(self.story.pages.keys()))))
    }

    /// A buffer is of one page, and of the agent's own process.
    fn buffer(&self, step: &Step) -> Result<(), Mistake> {
        if let Step::Hold(hold) = step
            && !(1..=MAX_WRITES).contains(&hold.nth)
        {
            return Err(self.mistake("nth", format!("{} is not from 1 to {MAX_WRITES}", hold.nth)));
        }
        let Some(name) = step.buffer() else { return Ok(()) };
        let Some(spec) = self.story.buffers.get(name) else {
            let what = format!("there is no buffer \"{name}\"; {}", there_are(self.story.buffers.keys()));
            return Err(self.mistake("buffer", what));
        };
        if step.page().is_some_and(|page| page != spec.page) {
            return Err(self.mistake("buffer", format!("buffer \"{name}\" is of page \"{}\"", spec.page)));
        }
        let refused = match step {
            Step::DioWrite(write) if write.process.is_some() => "only the agent's own process writes from a buffer",
            Step::DioWrite(write) if write.replaces => "`replaces` is not for a write from a buffer: nobody looks",
            _ => return Ok(()),
        };
        Err(self.mistake("buffer", refused))
    }

    fn file(&self, name: &str) -> Result<(), Mistake> {
        if self.story.files.contains_key(name) {
            return Ok(());
        }
        Err(self.mistake("file", format!("there is no file \"{name}\"; {}", there_are(self.story.files.keys()))))
    }

    /// A is what files begin with.
    fn tag(&self, tag: char) -> Result<(), Mistake> {
        if tag.is_ascii_uppercase() && tag != 'A' {
            return Ok(());
        }
        Err(self.mistake("tag", format!("{tag:?} is not a letter from B to Z")))
    }

    fn name(&self, key: &str, name: &str, is: Named, names: &mut BTreeMap<String, Named>) -> Result<(), Mistake> {
        match names.insert(name.into(), is) {
            None => Ok(()),
            Some(_) => Err(self.mistake(key, format!("\"{name}\" is taken by an earlier step that has not ended"))),
        }
    }

    fn known(&self, name: &str, wanted: &[Named], names: &BTreeMap<String, Named>) -> Result<(), Mistake> {
        match names.get(name) {
            Some(is) if wanted.contains(is) => Ok(()),
            Some(_) => Err(self.mistake("name", format!("\"{name}\" is no step that this can be done to"))),
            None => {
                let what =
                    format!("no earlier step that has not ended is called \"{name}\"; {}", there_are(names.keys()));
                Err(self.mistake("name", what))
            }
        }
    }
}

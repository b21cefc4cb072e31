// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the format alone cannot say of a story: names that exist, steps that fit together.

use std::collections::BTreeMap;

use super::{Step, Story, line_of};

/// Pages that a story may name: each is watched.
const MAX_PAGES: usize = 32;
/// Steps that a story may have.
const MAX_STEPS: usize = 200;
/// Reads that are held at once: what a page may hold while they are open doubles with each.
const MAX_READS: usize = 8;
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
}

pub(super) fn check(story: &Story) -> Result<(), Mistake> {
    places(story)?;
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
    Ok(())
}

fn places(story: &Story) -> Result<(), Mistake> {
    if story.filesystems.is_empty() {
        return Err(Mistake::new(0, "filesystems", "names no file system"));
    }
    if story.pages.len() > MAX_PAGES {
        return Err(Mistake::new(0, "pages", format!("there are more than {MAX_PAGES} pages")));
    }
    if let Some((name, file)) = story.files.iter().find(|(_, file)| !(1..=MAX_FILE).contains(&file.pages)) {
        let what = format!("file \"{name}\" has {} pages; it may have 1 to {MAX_FILE}", file.pages);
        return Err(Mistake::new(0, "files", what));
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

    fn step(&self, step: &Step, names: &mut BTreeMap<String, Named>) -> Result<(), Mistake> {
        match step {
            Step::Store(store) | Step::RdmaWrite(store) | Step::DioWrite(store) => {
                self.page(&store.page)?;
                self.tag(store.tag)?;
            }
            Step::Load(load) | Step::RdmaRead(load) | Step::Punch(load) => self.page(&load.page)?,
            Step::Fsync(fsync) => {
                self.file(&fsync.file)?;
                if let Some(name) = &fsync.background {
                    self.name("background", name, Named::Background, names)?;
                }
            }
            Step::DioRead(read) => {
                self.page(&read.page)?;
                self.tag(read.tag)?;
                if read.bytes == 0 || read.bytes > 4096 || read.bytes % 512 != 0 {
                    return Err(self.mistake("bytes", format!("{} is not a multiple of 512 up to 4096", read.bytes)));
                }
                if names.values().filter(|is| **is == Named::Read).count() >= MAX_READS {
                    return Err(
                        self.mistake("dio_read", format!("{MAX_READS} reads are held already; finish one first"))
                    );
                }
                self.name("name", &read.name, Named::Read, names)?;
            }
            Step::Hold(hold) => {
                self.page(&hold.page)?;
                self.name("name", &hold.name, Named::Hold, names)?;
            }
            Step::Deliver(name) => self.known(&name.name, &[Named::Read, Named::Hold], names)?,
            Step::Finish(name) => {
                self.known(&name.name, &[Named::Read, Named::Hold], names)?;
                names.remove(&name.name);
            }
            Step::Wait(name) => {
                self.known(&name.name, &[Named::Background], names)?;
                names.remove(&name.name);
            }
            Step::Advise(advise) => self.page(&advise.page)?,
            Step::Register(of) | Step::Deregister(of) => self.file(&of.file)?,
            Step::DropCaches(_) | Step::Cut(_) => {}
        }
        let rdma = matches!(step, Step::Register(_) | Step::Deregister(_) | Step::RdmaWrite(_) | Step::RdmaRead(_));
        if rdma && self.story.registrations.is_empty() {
            return Err(self.mistake("step", "this step wants an RDMA device: give the story `registrations`"));
        }
        Ok(())
    }

    fn page(&self, name: &str) -> Result<(), Mistake> {
        if self.story.pages.contains_key(name) {
            return Ok(());
        }
        Err(self.mistake("page", format!("there is no page \"{name}\"; {}", there_are(self.story.pages.keys()))))
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

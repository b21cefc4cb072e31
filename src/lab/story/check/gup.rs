// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory that is registered with an io_uring or an AF_XDP socket: who writes through it writes to a page of the same file.

use std::collections::BTreeMap;

use super::{Checker, Mistake, Named};
use crate::story::step::{Call, DioRead, Step};

impl Checker<'_> {
    /// The memory that a read names must be registered, and be the page's.
    pub(super) fn reads_into(&self, read: &DioRead, names: &BTreeMap<String, Named>) -> Result<(), Mistake> {
        if read.by != Call::IoUringFixed && !read.allow.iter().all(|outcome| *outcome == super::Outcome::Returns) {
            let what = "only a read by \"io_uring_fixed\" registers memory, which may be refused";
            return Err(self.mistake("allow", what));
        }
        let Some(buffer) = &read.buffer else { return Ok(()) };
        if read.by != Call::IoUringFixed {
            return Err(self.mistake("buffer", "only a read by \"io_uring_fixed\" goes into registered memory"));
        }
        self.known(buffer, &[Named::Fixed], names)?;
        self.of_same(buffer, &read.page, Some(read.process.as_deref()))
    }

    /// Steps that register memory, write through that, or take it back.
    pub(super) fn registered(&self, step: &Step, names: &mut BTreeMap<String, Named>) -> Result<(), Mistake> {
        let is = if matches!(step, Step::Fix(_) | Step::Unfix(_)) { Named::Fixed } else { Named::Umem };
        match step {
            Step::Fix(fix) | Step::Umem(fix) => {
                self.file(&fix.file)?;
                self.name("name", &fix.name, is, names)
            }
            Step::XdpReceive(packet) => {
                self.known(&packet.name, &[is], names)?;
                self.of_same(&packet.name, &packet.page, None)
            }
            Step::Unfix(name) | Step::CloseUmem(name) => {
                self.known(&name.name, &[is], names)?;
                names.remove(&name.name);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The page is of the file whose mapping is registered as `name`, by this process.
    fn of_same(&self, name: &str, page: &str, process: Option<Option<&str>>) -> Result<(), Mistake> {
        let of_it = |step: &&Step| matches!(step, Step::Fix(fix) | Step::Umem(fix) if fix.name == name);
        let Some(Step::Fix(fix) | Step::Umem(fix)) = self.before().filter(of_it).last() else { return Ok(()) };
        let file = self.story.pages.get(page).map(|page| &page.file);
        if file == Some(&fix.file) && process.is_none_or(|process| process == fix.process.as_deref()) {
            return Ok(());
        }
        let what = format!("\"{name}\" is another file's, or another process's, than page \"{page}\"");
        Err(self.mistake("name", what))
    }
}

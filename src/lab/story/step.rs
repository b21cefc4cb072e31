// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The steps of a story.

use serde::Deserialize;

use crate::plan::Registration;

mod ask;
mod gup;
mod outcome;

pub use gup::{Call, Fix, VmWrite, Vmsplice, XdpReceive};
pub use outcome::Outcome;

/// What an advice covers, around a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Range {
    /// The page.
    Page,
    /// The half of its folio that has it.
    HalfFolio,
    /// Its folio.
    Folio,
    /// The file.
    File,
}

/// madvise(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Advice {
    /// MADV_PAGEOUT.
    Pageout,
    /// MADV_COLD.
    Cold,
    /// MADV_DONTNEED.
    Dontneed,
}

/// Where a request is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Point {
    /// Before its data move.
    BeforeData,
    /// After that, before it completes.
    BeforeComplete,
}

/// What happens. A letter (`tag`) names the writer of bytes, and is found again wherever they are read.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// A CPU store to the whole page.
    Store(Write),
    /// A CPU load of the whole page: it must show what was written last.
    Load(OfPage),
    /// fsync(2), which promises what was complete before it began.
    Fsync(Fsync),
    /// sync_file_range(2) of a page: its write begins, and nothing is promised.
    Writeback(Writeback),
    /// An O_DIRECT read from another disk into the mapping: a device writes the page.
    DioRead(DioRead),
    /// Holds the next request of the disk under test that touches a page.
    Hold(Hold),
    /// Lets a held request move its data, and holds it again before it completes.
    Deliver(Name),
    /// Lets what is held go on, and waits for the step that it belongs to.
    Finish(Name),
    /// Waits for a step in the background.
    Wait(Name),
    /// A signal to the thread of a step in the background.
    Interrupt(Name),
    /// madvise(2).
    Advise(Advise),
    /// ibv_reg_mr(3) of the mapping of a file, as the row's mode says or as it says itself.
    Register(Register),
    /// ibv_dereg_mr(3).
    Deregister(OfFile),
    /// RDMA WRITE to the whole page.
    RdmaWrite(Write),
    /// RDMA READ of the whole page: it must show what was written last.
    RdmaRead(OfPage),
    /// An O_DIRECT write of the whole page through the file.
    DioWrite(DioWrite),
    /// FALLOC_FL_PUNCH_HOLE of the page: zeroes.
    Punch(Punch),
    /// Other bytes in a buffer that O_DIRECT writes take theirs from.
    Change(Change),
    /// ftruncate(2): the file ends where the page begins.
    Truncate(Punch),
    /// munmap(2) of memory that is no file of the file system under test.
    Unmap(OfFile),
    /// mmap(2) of fresh memory where anonymous memory was before [`Unmap`](Self::Unmap).
    MapAgain(OfFile),
    /// mremap(2) of anonymous memory to another address.
    Move(OfFile),
    /// F_SEAL_WRITE of a memory file.
    Seal(Seal),
    /// IORING_REGISTER_BUFFERS of the mapping of a file.
    Fix(Fix),
    /// IORING_UNREGISTER_BUFFERS.
    Unfix(Name),
    /// XDP_UMEM_REG: the mapping of a file is the memory of an AF_XDP socket.
    Umem(Fix),
    /// A packet that this socket receives: the kernel copies it into the page.
    XdpReceive(XdpReceive),
    /// Closes this socket.
    CloseUmem(Name),
    /// vmsplice(2) of the page into a pipe.
    Vmsplice(Vmsplice),
    /// Reads such a pipe: it must show what was written last.
    PipeRead(Name),
    /// process_vm_writev(2) to the whole page, in another process's mapping.
    VmWrite(VmWrite),
    /// SIGKILL to a process, and its end.
    Kill(Kill),
    /// drop_caches.
    DropCaches(Empty),
    /// A power cut, of which every page is read that the story names.
    Cut(Empty),
}

/// By default a step has to return.
fn returns() -> Vec<Outcome> {
    vec![Outcome::Returns]
}

/// See [`Step::Store`] and [`Step::RdmaWrite`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Write {
    /// Name of the page.
    pub page: String,
    /// The writer's letter.
    pub tag: char,
    /// It runs beside the steps that follow, under this name.
    #[serde(default)]
    pub background: Option<String>,
    /// What may come of it.
    #[serde(default = "returns")]
    pub allow: Vec<Outcome>,
    /// The process that does it; by default the agent's own.
    #[serde(default)]
    pub process: Option<String>,
    /// How long it took becomes a figure of the row, under this name.
    #[serde(default)]
    pub figure: Option<String>,
    /// Of steps of an RDMA device: the registration of that name.
    #[serde(default)]
    pub through: Option<String>,
}

/// See [`Step::DioWrite`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DioWrite {
    /// Name of the page.
    pub page: String,
    /// The writer's letter.
    pub tag: char,
    /// It runs beside the steps that follow, under this name.
    #[serde(default)]
    pub background: Option<String>,
    /// What may come of it.
    #[serde(default = "returns")]
    pub allow: Vec<Outcome>,
    /// The page must leave the mapping: else the row says nothing.
    #[serde(default)]
    pub replaces: bool,
    /// Name of the buffer that has its bytes, which stays writable meanwhile; by default one of the agent's that nobody else writes.
    #[serde(default)]
    pub buffer: Option<String>,
    /// The process that does it; by default the agent's own.
    #[serde(default)]
    pub process: Option<String>,
    /// How long it took becomes a figure of the row, under this name.
    #[serde(default)]
    pub figure: Option<String>,
}

/// See [`Step::Punch`] and [`Step::Truncate`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Punch {
    /// Name of the page.
    pub page: String,
    /// It runs beside the steps that follow, under this name.
    #[serde(default)]
    pub background: Option<String>,
    /// What may come of it.
    #[serde(default = "returns")]
    pub allow: Vec<Outcome>,
    /// The process that does it; by default the agent's own.
    #[serde(default)]
    pub process: Option<String>,
    /// How long it took becomes a figure of the row, under this name.
    #[serde(default)]
    pub figure: Option<String>,
}

/// See [`Step::Load`] and [`Step::RdmaRead`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfPage {
    /// Name of the page.
    pub page: String,
    /// The process that does it; by default the agent's own.
    #[serde(default)]
    pub process: Option<String>,
    /// Of steps of an RDMA device: the registration of that name.
    #[serde(default)]
    pub through: Option<String>,
}

/// See [`Step::Register`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Register {
    /// Name of the file.
    pub file: String,
    /// The process that does it; by default the agent's own.
    #[serde(default)]
    pub process: Option<String>,
    /// How, where it is not as the row's mode says.
    #[serde(default, rename = "as")]
    pub kind: Option<Registration>,
    /// A name for [`OfPage::through`] and [`Write::through`]: a registration beside the one without a name.
    #[serde(default)]
    pub name: Option<String>,
}

/// See [`Step::Fsync`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fsync {
    /// Name of the file.
    pub file: String,
    /// It runs beside the steps that follow, under this name.
    #[serde(default)]
    pub background: Option<String>,
    /// What may come of it.
    #[serde(default = "returns")]
    pub allow: Vec<Outcome>,
    /// The process that does it; by default the agent's own.
    #[serde(default)]
    pub process: Option<String>,
    /// How long it took becomes a figure of the row, under this name.
    #[serde(default)]
    pub figure: Option<String>,
}

/// See [`Step::Writeback`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Writeback {
    /// Name of the page.
    pub page: String,
    /// Its name: the next steps run beside it.
    pub background: String,
    /// The process that does it; by default the agent's own.
    #[serde(default)]
    pub process: Option<String>,
}

/// See [`Step::DioRead`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DioRead {
    /// Name of the page that it writes.
    pub page: String,
    /// The letter of its bytes.
    pub tag: char,
    /// Bytes, a multiple of 512 from the page's first on.
    #[serde(default = "page")]
    pub bytes: u32,
    /// Its name, for steps that let it go on. It is held before its data.
    pub name: String,
    /// By which call.
    #[serde(default)]
    pub by: Call,
    /// The registration that it goes by, of an earlier `fix`; by default it makes one for itself where it wants one.
    #[serde(default)]
    pub buffer: Option<String>,
    /// What may come of its own registration.
    #[serde(default = "returns")]
    pub allow: Vec<Outcome>,
    /// The process that does it; by default the agent's own.
    #[serde(default)]
    pub process: Option<String>,
}

fn page() -> u32 {
    4096
}

/// See [`Step::Hold`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    /// Name of the page.
    pub page: String,
    /// Where.
    pub point: Point,
    /// The hold's name.
    pub name: String,
    /// Which of the page's writes from now on: on a mirror each leg has one.
    #[serde(default = "first")]
    pub nth: u32,
    /// Writes of the disk, of whatever page: where the disk copies nobody knows which.
    #[serde(default)]
    pub any: bool,
    /// Writes of the disk, of whatever page: the ledger tells whether what it holds takes its bytes from this buffer.
    #[serde(default)]
    pub buffer: Option<String>,
}

fn first() -> u32 {
    1
}

/// Who changes a buffer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Changer {
    /// A CPU store.
    #[default]
    Cpu,
    /// An RDMA WRITE, the buffer registered as the row's mode says.
    Rdma,
}

/// See [`Step::Change`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Name of the buffer.
    pub buffer: String,
    /// The letter of its new bytes.
    pub tag: char,
    /// Who.
    #[serde(default)]
    pub by: Changer,
}

/// What an earlier step named.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Name {
    /// The name.
    pub name: String,
}

/// See [`Step::Advise`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Advise {
    /// Which.
    pub advice: Advice,
    /// Name of the page that it is around.
    pub page: String,
    /// What it covers.
    pub range: Range,
    /// It must take the page from the mapping, or what the file system had attached to its folio: else the trial is void.
    #[serde(default)]
    pub takes: bool,
    /// The process that does it; by default the agent's own.
    #[serde(default)]
    pub process: Option<String>,
}

/// A file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfFile {
    /// Its name.
    pub file: String,
    /// The process that does it; by default the agent's own.
    #[serde(default)]
    pub process: Option<String>,
}

/// See [`Step::Seal`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seal {
    /// Name of the file.
    pub file: String,
    /// What may come of it.
    #[serde(default = "returns")]
    pub allow: Vec<Outcome>,
}

/// See [`Step::Kill`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kill {
    /// Name of the process.
    pub process: String,
}

/// Nothing to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Empty {}

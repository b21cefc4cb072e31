// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Other users of get_user_pages than a plain O_DIRECT read: io_uring, AF_XDP, vmsplice(2), process_vm_writev(2).

use rnic_agent::client::CallError;
use rnic_agent::proto::{Op, Value};

use super::jobs::{Effect, Job, unexpected};
use super::processes::of;
use super::{By, Play, Running};
use crate::bench::PAGE;
use crate::fact::What;
use crate::finding::{Finding, Stop};
use crate::story::step::{Call, DioRead, Fix, Outcome, VmWrite, Vmsplice, XdpReceive};
use crate::verdict::Verdict;

/// Bytes that a packet writes: whole sectors.
const PACKET: u64 = 3584;

/// How a read is asked for: the agent's step, and the registration that ends with it.
pub(super) struct Asked {
    pub(super) op: Op,
    pub(super) ring: Option<u32>,
}

impl Play<'_, '_> {
    /// How `read` is asked for, from `from` (a file and an offset in it) into `into` (a mapping and an offset in that). None: its registration
    /// was refused, as the story allows.
    pub(super) fn ask(&mut self, read: &DioRead, from: (u32, u64), into: (u32, u64)) -> Result<Option<Asked>, Stop> {
        let ((h, foff), (m, moff), len) = (from, into, u64::from(read.bytes));
        let by = read.process.as_deref();
        let asked = |op, ring| Ok(Some(Asked { op, ring }));
        match (read.by, read.buffer.as_deref()) {
            (_, Some(name)) => match self.running.get(name) {
                Some(Running::Ring { ring, .. }) => asked(Op::UringReadFixed { u: *ring, h, foff, moff, len }, None),
                _ => Err(Stop::Inconclusive(format!("\"{name}\" is not registered"))),
            },
            (Call::Pread, None) => asked(Op::DioReadInto { h, foff, m, moff, len }, None),
            (Call::IoUring, None) => asked(Op::UringRead { h, foff, m, moff, len }, None),
            (Call::IoUringFixed, None) => {
                let what = format!("IORING_REGISTER_BUFFERS of {}{}", read.page, of(by));
                let op = Op::UringRegister { m, off: moff, len: PAGE };
                let ring = self.pinned(by, op, &what, &read.allow)?;
                Ok(ring.map(|u| Asked { op: Op::UringReadFixed { u, h, foff, moff, len }, ring: Some(u) }))
            }
        }
    }

    /// Registers memory by `op`. None: it was refused, as the story allows.
    fn pinned(&mut self, by: By<'_>, op: Op, what: &str, allow: &[Outcome]) -> Result<Option<u32>, Stop> {
        self.bench.mark(what);
        let errno = match self.bench.guest.call(self.within(by, op)?) {
            Ok(Value::Handle(_)) if !allow.contains(&Outcome::Returns) => return Err(unexpected(what)),
            Ok(value) => return Ok(value.handle()),
            Err(CallError::Failed(failure)) => failure.errno,
            Err(error) => return Err(self.bench.guest.stop_for(what, &error)),
        };
        self.is_there(by)?;
        let fact = self.bench.now(What::Returned { step: what.into(), errno: Some(errno) });
        if allow.contains(&Outcome::Errno(errno)) {
            self.kept.push(fact);
            return Ok(None);
        }
        Err(Stop::Found(Finding::new(Verdict::Refused, fact, []).told(Some(errno))))
    }

    pub(super) fn fix(&mut self, fix: &Fix) -> Result<(), Stop> {
        self.register_for_long(fix, "IORING_REGISTER_BUFFERS", |m, len| Op::UringRegister { m, off: 0, len })
    }

    pub(super) fn umem(&mut self, umem: &Fix) -> Result<(), Stop> {
        self.register_for_long(umem, "XDP_UMEM_REG", |m, len| Op::XdpUmem { m, off: 0, len })
    }

    fn register_for_long(&mut self, of_what: &Fix, call: &str, op: fn(u32, u64) -> Op) -> Result<(), Stop> {
        let Fix { file, name, allow, process } = of_what;
        let by = process.as_deref();
        let (m, len) = (self.opened(by, file)?.map, u64::from(self.file(file)?.pages) * PAGE);
        let what = format!("{call} of file \"{file}\"{}", of(by));
        let pinned = self.pinned(by, op(m, len), &what, allow)?;
        let running = pinned.map_or(Running::Ended, |ring| Running::Ring { ring, by: process.clone() });
        self.running.insert(name.clone(), running);
        Ok(())
    }

    /// Takes a registration back.
    pub(super) fn unfix(&mut self, name: &str) -> Result<(), Stop> {
        match self.running.remove(name) {
            Some(Running::Ring { ring, by }) => {
                self.bench.mark(&format!("the registration \"{name}\" ends"));
                self.end_ring(by.as_deref(), ring)
            }
            Some(Running::Ended) => Ok(()),
            _ => Err(Stop::Failed(format!("{name} is not registered"))),
        }
    }

    /// A packet on the loopback interface, which the kernel copies into the page. Nothing, where the registration was refused as allowed.
    pub(super) fn xdp_receive(&mut self, packet: &XdpReceive) -> Result<(), Stop> {
        let Some(Running::Ring { ring, by }) = self.running.get(&packet.name) else { return Ok(()) };
        let (x, by) = (*ring, by.clone());
        let (letter, off) = (self.letter(packet.tag), self.place(&packet.page)?.at);
        let pattern = self.pattern(&packet.page, letter)?;
        let what = format!("a packet of {letter} to {}{}", packet.page, of(by.as_deref()));
        self.place(&packet.page)?.model.begin(&what, PACKET as usize, letter);
        self.bench.mark(&what);
        let effect = Effect::Store(packet.page.clone());
        let op = Op::XdpReceive { x, off, len: PACKET, pattern };
        self.begin(op, None, Job { job: 0, by, what, allow: vec![Outcome::Returns], effect, figure: None })
    }

    pub(super) fn end_ring(&mut self, by: By<'_>, ring: u32) -> Result<(), Stop> {
        self.bench.guest.must(self.within(by, Op::Close { h: ring })?).map(drop)
    }

    pub(super) fn vmsplice(&mut self, splice: &Vmsplice) -> Result<(), Stop> {
        let by = splice.process.as_deref();
        let (opened, off) = self.opened_at(by, &splice.page)?;
        self.bench.mark(&format!("vmsplice of {}{}", splice.page, of(by)));
        let op = self.within(by, Op::Vmsplice { m: opened.map, off, len: PAGE })?;
        let pipe = self.bench.guest.handle(op)?;
        let (by, page) = (splice.process.clone(), splice.page.clone());
        self.running.insert(splice.name.clone(), Running::Pipe { pipe, by, page });
        Ok(())
    }

    /// What a pipe has is the page itself: its bytes are those of now, as long as the page is the file's.
    pub(super) fn pipe_read(&mut self, name: &str) -> Result<(), Stop> {
        let Some(Running::Pipe { pipe, by, page }) = self.running.remove(name) else {
            return Err(Stop::Failed(format!("{name} is no pipe")));
        };
        let by = by.as_deref();
        let value = self.bench.guest.must(self.within(by, Op::PipeRead { h: pipe })?)?;
        self.bench.guest.must(self.within(by, Op::Close { h: pipe })?)?;
        self.seen(&format!("the pipe \"{name}\"{}", of(by)), &page, value, Verdict::Stale)
    }

    pub(super) fn vm_write(&mut self, write: &VmWrite) -> Result<(), Stop> {
        let letter = self.letter(write.tag);
        let (by, pattern) = (write.process.clone(), self.pattern(&write.page, letter)?);
        let into = Some(write.into.as_str());
        let (opened, off) = self.opened_at(into, &write.page)?;
        let whereabouts = self.within(into, Op::Whereabouts { m: opened.map, off })?;
        let Value::Place { pid, addr } = self.bench.guest.must(whereabouts)? else {
            return Err(Stop::Failed("the agent gave no address".into()));
        };
        let what = format!("process_vm_writev of {letter} to {}{}{}", write.page, of(into), by_whom(by.as_deref()));
        self.place(&write.page)?.model.begin(&what, PAGE as usize, letter);
        self.bench.mark(&what);
        let (allow, effect) = (write.allow.clone(), Effect::Store(write.page.clone()));
        let op = Op::VmWrite { pid, addr, off, len: PAGE, pattern };
        self.begin(op, write.background.as_ref(), Job { job: 0, by, what, allow, effect, figure: None })?;
        if write.background.is_some() { Ok(()) } else { self.locate(into, &write.page) }
    }
}

fn by_whom(by: By<'_>) -> String {
    by.map_or_else(String::new, |name| format!(" by process {name}"))
}

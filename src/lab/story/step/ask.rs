// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can be asked of any step.

use super::{Changer, Outcome, Step};

impl Step {
    /// The writer's letter, of steps that write.
    pub fn tag(&self) -> Option<char> {
        match self {
            Step::Store(write) | Step::RdmaWrite(write) => Some(write.tag),
            Step::DioWrite(write) => Some(write.tag),
            Step::DioRead(read) => Some(read.tag),
            Step::Change(change) => Some(change.tag),
            Step::VmWrite(write) => Some(write.tag),
            Step::XdpReceive(packet) => Some(packet.tag),
            _ => None,
        }
    }

    /// The page that it writes.
    pub fn writes(&self) -> Option<&str> {
        match self {
            Step::Store(write) | Step::RdmaWrite(write) => Some(&write.page),
            Step::DioWrite(write) => Some(&write.page),
            Step::DioRead(read) => Some(&read.page),
            Step::Punch(punch) | Step::Truncate(punch) => Some(&punch.page),
            Step::VmWrite(write) => Some(&write.page),
            Step::XdpReceive(packet) => Some(&packet.page),
            _ => None,
        }
    }

    /// The page that it is about, of steps on one.
    pub fn page(&self) -> Option<&str> {
        match self {
            Step::Load(of) | Step::RdmaRead(of) => Some(&of.page),
            Step::Writeback(writeback) => Some(&writeback.page),
            Step::Hold(hold) => Some(&hold.page),
            Step::Advise(advise) => Some(&advise.page),
            Step::Vmsplice(splice) => Some(&splice.page),
            other => other.writes(),
        }
    }

    /// The name under which it runs beside the next steps.
    pub fn background(&self) -> Option<&str> {
        match self {
            Step::Store(write) | Step::RdmaWrite(write) => write.background.as_deref(),
            Step::DioWrite(write) => write.background.as_deref(),
            Step::Punch(punch) | Step::Truncate(punch) => punch.background.as_deref(),
            Step::Fsync(fsync) => fsync.background.as_deref(),
            Step::VmWrite(write) => write.background.as_deref(),
            Step::Writeback(writeback) => Some(&writeback.background),
            _ => None,
        }
    }

    /// The name that later steps know it by, until it has ended.
    pub fn name(&self) -> Option<&str> {
        match self {
            Step::DioRead(read) => Some(&read.name),
            Step::Hold(hold) => Some(&hold.name),
            Step::Fix(fix) | Step::Umem(fix) => Some(&fix.name),
            Step::Vmsplice(splice) => Some(&splice.name),
            other => other.background(),
        }
    }

    /// The process that it is done by, or to. None: the agent's own.
    pub fn process(&self) -> Option<&str> {
        match self {
            Step::Store(write) | Step::RdmaWrite(write) => write.process.as_deref(),
            Step::Load(of) | Step::RdmaRead(of) => of.process.as_deref(),
            Step::Fsync(fsync) => fsync.process.as_deref(),
            Step::Writeback(writeback) => writeback.process.as_deref(),
            Step::DioRead(read) => read.process.as_deref(),
            Step::Advise(advise) => advise.process.as_deref(),
            Step::Register(register) => register.process.as_deref(),
            Step::Deregister(of) => of.process.as_deref(),
            Step::DioWrite(write) => write.process.as_deref(),
            Step::Punch(punch) | Step::Truncate(punch) => punch.process.as_deref(),
            Step::Unmap(of) | Step::MapAgain(of) | Step::Move(of) => of.process.as_deref(),
            Step::Fix(fix) | Step::Umem(fix) => fix.process.as_deref(),
            Step::Vmsplice(splice) => splice.process.as_deref(),
            Step::VmWrite(write) => write.process.as_deref(),
            Step::Kill(kill) => Some(&kill.process),
            Step::Hold(_) | Step::Deliver(_) | Step::Finish(_) | Step::Wait(_) | Step::Interrupt(_) => None,
            Step::Unfix(_) | Step::PipeRead(_) | Step::XdpReceive(_) | Step::CloseUmem(_) => None,
            Step::Change(_) | Step::DropCaches(_) | Step::Cut(_) | Step::Seal(_) => None,
        }
    }

    /// The registration that it uses, of those that have a name.
    pub fn through(&self) -> Option<&str> {
        match self {
            Step::Store(write) | Step::RdmaWrite(write) => write.through.as_deref(),
            Step::Load(of) | Step::RdmaRead(of) => of.through.as_deref(),
            _ => None,
        }
    }

    /// The buffer that it names.
    pub fn buffer(&self) -> Option<&str> {
        match self {
            Step::DioWrite(write) => write.buffer.as_deref(),
            Step::Hold(hold) => hold.buffer.as_deref(),
            Step::Change(change) => Some(&change.buffer),
            _ => None,
        }
    }

    /// Whether it needs an RDMA device.
    pub fn is_rdma(&self) -> bool {
        if let Step::Change(change) = self {
            return change.by == Changer::Rdma;
        }
        matches!(self, Step::Register(_) | Step::Deregister(_) | Step::RdmaWrite(_) | Step::RdmaRead(_))
    }

    /// What may come of it, of steps that can fail.
    pub fn allow(&self) -> &[Outcome] {
        match self {
            Step::Store(write) | Step::RdmaWrite(write) => &write.allow,
            Step::DioWrite(write) => &write.allow,
            Step::Punch(punch) | Step::Truncate(punch) => &punch.allow,
            Step::Seal(seal) => &seal.allow,
            Step::Fsync(fsync) => &fsync.allow,
            Step::DioRead(read) => &read.allow,
            Step::Fix(fix) | Step::Umem(fix) => &fix.allow,
            Step::VmWrite(write) => &write.allow,
            _ => &[],
        }
    }
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Steps of other users of get_user_pages than O_DIRECT: io_uring, vmsplice(2), process_vm_writev(2), AF_XDP.

use std::sync::Arc;

use rnic_agent::pattern::{fill, identify};
use rnic_agent::proto::{Op, Value};

use super::{Outcome, failed, failure, unit};
use crate::serve::Context;
use crate::serve::objects::Object;
use crate::sys::gup::{self, Pipe};
use crate::sys::uring::Ring;
use crate::sys::xdp::{self, Umem};

/// Most bytes of one write to another process.
const MAX_WRITE: u64 = 1 << 20;

/// Runs a step of this family. What nobody knows is refused.
pub fn run(context: &Context, op: Op) -> Outcome {
    let objects = &context.objects;
    let mapping = |m: u32| objects.mapping(m);
    let add = |object: Object| objects.add(object).map(Value::Handle);
    match op {
        Op::UringRead { h, foff, m, moff, len } => {
            let (file, mapping) = (objects.file(h)?, mapping(m)?);
            let ring = Ring::new().map_err(failed("io_uring_setup"))?;
            ring.read(&mapping, moff, (&file, foff), len).map(Value::Num).map_err(failed("IORING_OP_READ"))
        }
        Op::UringRegister { m, off, len } => {
            let ring = Ring::fixed(mapping(m)?, off, len).map_err(failed("IORING_REGISTER_BUFFERS"))?;
            add(Object::Ring(Arc::new(ring)))
        }
        Op::UringReadFixed { u, h, foff, moff, len } => {
            let (file, ring) = (objects.file(h)?, objects.ring(u)?);
            ring.read_fixed(moff, (&file, foff), len).map(Value::Num).map_err(failed("IORING_OP_READ_FIXED"))
        }
        Op::Vmsplice { m, off, len } => {
            add(Object::Pipe(Arc::new(Pipe::of(&*mapping(m)?, off, len).map_err(failed("vmsplice"))?)))
        }
        Op::PipeRead { h } => {
            let bytes = objects.pipe(h)?.take().map_err(failed("reading the pipe"))?;
            Ok(Value::Content(identify(&bytes)))
        }
        Op::Whereabouts { m, off } => {
            let addr = mapping(m)?.address(off, 1).map_err(failed("address"))?;
            Ok(Value::Place { pid: std::process::id(), addr: addr as u64 })
        }
        Op::VmWrite { pid, addr, off, len, pattern } => {
            if len > MAX_WRITE {
                return Err(failure(libc::EINVAL, format!("{len} bytes are more than 1 MiB")));
            }
            let mut bytes = vec![0; len as usize];
            fill(&pattern, off, &mut bytes);
            gup::write_to_process(pid, addr, &bytes).map(Value::Num).map_err(failed("process_vm_writev"))
        }
        Op::XdpUmem { m, off, len } => {
            let umem = Umem::new(mapping(m)?, off, len).map_err(failed("XDP_UMEM_REG"))?;
            add(Object::Umem(Arc::new(umem)))
        }
        Op::XdpReceive { x, off, len, pattern } => {
            if len > xdp::LONGEST {
                return Err(failure(libc::EINVAL, format!("{len} bytes are more than a packet has")));
            }
            let mut bytes = vec![0; len as usize];
            fill(&pattern, off, &mut bytes);
            unit("receiving a packet", objects.umem(x)?.receive(off, &bytes))
        }
        Op::Memfd { kind, len } => {
            let file = gup::memory_file(kind, len).map_err(failed(format!("a memory file ({kind:?})")))?;
            add(Object::File(Arc::new(file)))
        }
        op => Err(failure(libc::ENOSYS, format!("this agent does not know {op:?}"))),
    }
}

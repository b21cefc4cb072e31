// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Steps on mappings.

use std::sync::Arc;

use rnic_agent::pattern::{Pattern, SECTOR, fill, identify};
use rnic_agent::proto::{Op, Value};

use super::{Outcome, failed, failure, gup, page, unit};
use crate::serve::Context;
use crate::serve::objects::Object;
use crate::sys::file as sys;
use crate::sys::mapping::Mapping;

/// Most bytes of one store or load step.
const MAX_COPY: u64 = 64 << 20;

/// Runs a step on mappings, or passes it on.
pub fn run(context: &Context, op: Op) -> Outcome {
    let mapping = |m: u32| context.objects.mapping(m);
    let add = |mapping: Mapping| context.objects.add(Object::Mapping(Arc::new(mapping))).map(Value::Handle);
    match op {
        Op::Mmap { h, off, len, write, private } => {
            let file = context.objects.file(h)?;
            add(Mapping::file(&file, off, len, write, private).map_err(failed("mmap"))?)
        }
        Op::AnonBuffer { len, huge } => add(Mapping::anonymous(len, huge).map_err(failed("mmap of anonymous memory"))?),
        Op::Munmap { m } => unit("munmap", mapping(m)?.unmap()),
        Op::MapAgain { m } => unit("mmap of anonymous memory", mapping(m)?.map_again()),
        Op::MoveMapping { m } => add(mapping(m)?.move_away().map_err(failed("mremap"))?),
        Op::SealWrite { h } => unit("F_SEAL_WRITE", sys::seal_write(&*context.objects.file(h)?)),
        Op::Msync { m, off, len } => unit("msync", mapping(m)?.sync(off, len)),
        Op::Madvise { m, off, len, advice } => {
            unit(format!("madvise {advice:?}"), mapping(m)?.advise(off, len, advice))
        }
        Op::Touch { m, off, write } => touch(&*mapping(m)?, off, write),
        Op::Store { m, off, len, pattern } => store(&*mapping(m)?, off, len, &pattern),
        Op::Load { m, off, len } => load(&*mapping(m)?, off, len),
        Op::FrameFlags { pfn } => page::frame_flags(pfn).map(Value::Num).map_err(failed("page frame flags")),
        Op::PageInfo { m, off } => page::info(&*mapping(m)?, off).map(Value::Page).map_err(failed("page info")),
        Op::DioReadInto { h, foff, m, moff, len } => {
            let (file, mapping) = (context.objects.file(h)?, mapping(m)?);
            mapping.read_from(moff, &file, foff, len).map(Value::Num).map_err(failed("pread into the mapping"))
        }
        Op::DioWriteFrom { h, foff, m, moff, len } => {
            let (file, mapping) = (context.objects.file(h)?, mapping(m)?);
            mapping.write_to(moff, &file, foff, len).map(Value::Num).map_err(failed("pwrite from the mapping"))
        }
        op => gup::run(context, op),
    }
}

fn touch(mapping: &Mapping, off: u64, write: bool) -> Outcome {
    let mut byte = [0];
    mapping.load(off, &mut byte).map_err(failed("load"))?;
    if write {
        mapping.store(off, &byte).map_err(failed("store"))?;
    }
    Ok(Value::Unit)
}

fn copy_buffer(mapping: &Mapping, off: u64, len: u64) -> Result<Vec<u8>, super::Failure> {
    mapping.address(off, len).map_err(failed("address"))?;
    if len > MAX_COPY {
        return Err(failure(libc::EINVAL, format!("{len} bytes are more than 64 MiB")));
    }
    Ok(vec![0; len as usize])
}

fn store(mapping: &Mapping, off: u64, len: u64, pattern: &Pattern) -> Outcome {
    let mut bytes = copy_buffer(mapping, off, len)?;
    fill(pattern, mapping.file_offset().wrapping_add(off), &mut bytes);
    unit("store", mapping.store(off, &bytes))
}

fn load(mapping: &Mapping, off: u64, len: u64) -> Outcome {
    let mut bytes = copy_buffer(mapping, off, len)?;
    if !off.is_multiple_of(SECTOR as u64) {
        return Err(failure(libc::EINVAL, format!("offset {off} is not a multiple of 512")));
    }
    mapping.load(off, &mut bytes).map_err(failed("load"))?;
    Ok(Value::Content(identify(&bytes)))
}

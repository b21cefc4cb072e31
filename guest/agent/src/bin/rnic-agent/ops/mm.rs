// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Steps on memory that other parts of memory management see: forks, user-space page faults, parts that go.

use std::sync::Arc;

use rnic_agent::pattern::{Pattern, fill, identify};
use rnic_agent::proto::{MmOp, Value};

use super::{Outcome, failed, unit};
use crate::serve::Context;
use crate::serve::objects::Object;
use crate::sys::forked::Forked;
use crate::sys::mapping::PAGE;
use crate::sys::uffd::Uffd;

/// Runs a step.
pub fn run(context: &Context, op: MmOp) -> Outcome {
    let objects = &context.objects;
    match op {
        MmOp::Fork { m } => {
            let child = Forked::start(objects.mapping(m)?).map_err(failed("fork"))?;
            objects.add(Object::Forked(Arc::new(child))).map(Value::Handle)
        }
        MmOp::ForkLoad { c, off } => {
            let page = objects.forked(c)?.load(off).map_err(failed("the child's load"))?;
            Ok(Value::Content(identify(&page)))
        }
        MmOp::ForkStore { c, off, pattern } => {
            unit("the child's store", objects.forked(c)?.store(off, &page(&pattern, off)))
        }
        MmOp::UnmapPart { m, off, len } => unit("munmap of a part", objects.mapping(m)?.unmap_part(off, len)),
        MmOp::Uffd { m, off, protect } => {
            let uffd = Uffd::open(objects.mapping(m)?, off, protect).map_err(failed("userfaultfd"))?;
            objects.add(Object::Uffd(Arc::new((uffd, off)))).map(Value::Handle)
        }
        MmOp::UffdWait { u, limit_ms } => {
            let limit = i32::try_from(limit_ms).unwrap_or(i32::MAX);
            let came = objects.uffd(u)?.0.wait(limit).map_err(failed("userfaultfd"))?;
            Ok(Value::Num(came.into()))
        }
        MmOp::UffdAnswer { u, pattern } => {
            let uffd = objects.uffd(u)?;
            unit("answering a page fault", uffd.0.answer(&page(&pattern, uffd.1)))
        }
    }
}

fn page(pattern: &Pattern, off: u64) -> Vec<u8> {
    let mut bytes = vec![0; PAGE as usize];
    fill(pattern, off, &mut bytes);
    bytes
}

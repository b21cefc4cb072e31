// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A look at everything in the device, as JSON (rule 8).

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::bus::Counters;
use super::command::DriverSettings;
use super::hca::Hca;
use super::nic::NicHandle;
use super::qp::Qp;
use super::reset;
use super::srq::Srq;
use mlx5_spec::qp::{service_type, state};

/// At most this many objects of a kind are listed; `count` tells how many there are.
const MOST: usize = 4096;

impl NicHandle {
    /// Numbers, states and indices of all objects, and counters. The device goes on meanwhile: the parts are not of one instant.
    pub fn inspect(&self) -> Value {
        let hca = &**self.hca();
        let settings = settings(hca, &self.command_unit().between_commands());
        json!({
            "nic": hca.index,
            "model": format!("{:?}", hca.config.model),
            "odp": hca.config.odp,
            "engines": hca.engines.count(),
            "engines_inline": hca.engines.is_inline(),
            "bus_master": hca.dma.is_enabled(),
            "firmware": settings,
            "paused": hca.engines.stand(),
            "port": if hca.port.is_up() { "up" } else { "down" },
            "objects": reset::objects(hca),
            "eqs": list(hca.eqs.all(), |eq| {
                let (producer, consumer, armed) = eq.indices();
                json!({"eqn": eq.eqn, "vector": eq.vector, "uar": eq.uar, "events": format!("{:#x}", eq.mask[0]),
                    "producer": producer, "consumer": consumer, "armed": armed})
            }),
            "cqs": list(hca.cqs.all(), |cq| {
                let (producer, consumer, error) = cq.indices();
                json!({"cqn": cq.cqn, "eqn": cq.eqn, "uar": cq.uar, "producer": producer, "consumer": consumer,
                    "error": error})
            }),
            "qps": list(hca.qps.all(), qp),
            "srqs": list(hca.srqs.all(), srq),
            "mkeys": list(hca.mkeys.all(), mkey),
            "pds": numbers(&hca.pds.all()),
            "xrcds": numbers(&hca.xrcds.all()),
            "uars": numbers(&hca.uars.all()),
            "user_contexts": numbers(&hca.user_contexts.all()),
            "umems": numbers(&hca.umems.all()),
            "multicast_groups": hca.multicast.len(),
            "device_memory_allocations": hca.device_memory.len(),
            "q_counters": numbers(&hca.q_counters.all()),
            "page_faults": hca.page_faults.live().len(),
            "late": hca.later.held(),
            "gone": hca.health.is_gone(),
            "queue_pages": hca.queue_pages.used(),
            "host_memory": hca.memory.used(),
            "hot_uars": self.command_unit().doorbells().hot(),
            "doorbell_eventfds": self.command_unit().doorbells().attached(),
            "counters": counters(&hca.counters),
        })
    }

    /// Its counters.
    pub fn counters(&self) -> Value {
        counters(&self.hca().counters)
    }

    /// Objects of all kinds that the driver has made and not destroyed.
    pub fn objects(&self) -> usize {
        reset::objects(self.hca())
    }
}

fn settings(hca: &Hca, settings: &DriverSettings) -> Value {
    let identity = *hca.port.identity.lock();
    json!({
        "issi": settings.issi,
        "enabled": settings.enabled,
        "initialized": settings.initialized,
        "command_queue": settings.queue.map(|at| format!("{at:#x}")),
        "cap_mask1": format!("{:#x}", identity.cap_mask1),
        "node_desc": String::from_utf8_lossy(&identity.node_desc).trim_end_matches('\0').to_owned(),
    })
}

fn list<T>(all: Vec<(u32, std::sync::Arc<T>)>, describe: impl Fn(&T) -> Value) -> Value {
    let listed: Vec<Value> = all.iter().take(MOST).map(|(_, object)| describe(object)).collect();
    json!({"count": all.len(), "list": listed})
}

fn numbers<T>(all: &[(u32, T)]) -> Value {
    let listed: Vec<u32> = all.iter().take(MOST).map(|(number, _)| *number).collect();
    json!({"count": all.len(), "list": listed})
}

fn qp(qp: &Qp) -> Value {
    let attrs = qp.attrs();
    let named = |value: u32, name: Option<&str>| name.map_or_else(|| value.to_string(), str::to_owned);
    json!({
        "qpn": qp.qpn,
        "service": named(qp.service, service_type::name(qp.service)),
        "state": named(attrs.state, state::name(attrs.state)),
        "uar": qp.uar,
        "pd": attrs.pd,
        "user_index": qp.user_index,
        "remote_qpn": attrs.remote_qpn,
        "send_cqn": attrs.send_cq.as_ref().map(|cq| cq.cqn),
        "recv_cqn": attrs.recv_cq.as_ref().map(|cq| cq.cqn),
        "srqn": attrs.srq.as_ref().map(|srq| srq.srqn),
        "sq_done": attrs.life.progress.sq_done.load(Ordering::Relaxed),
        "rq_done": attrs.life.progress.rq_done.load(Ordering::Relaxed),
        "wqes": qp.wqes.load(Ordering::Relaxed),
    })
}

fn srq(srq: &Srq) -> Value {
    let state = srq.state.lock();
    json!({"srqn": srq.srqn, "kind": format!("{:?}", srq.kind), "pd": srq.pd, "taken": state.taken,
        "limit": state.limit})
}

fn mkey(mkey: &super::mkey::Mkey) -> Value {
    let state = mkey.state();
    json!({"index": mkey.index, "key": mkey.key(), "free": state.free, "pd": state.pd, "mode": state.mode,
        "entries": mkey.entries.len(), "zaps": mkey.zaps.load(Ordering::Relaxed)})
}

fn counters(counters: &Counters) -> Value {
    json!({
        "commands": counters.commands.get(),
        "commands_failed": counters.commands_failed.get(),
        "events_dropped": counters.events_dropped.get(),
        "wqes": counters.wqes.get(),
        "bytes": counters.bytes.get(),
        "error_cqes": counters.error_cqes.get(),
        "page_faults": counters.page_faults.get(),
        "rnr_naks": counters.rnr_naks.get(),
        "umrs": counters.umrs.get(),
    })
}

/// Whether nothing of `hca` is left: for tests and the lab.
pub fn is_empty(hca: &Hca) -> bool {
    reset::objects(hca) == 0
}

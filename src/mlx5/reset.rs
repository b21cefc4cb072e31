// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How everything goes at once: FLR, platform reset, a driver that begins anew (contract 1.3, 15.7), bus mastering off.
//!
//! When one of these returns, nothing is in flight: no DMA of an engine (rule 3), no CQE or EQE, no command. Every page fault and lab
//! hold is cancelled. Injections stay: they are the lab's.

use super::command::CommandUnit;
use super::command::retire_qp;
use super::fabric;
use super::hca::Hca;
use super::uar::UarDoorbells;

/// Objects of all kinds that a driver has made and not destroyed.
pub fn objects(hca: &Hca) -> usize {
    let queues = hca.eqs.len() + hca.cqs.len() + hca.qps.len() + hca.srqs.len();
    queues
        + hca.mkeys.len()
        + hca.pds.len()
        + hca.xrcds.len()
        + hca.uars.len()
        + hca.q_counters.len()
        + hca.user_contexts.len()
        + hca.umems.len()
        + hca.multicast.len()
        + hca.device_memory.len()
}

/// Destroys every object. The caller holds commands off.
pub fn drop_objects(hca: &Hca, doorbells: &UarDoorbells) {
    doorbells.clear(hca);
    // Publish first: no queue pair acts any more, no key leads anywhere.
    let qps = hca.qps.clear();
    let before: Vec<_> = qps.iter().map(|qp| qp.attrs()).collect();
    qps.iter().for_each(|qp| qp.replace(retire_qp));
    hca.mkeys.clear().iter().for_each(|mkey| mkey.revoke());
    hca.ghosts.clear();
    for srq in hca.srqs.clear() {
        srq.state.lock().dead = true;
    }
    *hca.special.lock() = [None; 2];
    hca.levers.reset(hca);
    hca.page_faults.clear();
    hca.quiesce.wait();
    hca.cqs.clear().iter().for_each(|cq| cq.kill(hca));
    hca.eqs.clear().iter().for_each(|eq| eq.kill(hca));
    hca.claims.follow(&hca.eqs);
    hca.later.clear();
    hca.umems.clear();
    for table in [&hca.pds, &hca.xrcds, &hca.uars, &hca.user_contexts] {
        table.clear();
    }
    hca.q_counters.clear();
    hca.multicast.clear();
    hca.device_memory.clear();
    // Engines forget what they keep by QPN.
    qps.iter().for_each(|qp| hca.engines.kick(qp.uar, qp.qpn));
    // Peers may wait for a page of theirs.
    before.iter().for_each(|attrs| fabric::kick(hca, attrs.remote_lid, attrs.remote_qpn));
}

/// Everything that a driver has made or set is gone; `queue`: where its command queue is from now on.
pub fn restart(hca: &Hca, unit: &CommandUnit, queue: Option<u64>) {
    let mut settings = unit.between_commands();
    let left = objects(hca);
    if left != 0 {
        log::debug!("nic{}: reset with {left} objects", hca.index);
    }
    drop_objects(hca, unit.doorbells());
    hca.msix.clear_pending();
    unit.forget_rings(&settings);
    settings.reset(hca);
    hca.health.reset();
    hca.port.mend();
    hca.later.forget_port();
    settings.queue = queue;
}

/// Bus mastering, or D0, has just come back: what was rung for meanwhile found no doorbell record, and is looked at again.
pub fn resume(hca: &Hca) {
    for (qpn, qp) in hca.qps.all() {
        hca.engines.kick(qp.uar, qpn);
    }
}

/// Bus mastering has just been switched off, or D0 left: returns when no access that began before is in flight.
pub fn settle(hca: &Hca, unit: &CommandUnit) {
    hca.quiesce.wait();
    // An entry is written under its queue's lock, which was free once after the switch.
    for (_, cq) in hca.cqs.all() {
        let _ = cq.indices();
    }
    for (_, eq) in hca.eqs.all() {
        let _ = eq.indices();
    }
    drop(unit.between_commands());
}

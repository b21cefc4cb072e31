// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which queue pairs a driver has attached to which multicast groups (contract 6.7). Which ports hear a group at all is the subnet's to say.

use parking_lot::Mutex;
use std::collections::HashMap;

use super::limits::{LOG_MAX_MCG, MAX_QP_MCG};
use super::subnet::Gid;

/// See the module's text.
#[derive(Debug, Default)]
pub struct Multicast(Mutex<HashMap<Gid, Vec<u32>>>);

impl Multicast {
    /// Attaches a queue pair, once. False: there are no more groups, or this one has no room.
    pub fn attach(&self, group: &Gid, qpn: u32) -> bool {
        let mut groups = self.0.lock();
        if !groups.contains_key(group) && groups.len() >> LOG_MAX_MCG != 0 {
            return false;
        }
        let qpns = groups.entry(*group).or_default();
        if qpns.contains(&qpn) {
            return true;
        }
        if qpns.len() == MAX_QP_MCG as usize {
            return false;
        }
        qpns.push(qpn);
        true
    }

    /// Detaches it. False: it is not attached.
    pub fn detach(&self, group: &Gid, qpn: u32) -> bool {
        let mut groups = self.0.lock();
        let Some(qpns) = groups.get_mut(group) else { return false };
        let before = qpns.len();
        qpns.retain(|attached| *attached != qpn);
        let changed = qpns.len() != before;
        if qpns.is_empty() {
            groups.remove(group);
        }
        changed
    }

    /// The queue pair is gone, and attached to nothing any more.
    pub fn forget(&self, qpn: u32) {
        self.0.lock().retain(|_, qpns| {
            qpns.retain(|attached| *attached != qpn);
            !qpns.is_empty()
        });
    }

    /// Queue pairs that are attached to a group.
    pub fn attached(&self, group: &Gid) -> Vec<u32> {
        self.0.lock().get(group).cloned().unwrap_or_default()
    }

    /// Groups that something is attached to.
    pub fn len(&self) -> usize {
        self.0.lock().len()
    }

    /// Whether nothing is attached to any.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Detaches everything.
    pub fn clear(&self) {
        self.0.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_their_queue_pairs_are_bounded() {
        let (all, group) = (Multicast::default(), |number: u16| {
            let mut gid = [0xff; 16];
            gid[14..].copy_from_slice(&number.to_be_bytes());
            gid
        });
        assert!((0..MAX_QP_MCG).all(|qpn| all.attach(&group(0), qpn)) && !all.attach(&group(0), MAX_QP_MCG));
        assert!(all.attach(&group(0), 3), "again");
        let made = (1..).take_while(|number| all.attach(&group(*number), 7)).count();
        assert_eq!((made + 1, all.len()), (1 << LOG_MAX_MCG, 1 << LOG_MAX_MCG));
        assert!(all.detach(&group(1), 7) && !all.detach(&group(1), 7));
        all.forget(7);
        assert_eq!((all.len(), all.attached(&group(0)).contains(&7)), (1, false));
    }
}

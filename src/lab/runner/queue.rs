// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who runs what: each job has guests of one kernel and takes its rows one by one; when there are none left, it goes to another kernel that
//! is worth a boot.

use std::collections::VecDeque;

use crate::campaign::Numbered;

/// So many rows must wait for each job that is at a kernel before another one boots guests of it.
const WORTH: usize = 3;

struct Kernel {
    rows: VecDeque<Numbered>,
    /// Jobs that are at it.
    jobs: usize,
}

/// Rows that have not begun, by kernel.
pub(super) struct Queue(Vec<Kernel>);

impl Queue {
    /// All rows of each kernel, in their order.
    pub(super) fn new(rows: impl IntoIterator<Item = Vec<Numbered>>) -> Self {
        Self(rows.into_iter().map(|rows| Kernel { rows: rows.into(), jobs: 0 }).collect())
    }

    /// The kernel that a job without guests goes to, if there is work for it: the first that nobody is at, or the one with most to do.
    pub(super) fn join(&mut self) -> Option<usize> {
        let free = self.0.iter().position(|kernel| kernel.jobs == 0 && !kernel.rows.is_empty());
        let worth = |kernel: &Kernel| kernel.rows.len() / (kernel.jobs + 1);
        let most = || {
            let busy = (0..self.0.len()).filter(|at| worth(&self.0[*at]) >= WORTH);
            busy.max_by_key(|at| (worth(&self.0[*at]), std::cmp::Reverse(*at)))
        };
        let at = free.or_else(most)?;
        self.0[at].jobs += 1;
        Some(at)
    }

    /// The next row of the kernel.
    pub(super) fn next(&mut self, at: usize) -> Option<Numbered> {
        self.0[at].rows.pop_front()
    }

    /// A row that its job cannot run.
    pub(super) fn put_back(&mut self, at: usize, row: Numbered) {
        self.0[at].rows.push_front(row);
    }

    /// A job leaves the kernel.
    pub(super) fn leave(&mut self, at: usize) {
        self.0[at].jobs = self.0[at].jobs.saturating_sub(1);
    }

    /// A job leaves the kernel because its guests do not come up: the rows that nobody else will run.
    pub(super) fn give_up(&mut self, at: usize) -> Vec<Numbered> {
        self.leave(at);
        match self.0[at].jobs {
            0 => self.0[at].rows.drain(..).collect(),
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::all_rows;

    fn queue(counts: &[u64]) -> Queue {
        let row = all_rows()[0];
        let mut number = 0;
        Queue::new(counts.iter().map(|count| {
            number += count;
            (number - count..number).map(|number| (number, row)).collect()
        }))
    }

    /// The rows that a job takes which is at `at`.
    fn take(queue: &mut Queue, at: usize, most: usize) -> Vec<u64> {
        (0..most).map_while(|_| queue.next(at)).map(|(number, _)| number).collect()
    }

    #[test]
    fn one_job_goes_kernel_by_kernel_in_order() {
        let mut queue = queue(&[2, 0, 3]);
        let mut order = Vec::new();
        while let Some(at) = queue.join() {
            order.extend(take(&mut queue, at, 9));
            queue.leave(at);
        }
        assert_eq!(order, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn two_jobs_share_one_kernel_where_it_is_worth_a_boot() {
        let mut many = queue(&[10]);
        assert_eq!([many.join(), many.join()], [Some(0), Some(0)]);
        assert_eq!(
            [take(&mut many, 0, 1), take(&mut many, 0, 2), take(&mut many, 0, 9).split_off(6)],
            [vec![0], vec![1, 2], vec![9]]
        );
        let mut few = queue(&[5]);
        assert_eq!([few.join(), few.join()], [Some(0), None]);
        // Two kernels: one each, and then whoever is done helps.
        let mut two = queue(&[4, 20]);
        assert_eq!([two.join(), two.join()], [Some(0), Some(1)]);
        take(&mut two, 0, 4);
        two.leave(0);
        assert_eq!(two.join(), Some(1));
    }

    #[test]
    fn rows_of_guests_that_do_not_come_up_are_left_to_others_if_there_are_any() {
        let mut queue = queue(&[10]);
        queue.join();
        queue.join();
        let first = queue.next(0).unwrap();
        queue.put_back(0, first);
        assert!(queue.give_up(0).is_empty());
        assert_eq!(queue.give_up(0).iter().map(|(number, _)| *number).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
        assert_eq!(queue.join(), None);
    }
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Orders to a machine from other threads. The loop that stays with the machine carries them out, since it alone knows whether the machine is
//! being reset or ended.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use super::outcome::Outcome;
use super::vm::Vm;

/// Orders that may wait.
const WAITING: usize = 8;
/// How long vCPUs get to come to stand.
const STAND: Duration = Duration::from_secs(3);
/// How long whoever gives an order waits. The loop looks every 50 ms; a reset of the machine reads a kernel.
const ANSWER: Duration = Duration::from_secs(20);

/// What a machine is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// vCPUs stop where they are.
    Pause,
    /// They go on.
    Resume,
    /// Nothing: it is asked how it is.
    Look,
    /// It ends at once, as if its plug were pulled.
    End,
}

/// How a machine is, after an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Its vCPUs have been stopped.
    pub paused: bool,
    /// The guest kernel has panicked and may still print.
    pub panicked: bool,
    /// Since the first vCPU began to run.
    pub age: Duration,
    /// Where each vCPU stands, in words, while they are stopped.
    pub vcpus: Vec<String>,
}

struct Asked {
    order: Order,
    answer: SyncSender<Result<State, &'static str>>,
}

/// The loop's end.
pub struct Orders {
    asked: Receiver<Asked>,
    paused: bool,
}

/// The end of those who give orders.
#[derive(Clone)]
pub struct Remote(SyncSender<Asked>);

/// A way to give orders to the machine that [`run`](super::run::run) is called with.
pub fn orders() -> (Remote, Orders) {
    let (sender, asked) = sync_channel(WAITING);
    (Remote(sender), Orders { asked, paused: false })
}

impl Remote {
    /// Gives an order and waits until it is carried out.
    ///
    /// # Errors
    /// Why it is not, as a sentence.
    pub fn give(&self, order: Order) -> Result<State, &'static str> {
        let (answer, answered) = sync_channel(1);
        match self.0.try_send(Asked { order, answer }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err("the machine has been given too many orders at once: try again"),
            Err(TrySendError::Disconnected(_)) => return Err(ENDED),
        }
        match answered.recv_timeout(ANSWER) {
            Ok(answer) => answer,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => Err("the machine did not answer within 20 s"),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => Err(ENDED),
        }
    }
}

const ENDED: &str = "the machine has ended";

impl Orders {
    /// Carries out what has been asked.
    pub(super) fn carry_out(&mut self, vm: &Vm) {
        while let Ok(Asked { order, answer }) = self.asked.try_recv() {
            let before = self.paused;
            let result = self.obey(order, vm);
            // Nobody waits any more: what nobody knows of must not last.
            if answer.try_send(result).is_err() && self.paused && !before {
                vm.resume();
                self.paused = false;
            }
        }
    }

    fn obey(&mut self, order: Order, vm: &Vm) -> Result<State, &'static str> {
        match order {
            Order::Pause if !self.paused => {
                vm.pause_within(STAND)?;
                self.paused = true;
            }
            Order::Resume if self.paused => {
                vm.resume();
                self.paused = false;
            }
            Order::Pause | Order::Resume | Order::Look => {}
            Order::End => vm.end(Outcome::Stopped),
        }
        let vcpus = if self.paused { vm.whereabouts() } else { Vec::new() };
        Ok(State { paused: self.paused, panicked: vm.has_panicked(), age: vm.started().elapsed(), vcpus })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gives_an_order_hears_that_the_machine_has_ended() {
        let (remote, orders) = orders();
        let told = remote.clone();
        let waiter = std::thread::spawn(move || told.give(Order::Look));
        // The loop ends with the order untouched.
        let Asked { order, answer } = orders.asked.recv().unwrap();
        assert_eq!(order, Order::Look);
        drop(answer);
        assert_eq!(waiter.join().unwrap(), Err(ENDED));
        drop(orders);
        assert_eq!(remote.give(Order::Pause), Err(ENDED));
    }

    #[test]
    fn orders_that_nobody_carries_out_do_not_pile_up() {
        let (remote, orders) = orders();
        for _ in 0..WAITING {
            let (answer, _) = sync_channel(1);
            assert!(remote.0.try_send(Asked { order: Order::Look, answer }).is_ok());
        }
        assert!(remote.give(Order::Look).unwrap_err().contains("too many"));
        drop(orders);
    }
}

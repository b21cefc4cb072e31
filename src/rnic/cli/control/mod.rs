// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control socket: `rnic run --control S` answers on it, `rnic ctl S ORDER` asks (docs/control.md).
//!
//! * [`protocol`]: the lines. `socket`: a place to listen at. `server`: who listens, and how clients are kept from doing harm.
//! * `orders`, `events`, `faults`: what orders do to a machine of this process. `forward`: the way to one in an emulated host.
//! * [`client`]: `rnic ctl`.

pub mod client;
mod events;
mod faults;
mod forward;
mod orders;
mod protocol;
mod server;
mod socket;

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use lab::machine::Devices;
use vmm::block_ending_signals;
use vmm::orders::Remote;

use super::Error;
use super::host::{Errand, PORT};
use forward::{Folder, Forward};
use orders::Machine;
use server::{Server, serve_port};
use socket::Listener;

/// Options of `rnic run` about its control socket.
#[derive(Debug, Default, Args)]
pub struct ControlArgs {
    /// A Unix socket on which the machine takes orders (`rnic ctl`).
    #[arg(long, value_name = "SOCKET")]
    pub control: Option<PathBuf>,
    /// In an emulated host: the port that they come through. Ours alone.
    #[arg(long, hide = true, value_name = "DEVICE")]
    pub control_port: Option<PathBuf>,
}

/// Where orders come from, before there is anybody to carry them out.
pub enum Control {
    /// A socket.
    Socket(Listener),
    /// A port of the emulated host that this process runs in.
    Port(PathBuf),
}

/// What goes away when nobody takes orders any more: a socket, and the folder of the way into an emulated host. A port stays.
#[expect(dead_code, reason = "kept to be dropped")]
pub struct Served(Option<Server>, Option<Folder>);

impl ControlArgs {
    /// Takes the place at which orders will come; nothing is answered yet.
    pub fn open(&self) -> Result<Option<Control>, Error> {
        Ok(match (&self.control_port, &self.control) {
            (Some(port), _) => Some(Control::Port(port.clone())),
            (None, Some(path)) => Some(Control::Socket(Listener::bind(path)?)),
            (None, None) => None,
        })
    }
}

impl Control {
    /// Answers for a machine of this process, which has `injections` injections already.
    pub fn serve(self, devices: &Arc<Devices>, remote: Remote, injections: usize) -> Result<Served, Error> {
        // Threads that start before the machine's loop has its signals must not be ended by them.
        block_ending_signals()?;
        let machine = Arc::new(Machine::new(devices.clone(), remote, injections));
        Ok(match self {
            Self::Socket(listener) => Served(Some(Server::start(listener, machine)?), None),
            Self::Port(path) => {
                serve_port(&path, machine)?;
                Served(None, None)
            }
        })
    }

    /// Answers for a machine that an emulated host will have, by asking it.
    pub fn forward(self, errand: &mut Errand) -> Result<Served, Error> {
        let Self::Socket(listener) = self else { return Err("--control-port is of no use outside".into()) };
        block_ending_signals()?;
        let folder = Folder::new().map_err(|error| format!("there is no place for temporary files: {error}"))?;
        errand.socket = Some(folder.socket());
        errand.options.extend(["--control-port".into(), PORT.into()]);
        Ok(Served(Some(Server::start(listener, Arc::new(Forward::new(folder.socket())))?), Some(folder)))
    }
}

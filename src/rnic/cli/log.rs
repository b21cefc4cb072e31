// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Logs on standard error: warnings unless RUST_LOG says otherwise, and the NIC's command log, which a person asked for by
//! `--nic log=commands` and which RUST_LOG therefore does not silence.

use std::io::{IsTerminal, Write};

use log::{LevelFilter, Log, Metadata, Record};
use mlx5::COMMAND_LOG;

struct Logger {
    messages: env_logger::Logger,
    /// A console in raw mode wants the carriage return too.
    line_end: &'static str,
}

/// Starts logging. Once, before anything is logged.
pub fn start() {
    let messages = env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).build();
    let most = messages.filter().max(LevelFilter::Info);
    let line_end = if std::io::stderr().is_terminal() { "\r\n" } else { "\n" };
    if log::set_boxed_logger(Box::new(Logger { messages, line_end })).is_ok() {
        log::set_max_level(most);
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.target() == COMMAND_LOG || self.messages.enabled(metadata)
    }

    fn log(&self, record: &Record) {
        if record.target() == COMMAND_LOG {
            // A reader that has gone away must not stop the device.
            drop(write!(std::io::stderr().lock(), "{}{}", record.args(), self.line_end));
        } else {
            self.messages.log(record);
        }
    }

    fn flush(&self) {
        self.messages.flush();
    }
}

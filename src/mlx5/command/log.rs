// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command log (`--nic log=commands`): a line a command with its name, the inputs and outputs that matter, status and time.

use std::fmt::Write;
use std::time::Duration;

use super::table::{Command, Shows};
use super::{CommandError, Reply};
use mlx5_spec::cmd::{Opcode, in_header};

/// Target of the lines, for log filters.
pub const TARGET: &str = "rnic::mlx5::commands";

/// Writes the line of a command.
pub fn line(
    index: u8,
    opcode: Opcode,
    command: Option<&Command>,
    input: &[u8],
    result: &Result<Reply, CommandError>,
    took: Duration,
) {
    log::info!(target: TARGET, "nic{index} {}", text(opcode, command, input, result, took));
}

fn text(
    opcode: Opcode,
    command: Option<&Command>,
    input: &[u8],
    result: &Result<Reply, CommandError>,
    took: Duration,
) -> String {
    let mut text = format!("{opcode}");
    let op_mod = in_header::OP_MOD.get(input);
    if op_mod != 0 {
        let _ = write!(text, "({op_mod:#x})");
    }
    fields(&mut text, command.map_or(&[], |command| command.takes), input);
    match result {
        Ok(reply) => {
            text.push_str(": OK");
            fields(&mut text, command.map_or(&[], |command| command.gives), &reply.0);
        }
        Err(error) => {
            let _ = write!(text, ": status {:#x} syndrome {:#010x} ({error})", error.status(), error.syndrome());
        }
    }
    let _ = write!(text, ", {} us", took.as_micros());
    text
}

fn fields(text: &mut String, shows: Shows, bytes: &[u8]) {
    for (name, field) in shows {
        let _ = write!(text, " {name}={:#x}", field.get(bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::super::table;
    use super::*;
    use mlx5_spec::cq::create_out;

    #[test]
    fn a_line_has_name_inputs_outcome_and_time() {
        let mut input = vec![0; 0x110];
        in_header::OPCODE.set(&mut input, 0x400);
        let command = table::find(Opcode::CREATE_CQ);
        let reply = Ok(Reply::ok().with(create_out::CQN, 0x81));
        let took = Duration::from_micros(12);
        let line = text(Opcode::CREATE_CQ, command, &input, &reply, took);
        assert!(line.starts_with("CREATE_CQ ") && line.ends_with(": OK cqn=0x81, 12 us"), "{line}");
        let refused = Err(CommandError::Unsupported(Opcode(0x999)));
        let line = text(Opcode(0x999), None, &[0; 16], &refused, took);
        assert_eq!(line, "0x999: status 0x2 syndrome 0x00aa0999 (0x999 is not supported), 12 us");
    }
}

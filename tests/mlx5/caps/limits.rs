// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Limits: the last that is allowed works, one more is refused with its status.

use mlx5_spec::bits::Field;
use mlx5_spec::caps::cmd_hca_cap as cap;
use mlx5_spec::cmd::{Opcode, status};
use mlx5_spec::cq::{self, cqc};
use mlx5_spec::eq::{self, eqc};
use mlx5_spec::srq::{self, rmpc, wq};
use rnic_testdrive::Driver;

use crate::fields::carriers;

/// Sizes of queues (contract 6: EXCEED_LIM beyond a capability), all on pages of 1 MiB, which is always the same one.
pub fn sizes(driver: &Driver) {
    let rmp = srq::create_rmp_in::RMPC + rmpc::WQ;
    let queues: [(Opcode, Field, Field, Field, u64); 3] = [
        (
            Opcode::CREATE_CQ,
            cap::LOG_MAX_CQ_SZ,
            cqc::LOG_CQ_SIZE.plus(cq::create_in::CQC),
            cqc::LOG_PAGE_SIZE.plus(cq::create_in::CQC),
            64,
        ),
        (
            Opcode::CREATE_EQ,
            cap::LOG_MAX_EQ_SZ,
            eqc::LOG_EQ_SIZE.plus(eq::create_in::EQC),
            eqc::LOG_PAGE_SIZE.plus(eq::create_in::EQC),
            64,
        ),
        (Opcode::CREATE_RMP, cap::LOG_MAX_SRQ_SZ, wq::LOG_WQ_SZ.plus(rmp), wq::LOG_WQ_PG_SZ.plus(rmp), 64),
    ];
    let guest = &driver.machine.guest;
    let page = guest.contiguous(2 << 20).gpa(0).next_multiple_of(1 << 20);
    for (opcode, most, size, page_size, entry) in queues {
        let (_, good, _) = carriers(driver).into_iter().find(|(known, ..)| *known == opcode).unwrap();
        let log_most = driver.capability(most).unwrap();
        for (log, expected) in
            [(log_most, status::OK), (log_most + 1, status::EXCEED_LIM), (size.max(), status::EXCEED_LIM)]
        {
            let mut input = good.clone();
            size.set(&mut input, log);
            page_size.set(&mut input, 8);
            input.truncate(input.len() - 8);
            let pages = (entry << log.min(24)) / (1u64 << 20);
            input.extend((0..pages.max(1)).flat_map(|_| page.to_be_bytes()));
            let said = driver.commands.execute(&input, 16).err().map_or(status::OK, |error| error.status().unwrap());
            assert_eq!(said, expected, "{opcode}: 2^{log}");
        }
    }
}

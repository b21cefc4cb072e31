// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the device offers in its capabilities, bit by bit and value by value: what each promises, and what has shown that it is so.
//!
//! The table is walked against the answers of QUERY_HCA_CAP: what is offered has a row, what has a row is offered, with the row's value.
//!
//! * [`limits`]: the last that is allowed, and one more.
//! * [`refused`]: what is not offered, and what becomes of a guest that tries it.
//! * [`shown`]: what no other test shows.
//! * [`told`]: the same for other queries.

mod limits;
mod refused;
mod shown;
mod told;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use mlx5::NicConfig;
use mlx5_spec::caps::{
    self, atomic_caps, atomic_operations, cap_mode, cap_type, cmd_hca_cap, device_mem_cap, odp_caps, odp_transport,
};
use mlx5_spec::cmd::status;
use rnic_testdrive::driver::query_caps;
use rnic_testdrive::{Machine, MachineConfig};

use crate::answers::enabled;

/// What has shown that a promise holds.
enum Shown {
    /// A test, as file::function.
    By(&'static str),
    /// This, on a machine of its own.
    Run(fn()),
    /// Nothing can, or nothing need: why.
    Not(&'static str),
}

use Shown::{By, Not, Run};

/// Field or bit of a field by its name in `mlx5-spec`, its value, what it promises, what has shown it.
type Row = (&'static str, u64, &'static str, Shown);

const GENERAL: &[Row] = &[
    ("LOG_MAX_SRQ_SZ", 15, "shared receive queues of 2^15 WQEs", Run(shown::largest_queues)),
    ("LOG_MAX_QP_SZ", 15, "work queues of 2^15 blocks or receive WQEs", Run(shown::largest_queues)),
    ("LOG_MAX_QP", 16, "so many queue pairs at once", Run(shown::as_many_objects_as_offered)),
    ("LOG_MAX_SRQ", 16, "so many shared receive queues at once", Run(shown::as_many_objects_as_offered)),
    (
        "MAX_SGL_FOR_OPTIMIZED_PERFORMANCE",
        30,
        "a READ scatters over 30 pieces",
        Run(shown::a_read_scatters_over_thirty),
    ),
    ("LOG_MAX_CQ_SZ", 22, "completion queues of 2^22 entries", Run(shown::largest_queues)),
    ("LOG_MAX_CQ", 16, "so many completion queues at once", Run(shown::as_many_objects_as_offered)),
    ("LOG_MAX_EQ_SZ", 22, "event queues of 2^22 entries", Run(shown::largest_queues)),
    ("LOG_MAX_MKEY", 20, "so many memory keys at once", Run(shown::as_many_objects_as_offered)),
    ("LOG_MAX_EQ", 6, "so many event queues at once", Run(shown::as_many_objects_as_offered)),
    ("MAX_INDIRECTION", 4, "keys lead through four others", Run(shown::four_indirections)),
    ("FAST_TEARDOWN", 1, "an announced end", By("tests/mlx5/resets.rs::a_shutdown_takes_everything_down_at_once")),
    ("FORCE_TEARDOWN", 1, "an end by force", By("tests/mlx5/resets.rs::a_shutdown_takes_everything_down_at_once")),
    ("FIXED_BUFFER_SIZE", 1, "KSM keys", By("tests/mlx5/keys.rs::indirect_keys_lead_to_their_children")),
    ("UMR_EXTENDED_TRANSLATION_OFFSET", 1, "a UMR begins beyond 2^16 octwords", Run(shown::a_umr_far_into_its_table)),
    (
        "NULL_MKEY",
        1,
        "implicit paging: a key for what is absent in an indirect one",
        By("tests/mlx5/audit.rs::b01_implicit_paging_works_on_the_present_walk"),
    ),
    ("LOG_MAX_KLM_LIST_SIZE", 16, "KLM lists of 2^16 entries", Run(shown::the_longest_klm_list)),
    ("LOG_MAX_RA_REQ_DC", 4, "an initiator asks for 16 READs at once", By(READS_OF_DC)),
    ("LOG_MAX_RA_RES_DC", 4, "a target answers 16 READs at once", By(READS_OF_DC)),
    ("LOG_MAX_RA_REQ_QP", 4, "a queue pair asks for 16 READs at once", Run(shown::sixteen_reads)),
    ("LOG_MAX_RA_RES_QP", 4, "a queue pair answers 16 READs at once", Run(shown::sixteen_reads)),
    (
        "RTS2RTS_QP_COUNTERS_SET_ID",
        1,
        "a queue pair at work gets another set of counters",
        By("tests/mlx5/q_counters.rs::a_queue_pair_changes_its_set"),
    ),
    (
        "OUT_OF_SEQ_CNT",
        1,
        "out_of_sequence",
        By("tests/mlx5/q_counters.rs::what_is_out_of_sequence_counts_on_both_sides"),
    ),
    (
        "RETRANSMISSION_Q_COUNTERS",
        1,
        "what is sent again counts",
        By("tests/mlx5/q_counters.rs::what_is_out_of_sequence_counts_on_both_sides"),
    ),
    (
        "MAX_QP_CNT",
        255,
        "so many sets of Q counters",
        By("tests/mlx5/q_counters.rs::there_are_as_many_sets_as_offered"),
    ),
    (
        "ENHANCED_ERROR_Q_COUNTERS",
        1,
        "errors count by their kind",
        By("tests/mlx5/q_counters.rs::errors_count_by_their_kind_on_both_sides"),
    ),
    ("VPORT_COUNTERS", 1, "QUERY_VPORT_COUNTER", Run(shown::port_counters)),
    (
        "IB_VIRT",
        1,
        "the port answers vport commands",
        By("tests/mlx5/answers.rs::the_port_is_active_and_has_its_tables"),
    ),
    (
        "DEVICE_MEMORY",
        1,
        "memory of the device's own",
        By("tests/mlx5/device_memory.rs::what_is_sent_there_is_read_through_the_bar"),
    ),
    ("LOCAL_CA_ACK_DELAY", 16, "answers within 268 ms", Not("it is a time, and no test asserts one")),
    ("NUM_PORTS", 1, "port 1 and no other", Run(shown::port_one_only)),
    ("LOG_MAX_MSG", 30, "messages of 1 GiB", By("tests/mlx5/public_reports.rs::c25d_the_longest_message")),
    (
        "CQE_VERSION",
        1,
        "CQEs with the user index",
        By("tests/mlx5/loopback.rs::send_consumes_a_receive_and_tells_both_sides"),
    ),
    ("UMR_FENCE", 2, "what follows a UMR needs no fence", Run(shown::a_umr_and_its_use_in_one_post)),
    (
        "WQ_SIGNATURE",
        1,
        "WQEs with a signature, which nobody checks",
        By("tests/mlx5/taking.rs::receive_wqes_with_a_signature_segment"),
    ),
    ("CQ_OI", 1, "queues that ignore overruns", By("tests/mlx5/completion.rs::a_queue_that_ignores_overruns_goes_on")),
    (
        "CQ_RESIZE",
        1,
        "completion queues of another size",
        By("tests/mlx5/resize.rs::a_queue_goes_on_in_another_buffer"),
    ),
    ("DCT", 1, "DC", By("tests/mlx5/dc.rs::messages_of_many_initiators_come_to_one_target")),
    ("ATOMIC", 1, "atomics", By("tests/mlx5/loopback.rs::atomics_of_many_queue_pairs_lose_nothing")),
    (
        "BLOCK_LB_MC",
        1,
        "who sends to its own group need not hear it",
        By("tests/mlx5/multicast.rs::a_group_is_heard_by_who_is_attached"),
    ),
    ("PG", 1, "on-demand paging", By("tests/mlx5/odp.rs::the_cycle_of_an_incoming_write")),
    ("IMAICL", 1, "memory windows", By("tests/mlx5/windows.rs::a_window_gives_what_it_is_bound_to_and_no_more")),
    ("XRC", 1, "XRC", By("tests/mlx5/shared_receive.rs::xrc_messages_name_the_queue_that_they_land_in")),
    ("UD", 1, "datagrams", By("tests/mlx5/datagrams.rs::a_datagram_arrives_behind_the_room_for_a_grh")),
    ("UC", 1, "unreliable connections", By("tests/mlx5/datagrams.rs::an_unreliable_connection_writes_and_sends")),
    ("RC", 1, "reliable connections", By("tests/mlx5/loopback.rs::write_moves_every_size_from_any_place")),
    ("LOG_PG_SZ", 12, "pages of 4 KiB", By("tests/mlx5/loopback.rs::write_moves_every_size_from_any_place")),
    ("LOG_BF_REG_SIZE", 9, "doorbell registers 512 bytes apart", Run(shown::every_doorbell_register)),
    ("MAX_WQE_SZ_SQ", 1008, "send WQEs of 1008 bytes", Run(shown::largest_wqes)),
    ("MAX_WQE_SZ_RQ", 512, "receive WQEs of 512 bytes", Run(shown::largest_wqes)),
    ("MAX_QP_MCG", 240, "so many queue pairs hear a group", By(GROUPS_ARE_BOUNDED)),
    ("LOG_MAX_MCG", 10, "groups that queue pairs hear", By(GROUPS_ARE_BOUNDED)),
    ("LOG_MAX_PD", 16, "so many protection domains at once", Run(shown::as_many_objects_as_offered)),
    ("LOG_MAX_XRCD", 16, "so many XRC domains at once", Run(shown::as_many_objects_as_offered)),
    ("LOG_MAX_RMP", 16, "so many RMPs at once", Run(shown::as_many_objects_as_offered)),
    (
        "NATIVE_PORT_NUM",
        1,
        "the port's number on the board",
        Not("an index that drivers keep beside link aggregation only"),
    ),
    (
        "CQE_128_ALWAYS",
        1,
        "entries of 128 bytes, padded",
        By("src/mlx5/queue_tests.rs::entries_of_128_bytes_are_in_the_upper_half"),
    ),
    ("LOG_MAX_UCTX", 12, "so many user contexts at once", Run(shown::as_many_objects_as_offered)),
    ("LOG_MAX_UMEM", 18, "so many umems at once", Run(shown::as_many_objects_as_offered)),
    (
        "DEVICE_FREQUENCY_KHZ",
        1_000_000,
        "the clock counts nanoseconds",
        By("tests/mlx5/completion.rs::timestamps_are_those_of_the_internal_timer"),
    ),
];

const ATOMICS: &str = "tests/mlx5/loopback.rs::atomics_use_little_endian_memory_and_big_endian_operands";

const ATOMIC: &[Row] = &[
    ("SUPPORTED_ATOMIC_REQ_8B_ENDIANNESS_MODE_1", 1, "operands as IBTA has them", By(ATOMICS)),
    ("ATOMIC_OPERATIONS.COMPARE_SWAP", 1, "compare and swap", By(ATOMICS)),
    ("ATOMIC_OPERATIONS.FETCH_ADD", 1, "fetch and add", By(ATOMICS)),
    ("ATOMIC_SIZE_QP", 8, "operands of 8 bytes, and no other size", By(ATOMICS)),
    ("ATOMIC_SIZE_DC", 8, "the same with DC", By("tests/mlx5/dc.rs::every_operation_goes_to_a_target")),
];

const BOUNDED_MEMORY: &str = "tests/mlx5/device_memory.rs::keys_and_allocations_keep_to_their_bounds";
const MAPPED_MEMORY: &str = "tests/mlx5/device_memory.rs::what_is_sent_there_is_read_through_the_bar";
const ALL_MEMORY: &str = "tests/mlx5/device_memory.rs::a_reset_frees_it";

const DEVICE_MEMORY: &[Row] = &[
    ("MEMIC", 1, "memory that programs map and keys name", By(MAPPED_MEMORY)),
    ("LOG_MIN_MEMIC_ALLOC_SIZE", 6, "in steps of 64 bytes", By(BOUNDED_MEMORY)),
    ("LOG_MAX_MEMIC_ADDR_ALIGNMENT", 6, "aligned to 4096 bytes if asked", By(BOUNDED_MEMORY)),
    ("MEMIC_BAR_START_ADDR", mlx5::device_memory::BAR_OFFSET, "it lies behind the UAR pages", By(MAPPED_MEMORY)),
    ("MEMIC_BAR_SIZE", 256 << 10, "so much of BAR0 is of it", By(ALL_MEMORY)),
    ("MAX_MEMIC_SIZE", 256 << 10, "all of it at once", By(ALL_MEMORY)),
];

const ODP: &[Row] = &[
    ("RC_ODP_CAPS.SEND", 1, "a gather list pages", By("tests/mlx5/odp.rs::the_cycle_of_a_send")),
    ("RC_ODP_CAPS.RECEIVE", 1, "a receive list pages", By("tests/mlx5/odp.rs::the_cycle_of_a_receive_list")),
    ("RC_ODP_CAPS.WRITE", 1, "a WRITE's target pages", By("tests/mlx5/odp.rs::the_cycle_of_an_incoming_write")),
    ("RC_ODP_CAPS.READ", 1, "a READ's source pages", By("tests/mlx5/odp.rs::the_cycle_of_an_incoming_read")),
    ("RC_ODP_CAPS.ATOMIC", 1, "an atomic's target pages", By("tests/mlx5/odp.rs::an_atomic_faults_before_it_acts")),
    (SHARED_ON_DEMAND, 1, "a shared queue's list pages", By("tests/mlx5/odp.rs::the_cycle_of_a_shared_receive_list")),
    ("XRC_ODP_CAPS.SEND", 1, "a gather list pages, with XRC", By(XRC_ON_DEMAND)),
    ("XRC_ODP_CAPS.WRITE", 1, "a WRITE's target pages, with XRC", By(XRC_ON_DEMAND)),
    ("XRC_ODP_CAPS.READ", 1, "a READ's source pages, with XRC", By(XRC_ON_DEMAND)),
    ("XRC_ODP_CAPS.ATOMIC", 1, "an atomic's target pages, with XRC", By(XRC_ON_DEMAND)),
    ("XRC_ODP_CAPS.SRQ_RECEIVE", 1, "a shared queue's list pages, with XRC", By(XRC_ON_DEMAND)),
    ("DC_ODP_CAPS.SEND", 1, "a gather list pages, with DC", By(DC_ON_DEMAND)),
    ("DC_ODP_CAPS.WRITE", 1, "a WRITE's target pages, with DC", By(DC_ON_DEMAND)),
    ("DC_ODP_CAPS.READ", 1, "a READ's source pages, with DC", By(DC_ON_DEMAND)),
    ("DC_ODP_CAPS.ATOMIC", 1, "an atomic's target pages, with DC", By(DC_ON_DEMAND)),
    ("DC_ODP_CAPS.SRQ_RECEIVE", 1, "a shared queue's list pages, with DC", By(DC_ON_DEMAND)),
    ("UD_ODP_CAPS.SEND", 1, "a datagram's gather list pages", Run(shown::a_datagram_from_an_absent_page)),
];

const READS_OF_DC: &str = "tests/mlx5/dc.rs::sixteen_reads_at_once";
const GROUPS_ARE_BOUNDED: &str = "tests/mlx5/multicast.rs::groups_are_as_many_as_offered";
const SHARED_ON_DEMAND: &str = "RC_ODP_CAPS.SRQ_RECEIVE";
const DC_ON_DEMAND: &str = "tests/mlx5/dc.rs::the_cycles_of_dc";
const XRC_ON_DEMAND: &str = "tests/mlx5/odp.rs::the_cycles_of_xrc";

/// Whether it is off until a driver asks for it (contract 4.1, row 10).
fn is_asked_for(name: &str) -> bool {
    name == SHARED_ON_DEMAND || ["XRC_ODP_CAPS.", "DC_ODP_CAPS."].iter().any(|of| name.starts_with(of))
}

/// A capability structure: its type, its fields with where they lie, its rows.
type Kind = (u32, &'static [&'static str], &'static [(usize, usize)], &'static [Row]);

const KINDS: [Kind; 5] = [
    (cap_type::GENERAL, cmd_hca_cap::FIELDS, cmd_hca_cap::SPANS, GENERAL),
    (cap_type::ATOMIC, atomic_caps::FIELDS, atomic_caps::SPANS, ATOMIC),
    (cap_type::ODP, odp_caps::FIELDS, odp_caps::SPANS, ODP),
    (cap_type::DEVICE_MEMORY, device_mem_cap::FIELDS, device_mem_cap::SPANS, DEVICE_MEMORY),
    // Told, and all zero.
    (cap_type::NIC_FLOW_TABLE, &[], &[], &[]),
];

/// The name of a bit of a field whose bits each offer something.
fn name_of_bit(field: &str, bit: u32) -> Option<&'static str> {
    match field {
        "ATOMIC_OPERATIONS" => atomic_operations::name(1 << bit),
        "RC_ODP_CAPS" | "UC_ODP_CAPS" | "UD_ODP_CAPS" | "XRC_ODP_CAPS" | "DC_ODP_CAPS" => odp_transport::name(1 << bit),
        _ => None,
    }
}

/// All that is not zero in a structure, by name; a bit that no field names by its place.
fn offered(bytes: &[u8], fields: &[&str], spans: &[(usize, usize)]) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    let set = |bit: &usize| bytes[bit / 8] >> (7 - bit % 8) & 1 == 1;
    for bit in (0..bytes.len() * 8).filter(set) {
        let at = spans.iter().position(|(from, to)| (*from..*to).contains(&bit));
        let Some(at) = at else {
            found.insert(format!("byte {:#x} bit {}", bit / 32 * 4, 31 - bit % 32), 1);
            continue;
        };
        // Of a field that is longer than a number the lower bits say enough.
        let place = (spans[at].1 - 1 - bit) as u32 % 64;
        match name_of_bit(fields[at], place) {
            Some(name) => found.insert(format!("{}.{name}", fields[at]), 1),
            None => {
                let value = found.entry(fields[at].to_string()).or_default();
                *value |= 1 << place;
                None
            }
        };
    }
    found
}

fn promised(rows: &[Row], there: impl Fn(&str) -> bool) -> BTreeMap<String, u64> {
    let rows = rows.iter().filter(|(name, ..)| there(name));
    rows.map(|(name, value, ..)| (name.to_string(), *value)).collect()
}

fn machine_with(nic: NicConfig) -> Arc<Machine> {
    let config = MachineConfig::default();
    Arc::new(Machine::new(MachineConfig { nic: NicConfig { engines: config.nic.engines, ..nic }, ..config }))
}

/// At power-on, before a driver has set anything.
#[test]
fn everything_that_is_offered_has_its_row() {
    for odp in [true, false] {
        let commands = enabled(&machine_with(NicConfig { odp, ..NicConfig::default() }));
        let asked = |kind, mode| query_caps(&commands, kind, mode).unwrap();
        for (kind, fields, spans, rows) in KINDS {
            if kind == cap_type::ODP && !odp {
                continue;
            }
            let off = if odp { "" } else { "PG" };
            let most = offered(&asked(kind, cap_mode::MAX), fields, spans);
            assert_eq!(most, promised(rows, |name| name != off), "type {kind:#x}, the most; paging {odp}");
            let current = offered(&asked(kind, cap_mode::CUR), fields, spans);
            let on = promised(rows, |name| name != off && !is_asked_for(name));
            assert_eq!(current, on, "type {kind:#x}, current; paging {odp}");
        }
        for kind in 0..0x80 {
            let offered = KINDS.iter().any(|(known, ..)| *known == kind) && (odp || kind != cap_type::ODP);
            let said = query_caps(&commands, kind, cap_mode::MAX).map_err(|error| error.status());
            assert_eq!(said.err(), (!offered).then_some(Some(status::BAD_PARAM)), "type {kind:#x}");
        }
    }
}

/// A test that a row names, as file::function.
fn assert_is_there(test: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let (file, function) = test.split_once("::").unwrap();
    let text = std::fs::read_to_string(root.join(file)).unwrap();
    assert!(text.contains(&format!("\nfn {function}()")), "{test}");
}

#[test]
fn everything_that_is_offered_has_been_shown() {
    let mut done: Vec<fn()> = Vec::new();
    for (name, value, promise, shown) in KINDS.iter().flat_map(|(.., rows)| rows.iter()) {
        assert!(*value > 0 && !promise.is_empty(), "{name}");
        match shown {
            By(test) => assert_is_there(test),
            Run(run) if done.iter().any(|other| std::ptr::fn_addr_eq(*other, *run)) => {}
            Run(run) => {
                println!("{name}: {promise}");
                run();
                done.push(*run);
            }
            Not(why) => assert!(!why.is_empty(), "{name}"),
        }
    }
}

#[test]
fn what_no_field_names_is_found_too() {
    let (_, fields, spans, _) = KINDS[0];
    let mut bytes = vec![0; caps::UNION_SIZE];
    bytes[0x0d] = 0x40;
    bytes[0xfff] = 1;
    cmd_hca_cap::LOG_MAX_QP.set(&mut bytes, 5);
    cmd_hca_cap::GENERAL_OBJ_TYPES.set(&mut bytes, 1 << 40);
    let expected = [("LOG_MAX_QP", 5), ("GENERAL_OBJ_TYPES", 1 << 40), ("byte 0xc bit 22", 1), ("byte 0xffc bit 0", 1)];
    assert_eq!(offered(&bytes, fields, spans), expected.map(|(name, value)| (name.to_string(), value)).into());
}

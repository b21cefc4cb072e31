// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What becomes of every field of the contexts that drivers hand over: it is acted on, refused, or has no effect for a reason.
//!
//! The tables are walked by tests/mlx5/fields.rs: each field of `mlx5-spec` has its row, each row that claims an effect names a test, and what is
//! to be refused is refused by the command that carries it. The commands take their refusals from here.

use super::CommandError;
use crate::limits;
use mlx5_spec::bits::Field;
use mlx5_spec::cq::cqc;
use mlx5_spec::eq::eqc;
use mlx5_spec::mkey::mkc;
use mlx5_spec::qp::{ads, dctc, qpc};
use mlx5_spec::srq::{rmpc, wq, xrc_srqc};

/// What becomes of a field.
pub enum Fate {
    /// It decides something: the test that shows it, as file::function.
    Acted(&'static str),
    /// BAD_PARAM from this value on: what is not offered.
    Refused(Field, u32, &'static str),
    /// No effect, and why none is right. It reads back as it was set.
    Kept(&'static str),
    /// The device's own: what a driver writes there has no effect. The test that reads it, if it ever is anything but 0.
    Reported(&'static str),
    /// A structure of its own, or a second view of other bits.
    Part,
}

use Fate::{Acted, Kept, Part, Refused, Reported};

/// A field by its name in `mlx5-spec`.
pub type Row = (&'static str, Fate);

/// Refuses a context that asks for what is not offered; it begins at byte `at` of `input`.
pub fn refuse(table: &[Row], input: &[u8], at: usize) -> Result<(), CommandError> {
    for (_, fate) in table {
        if let Refused(field, least, why) = fate
            && field.plus(at).get(input) >= *least
        {
            return Err(CommandError::Param(why));
        }
    }
    Ok(())
}

const BUFFER: Fate = Acted("tests/mlx5/public_reports.rs::c25a_page_lists_that_do_not_hold_the_queue_are_refused");
const NAMES: Fate = Acted("tests/mlx5/objects.rs::every_command_looks_at_every_number_that_it_is_given");
const RIGHTS: Fate = Acted("tests/mlx5/errors.rs::a_queue_pair_that_forbids_an_operation_refuses_it");
const KEY_RIGHTS: Fate = Acted("tests/mlx5/errors.rs::each_error_has_its_syndrome_states_and_event");
const UMR_RIGHTS: Fate = Acted("src/mlx5/mkey/tests/updates.rs::other_queue_pairs_change_only_what_is_theirs");
const LOOPBACK: Fate = Acted("tests/mlx5/loopback.rs::send_consumes_a_receive_and_tells_both_sides");
const SHARED: Fate = Acted("tests/mlx5/shared_receive.rs::messages_take_the_queues_entries_in_list_order");
const XRC: Fate = Acted("tests/mlx5/shared_receive.rs::xrc_messages_name_the_queue_that_they_land_in");
const SEQUENCE: Fate = Acted("tests/mlx5/audit.rs::a14_sequence_numbers_must_match");
const PATIENCE: Fate = Acted("tests/mlx5/retries.rs::a_peer_that_does_not_answer_ends_in_an_error");
const STATE: Fate = Reported("tests/mlx5/objects.rs::queries_show_what_was_set_and_what_has_moved");
const NO_MODERATION: Fate = Kept("moderation is not offered: each armed completion has its event");
/// What MODIFY_CQ says too.
pub const MODERATION: &str = "moderation is not offered";
const RELAXED: &str = "relaxed ordering is not offered";
const NO_MIGRATION: Fate = Kept("path migration is not offered (apm is 0)");
/// What a command says whose buffer is to lie in a umem object.
pub const NO_UMEM: &str = "it lies in a umem, which is not offered here";
const UMEM: Fate = Acted("tests/mlx5/devx.rs::queues_and_records_of_a_user_context_lie_in_its_umems");
const NO_CROSS_CHANNEL: &str = "cross-channel queues are not offered";
const NO_SIGNATURES: &str = "signature handover is not offered";
const NO_SCATTER: &str = "scatter to CQE is not offered";
const CYCLIC: &str = "a shared receive queue is a linked list";
const SRQ_SIGNATURE: Fate = Kept("the signature is in the link, where nobody looks at it");

/// QPC (contract 6.3).
pub const QPC: &[Row] = &[
    ("STATE", STATE),
    ("LAG_TX_PORT_AFFINITY", Kept("there is one port")),
    ("ST", Acted("tests/mlx5/objects.rs::services_and_receive_queues_that_are_not_offered_are_refused")),
    ("PM_STATE", NO_MIGRATION),
    ("END_PADDING_MODE", Kept("it pads writes on the host's bus, which no driver sees")),
    ("WQ_SIGNATURE", Acted("tests/mlx5/taking.rs::receive_wqes_with_a_signature_segment")),
    ("BLOCK_LB_MC", Acted("tests/mlx5/multicast.rs::a_group_is_heard_by_who_is_attached")),
    ("LATENCY_SENSITIVE", Kept("a hint")),
    ("DRAIN_SIGERR", Refused(qpc::DRAIN_SIGERR, 1, NO_SIGNATURES)),
    ("PD", NAMES),
    ("MTU", Acted("tests/mlx5/states.rs::a_queue_pair_goes_through_its_states_and_back")),
    ("LOG_MSG_MAX", Refused(qpc::LOG_MSG_MAX, limits::LOG_MAX_MSG + 1, "messages of more than log_max_msg")),
    ("LOG_RQ_SIZE", BUFFER),
    ("LOG_RQ_STRIDE", BUFFER),
    ("NO_SQ", NAMES),
    ("LOG_SQ_SIZE", BUFFER),
    ("TS_FORMAT", Refused(qpc::TS_FORMAT, 2, "real-time timestamps are not offered")),
    ("RLKY", Kept("no reserved lkey is offered (QUERY_SPECIAL_CONTEXTS)")),
    ("COUNTER_SET_ID", Acted("tests/mlx5/q_counters.rs::a_set_counts_what_happens_to_its_queue_pairs")),
    ("UAR_PAGE", NAMES),
    ("USER_INDEX", LOOPBACK),
    ("LOG_PAGE_SIZE", BUFFER),
    ("REMOTE_QPN", Acted("tests/mlx5/retries.rs::a_peer_that_is_connected_to_another_does_not_answer")),
    ("PRIMARY_ADDRESS_PATH", Part),
    ("SECONDARY_ADDRESS_PATH", NO_MIGRATION),
    ("LOG_ACK_REQ_FREQ", Kept("every message is acknowledged")),
    ("LOG_SRA_MAX", Refused(qpc::LOG_SRA_MAX, limits::LOG_MAX_RD_ATOMIC + 1, "more READs than log_max_ra_req_qp")),
    ("RETRY_COUNT", PATIENCE),
    ("RNR_RETRY", Acted("tests/mlx5/retries.rs::receives_that_never_come_end_in_an_error")),
    ("FRE", UMR_RIGHTS),
    ("CUR_RNR_RETRY", Kept("the device's own; a driver's value has no effect")),
    ("CUR_RETRY_COUNT", Kept("the device's own; a driver's value has no effect")),
    ("NEXT_SEND_PSN", SEQUENCE),
    ("CQN_SND", NAMES),
    ("DETH_SQPN", Refused(qpc::DETH_SQPN, 1, "another source QPN is not offered (set_deth_sqpn is 0)")),
    ("LAST_ACKED_PSN", Kept("the device's own; a driver's value has no effect")),
    ("SSN", Kept("the device's own; a driver's value has no effect")),
    ("LOG_RRA_MAX", Refused(qpc::LOG_RRA_MAX, limits::LOG_MAX_RD_ATOMIC + 1, "more READs than log_max_ra_res_qp")),
    ("ATOMIC_MODE", Refused(qpc::ATOMIC_MODE, 2, "operands of 8 bytes are the only ones")),
    ("RRE", RIGHTS),
    ("RWE", RIGHTS),
    ("RAE", RIGHTS),
    ("PAGE_OFFSET", BUFFER),
    ("CD_SLAVE_RECEIVE", Refused(qpc::CD_SLAVE_RECEIVE, 1, NO_CROSS_CHANNEL)),
    ("CD_SLAVE_SEND", Refused(qpc::CD_SLAVE_SEND, 1, NO_CROSS_CHANNEL)),
    ("CD_MASTER", Refused(qpc::CD_MASTER, 1, NO_CROSS_CHANNEL)),
    ("MIN_RNR_NAK", Acted("tests/mlx5/retries.rs::the_receivers_timer_is_honoured")),
    ("NEXT_RCV_PSN", SEQUENCE),
    ("XRCD", NAMES),
    ("CQN_RCV", NAMES),
    ("DBR_ADDR", LOOPBACK),
    ("Q_KEY", Acted("tests/mlx5/datagrams.rs::datagrams_that_nobody_takes_are_dropped_and_the_sender_goes_on")),
    ("RQ_TYPE", NAMES),
    ("SRQN_RMPN_XRQN", NAMES),
    ("RMSN", Kept("the device's own; a driver's value has no effect")),
    ("HW_SQ_WQEBB_COUNTER", STATE),
    ("SW_SQ_WQEBB_COUNTER", Kept("the driver's own; the doorbell record has it")),
    ("HW_RQ_COUNTER", STATE),
    ("SW_RQ_COUNTER", Kept("the driver's own; the doorbell record has it")),
    ("CGS", Refused(qpc::CGS, 1, NO_SCATTER)),
    ("CS_REQ", Refused(qpc::CS_REQ, 1, NO_SCATTER)),
    ("CS_RES", Refused(qpc::CS_RES, 1, NO_SCATTER)),
    ("DC_ACCESS_KEY", Kept("there are no DC queue pairs")),
    ("DBR_UMEM_VALID", UMEM),
    ("DBR_UMEM_ID", UMEM),
];

/// The address path of a QPC (contract 6.3).
pub const ADS: &[Row] = &[
    ("FL", Kept("force loopback: all traffic of one device is")),
    ("FREE_AR", Kept("one path leads to each peer")),
    ("PKEY_INDEX", Acted("tests/mlx5/audit.rs::a15_an_invalid_pkey_carries_nothing")),
    ("GRH", Kept("on one subnet the LID decides")),
    ("MLID", Kept("LMC is 0: a port has one LID")),
    ("RLID", PATIENCE),
    ("ACK_TIMEOUT", PATIENCE),
    ("SRC_ADDR_INDEX", Kept("the GID at index 0 is the only one")),
    ("STAT_RATE", Kept("there is no link whose rate could be less")),
    ("HOP_LIMIT", Kept("no router is passed")),
    ("TCLASS", Kept("no router is passed")),
    ("FLOW_LABEL", Kept("no router is passed")),
    ("RGID", Kept("on one subnet the LID decides")),
    ("SL", Kept("all service levels share one virtual lane")),
    ("VHCA_PORT_NUM", Refused(ads::VHCA_PORT_NUM, 2, "there is one port")),
    ("RMAC_47_32", Kept("Ethernet only")),
    ("RMAC_31_0", Kept("Ethernet only")),
];

/// CQC (contract 6.2).
pub const CQC: &[Row] = &[
    ("STATUS", Reported("src/mlx5/queue_tests.rs::an_overrun_is_an_error_event_and_the_end_of_the_queue")),
    ("DBR_UMEM_VALID", UMEM),
    ("APU_CQ", Refused(cqc::APU_CQ, 1, "APU queues are not offered")),
    ("CQE_SZ", Refused(cqc::CQE_SZ, 3, "CQE size is not offered")),
    ("CC", Refused(cqc::CC, 1, "collapsed completion queues are not offered")),
    ("SCQE_BREAK_MODERATION_EN", NO_MODERATION),
    ("OI", Acted("tests/mlx5/completion.rs::a_queue_that_ignores_overruns_goes_on")),
    ("CQ_PERIOD_MODE", NO_MODERATION),
    ("CQE_COMP_EN", Refused(cqc::CQE_COMP_EN, 1, "CQE compression is not offered")),
    ("MINI_CQE_RES_FORMAT", Kept("only with CQE compression")),
    ("ST", STATE),
    ("DBR_UMEM_ID", UMEM),
    ("PAGE_OFFSET", BUFFER),
    ("LOG_CQ_SIZE", BUFFER),
    ("UAR_PAGE", Acted("tests/mlx5/completion.rs::a_queue_obeys_only_its_own_uar_page")),
    ("CQ_PERIOD", Refused(cqc::CQ_PERIOD, 1, MODERATION)),
    ("CQ_MAX_COUNT", Refused(cqc::CQ_MAX_COUNT, 1, MODERATION)),
    ("C_EQN", Acted("tests/mlx5/completion.rs::an_armed_queue_tells_once")),
    ("LOG_PAGE_SIZE", BUFFER),
    ("LAST_NOTIFIED_INDEX", Kept("the device's own; a driver's value has no effect")),
    ("LAST_SOLICIT_INDEX", Kept("the device's own; a driver's value has no effect")),
    ("CONSUMER_COUNTER", STATE),
    ("PRODUCER_COUNTER", STATE),
    ("DBR_ADDR", Acted("tests/mlx5/completion.rs::an_overrun_completion_queue_fails_its_queue_pairs")),
];

/// EQC (contract 6.1).
pub const EQC: &[Row] = &[
    ("STATUS", Kept("an event queue never fails: events that find no room wait")),
    ("EC", Refused(eqc::EC, 1, "collapsed event queues are not offered")),
    ("OI", Kept("an event queue never overruns: events that find no room wait")),
    ("ST", STATE),
    ("PAGE_OFFSET", BUFFER),
    ("LOG_EQ_SIZE", BUFFER),
    ("UAR_PAGE", Acted("tests/mlx5/completion.rs::an_event_queue_obeys_its_own_uar_page_only")),
    ("INTR", Acted("src/mlx5/queue_tests.rs::an_armed_event_queue_interrupts_once_and_again_after_its_doorbell")),
    ("LOG_PAGE_SIZE", BUFFER),
    ("CONSUMER_COUNTER", STATE),
    ("PRODUCER_COUNTER", STATE),
];

/// MKC (contract 6.6, 8).
pub const MKC: &[Row] = &[
    ("FREE", UMR_RIGHTS),
    ("ACCESS_MODE_4_2", Acted("tests/mlx5/errors.rs::a_key_of_a_mode_that_is_not_offered_is_refused")),
    ("RELAXED_ORDERING_WRITE", Refused(mkc::RELAXED_ORDERING_WRITE, 1, RELAXED)),
    ("SMALL_FENCE_ON_RDMA_READ_RESPONSE", Kept("a READ's data is there before its completion, always")),
    ("UMR_EN", UMR_RIGHTS),
    ("A", KEY_RIGHTS),
    ("RW", KEY_RIGHTS),
    ("RR", KEY_RIGHTS),
    ("LW", KEY_RIGHTS),
    ("LR", KEY_RIGHTS),
    ("ACCESS_MODE_1_0", Acted("tests/mlx5/keys.rs::indirect_keys_lead_to_their_children")),
    ("MA_TRANSLATION_MODE", Refused(mkc::MA_TRANSLATION_MODE, 1, "address translation services are not offered")),
    ("QPN", UMR_RIGHTS),
    ("MKEY_7_0", Acted("tests/mlx5/keys.rs::umr_changes_only_what_its_mask_says")),
    ("LENGTH64", Acted("src/mlx5/mkey/tests/mod.rs::physical_keys_lead_where_they_say")),
    ("BSF_EN", Refused(mkc::BSF_EN, 1, NO_SIGNATURES)),
    ("SYNC_UMR", Refused(mkc::SYNC_UMR, 1, "SYNC_UMR queue pairs are not offered")),
    ("EN_RINVAL", Acted("src/mlx5/mkey/tests/updates.rs::invalidations_want_the_right_key_and_permission")),
    ("PD", UMR_RIGHTS),
    ("START_ADDR", Acted("tests/mlx5/keys.rs::a_region_that_begins_inside_a_page")),
    ("LEN", KEY_RIGHTS),
    ("BSF_OCTWORD_SIZE", Refused(mkc::BSF_OCTWORD_SIZE, 1, NO_SIGNATURES)),
    (
        "TRANSLATIONS_OCTWORD_SIZE",
        Acted("tests/mlx5/public_reports.rs::c03a_an_update_that_reaches_beyond_the_table_fails"),
    ),
    ("RELAXED_ORDERING_READ", Refused(mkc::RELAXED_ORDERING_READ, 1, RELAXED)),
    ("LOG_PAGE_SIZE", Acted("tests/mlx5/keys.rs::large_pages")),
    ("LOG_PAGE_SIZE_4_0", Part),
];

/// RMPC (contract 6.5).
pub const RMPC: &[Row] = &[
    ("STATE", Kept("an RMP is ready as soon as it is there")),
    ("BASIC_CYCLIC_RCV_WQE", Refused(rmpc::BASIC_CYCLIC_RCV_WQE, 1, CYCLIC)),
    ("WQ", Part),
];

/// The work queue of an RMPC (contract 6.5).
pub const WQ: &[Row] = &[
    ("WQ_TYPE", Refused(wq::WQ_TYPE, 1, CYCLIC)),
    ("WQ_SIGNATURE", SRQ_SIGNATURE),
    ("END_PADDING_MODE", Kept("it pads writes on the host's bus, which no driver sees")),
    ("CD_SLAVE", Refused(wq::CD_SLAVE, 1, NO_CROSS_CHANNEL)),
    ("PAGE_OFFSET", BUFFER),
    ("LWM", Acted("tests/mlx5/shared_receive.rs::the_limit_event_comes_once")),
    ("PD", SHARED),
    ("UAR_PAGE", Kept("posting to an RMP has no doorbell")),
    ("DBR_ADDR", SHARED),
    ("HW_COUNTER", STATE),
    ("SW_COUNTER", STATE),
    ("LOG_WQ_STRIDE", BUFFER),
    ("LOG_WQ_PG_SZ", BUFFER),
    ("LOG_WQ_SZ", BUFFER),
    ("PAS", Part),
];

/// XRC_SRQC, and SRQC, which is laid out alike (contract 6.5).
pub const XRC_SRQC: &[Row] = &[
    ("STATE", Kept("0, good, as long as the queue is there")),
    ("LOG_XRC_SRQ_SIZE", XRC),
    ("WQ_SIGNATURE", SRQ_SIGNATURE),
    ("CONT_SRQ", Refused(xrc_srqc::CONT_SRQ, 1, "continued receive queues are not offered")),
    ("RLKY", Kept("no reserved lkey is offered (QUERY_SPECIAL_CONTEXTS)")),
    ("BASIC_CYCLIC_RCV_WQE", Refused(xrc_srqc::BASIC_CYCLIC_RCV_WQE, 1, CYCLIC)),
    ("LOG_RQ_STRIDE", XRC),
    ("XRCD", Acted("tests/mlx5/objects.rs::what_others_use_stays_and_what_nobody_uses_goes")),
    ("PAGE_OFFSET", XRC),
    ("DBR_UMEM_VALID", Refused(xrc_srqc::DBR_UMEM_VALID, 1, NO_UMEM)),
    ("CQN", XRC),
    ("USER_INDEX_EQUAL_XRC_SRQN", Refused(xrc_srqc::USER_INDEX_EQUAL_XRC_SRQN, 1, "the driver chooses the user index")),
    ("LOG_PAGE_SIZE", XRC),
    ("USER_INDEX", XRC),
    ("PD", Acted("tests/mlx5/audit.rs::a13_xrc_rdma_is_checked_against_the_shared_queues_domain")),
    ("LWM", STATE),
    ("WQE_CNT", Kept("the device's own; a driver's value has no effect")),
    ("DBR_ADDR", XRC),
];

/// DCTC.
pub const DCTC: &[Row] = &[
    ("STATE", Reported("tests/mlx5/dc.rs::a_target_is_drained_and_gone")),
    ("USER_INDEX", Acted("tests/mlx5/dc.rs::messages_of_many_initiators_come_to_one_target")),
    ("CQN", NAMES),
    ("COUNTER_SET_ID", Acted("tests/mlx5/dc.rs::messages_of_many_initiators_come_to_one_target")),
    ("ATOMIC_MODE", Refused(dctc::ATOMIC_MODE, 2, "operands of 8 bytes are the only ones")),
    ("RRE", Acted("tests/mlx5/dc.rs::a_target_refuses_what_it_forbids_and_goes_on")),
    ("RWE", Acted("tests/mlx5/dc.rs::a_target_refuses_what_it_forbids_and_goes_on")),
    ("RAE", Acted("tests/mlx5/dc.rs::a_target_refuses_what_it_forbids_and_goes_on")),
    ("ATOMIC_LIKE_WRITE_EN", Kept("it is about order among operations, and all of a queue pair are in order")),
    ("LATENCY_SENSITIVE", Kept("a hint")),
    ("RLKY", Kept("the reserved key is not offered")),
    ("FREE_AR", Kept("there is one path")),
    ("CS_RES", Refused(dctc::CS_RES, 1, NO_SCATTER)),
    ("MIN_RNR_NAK", Acted("tests/mlx5/dc.rs::who_finds_no_receive_wqe_waits_for_one")),
    ("SRQN_XRQN", NAMES),
    ("PD", NAMES),
    ("TCLASS", Kept("what answers are sent with")),
    ("FLOW_LABEL", Kept("what answers are sent with")),
    ("DC_ACCESS_KEY", Acted("tests/mlx5/dc.rs::a_target_that_is_not_named_well_does_not_answer")),
    ("MTU", Acted("tests/mlx5/dc.rs::a_target_is_drained_and_gone")),
    ("PORT", Refused(dctc::PORT, 2, "there is one port")),
    ("PKEY_INDEX", Acted("tests/mlx5/dc.rs::a_target_that_is_not_named_well_does_not_answer")),
    ("MY_ADDR_INDEX", Kept("what answers are sent with")),
    ("HOP_LIMIT", Kept("what answers are sent with")),
    ("DC_ACCESS_KEY_VIOLATION_COUNT", Kept("violations are not counted")),
    ("ECE", Refused(dctc::ECE, 1, "ECE is not offered")),
];

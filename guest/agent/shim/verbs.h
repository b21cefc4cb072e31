// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
// What the agent needs of libibverbs, as plain functions: posting and polling are inline over the context's table of operations,
// which only a C compiler with the library's own header gets right. Mirrored by src/bin/rnic-agent/sys/verbs.rs.
#ifndef RNIC_SHIM_VERBS_H
#define RNIC_SHIM_VERBS_H

#include <stddef.h>
#include <stdint.h>

struct rv_nic;
struct rv_qp;
struct ibv_mr;

// What a device says about itself.
struct rv_info {
    char name[64];
    char fw[64];
    uint8_t port_state;  // enum ibv_port_state
    uint8_t link_layer;  // 1 InfiniBand, 2 Ethernet
    uint16_t lid;
    uint32_t vendor_id;
    uint32_t vendor_part_id;
    uint64_t odp_general;  // enum ibv_odp_general_caps
    uint32_t odp_rc;       // enum ibv_odp_transport_cap_bits
    int32_t max_qp;
    int32_t max_qp_rd_atom;
};

// One work request. `op` is one of RV_*.
struct rv_wr {
    uint64_t id;
    uint64_t addr;
    uint64_t remote_addr;
    uint64_t compare_add;
    uint64_t swap;
    uint32_t len;
    uint32_t lkey;
    uint32_t rkey;
    uint32_t imm;
    uint32_t op;
};

enum { RV_WRITE, RV_WRITE_IMM, RV_READ, RV_SEND, RV_FETCH_ADD, RV_CMP_SWAP, RV_RECV };

// One completion.
struct rv_wc {
    uint64_t id;
    const char *status;  // in words, static
    uint32_t code;       // enum ibv_wc_status
    uint32_t vendor_err;
    uint32_t opcode;  // enum ibv_wc_opcode
    uint32_t len;
    uint32_t imm;
    uint32_t qpn;
};

// All return 0 or an errno.
int rv_open(const char *name, struct rv_nic **out);
int rv_close(struct rv_nic *nic);
void rv_info(const struct rv_nic *nic, struct rv_info *out);

int rv_reg(struct rv_nic *nic, uint64_t addr, uint64_t len, uint32_t access, struct ibv_mr **out);
int rv_dereg(struct ibv_mr *mr);
int rv_rereg(struct ibv_mr *mr, uint32_t access);
void rv_keys(const struct ibv_mr *mr, uint32_t *lkey, uint32_t *rkey);

// An RC QP with a CQ of its own, of `depth` entries each, still in RESET.
int rv_qp_open(struct rv_nic *nic, uint32_t depth, struct rv_qp **out);
uint32_t rv_qpn(const struct rv_qp *qp);
// To RTS, connected to `qpn` of the same port.
int rv_connect(struct rv_qp *qp, uint32_t qpn);
int rv_qp_close(struct rv_qp *qp);
// State as enum ibv_qp_state.
int rv_qp_state(struct rv_qp *qp, uint32_t *state);

int rv_post(struct rv_qp *qp, const struct rv_wr *wr);
// Takes at most `max` completions; `*n` is how many came.
int rv_poll(struct rv_qp *qp, struct rv_wc *out, uint32_t max, uint32_t *n);

#endif

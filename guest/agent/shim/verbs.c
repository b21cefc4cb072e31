// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "verbs.h"

#include <errno.h>
#include <infiniband/verbs.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

struct rv_nic {
    struct ibv_context *context;
    struct ibv_pd *pd;
    struct ibv_device_attr_ex attr;
    struct ibv_port_attr port;
    union ibv_gid gid;
    uint8_t gid_index;
};

struct rv_qp {
    struct rv_nic *nic;
    struct ibv_cq *cq;
    struct ibv_qp *qp;
};

enum { PORT = 1, MAX_GIDS = 64, MAX_POLL = 32 };

// Calls that return NULL leave the reason in errno; never "success".
static int why(void) { return errno ? errno : EIO; }

// The first device, or the one of that name; NULL with errno.
static struct ibv_context *open_device(const char *name) {
    int count = 0;
    struct ibv_device **list = ibv_get_device_list(&count);
    if (!list) return NULL;
    struct ibv_context *context = NULL;
    errno = ENODEV;
    for (int i = 0; i < count && !context; i++) {
        if (!name || strcmp(name, ibv_get_device_name(list[i])) == 0) context = ibv_open_device(list[i]);
    }
    ibv_free_device_list(list);
    return context;
}

// A GID to send to: one that maps an IPv4 address if there is one, since soft-RoCE finds its way by it, else the first.
static void choose_gid(struct rv_nic *nic) {
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};
    static const union ibv_gid none;
    int count = nic->port.gid_tbl_len < MAX_GIDS ? nic->port.gid_tbl_len : MAX_GIDS;
    bool found = false;
    for (int i = 0; i < count; i++) {
        union ibv_gid gid;
        if (ibv_query_gid(nic->context, PORT, i, &gid) || memcmp(&gid, &none, sizeof gid) == 0) continue;
        bool ipv4 = memcmp(&gid, mapped, sizeof mapped) == 0;
        if (found && !ipv4) continue;
        nic->gid = gid;
        nic->gid_index = (uint8_t)i;
        found = true;
        if (ipv4) return;
    }
}

int rv_open(const char *name, struct rv_nic **out) {
    struct rv_nic *nic = calloc(1, sizeof *nic);
    if (!nic) return ENOMEM;
    nic->context = open_device(name);
    if (!nic->context) {
        int error = why();
        free(nic);
        return error;
    }
    int error = ibv_query_device_ex(nic->context, NULL, &nic->attr);
    if (!error) error = ibv_query_port(nic->context, PORT, &nic->port);
    if (!error) {
        nic->pd = ibv_alloc_pd(nic->context);
        if (!nic->pd) error = why();
    }
    if (error) {
        ibv_close_device(nic->context);
        free(nic);
        return error;
    }
    choose_gid(nic);
    *out = nic;
    return 0;
}

int rv_close(struct rv_nic *nic) {
    int error = ibv_dealloc_pd(nic->pd);
    if (ibv_close_device(nic->context) && !error) error = why();
    free(nic);
    return error;
}

void rv_info(const struct rv_nic *nic, struct rv_info *out) {
    memset(out, 0, sizeof *out);
    strncpy(out->name, ibv_get_device_name(nic->context->device), sizeof out->name - 1);
    strncpy(out->fw, nic->attr.orig_attr.fw_ver, sizeof out->fw - 1);
    out->port_state = (uint8_t)nic->port.state;
    out->link_layer = nic->port.link_layer;
    out->lid = nic->port.lid;
    out->vendor_id = nic->attr.orig_attr.vendor_id;
    out->vendor_part_id = nic->attr.orig_attr.vendor_part_id;
    out->odp_general = nic->attr.odp_caps.general_caps;
    out->odp_rc = nic->attr.odp_caps.per_transport_caps.rc_odp_caps;
    out->max_qp = nic->attr.orig_attr.max_qp;
    out->max_qp_rd_atom = nic->attr.orig_attr.max_qp_rd_atom;
}

int rv_reg(struct rv_nic *nic, uint64_t addr, uint64_t len, uint32_t access, struct ibv_mr **out) {
    errno = 0;
    // In a variable: the macro of this name takes another path when it sees constant flags.
    unsigned int flags = access;
    *out = ibv_reg_mr(nic->pd, (void *)(uintptr_t)addr, (size_t)len, flags);
    return *out ? 0 : why();
}

int rv_dereg(struct ibv_mr *mr) { return ibv_dereg_mr(mr); }

int rv_rereg(struct ibv_mr *mr, uint32_t access) {
    // Errors are an enum ibv_rereg_mr_err_code, and errno says why.
    return ibv_rereg_mr(mr, IBV_REREG_MR_CHANGE_ACCESS, NULL, NULL, 0, (int)access) ? errno : 0;
}

void rv_keys(const struct ibv_mr *mr, uint32_t *lkey, uint32_t *rkey) {
    *lkey = mr->lkey;
    *rkey = mr->rkey;
}

static int to_init(struct rv_qp *qp) {
    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_INIT,
        .port_num = PORT,
        .qp_access_flags = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC,
    };
    return ibv_modify_qp(qp->qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
}

int rv_qp_open(struct rv_nic *nic, uint32_t depth, struct rv_qp **out) {
    struct rv_qp *qp = calloc(1, sizeof *qp);
    if (!qp) return ENOMEM;
    qp->nic = nic;
    errno = 0;
    // Completions of both queues.
    qp->cq = ibv_create_cq(nic->context, (int)(2 * depth), NULL, NULL, 0);
    if (!qp->cq) {
        int error = why();
        free(qp);
        return error;
    }
    struct ibv_qp_init_attr init = {
        .send_cq = qp->cq,
        .recv_cq = qp->cq,
        .cap = {.max_send_wr = depth, .max_recv_wr = depth, .max_send_sge = 1, .max_recv_sge = 1},
        .qp_type = IBV_QPT_RC,
        .sq_sig_all = 1,
    };
    qp->qp = ibv_create_qp(nic->pd, &init);
    int error = qp->qp ? to_init(qp) : why();
    if (error) {
        rv_qp_close(qp);
        return error;
    }
    *out = qp;
    return 0;
}

uint32_t rv_qpn(const struct rv_qp *qp) { return qp->qp->qp_num; }

static int to_rtr(struct rv_qp *qp, uint32_t qpn) {
    const struct rv_nic *nic = qp->nic;
    bool global = nic->port.link_layer == IBV_LINK_LAYER_ETHERNET || nic->port.lid == 0;
    int reads = nic->attr.orig_attr.max_qp_rd_atom;
    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_RTR,
        .path_mtu = nic->port.active_mtu,
        .dest_qp_num = qpn,
        .max_dest_rd_atomic = (uint8_t)(reads > 16 ? 16 : reads),
        .min_rnr_timer = 12,
        .ah_attr = {.dlid = nic->port.lid, .port_num = PORT, .is_global = global},
    };
    if (global) {
        attr.ah_attr.grh.dgid = nic->gid;
        attr.ah_attr.grh.sgid_index = nic->gid_index;
        attr.ah_attr.grh.hop_limit = 1;
    }
    return ibv_modify_qp(qp->qp, &attr,
                         IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                             IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER);
}

int rv_connect(struct rv_qp *qp, uint32_t qpn) {
    int error = to_rtr(qp, qpn);
    if (error) return error;
    int reads = qp->nic->attr.orig_attr.max_qp_rd_atom;
    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_RTS,
        // 4.096 us * 2^19: a guest of an emulated host is slow, and a scenario holds what the other end waits for.
        .timeout = 19,
        .retry_cnt = 7,
        .rnr_retry = 7,
        .max_rd_atomic = (uint8_t)(reads > 16 ? 16 : reads),
    };
    return ibv_modify_qp(qp->qp, &attr,
                         IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
                             IBV_QP_MAX_QP_RD_ATOMIC);
}

int rv_qp_close(struct rv_qp *qp) {
    int error = qp->qp ? ibv_destroy_qp(qp->qp) : 0;
    int cq_error = ibv_destroy_cq(qp->cq);
    free(qp);
    return error ? error : cq_error;
}

int rv_qp_state(struct rv_qp *qp, uint32_t *state) {
    struct ibv_qp_attr attr;
    struct ibv_qp_init_attr init;
    int error = ibv_query_qp(qp->qp, &attr, IBV_QP_STATE, &init);
    if (!error) *state = attr.qp_state;
    return error;
}

static int post_recv(struct rv_qp *qp, const struct rv_wr *wr) {
    struct ibv_sge sge = {.addr = wr->addr, .length = wr->len, .lkey = wr->lkey};
    struct ibv_recv_wr recv = {.wr_id = wr->id, .sg_list = &sge, .num_sge = 1}, *bad;
    return ibv_post_recv(qp->qp, &recv, &bad);
}

int rv_post(struct rv_qp *qp, const struct rv_wr *wr) {
    static const enum ibv_wr_opcode opcodes[] = {
        [RV_WRITE] = IBV_WR_RDMA_WRITE, [RV_WRITE_IMM] = IBV_WR_RDMA_WRITE_WITH_IMM,
        [RV_READ] = IBV_WR_RDMA_READ,   [RV_SEND] = IBV_WR_SEND,
        [RV_FETCH_ADD] = IBV_WR_ATOMIC_FETCH_AND_ADD, [RV_CMP_SWAP] = IBV_WR_ATOMIC_CMP_AND_SWP,
    };
    if (wr->op == RV_RECV) return post_recv(qp, wr);
    if (wr->op > RV_RECV) return EINVAL;
    struct ibv_sge sge = {.addr = wr->addr, .length = wr->len, .lkey = wr->lkey};
    struct ibv_send_wr send = {
        .wr_id = wr->id,
        .sg_list = &sge,
        .num_sge = 1,
        .opcode = opcodes[wr->op],
        .send_flags = IBV_SEND_SIGNALED,
        .imm_data = wr->imm,
    }, *bad;
    if (wr->op == RV_FETCH_ADD || wr->op == RV_CMP_SWAP) {
        send.wr.atomic.remote_addr = wr->remote_addr;
        send.wr.atomic.rkey = wr->rkey;
        send.wr.atomic.compare_add = wr->compare_add;
        send.wr.atomic.swap = wr->swap;
    } else {
        send.wr.rdma.remote_addr = wr->remote_addr;
        send.wr.rdma.rkey = wr->rkey;
    }
    return ibv_post_send(qp->qp, &send, &bad);
}

int rv_poll(struct rv_qp *qp, struct rv_wc *out, uint32_t max, uint32_t *n) {
    // Empty first: what a completion does not define (vendor_err of one that succeeded, byte_len of a WRITE: ibv_poll_cq(3)) libmlx5 leaves as it
    // finds it.
    struct ibv_wc wc[MAX_POLL] = {0};
    int got = ibv_poll_cq(qp->cq, max > MAX_POLL ? MAX_POLL : (int)max, wc);
    *n = 0;
    if (got < 0) return EIO;
    for (int i = 0; i < got; i++) {
        out[i] = (struct rv_wc){
            .id = wc[i].wr_id,
            .status = ibv_wc_status_str(wc[i].status),
            .code = wc[i].status,
            .vendor_err = wc[i].vendor_err,
            .opcode = wc[i].opcode,
            .len = wc[i].byte_len,
            .imm = wc[i].imm_data,
            .qpn = wc[i].qp_num,
        };
    }
    *n = (uint32_t)got;
    return 0;
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Work requests, parsed.

use proptest::prelude::*;

use super::*;

fn control(code: u32, ds: u32) -> Vec<u8> {
    let mut wqe = vec![0; ds as usize * DS_UNIT];
    ctrl::OPCODE.set(&mut wqe, code);
    ctrl::QPN.set(&mut wqe, 0x40);
    ctrl::DS.set(&mut wqe, ds);
    wqe
}

#[test]
fn a_write_with_inline_and_memory_segments() {
    let mut wqe = control(opcode::RDMA_WRITE_IMM, 6);
    ctrl::CE.set(&mut wqe, 2);
    ctrl::IMM.set(&mut wqe, 0x1122_3344);
    raddr::RADDR.set(&mut wqe[16..], 0xabc0_0000_0000);
    raddr::RKEY.set(&mut wqe[16..], 0x1234);
    // 20 bytes inline take two units, then a zero byte count, which means 2^31.
    inline::INLINE.set(&mut wqe[32..], 1);
    inline::LENGTH.set(&mut wqe[32..], 20);
    data::LKEY.set(&mut wqe[64..], 7);
    data::ADDR.set(&mut wqe[64..], 0x5000);
    data::BYTE_COUNT.set(&mut wqe[80..], 9);
    let mut parsed = SendWqe::default();
    parsed.parse(&wqe, service_type::RC, 0x40).unwrap();
    assert_eq!((parsed.kind, parsed.extra), (Kind::Write, Extra::Imm(0x1122_3344)));
    assert_eq!((parsed.signaled, parsed.own_event, parsed.remote), (true, false, (0xabc0_0000_0000, 0x1234)));
    assert_eq!(parsed.segs.len(), 3);
    assert_eq!(parsed.segs[0], Seg::Inline { at: 36, len: 20 });
    assert_eq!(parsed.segs[1], Seg::Key { lkey: 7, va: 0x5000, len: 1 << 31 });
    assert_eq!((parsed.total, parsed.blocks()), (20 + (1 << 31) + 9, 2));
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut parsed = SendWqe::default();
    let rc = service_type::RC;
    assert_eq!(length(&control(opcode::NOP, 1)[..16]), Ok(16));
    assert_eq!(length(&[0; 16]), Err(WqeError::Length(0)));
    assert_eq!(parsed.parse(&control(opcode::SEND, 1), rc, 0x41), Err(WqeError::Qpn(0x40)));
    assert_eq!(parsed.parse(&control(opcode::LSO, 1), rc, 0x40), Err(WqeError::Opcode(opcode::LSO)));
    assert_eq!(parsed.parse(&control(opcode::RDMA_WRITE, 1), rc, 0x40), Err(WqeError::Length(1)));
    let write = control(opcode::RDMA_WRITE, 2);
    assert_eq!(parsed.parse(&write, service_type::UD, 0x40), Err(WqeError::Opcode(opcode::RDMA_WRITE)));
    // Inline data that would pass the end.
    let mut send = control(opcode::SEND, 2);
    inline::INLINE.set(&mut send[16..], 1);
    inline::LENGTH.set(&mut send[16..], 13);
    assert_eq!(parsed.parse(&send, rc, 0x40), Err(WqeError::Length(2)));
    inline::LENGTH.set(&mut send[16..], 12);
    assert_eq!(parsed.parse(&send, rc, 0x40), Ok(()));
    assert_eq!(parsed.total, 12);
}

#[test]
fn a_receive_list_ends_at_the_terminator() {
    let mut wqe = vec![0; 64];
    data::BYTE_COUNT.set(&mut wqe[16..], 10);
    data::LKEY.set(&mut wqe[32..], TERMINATOR_KEY);
    data::BYTE_COUNT.set(&mut wqe[48..], 99);
    let mut segs = Vec::new();
    assert_eq!((parse_receive(&wqe, Head::Next, &mut segs), segs.len()), (10, 1));
    assert_eq!((parse_receive(&wqe, Head::None, &mut segs), segs.len()), ((1 << 31) + 10, 2));
    assert_eq!((parse_receive(&wqe, Head::Signature, &mut segs), segs.len()), (10, 1));
    assert_eq!(parse_receive(&wqe[..8], Head::Next, &mut segs), 0);
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 16..MAX_SEND_WQE), service in 0u32..16) {
        let mut bytes = bytes;
        let whole = bytes.len() / DS_UNIT;
        bytes.truncate(whole * DS_UNIT);
        ctrl::DS.set(&mut bytes, whole as u32);
        ctrl::QPN.set(&mut bytes, 3);
        // Half of the cases with an opcode that has segments.
        if bytes.get(1).is_some_and(|byte| byte & 1 == 1) {
            ctrl::OPCODE.set(&mut bytes, opcode::RDMA_WRITE);
        }
        let mut parsed = SendWqe::default();
        if parsed.parse(&bytes, service, 3).is_ok() {
            let sum: u64 = parsed.segs.iter().map(Seg::bytes).sum();
            prop_assert_eq!(sum, parsed.total);
            for seg in &parsed.segs {
                if let Seg::Inline { at, len } = *seg {
                    prop_assert!(at + len as usize <= bytes.len());
                }
            }
        }
        let mut segs = Vec::new();
        let head = if service & 1 == 1 { Head::Next } else { Head::Signature };
        parse_receive(&bytes, head, &mut segs);
    }
}

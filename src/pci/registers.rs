// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Register maps as tables. Partial reads, wide reads and wide writes are handled here once, for every map of registers.
//!
//! All registers are little-endian. A 64-bit register that a driver may write in halves is declared as two 32-bit fields.

use thiserror::Error;

/// One register of a map.
#[derive(Debug, Clone, Copy)]
pub struct Field<R> {
    /// Byte offset in the map.
    pub offset: u64,
    /// Width in bytes: 1, 2, 4 or 8.
    pub width: u64,
    /// The map's own name for it.
    pub register: R,
}

/// The access covers part of a register only; nothing was written.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("a write of {len} bytes at offset {offset:#x} covers only part of a register")]
pub struct WrongSize {
    /// Byte offset in the map.
    pub offset: u64,
    /// Bytes written.
    pub len: usize,
}

/// Reads `data.len()` bytes at `offset`: any size, any alignment. `get` is asked once for each register touched;
/// bytes that no register covers read as all ones.
pub fn read<R: Copy>(map: &[Field<R>], offset: u64, data: &mut [u8], mut get: impl FnMut(R) -> u64) {
    data.fill(0xff);
    for field in touched(map, offset, data.len()) {
        let value = get(field.register).to_le_bytes();
        for (byte, at) in value.iter().take(field.width as usize).zip(field.offset..) {
            // Bytes of the register before the access, or after its end, fall outside `data`.
            let slot = at.checked_sub(offset).and_then(|index| data.get_mut(usize::try_from(index).ok()?));
            if let Some(slot) = slot {
                *slot = *byte;
            }
        }
    }
}

/// Writes `data` at `offset`: `set` is called for each register, in order of offset. Bytes that no register covers are dropped.
///
/// # Errors
/// [`WrongSize`] if some register is covered in part; then `set` was not called at all.
pub fn write<R: Copy>(
    map: &[Field<R>],
    offset: u64,
    data: &[u8],
    mut set: impl FnMut(R, u64),
) -> Result<(), WrongSize> {
    let whole = |field: &Field<R>| bytes_of(field, offset, data).is_some();
    if !touched(map, offset, data.len()).all(whole) {
        return Err(WrongSize { offset, len: data.len() });
    }
    for field in touched(map, offset, data.len()) {
        let mut value = [0; 8];
        if let Some(bytes) = bytes_of(field, offset, data) {
            value[..bytes.len()].copy_from_slice(bytes);
            set(field.register, u64::from_le_bytes(value));
        }
    }
    Ok(())
}

fn touched<R>(map: &[Field<R>], offset: u64, len: usize) -> impl Iterator<Item = &Field<R>> {
    let end = offset.saturating_add(len as u64);
    map.iter().filter(move |field| field.offset < end && offset < field.offset + field.width)
}

/// The bytes of `data` that make up `field`, if all of them are there.
fn bytes_of<'d, R>(field: &Field<R>, offset: u64, data: &'d [u8]) -> Option<&'d [u8]> {
    let start = usize::try_from(field.offset.checked_sub(offset)?).ok()?;
    data.get(start..start.checked_add(field.width as usize)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: &[Field<char>] = &[
        Field { offset: 0, width: 4, register: 'a' },
        Field { offset: 4, width: 2, register: 'b' },
        Field { offset: 6, width: 1, register: 'c' },
        Field { offset: 8, width: 8, register: 'd' },
    ];

    fn value(register: char) -> u64 {
        match register {
            'a' => 0x4433_2211,
            'b' => 0x6655,
            'c' => 0x77,
            _ => 0x8877_6655_4433_2211,
        }
    }

    #[test]
    fn reads_of_any_shape() {
        let mut all = [0; 18];
        read(MAP, 0, &mut all, value);
        let expected = [
            0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0xff, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0xff, 0xff,
        ];
        assert_eq!(all, expected);
        for start in 0..18 {
            for end in start..=18 {
                let mut part = vec![0; end - start];
                read(MAP, start as u64, &mut part, value);
                assert_eq!(part, expected[start..end], "{start}..{end}");
            }
        }
        let mut far = [0; 8];
        read(MAP, u64::MAX, &mut far, value);
        assert_eq!(far, [0xff; 8]);
    }

    #[test]
    fn writes_cover_whole_registers_or_nothing() {
        let mut seen = Vec::new();
        let bytes: Vec<u8> = (1..=8).collect();
        write(MAP, 0, &bytes, |register, value| seen.push((register, value))).unwrap();
        assert_eq!(seen, [('a', 0x0403_0201), ('b', 0x0605), ('c', 7)]);
        for (offset, len) in [(0, 2), (1, 4), (3, 2), (4, 1), (5, 1), (8, 4), (2, 8), (u64::MAX, 8)] {
            let partial = write(MAP, offset, &bytes[..len], |_, _| panic!("no register is whole"));
            assert_eq!(partial.is_err(), offset != u64::MAX, "{len} bytes at {offset}");
        }
    }
}

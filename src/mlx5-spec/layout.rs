// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How this room declares structures and value sets: as tables close to the contract's notation, checked while compiling.
//!
//! `layout!` makes one module of a structure: a constant of each field plus `SIZE` in bytes, `FIELDS`, their names, and `SPANS`, where each
//! lies. Kinds of fields:
//!
//! | written | gives | meaning |
//! |---|---|---|
//! | `[0x00 31:28]` | `Field` | bits 31..=28 of the big-endian dword at byte 0x00 |
//! | `[0x00 17]` | `Field` | one bit |
//! | `[0x14]` | `Field` | the whole dword |
//! | `[u64 0x38]` | `Field64` | a 64-bit value |
//! | `[byte 0x3f]` | `usize` | offset of a byte that is read or written alone |
//! | `[bytes 0x10..0x20]` | `Range<usize>` | opaque bytes, for `slice.get(range)` |
//! | `[part 0x18 ads]` | `usize` | offset of the structure `ads` (of the same file), for `Field::plus` |
//! | `[part 0x10..0x1010]` | `usize` | the same for one that several structures share |
//! | `[tail]` | `usize` | offset of what follows the structure: its `SIZE` |
//! | `[also byte 0x3f]`, `[also 0x38 23:0]` | as without `also` | a second view of bits that another field names |
//!
//! A field out of bounds, or one that shares a bit with another (`also` apart), does not compile.
//!
//! `values!` makes one module of a field's values, with `name()` for logs; equal values do not compile.

/// Declares structures; see the module's table.
macro_rules! layout {
    ($($(#[$meta:meta])* $name:ident: $size:literal { $($(#[$fmeta:meta])* $field:ident: $spec:tt,)* })*) => { $(
        $(#[$meta])*
        pub mod $name {
            #[doc = "Size in bytes."]
            pub const SIZE: usize = $size;
            #[doc = "Names of the fields, in order."]
            pub const FIELDS: &[&str] = &[$( stringify!($field) ),*];
            $( layout!(@item [$(#[$fmeta])*] $field $spec); )*
            #[doc = "Where the fields lie, in their order: bits `from..to`, counted from the first byte's highest. Empty for a second view."]
            pub const SPANS: &[(usize, usize)] = &[$( layout!(@span $spec) ),*];
            const _: () = $crate::layout::check_spans(SIZE, SPANS);
        }
    )* };

    (@item [$($doc:tt)*] $f:ident [also $($spec:tt)+]) => { layout!(@item [$($doc)*] $f [$($spec)+]); };
    (@item [$($doc:tt)*] $f:ident [u64 $at:literal]) => {
        $($doc)*
        #[doc = concat!("\n\n`", stringify!($at), "`, 64 bits.")]
        pub const $f: $crate::bits::Field64 = $crate::bits::Field64($at);
    };
    (@item [$($doc:tt)*] $f:ident [byte $at:literal]) => {
        $($doc)*
        #[doc = concat!("\n\nByte `", stringify!($at), "`.")]
        pub const $f: usize = $at;
    };
    (@item [$($doc:tt)*] $f:ident [bytes $from:literal..$to:literal]) => {
        $($doc)*
        #[doc = concat!("\n\nBytes `", stringify!($from), "..", stringify!($to), "`.")]
        pub const $f: std::ops::Range<usize> = $from..$to;
    };
    (@item [$($doc:tt)*] $f:ident [part $at:literal $of:ident]) => {
        $($doc)*
        #[doc = concat!("\n\nStarts at byte `", stringify!($at), "`; see `", stringify!($of), "`.")]
        pub const $f: usize = $at;
    };
    (@item [$($doc:tt)*] $f:ident [part $from:literal..$to:literal]) => {
        $($doc)*
        #[doc = concat!("\n\nStarts at byte `", stringify!($from), "`, ends before `", stringify!($to), "`.")]
        pub const $f: usize = $from;
    };
    (@item [$($doc:tt)*] $f:ident [tail]) => {
        $($doc)*
        #[doc = "\n\nFollows the structure."]
        pub const $f: usize = SIZE;
    };
    (@item [$($doc:tt)*] $f:ident [$at:literal $high:literal : $low:literal]) => {
        $($doc)*
        #[doc = concat!("\n\n`", stringify!($at), "[", stringify!($high), ":", stringify!($low), "]`.")]
        pub const $f: $crate::bits::Field = $crate::bits::Field::new($at, $high, $low);
    };
    (@item [$($doc:tt)*] $f:ident [$at:literal $bit:literal]) => {
        $($doc)*
        #[doc = concat!("\n\n`", stringify!($at), "[", stringify!($bit), "]`.")]
        pub const $f: $crate::bits::Field = $crate::bits::Field::bit($at, $bit);
    };
    (@item [$($doc:tt)*] $f:ident [$at:literal]) => {
        $($doc)*
        #[doc = concat!("\n\n`", stringify!($at), "`, 32 bits.")]
        pub const $f: $crate::bits::Field = $crate::bits::Field::dword($at);
    };

    (@span [also $($spec:tt)+]) => { (0, 0) };
    (@span [u64 $at:literal]) => { ($at * 8, $at * 8 + 64) };
    (@span [byte $at:literal]) => { ($at * 8, $at * 8 + 8) };
    (@span [part $at:literal $of:ident]) => { ($at * 8, ($at + super::$of::SIZE) * 8) };
    (@span [bytes $from:literal..$to:literal]) => { ($from * 8, $to * 8) };
    (@span [part $from:literal..$to:literal]) => { ($from * 8, $to * 8) };
    (@span [tail]) => { (SIZE * 8, SIZE * 8) };
    (@span [$at:literal $high:literal : $low:literal]) => { ($at * 8 + 31 - $high, $at * 8 + 32 - $low) };
    (@span [$at:literal $bit:literal]) => { ($at * 8 + 31 - $bit, $at * 8 + 32 - $bit) };
    (@span [$at:literal]) => { ($at * 8, $at * 8 + 32) };
}

/// Declares the values of fields: one module a set, each with `name()`.
macro_rules! values {
    ($($(#[$meta:meta])* $name:ident: $ty:ty { $($(#[$vmeta:meta])* $value:ident = $number:expr,)* })*) => { $(
        $(#[$meta])*
        pub mod $name {
            $(
                $(#[$vmeta])*
                #[doc = concat!("\n\n`", stringify!($number), "`.")]
                pub const $value: $ty = $number;
            )*
            /// The value's name, for logs.
            pub fn name(value: $ty) -> Option<&'static str> {
                const NAMES: &[($ty, &str)] = &[$( ($number, stringify!($value)) ),*];
                NAMES.iter().find(|(number, _)| *number == value).map(|(_, name)| *name)
            }
            const _: () = $crate::layout::check_distinct(&[$( $number ),*]);
        }
    )* };
}

/// Fails (the build, where it is evaluated) unless all spans of bits `(from, to)` lie within `size` bytes and share none.
pub(super) const fn check_spans(size: usize, spans: &[(usize, usize)]) {
    let mut i = 0;
    while i < spans.len() {
        let (from, to) = spans[i];
        assert!(from <= to && to <= size * 8, "a field lies outside of its structure");
        let mut j = 0;
        while j < i {
            let (other_from, other_to) = spans[j];
            assert!(to <= other_from || other_to <= from || from == to, "two fields share bits");
            j += 1;
        }
        i += 1;
    }
}

/// Fails (the build, where it is evaluated) if two values are equal.
pub(super) const fn check_distinct(values: &[u64]) {
    let mut i = 0;
    while i < values.len() {
        let mut j = 0;
        while j < i {
            assert!(values[i] != values[j], "two names have one value");
            j += 1;
        }
        i += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::{check_distinct, check_spans};
    use crate::bits::{Field, Field64};

    layout! {
        /// One field of each kind.
        sample: 0x20 {
            BITS: [0x00 31:28],
            BIT: [0x00 17],
            DWORD: [0x04],
            QWORD: [u64 0x08],
            BYTE: [byte 0x03],
            SAME_BYTE: [also 0x00 7:0],
            BYTES: [bytes 0x10..0x14],
            PART: [part 0x14..0x18],
            INNER: [part 0x18 inner],
            TAIL: [tail],
        }

        /// A structure inside.
        inner: 8 {
            VALUE: [0x04],
        }
    }

    values! {
        /// Two values.
        color: u32 {
            RED = 1,
            BLUE = 0x10,
        }
    }

    #[test]
    fn each_kind_gives_its_constant() {
        assert_eq!((sample::BITS, sample::BIT), (Field::new(0, 31, 28), Field::bit(0, 17)));
        assert_eq!((sample::DWORD, sample::QWORD), (Field::dword(4), Field64(8)));
        assert_eq!((sample::BYTE, sample::SAME_BYTE), (3, Field::new(0, 7, 0)));
        assert_eq!((sample::BYTES, sample::PART, sample::TAIL, sample::SIZE), (0x10..0x14, 0x14, 0x20, 0x20));
        assert_eq!(inner::VALUE.plus(sample::INNER), Field::dword(0x1c));
        assert_eq!((sample::FIELDS.len(), sample::FIELDS[8], inner::FIELDS), (10, "INNER", &["VALUE"][..]));
        assert_eq!((sample::SPANS[1], sample::SPANS[5], inner::SPANS), ((14, 15), (0, 0), &[(32, 64)][..]));
        assert_eq!((color::RED, color::BLUE, color::name(0x10), color::name(2)), (1, 0x10, Some("BLUE"), None));
    }

    #[test]
    fn neighbours_are_accepted() {
        check_spans(4, &[(0, 4), (4, 32), (0, 0)]);
        check_distinct(&[1, 2, 3]);
    }

    #[test]
    #[should_panic(expected = "share bits")]
    fn fields_that_share_a_bit_are_refused() {
        check_spans(4, &[(0, 4), (3, 5)]);
    }

    #[test]
    #[should_panic(expected = "share bits")]
    fn a_field_around_another_is_refused() {
        check_spans(8, &[(8, 16), (0, 64)]);
    }

    #[test]
    #[should_panic(expected = "outside")]
    fn a_field_that_ends_beyond_its_structure_is_refused() {
        check_spans(4, &[(24, 33)]);
    }

    #[test]
    #[should_panic(expected = "one value")]
    fn equal_values_are_refused() {
        check_distinct(&[1, 2, 1]);
    }
}

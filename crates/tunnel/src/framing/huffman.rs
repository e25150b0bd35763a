// SPDX-License-Identifier: Apache-2.0
//! The Huffman code of HPACK (RFC 7541 Appendix B). It is canonical: the lengths of its codes say all of it.

/// Length of the code of each octet, in bits, and of the end of a string.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];
const EOS: u16 = 256;
const LONGEST: usize = 30;

/// Symbols by the length of their codes, then by value: the order of their codes.
const SYMBOLS: [u16; 257] = {
    let mut symbols = [0; 257];
    let (mut at, mut length) = (0, 1);
    while length <= LONGEST {
        let mut symbol = 0;
        while symbol < 257 {
            if LENGTHS[symbol] as usize == length {
                symbols[at] = symbol as u16;
                at += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    symbols
};

/// For each length: its first code, how many codes it has, and where its symbols begin.
const CODES: [(u32, u32, usize); LONGEST + 1] = {
    let mut codes = [(0, 0, 0); LONGEST + 1];
    let (mut code, mut at, mut length) = (0u32, 0usize, 1);
    while length <= LONGEST {
        code <<= 1;
        let mut count = 0u32;
        let mut symbol = 0;
        while symbol < 257 {
            if LENGTHS[symbol] as usize == length {
                count += 1;
            }
            symbol += 1;
        }
        codes[length] = (code, count, at);
        code += count;
        at += count as usize;
        length += 1;
    }
    codes
};

/// The symbol and length of the code that an octet begins with, where that is no longer than the octet.
const SHORT: [(u8, u8); 256] = {
    let mut short = [(0, 0); 256];
    let mut octet = 0;
    while octet < 256 {
        let mut length = 5;
        while length <= 8 {
            let (first, count, at) = CODES[length];
            let code = (octet >> (8 - length)) as u32;
            if short[octet].1 == 0 && code >= first && code < first + count {
                short[octet] = (SYMBOLS[at + (code - first) as usize] as u8, length as u8);
            }
            length += 1;
        }
        octet += 1;
    }
    short
};

/// Appends the decoded text; `None` if it is not one, or longer than `limit`.
pub(super) fn decode(text: &[u8], limit: usize, into: &mut Vec<u8>) -> Option<()> {
    let end = into.len().checked_add(limit)?;
    let (mut bits, mut have, mut rest) = (0u64, 0usize, text.iter());
    loop {
        while have <= 48
            && let Some(octet) = rest.next()
        {
            bits = bits << 8 | u64::from(*octet);
            have += 8;
        }
        let next = |length: usize| {
            if have >= length { Some((bits >> (have - length)) & ((1 << length) - 1)) } else { None }
        };
        let octet = next(8).map(|octet| SHORT[octet as usize & 0xff]);
        let (symbol, length) = match octet {
            Some((symbol, length @ 1..)) => (u16::from(symbol), usize::from(length)),
            _ => {
                let found = (5..=LONGEST).find_map(|length| {
                    let (first, count, at) = CODES[length];
                    let code = u32::try_from(next(length)?).ok()?;
                    let index = code.checked_sub(first).filter(|index| *index < count)?;
                    Some((SYMBOLS[at + index as usize], length))
                });
                match found {
                    Some(found) => found,
                    // Padding: fewer than eight bits, all of them set.
                    None if have < 8 && bits & ((1 << have) - 1) == (1 << have) - 1 => return Some(()),
                    None => return None,
                }
            }
        };
        if symbol == EOS || into.len() >= end {
            return None;
        }
        into.push(symbol as u8);
        have -= length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(hex: &[u8]) -> Option<Vec<u8>> {
        let mut text = Vec::new();
        decode(hex, 1000, &mut text).map(|()| text)
    }

    #[test]
    fn examples_of_the_rfc_and_what_is_no_text() {
        // RFC 7541 C.4 and C.6.
        for (hex, text) in [
            (
                &[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff][..],
                "www.example.com",
            ),
            (&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf], "no-cache"),
            (&[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xa9, 0x7d, 0x7f], "custom-key"),
            (&[0x64, 0x02], "302"),
            (&[], ""),
        ] {
            assert_eq!(decoded(hex).as_deref(), Some(text.as_bytes()), "{text}");
        }
        for wrong in
            [&[0xff][..], &[0xff, 0xff, 0xff, 0xff], &[0xff, 0xff, 0xff, 0xfc], &[0x00], &[0x1f, 0xff]]
        {
            assert_eq!(decoded(wrong), None, "{wrong:x?}");
        }
        let mut text = Vec::new();
        assert!(decode(&[0x64, 0x02], 2, &mut text).is_none());
    }
}

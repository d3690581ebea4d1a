//! Numbers in tar headers: octal text, or GNU's base-256 when the first bit is set.

/// Reads a header field; a blank one is 0, as in other readers. `None`: it is not a number.
pub(super) fn numeric(field: &[u8]) -> Option<i128> {
    let (first, rest) = field.split_first()?;
    if *first & 0x80 != 0 {
        return base_256(*first, rest);
    }
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(blank).unwrap_or(digits.len());
    if !digits[end..].iter().all(blank) {
        return None;
    }
    digits[..end].iter().try_fold(0_i128, |number, digit| {
        matches!(digit, b'0'..=b'7').then(|| number * 8 + i128::from(digit - b'0'))
    })
}

/// Big-endian two's complement below the marker bit; fields have at most 12 bytes.
fn base_256(first: u8, rest: &[u8]) -> Option<i128> {
    if rest.len() > 11 {
        return None;
    }
    let high = i128::from(first & 0x7f);
    let signed = if high & 0x40 != 0 { high - 0x80 } else { high };
    Some(rest.iter().fold(signed, |number, byte| number << 8 | i128::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_encodings_are_read() {
        assert_eq!(numeric(b"0000644\0"), Some(0o644));
        assert_eq!(numeric(b"   644 \0"), Some(0o644));
        assert_eq!(numeric(b"77777777"), Some(0o77_777_777));
        assert_eq!(numeric(&[0; 8]), Some(0));
        assert_eq!(numeric(b"        "), Some(0));
        assert_eq!(numeric(&[0x80, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 1]), Some((2 << 24) + 1));
        assert_eq!(numeric(&[0xff; 12]), Some(-1));
        assert_eq!(numeric(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]), Some(-2));
    }

    #[test]
    fn other_text_is_no_number() {
        for field in [&b"0000648\0"[..], b"12 34   ", b"-1      ", b"+1      ", b"0x10    ", b""] {
            assert_eq!(numeric(field), None, "{field:?}");
        }
    }
}

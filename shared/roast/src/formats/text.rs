//! Decodes the bytes of a recording to text.

use std::borrow::Cow;

/// The number of bytes in which the zeros of UTF-16 are searched.
const SEARCHED_BYTES: usize = 64;

/// Decodes UTF-8 or UTF-16, with or without a byte order mark. An invalid byte becomes the
/// replacement character, so that one damaged text does not cost the roast.
#[must_use]
pub fn decode(bytes: &[u8]) -> Cow<'_, str> {
    match bytes {
        [0xff, 0xfe, rest @ ..] => Cow::Owned(utf16(rest, u16::from_le_bytes)),
        [0xfe, 0xff, rest @ ..] => Cow::Owned(utf16(rest, u16::from_be_bytes)),
        [0xef, 0xbb, 0xbf, rest @ ..] => String::from_utf8_lossy(rest),
        _ if is_zero_at(bytes, 1) => Cow::Owned(utf16(bytes, u16::from_le_bytes)),
        _ if is_zero_at(bytes, 0) => Cow::Owned(utf16(bytes, u16::from_be_bytes)),
        _ => String::from_utf8_lossy(bytes),
    }
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> String {
    let pairs = bytes.chunks_exact(2).filter_map(|pair| <[u8; 2]>::try_from(pair).ok());
    let units: Vec<u16> = pairs.map(unit).collect();
    String::from_utf16_lossy(&units)
}

/// Returns true if every second of the first bytes, from `offset` on, is zero, as in UTF-16 of
/// Latin letters.
fn is_zero_at(bytes: &[u8], offset: usize) -> bool {
    let searched = &bytes[..bytes.len().min(SEARCHED_BYTES)];
    let mut halves = searched.iter().skip(offset).step_by(2).peekable();
    halves.peek().is_some() && halves.all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utf_8_and_utf_16_give_the_same_text() {
        let text = "Time,BT (°C)\n0,190\n";
        let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        let marked = |mark: &[u8], bytes: &[u8]| [mark, bytes].concat();
        for bytes in [
            text.as_bytes().to_vec(),
            marked(b"\xef\xbb\xbf", text.as_bytes()),
            marked(b"\xff\xfe", &little),
            marked(b"\xfe\xff", &big),
            little,
            big,
        ] {
            assert_eq!(decode(&bytes), text, "{bytes:?}");
        }
    }

    #[test]
    fn invalid_bytes_are_replaced() {
        assert_eq!(decode(b"BT (\xb0C)"), "BT (\u{fffd}C)");
        assert_eq!(decode(b"\xff\xfea\x00\x00"), "a", "half a unit at the end");
        assert_eq!((decode(b""), decode(b"a")), ("".into(), "a".into()));
    }
}

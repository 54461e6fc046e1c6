//! The byte-level alphabet of GPT-2: every byte is written as one printable character.
//!
//! Printable bytes of Latin-1 stand for themselves; the other 68 are, in order, U+0100 and up.

fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// The byte that a character of the alphabet stands for.
pub(super) fn byte_of(character: char) -> Option<u8> {
    let code = u32::from(character);
    if let Ok(byte) = u8::try_from(code) {
        return is_printable(byte).then_some(byte);
    }
    // The 68 others are 0..=32, 127..=160 and 173.
    match u8::try_from(code - 0x100).ok()? {
        n @ 0..=32 => Some(n),
        n @ 33..=66 => Some(n - 33 + 127),
        67 => Some(173),
        _ => None,
    }
}

/// The bytes a token's string stands for. A string with any character outside the alphabet stands
/// for its own UTF-8, as in the `ByteLevel` decoder of `tokenizers`.
pub(super) fn bytes_of(token: &str) -> Vec<u8> {
    token
        .chars()
        .map(byte_of)
        .collect::<Option<Vec<u8>>>()
        .unwrap_or_else(|| token.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn alphabet_is_that_of_the_crate() {
        let mut bytes = BTreeSet::new();
        for character in tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet() {
            bytes.insert(byte_of(character).expect("a character of the alphabet"));
        }
        assert_eq!(bytes.len(), 256);
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
        assert_eq!(byte_of('Ń'), Some(0xAD));
        assert_eq!(byte_of('é'), Some(0xE9));
        assert_eq!(byte_of(' '), None);
        assert_eq!(byte_of('ń'), None);
    }

    #[test]
    fn strings_outside_the_alphabet_are_their_utf8() {
        assert_eq!(bytes_of("Ġa"), b" a");
        assert_eq!(bytes_of("a b"), b"a b");
        assert_eq!(bytes_of("<｜x｜>"), "<｜x｜>".as_bytes());
    }
}

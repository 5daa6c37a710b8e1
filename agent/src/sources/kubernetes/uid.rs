//! UIDs as the 16 bytes that they almost always are: a record of a pod is half as large by it.

use std::fmt;

/// Where a UUID has hyphens.
const HYPHENS: [usize; 4] = [8, 13, 18, 23];

/// A UID; what is read is what is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Uid {
    /// A UUID in the form that the API server writes.
    Uuid([u8; 16]),
    /// Any other text.
    Text(Box<str>),
}

impl From<&str> for Uid {
    fn from(text: &str) -> Self {
        uuid(text.as_bytes()).map_or_else(|| Self::Text(text.into()), Self::Uuid)
    }
}

fn uuid(text: &[u8]) -> Option<[u8; 16]> {
    let mut bytes = [0; 16];
    let mut digits = 0;
    for (i, &letter) in text.iter().enumerate() {
        let value = match letter {
            b'-' if HYPHENS.contains(&i) => continue,
            b'0'..=b'9' => letter - b'0',
            b'a'..=b'f' => letter - b'a' + 10,
            _ => return None,
        };
        let byte = bytes.get_mut(digits / 2)?;
        *byte = *byte << 4 | value;
        digits += 1;
    }
    (text.len() == 36 && digits == 32).then_some(bytes)
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Uuid(bytes) => bytes.iter().enumerate().try_for_each(|(i, byte)| {
                let hyphen = if [4, 6, 8, 10].contains(&i) { "-" } else { "" };
                write!(f, "{hyphen}{byte:02x}")
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_what_is_written() {
        for text in [
            "6f8a1c04-1b2d-4e3f-8a9b-0c1d2e3f4a5b",
            "6F8A1C04-1b2d-4e3f-8a9b-0c1d2e3f4a5b",
            "6f8a1c041b2d4e3f8a9b0c1d2e3f4a5b",
            "6f8a1c04-1b2d-4e3f-8a9b-0c1d2e3f4a5b0",
            "6f8a1c04-1b2d-4e3f-8a9b-0c1d2e3f4a5",
            "6f8a1c0401b2d-4e3f-8a9b-0c1d2e3f4a5b",
            "shop/db",
            "",
        ] {
            assert_eq!(Uid::from(text).to_string(), text);
        }
        assert!(matches!(Uid::from("6f8a1c04-1b2d-4e3f-8a9b-0c1d2e3f4a5b"), Uid::Uuid(_)));
        assert_ne!(
            Uid::from("6f8a1c04-1b2d-4e3f-8a9b-0c1d2e3f4a5b"),
            Uid::from("6f8a1c04-1b2d-4e3f-8a9b-0c1d2e3f4a5c")
        );
    }
}

//! The one-time key of a migration, and the migration's name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Crockford's base 32: no I, L, O, U, so that nothing can be misread (<https://www.crockford.com/base32.html>).
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// 26 letters hold 130 bits; the last two are zero.
const LETTERS: usize = 26;

/// 128 secret bits that both ends of a migration know. Printed as `XXXXX-XXXXX-XXXXX-XXXXX-XXXXXX`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key([u8; 16]);

/// Why a text is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is not a key: a key has 26 letters and digits in five groups, as `whimbrel receive` prints it")]
pub struct NotAKey;

impl Key {
    /// A new key from the system's random numbers.
    pub fn random() -> Result<Self> {
        random().map(Self)
    }

    /// A key with the given bits.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub(crate) fn bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// Never shows the key, so that it does not end up in a log.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(secret)")
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = u128::from_be_bytes(self.0);
        for letter in 0..LETTERS {
            if letter % 5 == 0 && (5..25).contains(&letter) {
                f.write_str("-")?;
            }
            // The first letter holds the top 5 bits; the last one the lowest 3, shifted up.
            let shift = 123 - 5 * letter as i32;
            let five = if shift >= 0 {
                value >> shift
            } else {
                value << -shift
            };
            write!(f, "{}", ALPHABET[(five & 31) as usize] as char)?;
        }
        Ok(())
    }
}

impl FromStr for Key {
    type Err = NotAKey;

    /// Takes small letters, any grouping by `-` or blanks, and the usual misreadings (O for 0, I and L for 1).
    fn from_str(text: &str) -> std::result::Result<Self, NotAKey> {
        let mut value: u128 = 0;
        let mut letters = 0;
        for c in text.chars().filter(|c| !matches!(c, '-' | ' ' | '\n')) {
            let five = u128::from(letter_value(c).ok_or(NotAKey)?);
            letters += 1;
            match letters {
                1..LETTERS => value = value << 5 | five,
                LETTERS if five & 3 == 0 => value = value << 3 | five >> 2,
                _ => return Err(NotAKey),
            }
        }
        if letters == LETTERS {
            Ok(Self(value.to_be_bytes()))
        } else {
            Err(NotAKey)
        }
    }
}

fn letter_value(c: char) -> Option<u8> {
    let c = match c.to_ascii_uppercase() {
        'O' => '0',
        'I' | 'L' => '1',
        c => c,
    };
    ALPHABET.iter().position(|&a| a as char == c).map(|p| p as u8)
}

/// The name of one migration: 128 random bits, printed as 32 hexadecimal digits. Not secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MigrationId(pub [u8; 16]);

/// Why a text is no migration id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is not the id of a migration: an id has 32 hexadecimal digits, as `whimbrel ps` prints it")]
pub struct NotAnId;

impl MigrationId {
    /// A new id from the system's random numbers.
    pub fn random() -> Result<Self> {
        random().map(Self)
    }
}

impl fmt::Display for MigrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for MigrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MigrationId {
    type Err = NotAnId;

    fn from_str(text: &str) -> std::result::Result<Self, NotAnId> {
        let hex = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        match u128::from_str_radix(text, 16) {
            Ok(value) if hex => Ok(Self(value.to_be_bytes())),
            _ => Err(NotAnId),
        }
    }
}

/// Random bytes from getrandom(2).
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| Error::Random(e.to_string()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_printed_key_reads_back(bits: [u8; 16]) {
            let key = Key(bits);
            let text = key.to_string();
            prop_assert_eq!(text.len(), 30);
            prop_assert_eq!(text.parse::<Key>().unwrap(), key.clone());
            prop_assert_eq!(text.replace('-', " ").to_lowercase().parse::<Key>().unwrap(), key);
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text: String) {
            let _ = text.parse::<Key>();
            let _ = text.parse::<MigrationId>();
        }

        #[test]
        fn a_printed_id_reads_back(bits: [u8; 16]) {
            let id = MigrationId(bits);
            prop_assert_eq!(id.to_string().parse::<MigrationId>().unwrap(), id);
        }
    }

    #[test]
    fn the_printed_form_is_fixed() {
        let key = Key([0xff; 16]);
        assert_eq!(key.to_string(), "ZZZZZ-ZZZZZ-ZZZZZ-ZZZZZ-ZZZZZW");
        assert_eq!(
            "00000-00000-00000-00000-000004".parse::<Key>().unwrap(),
            Key(1u128.to_be_bytes())
        );
        assert_eq!("OOOOO-00000-00000-00000-00000l".parse::<Key>(), Err(NotAKey));
    }

    #[test]
    fn a_key_is_not_shown_by_debug() {
        let key = Key([7; 16]);
        assert!(!format!("{key:?}").contains('7'));
    }

    #[test]
    fn a_sign_is_no_part_of_an_id() {
        assert_eq!(
            "+0000000000000000000000000000000".parse::<MigrationId>(),
            Err(NotAnId)
        );
    }
}

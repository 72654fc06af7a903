//! The first words on every connection: which version, which migration, and proof of the key.
//!
//! ```text
//! initiator (source)                                    responder (destination)
//! HELLO versions, id, kind, nonce a  ----------------->
//!                                    <----------------- HELLO versions, id, kind, nonce b
//! PROOF hmac(key, "initiator", all of both) ----------->
//!                                    <----------------- VERDICT 1 + hmac(key, "responder", all of both)
//!                                                       or VERDICT 2 + zeros: the key is wrong
//! ```
//!
//! A HELLO has 64 bytes in every version, all numbers little-endian:
//!
//! ```text
//! 0  "WHIMBREL"   8  lowest version u16   10  highest version u16   12  stream kind u8   13  0
//! 14 stream index u16   16 migration id [16]   32 nonce [32]
//! ```
//!
//! The proofs are HMAC-SHA-256 (RFC 2104) over the role and both hellos as they were sent, so neither the versions, the id
//! nor the kind can be changed on the way, and a proof that is sent back proves nothing: the roles differ.
//! The initiator proves first, so that a stranger learns nothing from the responder but its versions.
//! What follows the handshake is neither encrypted nor authenticated: the network between the hosts must be trusted
//! or tunnelled. The key keeps strangers out; it does not protect against somebody who can change packets on the way.

use std::fmt;
use std::io::{Read, Write};

use hmac::{Hmac, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::error::{Error, Result};
use crate::key::{random, Key, MigrationId};

/// The version of everything that is said after the handshake.
pub const VERSION: u16 = 1;
/// What this release speaks: the newest version and, from the second on, the one before.
pub const SUPPORTED: Versions = Versions {
    lowest: 1,
    highest: VERSION,
};

const MAGIC: &[u8; 8] = b"WHIMBREL";
const HELLO_BYTES: usize = 64;
const PROOF_BYTES: usize = 32;
const ACCEPTED: u8 = 1;
const KEY_REFUSED: u8 = 2;

/// A range of protocol versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The oldest.
    pub lowest: u16,
    /// The newest.
    pub highest: u16,
}

impl Versions {
    /// The newest version that both speak.
    pub fn common(self, other: Versions) -> Option<u16> {
        let newest = self.highest.min(other.highest);
        (newest >= self.lowest.max(other.lowest)).then_some(newest)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lowest == self.highest {
            write!(f, "{}", self.highest)
        } else {
            write!(f, "{} to {}", self.lowest, self.highest)
        }
    }
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// Messages in order, in both directions.
    Control,
    /// Layouts and pages, from the source to the destination.
    Bulk(u16),
    /// Post-copy, both ways: page faults and acknowledgements, and the answers to them. Its number joins it to a push stream.
    Fault(u16),
    /// Post-copy: pages that nobody waits for.
    Push(u16),
    /// A source that lost its destination asks whether the workload was started there.
    Query,
}

impl StreamKind {
    fn encode(self) -> (u8, u16) {
        match self {
            StreamKind::Control => (1, 0),
            StreamKind::Bulk(index) => (2, index),
            StreamKind::Fault(session) => (3, session),
            StreamKind::Query => (4, 0),
            StreamKind::Push(session) => (5, session),
        }
    }

    fn decode(kind: u8, index: u16) -> Result<Self> {
        match (kind, index) {
            (1, 0) => Ok(StreamKind::Control),
            (2, index) => Ok(StreamKind::Bulk(index)),
            (3, session) => Ok(StreamKind::Fault(session)),
            (4, 0) => Ok(StreamKind::Query),
            (5, session) => Ok(StreamKind::Push(session)),
            _ => Err(Error::Unknown {
                what: "stream kind",
                value: u64::from(kind),
            }),
        }
    }
}

/// What the responder knows after the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// The migration that the connection belongs to.
    pub id: MigrationId,
    /// What the connection is for.
    pub kind: StreamKind,
    /// The protocol version that both speak from here on.
    pub version: u16,
}

struct Hello {
    versions: Versions,
    kind: u8,
    index: u16,
    id: MigrationId,
    nonce: [u8; 32],
}

impl Hello {
    fn new(versions: Versions, id: MigrationId, kind: StreamKind) -> Result<Self> {
        let (kind, index) = kind.encode();
        Ok(Self {
            versions,
            kind,
            index,
            id,
            nonce: random()?,
        })
    }

    fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..10].copy_from_slice(&self.versions.lowest.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.versions.highest.to_le_bytes());
        bytes[12] = self.kind;
        bytes[14..16].copy_from_slice(&self.index.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.id.0);
        bytes[32..].copy_from_slice(&self.nonce);
        bytes
    }

    fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Self> {
        if &bytes[..8] != MAGIC {
            return Err(Error::NotWhimbrel);
        }
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let mut hello = Self {
            versions: Versions {
                lowest: u16_at(8),
                highest: u16_at(10),
            },
            kind: bytes[12],
            index: u16_at(14),
            id: MigrationId([0; 16]),
            nonce: [0; 32],
        };
        hello.id.0.copy_from_slice(&bytes[16..32]);
        hello.nonce.copy_from_slice(&bytes[32..]);
        Ok(hello)
    }
}

/// The source's half: says what it wants and proves the key. Returns the version that both speak.
/// The caller has set a time limit on the stream.
pub fn initiate<S: Read + Write>(
    stream: &mut S,
    key: &Key,
    id: MigrationId,
    kind: StreamKind,
) -> Result<u16> {
    initiate_with(stream, SUPPORTED, key, id, kind)
}

/// [`initiate`] of a release that speaks `versions`.
pub fn initiate_with<S: Read + Write>(
    stream: &mut S,
    versions: Versions,
    key: &Key,
    id: MigrationId,
    kind: StreamKind,
) -> Result<u16> {
    let ours = Hello::new(versions, id, kind)?;
    let our_bytes = ours.encode();
    send(stream, &our_bytes)?;
    let their_bytes = receive::<HELLO_BYTES>(stream)?;
    let theirs = Hello::decode(&their_bytes)?;
    let version = common(versions, theirs.versions)?;
    if theirs.nonce == ours.nonce {
        return Err(Error::Reflected);
    }
    send(stream, &proof(key, Role::Initiator, &our_bytes, &their_bytes))?;
    let verdict = receive::<{ 1 + PROOF_BYTES }>(stream).map_err(no_verdict)?;
    match verdict[0] {
        ACCEPTED
            if equal(
                &verdict[1..],
                &proof(key, Role::Responder, &our_bytes, &their_bytes),
            ) =>
        {
            Ok(version)
        }
        ACCEPTED => Err(Error::WrongKey),
        KEY_REFUSED => Err(Error::KeyRefused),
        other => Err(Error::Unknown {
            what: "verdict",
            value: u64::from(other),
        }),
    }
}

/// The destination's half. `key_of` gives the key that the peer must prove for this migration and kind; `None` is told
/// apart from a wrong key by nobody outside. The caller has set a time limit on the stream.
pub fn respond<S: Read + Write>(
    stream: &mut S,
    key_of: impl FnOnce(MigrationId, StreamKind) -> Option<Key>,
) -> Result<Greeting> {
    respond_with(stream, SUPPORTED, key_of)
}

/// [`respond`] of a release that speaks `versions`.
pub fn respond_with<S: Read + Write>(
    stream: &mut S,
    versions: Versions,
    key_of: impl FnOnce(MigrationId, StreamKind) -> Option<Key>,
) -> Result<Greeting> {
    let their_bytes = receive::<HELLO_BYTES>(stream)?;
    let theirs = Hello::decode(&their_bytes)?;
    let ours = Hello {
        versions,
        nonce: random()?,
        ..theirs
    };
    let our_bytes = ours.encode();
    // Also when the versions do not fit, so that the peer can say so in its own words.
    send(stream, &our_bytes)?;
    let version = common(versions, theirs.versions)?;
    let kind = StreamKind::decode(theirs.kind, theirs.index)?;
    let key = key_of(theirs.id, kind).map_or_else(Key::random, Ok)?;
    let proved = receive::<PROOF_BYTES>(stream)?;
    if !equal(&proved, &proof(&key, Role::Initiator, &their_bytes, &our_bytes)) {
        send(stream, &verdict(KEY_REFUSED, [0; PROOF_BYTES]))?;
        return Err(Error::WrongKey);
    }
    send(
        stream,
        &verdict(ACCEPTED, proof(&key, Role::Responder, &their_bytes, &our_bytes)),
    )?;
    Ok(Greeting {
        id: theirs.id,
        kind,
        version,
    })
}

fn common(ours: Versions, theirs: Versions) -> Result<u16> {
    ours.common(theirs).ok_or(Error::Version { ours, theirs })
}

fn verdict(word: u8, proof: [u8; PROOF_BYTES]) -> [u8; 1 + PROOF_BYTES] {
    let mut bytes = [0; 1 + PROOF_BYTES];
    bytes[0] = word;
    bytes[1..].copy_from_slice(&proof);
    bytes
}

#[derive(Clone, Copy)]
enum Role {
    Initiator,
    Responder,
}

fn proof(key: &Key, role: Role, initiator: &[u8], responder: &[u8]) -> [u8; PROOF_BYTES] {
    let role: &[u8] = match role {
        Role::Initiator => b"whimbrel initiator",
        Role::Responder => b"whimbrel responder",
    };
    // RFC 2104 fills a short key up with zeros to the hash's block of 64 bytes.
    let mut block = [0; 64];
    block[..16].copy_from_slice(key.bytes());
    let mut mac = <Hmac<Sha256> as Mac>::new(&block.into());
    mac.update(role);
    mac.update(initiator);
    mac.update(responder);
    mac.finalize().into_bytes().into()
}

/// In constant time, so that nobody can guess a proof byte by byte.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

fn send<S: Write>(stream: &mut S, bytes: &[u8]) -> Result<()> {
    stream.write_all(bytes)?;
    Ok(stream.flush()?)
}

fn receive<const N: usize>(stream: &mut impl Read) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A peer that hangs up instead of giving a verdict is one of another make; say more than "broke off".
fn no_verdict(e: Error) -> Error {
    match e {
        Error::BrokenOff => Error::Closed,
        e => e,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::thread;

    const KEY: Key = Key::from_bytes([5; 16]);
    const ID: MigrationId = MigrationId([9; 16]);

    fn shake(
        source: (Versions, Key),
        destination: (Versions, Option<Key>),
    ) -> (Result<u16>, Result<Greeting>) {
        let (mut a, mut b) = UnixStream::pair().unwrap();
        let responder = thread::spawn(move || respond_with(&mut b, destination.0, |_, _| destination.1));
        let initiator = initiate_with(&mut a, source.0, &source.1, ID, StreamKind::Bulk(3));
        drop(a);
        (initiator, responder.join().unwrap())
    }

    #[test]
    fn both_ends_agree() {
        let (a, b) = shake((SUPPORTED, KEY), (SUPPORTED, Some(KEY)));
        assert_eq!(a.unwrap(), VERSION);
        assert_eq!(
            b.unwrap(),
            Greeting {
                id: ID,
                kind: StreamKind::Bulk(3),
                version: VERSION
            }
        );
    }

    #[test]
    fn a_wrong_key_is_told_at_both_ends() {
        for theirs in [Some(Key::from_bytes([6; 16])), None] {
            let (a, b) = shake((SUPPORTED, KEY), (SUPPORTED, theirs));
            assert!(matches!(a, Err(Error::KeyRefused)), "{a:?}");
            assert!(matches!(b, Err(Error::WrongKey)), "{b:?}");
        }
    }

    #[test]
    fn the_version_before_is_understood() {
        let newer = Versions {
            lowest: 1,
            highest: 2,
        };
        let (a, b) = shake((newer, KEY), (SUPPORTED, Some(KEY)));
        assert_eq!((a.unwrap(), b.unwrap().version), (1, 1));
    }

    #[test]
    fn other_versions_are_named_at_both_ends() {
        let newer = Versions {
            lowest: 2,
            highest: 3,
        };
        let (a, b) = shake((newer, KEY), (SUPPORTED, Some(KEY)));
        let (a, b) = (a.unwrap_err().to_string(), b.unwrap_err().to_string());
        assert!(a.contains("protocol 2 to 3, the other end 1:"), "{a}");
        assert!(b.contains("protocol 1, the other end 2 to 3:"), "{b}");
    }

    #[test]
    fn an_end_that_only_repeats_our_words_is_refused() {
        let (mut a, mut mirror) = UnixStream::pair().unwrap();
        let echo = thread::spawn(move || {
            let mut bytes = [0; 256];
            while let Ok(n @ 1..) = mirror.read(&mut bytes) {
                if mirror.write_all(&bytes[..n]).is_err() {
                    break;
                }
            }
        });
        let error = initiate(&mut a, &KEY, ID, StreamKind::Control).unwrap_err();
        assert!(matches!(error, Error::Reflected), "{error}");
        drop(a);
        echo.join().unwrap();
    }

    /// An impostor without the key takes the initiator's proof and sends it back as its own.
    #[test]
    fn a_reflected_proof_does_not_work() {
        let (mut a, mut b) = UnixStream::pair().unwrap();
        let impostor = thread::spawn(move || {
            let mut hello = receive::<HELLO_BYTES>(&mut b).unwrap();
            hello[40] ^= 1;
            send(&mut b, &hello).unwrap();
            let proof = receive::<PROOF_BYTES>(&mut b).unwrap();
            send(&mut b, &verdict(ACCEPTED, proof)).unwrap();
        });
        let error = initiate(&mut a, &KEY, ID, StreamKind::Control).unwrap_err();
        assert!(matches!(error, Error::WrongKey), "{error}");
        impostor.join().unwrap();
    }

    #[test]
    fn every_changed_byte_of_the_conversation_is_noticed() {
        for at in 0..HELLO_BYTES {
            let (mut a, mut relay_a) = UnixStream::pair().unwrap();
            let (mut b, mut relay_b) = UnixStream::pair().unwrap();
            let relay = thread::spawn(move || -> Result<()> {
                let mut hello = receive::<HELLO_BYTES>(&mut relay_a)?;
                hello[at] ^= 0x40;
                send(&mut relay_b, &hello)?;
                send(&mut relay_a, &receive::<HELLO_BYTES>(&mut relay_b)?)?;
                send(&mut relay_b, &receive::<PROOF_BYTES>(&mut relay_a)?)?;
                send(&mut relay_a, &receive::<{ 1 + PROOF_BYTES }>(&mut relay_b)?)
            });
            let responder = thread::spawn(move || respond(&mut b, |_, _| Some(KEY)));
            let initiator = initiate(&mut a, &KEY, ID, StreamKind::Control);
            drop(a);
            assert!(initiator.is_err(), "byte {at} at the initiator");
            assert!(responder.join().unwrap().is_err(), "byte {at} at the responder");
            let _ = relay.join().unwrap();
        }
    }

    #[test]
    fn a_web_server_is_not_whimbrel() {
        let (mut a, mut b) = UnixStream::pair().unwrap();
        b.write_all(&[b'H'; 64]).unwrap();
        let error = initiate(&mut a, &KEY, ID, StreamKind::Control).unwrap_err();
        assert!(matches!(error, Error::NotWhimbrel), "{error}");
    }
}

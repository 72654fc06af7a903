//! The entry points for bytes from outside, as the fuzzers and the property tests use them. Each takes what a hostile
//! peer sends and must return: no panic, no endless loop, no memory beyond what arrived.

use std::io::{self, Read, Write};

use crate::bulk::{Bulk, BulkReader};
use crate::control::MessageDecoder;
use crate::handshake::{initiate, respond, StreamKind};
use crate::key::{Key, MigrationId};
use crate::wish::{Wish, WishReader};

/// Bytes on a control stream, arriving in pieces of `piece` bytes. Returns how many messages were understood.
pub fn control(bytes: &[u8], piece: usize) -> usize {
    let mut decoder = MessageDecoder::default();
    let mut messages = 0;
    for piece in bytes.chunks(piece.max(1)) {
        decoder.push(piece);
        loop {
            match decoder.next_message() {
                Ok(Some(_)) => messages += 1,
                Ok(None) => break,
                Err(_) => return messages,
            }
        }
    }
    messages
}

/// Bytes on a bulk stream. Returns how many frames or pieces of frames were understood.
pub fn bulk(bytes: &[u8]) -> usize {
    let mut reader = BulkReader::new(bytes);
    let mut frames = 0;
    while let Ok(Some(bulk)) = reader.next_bulk() {
        if let Bulk::Pages(run, data) = &bulk {
            assert_eq!(run.count as usize * crate::PAGE_BYTES, data.len());
        }
        if let Bulk::Pages(run, _) | Bulk::Zero(run) | Bulk::Drop(run) = bulk {
            assert!(run.count > 0 && run.first.checked_add(run.count).is_some());
        }
        frames += 1;
    }
    frames
}

/// Bytes of a destination on the stream for faults. Returns how many wishes were understood.
pub fn wishes(bytes: &[u8]) -> usize {
    let mut reader = WishReader::new(bytes);
    let mut wishes = 0;
    while let Ok(Some(wish)) = reader.next_wish() {
        if let Wish::Gone(run) | Wish::Missing(run) = wish {
            assert!(run.count > 0 && run.first.checked_add(run.count).is_some());
        }
        wishes += 1;
    }
    wishes
}

/// Bytes of a peer that greets us, as responder and as initiator. True if one of them believed it: a stranger has no key.
pub fn greeting(bytes: &[u8]) -> bool {
    let key = Key::from_bytes([0xa5; 16]);
    let believed = respond(&mut Scripted(bytes), |_, _| Some(key.clone())).is_ok();
    let id = MigrationId([1; 16]);
    believed || initiate(&mut Scripted(bytes), &key, id, StreamKind::Control).is_ok()
}

/// A peer that says its text, whatever it is told.
struct Scripted<'a>(&'a [u8]);

impl Read for Scripted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Scripted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

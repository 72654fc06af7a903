//! Messages on a control or query stream.

use std::io::Write;

use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Error, Result};
use crate::frame::{too_long, Header, Kind, HEADER_BYTES, MORE, PART_BYTES_MAX};

/// Bytes in a spec at most: a description of processes, mappings and files.
pub const SPEC_BYTES_MAX: u64 = 64 << 20;
/// Characters in a sentence for the user; what is longer is cut.
pub const SENTENCE_CHARS_MAX: usize = 2000;

/// Text from the other end, to be shown to the user: bounded, and without characters that drive a terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sentence(String);

impl Sentence {
    /// Takes over `text`, cut and cleaned.
    pub fn new(text: &str) -> Self {
        let clean = |c: char| if c.is_control() { ' ' } else { c };
        Self(text.chars().take(SENTENCE_CHARS_MAX).map(clean).collect())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Sentence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Sentence {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Ok(Self::new(<&str>::deserialize(deserializer)?))
    }
}

/// What the destination spent on the workload's state, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationTimes {
    /// Building the workload from its state, while the last pages are looked for and sent.
    pub build_us: u64,
    /// Completing it after the last page.
    pub load_us: u64,
    /// From `Prepared` until the offer came.
    pub offer_us: u64,
    /// Writing the journal of the commit.
    pub commit_us: u64,
    /// Letting the workload run.
    pub start_us: u64,
}

/// What the two ends say to each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Nothing to say: the sender lives.
    Ping,
    /// Destination: the shell is built, pages may come.
    SpecAccepted,
    /// Destination: it cannot live here, or not now. Nothing was touched.
    Refused(Sentence),
    /// Destination: everything before the barrier with this number on this bulk stream was applied.
    BarrierAck {
        /// The bulk stream.
        stream: u16,
        /// The barrier's number.
        number: u64,
    },
    /// Destination: complete and held; one word is enough.
    Prepared,
    /// Source: mine is held and stays so until you answer: run yours.
    Offer,
    /// Destination: mine was started, and that is journalled.
    Started(DestinationTimes),
    /// Source: my copy is gone; forget the migration.
    Released,
    /// Source: the workload runs on here; forget the migration.
    Stays,
    /// Destination: not started, and never will be; that is journalled.
    Fenced,
    /// Source: what became of the migration that this connection named?
    Query,
    /// Destination: it is not decided yet, ask again later.
    Undecided,
    /// Either: it failed here, for this reason; before the offer only.
    Abort(Sentence),
    /// Destination: I have forgotten the migration, as you said I may.
    Forgotten,
    /// Source: that was all I wanted to know; forget the migration, nothing will come.
    OnlyAsked,
    // The one below travels in frames of its own kind. It must stay last: serde does not count skipped variants
    // when it reads, but does when it writes. New messages go before it, never between others.
    /// Source: this wants to come to you.
    #[serde(skip)]
    Spec(Vec<u8>),
}

impl Message {
    /// The message's name, for errors and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Message::Ping => "Ping",
            Message::Spec(_) => "Spec",
            Message::SpecAccepted => "SpecAccepted",
            Message::Refused(_) => "Refused",
            Message::BarrierAck { .. } => "BarrierAck",
            Message::Prepared => "Prepared",
            Message::Offer => "Offer",
            Message::Started(_) => "Started",
            Message::Released => "Released",
            Message::Stays => "Stays",
            Message::Fenced => "Fenced",
            Message::Query => "Query",
            Message::Undecided => "Undecided",
            Message::Abort(_) => "Abort",
            Message::Forgotten => "Forgotten",
            Message::OnlyAsked => "OnlyAsked",
        }
    }
}

/// Writes one message. Specs go in parts of at most [`PART_BYTES_MAX`].
pub fn write_message(stream: &mut impl Write, message: &Message) -> Result<()> {
    match message {
        Message::Spec(bytes) => write_parts(stream, Kind::Spec, bytes, SPEC_BYTES_MAX),
        message => {
            let payload = postcard::to_stdvec(message).map_err(|_| Error::Damaged {
                what: "a message of our own",
            })?;
            write_frame(stream, Kind::Message, 0, &payload)
        }
    }?;
    Ok(stream.flush()?)
}

fn write_parts(stream: &mut impl Write, kind: Kind, bytes: &[u8], bytes_max: u64) -> Result<()> {
    if bytes.len() as u64 > bytes_max {
        return Err(too_long(kind, bytes.len() as u64, bytes_max));
    }
    let mut rest = bytes;
    loop {
        let (part, after) = rest.split_at(rest.len().min(PART_BYTES_MAX as usize));
        let more = if after.is_empty() { 0 } else { MORE };
        write_frame(stream, kind, more, part)?;
        rest = after;
        if rest.is_empty() {
            return Ok(());
        }
    }
}

fn write_frame(stream: &mut impl Write, kind: Kind, flags: u8, payload: &[u8]) -> Result<()> {
    let header = Header {
        length: payload.len() as u32,
        kind,
        flags,
    };
    // One write, so that a small message is one packet.
    let mut frame = Vec::with_capacity(HEADER_BYTES + payload.len());
    frame.extend_from_slice(&header.encode());
    frame.extend_from_slice(payload);
    Ok(stream.write_all(&frame)?)
}

/// Makes messages of bytes as they arrive, in pieces of any size. Holds at most one frame and one growing
/// spec; never reserves room for what was only announced.
#[derive(Debug, Default)]
pub struct MessageDecoder {
    bytes: Vec<u8>,
    taken: usize,
    spec: Vec<u8>,
    /// Another part of the spec must follow.
    more: bool,
}

impl MessageDecoder {
    /// Adds what arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// True if the stream may end here without loss.
    pub fn is_empty(&self) -> bool {
        self.taken == self.bytes.len() && !self.more
    }

    /// The next message that is complete. After an error the stream is of no use any more.
    pub fn next_message(&mut self) -> Result<Option<Message>> {
        while let Some((header, payload)) = next_frame(&self.bytes[self.taken..])? {
            let message = match header.kind {
                Kind::Message => Some(decode_message(payload)?),
                Kind::Spec => self.add_part(header, self.taken + HEADER_BYTES)?,
                other => {
                    return Err(Error::Unknown {
                        what: "control frame",
                        value: other as u64,
                    })
                }
            };
            self.taken += HEADER_BYTES + header.length as usize;
            if message.is_some() {
                return Ok(message);
            }
        }
        Ok(None)
    }

    /// Adds the part of a spec that lies at `from`; the spec if it was the last one.
    fn add_part(&mut self, header: Header, from: usize) -> Result<Option<Message>> {
        let part = self.bytes.get(from..from + header.length as usize);
        let part = part.unwrap_or_default();
        let bytes = (self.spec.len() + part.len()) as u64;
        if bytes > SPEC_BYTES_MAX {
            return Err(too_long(header.kind, bytes, SPEC_BYTES_MAX));
        }
        self.spec.extend_from_slice(part);
        self.more = header.flags & MORE != 0;
        let whole = (!self.more).then(|| std::mem::take(&mut self.spec));
        Ok(whole.map(Message::Spec))
    }
}

fn next_frame(bytes: &[u8]) -> Result<Option<(Header, &[u8])>> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let header = Header::decode(*header)?;
    Ok(rest
        .get(..header.length as usize)
        .map(|payload| (header, payload)))
}

fn decode_message(payload: &[u8]) -> Result<Message> {
    match postcard::take_from_bytes(payload) {
        Ok((message, [])) => Ok(message),
        _ => Err(Error::Damaged { what: "a message" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::MESSAGE_BYTES_MAX;
    use proptest::prelude::*;

    fn messages() -> impl Strategy<Value = Message> {
        prop_oneof![
            Just(Message::Ping),
            Just(Message::Offer),
            any::<String>().prop_map(|s| Message::Abort(Sentence::new(&s))),
            (any::<u16>(), any::<u64>()).prop_map(|(stream, number)| Message::BarrierAck { stream, number }),
            proptest::collection::vec(any::<u8>(), 0..100).prop_map(Message::Spec),
            (0usize..3_000_000).prop_map(|n| Message::Spec(vec![n as u8; n])),
            any::<u64>().prop_map(|n| Message::Started(DestinationTimes {
                load_us: n,
                ..Default::default()
            })),
        ]
    }

    fn decode(bytes: &[u8], piece: usize) -> Result<Vec<Message>> {
        let mut decoder = MessageDecoder::default();
        let mut messages = Vec::new();
        for piece in bytes.chunks(piece) {
            decoder.push(piece);
            while let Some(message) = decoder.next_message()? {
                messages.push(message);
            }
        }
        assert!(decoder.is_empty());
        Ok(messages)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn messages_arrive_in_pieces_of_any_size(
            sent in proptest::collection::vec(messages(), 0..6),
            piece in prop_oneof![1usize..40, 1000usize..2_000_000],
        ) {
            let mut bytes = Vec::new();
            for message in &sent {
                write_message(&mut bytes, message).unwrap();
            }
            let piece = if bytes.len() > 100_000 { piece.max(1000) } else { piece };
            prop_assert_eq!(decode(&bytes, piece).unwrap(), sent);
        }
    }

    #[test]
    fn a_sentence_cannot_drive_the_terminal() {
        let hostile = Message::Abort(Sentence(format!("\x1b[2J{}", "x".repeat(9000))));
        let mut bytes = Vec::new();
        write_message(&mut bytes, &hostile).unwrap();
        let received = decode(&bytes, 100).unwrap();
        let [Message::Abort(sentence)] = &received[..] else {
            panic!("{received:?}")
        };
        assert!(sentence.as_str().starts_with(" [2Jxxx"));
        assert_eq!(sentence.as_str().len(), SENTENCE_CHARS_MAX);
    }

    /// The numbers of the messages are the protocol: version 1 keeps them for ever.
    #[test]
    fn every_message_keeps_its_number() {
        let empty = || Sentence::new("");
        let messages = [
            Message::Ping,
            Message::SpecAccepted,
            Message::Refused(empty()),
            Message::BarrierAck { stream: 0, number: 0 },
            Message::Prepared,
            Message::Offer,
            Message::Started(DestinationTimes::default()),
            Message::Released,
            Message::Stays,
            Message::Fenced,
            Message::Query,
            Message::Undecided,
            Message::Abort(empty()),
            Message::Forgotten,
        ];
        for (number, message) in messages.into_iter().enumerate() {
            let mut bytes = Vec::new();
            write_message(&mut bytes, &message).unwrap();
            assert_eq!(usize::from(bytes[HEADER_BYTES]), number, "{}", message.name());
            assert_eq!(decode(&bytes, 100).unwrap(), [message]);
        }
    }

    #[test]
    fn an_announced_length_reserves_nothing() {
        let mut decoder = MessageDecoder::default();
        decoder.push(
            &Header {
                length: PART_BYTES_MAX,
                kind: Kind::Spec,
                flags: MORE,
            }
            .encode(),
        );
        assert!(matches!(decoder.next_message(), Ok(None)));
        assert!(decoder.bytes.capacity() + decoder.spec.capacity() < 4096);
    }

    #[test]
    fn lengths_over_the_limit_are_refused_by_the_header_alone() {
        let mut decoder = MessageDecoder::default();
        decoder.push(
            &Header {
                length: MESSAGE_BYTES_MAX + 1,
                kind: Kind::Message,
                flags: 0,
            }
            .encode(),
        );
        assert!(matches!(decoder.next_message(), Err(Error::TooLong { .. })));
    }

    #[test]
    fn a_spec_without_end_is_cut_off() {
        let mut part = Header {
            length: PART_BYTES_MAX,
            kind: Kind::Spec,
            flags: MORE,
        }
        .encode()
        .to_vec();
        part.resize(HEADER_BYTES + PART_BYTES_MAX as usize, 0);
        let mut decoder = MessageDecoder::default();
        let refused = (0..100).find_map(|_| {
            decoder.push(&part);
            decoder.next_message().err()
        });
        assert!(
            matches!(
                refused,
                Some(Error::TooLong {
                    bytes_max: SPEC_BYTES_MAX,
                    ..
                })
            ),
            "{refused:?}"
        );
    }

    #[test]
    fn bytes_after_a_message_are_damage() {
        let mut payload = postcard::to_stdvec(&Message::Ping).unwrap();
        payload.push(0);
        let mut bytes = Vec::new();
        write_frame(&mut bytes, Kind::Message, 0, &payload).unwrap();
        assert!(matches!(decode(&bytes, 100), Err(Error::Damaged { .. })));
    }
}

//! Requests under a bound that protobuf lacks: two bytes that say "one more, empty" become a value of up to three hundred,
//! so a message of 64 MiB could take gigabytes. What a message holds is counted before it is decoded.

use bytes::Buf;
use prost::encoding::{self, WireType};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

use super::convert::status;
use crate::http::error::ApiError;
use crate::http::oip::tensor::{DIMENSIONS_MAX, invalid};

/// Most fields of one message, those of its inputs and their contents included.
const FIELDS_MAX: usize = 1_024;
/// Most bytes of numbers in all `contents`: as bytes on the wire, which take up to eight times as much in memory.
const NUMBERS_BYTES_MAX: usize = 8 << 20;
/// Most bytes of a shape: [`DIMENSIONS_MAX`] sizes, each of at most ten bytes.
const SHAPE_BYTES_MAX: usize = 10 * DIMENSIONS_MAX;

/// Protobuf in and out.
#[derive(Debug, Clone)]
pub(super) struct BoundedCodec<T, U>(ProstCodec<T, U>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        Self(ProstCodec::default())
    }
}

impl<T, U> Codec for BoundedCodec<T, U>
where
    T: prost::Message + Send + 'static,
    U: prost::Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = SizedEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        SizedEncoder(self.0.encoder())
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(self.0.decoder())
    }
}

/// Makes room, then encodes: a buffer that grows with its message may end twice as large.
#[derive(Debug)]
pub(super) struct SizedEncoder<T>(ProstEncoder<T>);

impl<T: prost::Message> Encoder for SizedEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, message: T, target: &mut EncodeBuf<'_>) -> Result<(), Status> {
        target.reserve(message.encoded_len());
        self.0.encode(message, target)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

/// Counts, then decodes.
#[derive(Debug)]
pub(super) struct BoundedDecoder<U>(ProstDecoder<U>);

impl<U: prost::Message + Default> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // A message's buffer is contiguous.
        check(source.chunk()).map_err(|error| status(&error))?;
        self.0.decode(source)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

/// Refuses a message that would take far more memory than its bytes. What is no message is left to the decoder, which
/// ends at the same byte.
pub(super) fn check(message: &[u8]) -> Result<(), ApiError> {
    match (Count { fields: 0, numbers_bytes: 0 }).add(message, Level::Request) {
        Ok(()) | Err(Refused::NoMessage) => Ok(()),
        Err(Refused::Group) => Err(invalid("the message holds a group, which the protocol does not know")),
        Err(Refused::TooMuch) => {
            Err(invalid("the message holds too many elements: send tensors in raw_input_contents"))
        }
    }
}

/// Why counting ended early.
enum Refused {
    /// It holds a group, which the decoder would skip.
    Group,
    TooMuch,
    NoMessage,
}

/// A message of `ModelInferRequest`, itself included. Other requests hold nothing but short texts.
#[derive(Clone, Copy)]
enum Level {
    Request,
    Input,
    Output,
    Contents,
    /// Of `parameters`.
    Entry,
}

/// What a field of bytes holds.
enum Holds {
    Message(Level),
    Shape,
    Numbers,
    /// What takes no more than its bytes: text, raw tensors, floats.
    Plain,
}

impl Level {
    /// By the numbers in `proto/inference.proto`.
    const fn holds(self, field: u32) -> Holds {
        match (self, field) {
            (Self::Request | Self::Input, 4) | (Self::Output, 2) => Holds::Message(Self::Entry),
            (Self::Request, 5) => Holds::Message(Self::Input),
            (Self::Request, 6) => Holds::Message(Self::Output),
            (Self::Input, 3) => Holds::Shape,
            (Self::Input, 5) => Holds::Message(Self::Contents),
            (Self::Contents, 1..=5) => Holds::Numbers,
            _ => Holds::Plain,
        }
    }
}

/// What a message holds, and the messages in it.
struct Count {
    fields: usize,
    numbers_bytes: usize,
}

impl Count {
    fn add(&mut self, mut message: &[u8], level: Level) -> Result<(), Refused> {
        while !message.is_empty() {
            self.fields += 1;
            let (field, wire_type) = encoding::decode_key(&mut message).map_err(|_| Refused::NoMessage)?;
            let mut varint = || encoding::decode_varint(&mut message).map_err(|_| Refused::NoMessage);
            let length = match wire_type {
                WireType::Varint => varint().map(|_| 0)?,
                WireType::ThirtyTwoBit => 4,
                WireType::SixtyFourBit => 8,
                WireType::LengthDelimited => usize::try_from(varint()?).map_err(|_| Refused::NoMessage)?,
                WireType::StartGroup | WireType::EndGroup => return Err(Refused::Group),
            };
            let (value, rest) = message.split_at_checked(length).ok_or(Refused::NoMessage)?;
            message = rest;
            match level.holds(field) {
                Holds::Message(inner) if wire_type == WireType::LengthDelimited => self.add(value, inner)?,
                Holds::Shape if length > SHAPE_BYTES_MAX => return Err(Refused::TooMuch),
                Holds::Numbers => self.numbers_bytes += length,
                Holds::Message(_) | Holds::Shape | Holds::Plain => {}
            }
            if self.fields > FIELDS_MAX || self.numbers_bytes > NUMBERS_BYTES_MAX {
                return Err(Refused::TooMuch);
            }
        }
        Ok(())
    }
}

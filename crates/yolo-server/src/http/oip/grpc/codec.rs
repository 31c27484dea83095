//! Requests under a bound that protobuf lacks: two bytes that say "one more, empty" become a value of up to two hundred,
//! so a message of 64 MiB could take gigabytes. What a message holds is counted before it is decoded.

use bytes::Buf;
use prost::encoding::{self, WireType};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

use super::convert::status;
use crate::http::error::ApiError;
use crate::http::oip::tensor::invalid;

/// Most fields of one message, those of its inputs and their contents included.
const FIELDS_MAX: usize = 1_024;
/// Levels of messages in a message: `inputs`, `contents`.
const DEPTH_MAX: usize = 2;
/// `raw_input_contents`, which holds no message.
const RAW_FIELD: u32 = 7;
/// Most bytes of numbers in `contents`: some types take eight times as much in memory.
const NUMBERS_BYTES_MAX: usize = 8 << 20;
/// Fields of `contents` that take no more than their bytes: floats, byte strings.
const PLAIN_FIELDS: [u32; 2] = [6, 8];

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
/// says so.
pub(super) fn check(message: &[u8]) -> Result<(), ApiError> {
    let mut fields = 0;
    if count(message, 0, &mut fields).is_none() && fields > FIELDS_MAX {
        return Err(invalid("the message holds too many elements: send tensors in raw_input_contents"));
    }
    Ok(())
}

/// Adds the fields of `message` and of those in it; ends early where there are too many, or where it is no message.
fn count(mut message: &[u8], depth: usize, fields: &mut usize) -> Option<()> {
    while !message.is_empty() {
        *fields += 1;
        let (field, wire_type) = encoding::decode_key(&mut message).ok()?;
        let length = match wire_type {
            WireType::Varint => encoding::decode_varint(&mut message).ok().map(|_| 0)?,
            WireType::ThirtyTwoBit => 4,
            WireType::SixtyFourBit => 8,
            WireType::LengthDelimited => usize::try_from(encoding::decode_varint(&mut message).ok()?).ok()?,
            WireType::StartGroup | WireType::EndGroup => return None,
        };
        let (value, rest) = message.split_at_checked(length)?;
        message = rest;
        if wire_type == WireType::LengthDelimited && depth < DEPTH_MAX && (depth, field) != (0, RAW_FIELD) {
            // Text counts as if it were a message: a name is short, or worth refusing.
            count(value, depth + 1, fields);
        }
        if depth == DEPTH_MAX && length > NUMBERS_BYTES_MAX && !PLAIN_FIELDS.contains(&field) {
            *fields = usize::MAX;
        }
        if *fields > FIELDS_MAX {
            return None;
        }
    }
    Some(())
}

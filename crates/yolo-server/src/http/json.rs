//! The JSON form of a request: `{"image":"<base64>","conf":0.3,…}`, for a batch `{"images":["<base64>",…],…}`.
//!
//! Read in one pass and never as a tree: `[0,0,…]` as a tree takes sixteen times the bytes of its text. Nothing nests
//! deeper than a list in the object; whatever does is refused where it begins, so no depth can exhaust the stack.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};

use crate::limits;

/// What a JSON body said.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Document {
    /// Decoded files, in their order.
    pub pictures: Vec<Vec<u8>>,
    /// Everything else; a list of numbers as `0,2`.
    pub parameters: Vec<(String, String)>,
}

/// Bytes of a number in a list that grows: 4, and as many where it moves.
const NUMBER_BYTES: usize = 2 * size_of::<f32>();

/// Most memory that reading a text takes beside it: its base64 decoded or its numbers as f32, and where it has escapes,
/// its texts without them, once while they are read and once as they are kept.
pub(super) fn reading_bytes(text: &[u8]) -> usize {
    let numbers = text.iter().map(|byte| usize::from(*byte == b',')).sum::<usize>();
    let unescaped = if text.contains(&b'\\') { 2 * text.len() } else { 0 };
    text.len() / 4 * 3 + NUMBER_BYTES * numbers + unescaped
}

/// Reads a body.
///
/// # Errors
/// What is wrong and where, if it is not JSON, not of this form, or longer than the limits for parts allow.
pub(super) fn read(body: &[u8]) -> Result<Document, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let document = deserializer.deserialize_map(Fields)?;
    deserializer.end()?;
    Ok(document)
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Document;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with the picture as base64 text in `image`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
        let mut document = Document::default();
        while let Some(Text(name)) = map.next_key()? {
            match &*name {
                "image" => document.pictures.push(map.next_value::<Encoded>()?.0),
                "images" => document.pictures.append(&mut map.next_value::<EncodedList>()?.0),
                _ => document.parameters.push((name.into_owned(), map.next_value_seed(Parameter { lists: true })?)),
            }
            if document.parameters.len() > limits::BATCH_PARTS_MAX {
                return Err(A::Error::custom("too many parameters"));
            }
        }
        Ok(document)
    }
}

/// Text, borrowed from the body where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// A file in base64.
struct Encoded(Vec<u8>);

impl<'de> Deserialize<'de> for Encoded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Text(text) = Text::deserialize(deserializer)?;
        let decoded = base64::engine::general_purpose::STANDARD.decode(text.trim());
        decoded.map(Self).map_err(|error| D::Error::custom(format!("the picture is not base64: {error}")))
    }
}

struct EncodedList(Vec<Vec<u8>>);

impl<'de> Deserialize<'de> for EncodedList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Pictures).map(Self)
    }
}

struct Pictures;

impl<'de> Visitor<'de> for Pictures {
    type Value = Vec<Vec<u8>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of pictures as base64 text")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut pictures = Vec::new();
        while let Some(Encoded(picture)) = list.next_element()? {
            if pictures.len() == limits::BATCH_PARTS_MAX {
                return Err(A::Error::custom(format!("more than {} pictures", limits::BATCH_PARTS_MAX)));
            }
            pictures.push(picture);
        }
        Ok(pictures)
    }
}

/// A parameter's value as the text that a query would hold.
struct Parameter {
    /// Whether a list may stand here.
    lists: bool,
}

impl<'de> DeserializeSeed<'de> for Parameter {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Parameter {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.lists { "a number, text, true, false or a list of those" } else { "a number or text" })
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<String, E> {
        if value.len() > limits::PARAMETER_BYTES_MAX {
            Err(E::custom("a value is too long"))
        } else {
            Ok(value.to_owned())
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<String, A::Error> {
        if !self.lists {
            return Err(A::Error::invalid_type(de::Unexpected::Seq, &self));
        }
        let mut joined = String::new();
        while let Some(item) = list.next_element_seed(Self { lists: false })? {
            if !joined.is_empty() {
                joined.push(',');
            }
            joined.push_str(&item);
            if joined.len() > limits::PARAMETER_BYTES_MAX {
                return Err(A::Error::custom("a list is too long"));
            }
        }
        Ok(joined)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_and_parameters_are_read_in_order() {
        let document =
            read(br#"{"conf":0.3,"images":["QQ==","Qg=="],"classes":[0, 2],"normalize":true,"image":"Qw=="}"#);
        let parameters = [("conf", "0.3"), ("classes", "0,2"), ("normalize", "true")];
        let expected = Document {
            pictures: vec![b"A".to_vec(), b"B".to_vec(), b"C".to_vec()],
            parameters: parameters.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        };
        assert_eq!(document.unwrap(), expected);
    }

    #[test]
    fn nothing_nests_or_grows_past_its_limit() {
        let deep = format!("{{\"conf\":{}", "[".repeat(1_000_000));
        let many = format!("{{\"images\":[{}\"\"]}}", "\"\",".repeat(64));
        let wide = format!("{{\"classes\":[{}0]}}", "0,".repeat(1_000_000));
        let fields = format!("{{{}\"a\":1}}", "\"a\":1,".repeat(100));
        for body in
            [&deep, &many, &wide, &fields, r#"{"conf":{}}"#, r#"{"conf":null}"#, "{} {}", "[]", r#"{"image":1}"#]
        {
            let error = read(body.as_bytes()).unwrap_err().to_string();
            assert!(error.len() < 200, "{error}");
        }
    }
}

//! JSON values of a tensor's `data` and of parameters, read in one pass: as a tree, `[0,0,…]` would take sixteen times
//! the bytes of its text.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::http::oip::tensor;
use crate::limits;

/// Most numbers of one list: as many as fit a body of the usual size in binary.
const NUMBERS_MAX: usize = limits::BodyLimits::DEFAULT.batch_bytes_max / size_of::<f32>();
/// Deepest nesting of `data`: the rank of the largest tensor.
const DEPTH_MAX: usize = 4;
/// Most members of a list or an object that is not `data`.
const MEMBERS_MAX: usize = limits::BATCH_PARTS_MAX;

/// The elements of a list, nested or flat, in order.
#[derive(Debug, Default, PartialEq)]
pub enum Elements {
    /// No element.
    #[default]
    Empty,
    /// Numbers, rounded to f32, little-endian.
    Numbers(Vec<u8>),
    /// Texts of base64: the data of a `BYTES` tensor. JSON has no other way to write bytes.
    Files {
        /// Their number.
        count: usize,
        /// Each behind its length.
        data: Vec<u8>,
    },
}

impl<'de> Deserialize<'de> for Elements {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut elements = Self::Empty;
        deserializer.deserialize_seq(Nested { elements: &mut elements, depth: 1 })?;
        Ok(elements)
    }
}

/// Adds a list's elements to `elements`.
struct Nested<'a> {
    elements: &'a mut Elements,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Nested<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Nested<'_> {
    #[expect(clippy::cast_possible_truncation, reason = "tensors of JSON are f32")]
    fn number<E: de::Error>(self, value: f64) -> Result<(), E> {
        let element = (value as f32).to_le_bytes();
        match self.elements {
            Elements::Numbers(numbers) if numbers.len() < NUMBERS_MAX * size_of::<f32>() => numbers.extend(element),
            Elements::Empty => *self.elements = Elements::Numbers(element.to_vec()),
            Elements::Numbers(_) => return Err(E::custom("too many elements")),
            Elements::Files { .. } => return Err(E::custom("numbers and texts are mixed")),
        }
        Ok(())
    }
}

impl<'de> Visitor<'de> for Nested<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.depth < DEPTH_MAX { "a number, text or list" } else { "a number or text" })
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<(), E> {
        #[expect(clippy::cast_precision_loss, reason = "tensors of JSON are f32")]
        self.number(value as f64)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<(), E> {
        #[expect(clippy::cast_precision_loss, reason = "tensors of JSON are f32")]
        self.number(value as f64)
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<(), E> {
        self.number(value)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<(), E> {
        if *self.elements == Elements::Empty {
            *self.elements = Elements::Files { count: 0, data: Vec::new() };
        }
        match self.elements {
            Elements::Files { count, data } if *count < limits::BATCH_PARTS_MAX => {
                *count += 1;
                tensor::push_base64(data, text).map_err(|error| E::custom(format!("`data` is not base64: {error}")))
            }
            Elements::Files { .. } => Err(E::custom("too many elements")),
            _ => Err(E::custom("numbers and texts are mixed")),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Self { elements, depth } = self;
        // Refused where it begins, so no depth can exhaust the stack.
        if depth > DEPTH_MAX {
            return Err(de::Error::custom("`data` is nested deeper than the shape"));
        }
        while list.next_element_seed(Nested { elements, depth: depth + 1 })?.is_some() {}
        Ok(())
    }
}

/// A short list.
#[derive(Debug)]
pub struct Few<T>(pub Vec<T>);

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

struct FewVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Few<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(FewVisitor(PhantomData))
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for FewVisitor<T> {
    type Value = Few<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MEMBERS_MAX}")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Few<T>, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = list.next_element()? {
            if members.len() == MEMBERS_MAX {
                return Err(de::Error::invalid_length(MEMBERS_MAX + 1, &self));
            }
            members.push(member);
        }
        Ok(Few(members))
    }
}

/// Names and values of `parameters`, each name once.
#[derive(Debug, Default)]
pub struct Parameters(pub Vec<(String, String)>);

impl Parameters {
    /// Takes a parameter out.
    pub fn take(&mut self, name: &str) -> Option<String> {
        let index = self.0.iter().position(|(own, _)| own == name)?;
        Some(self.0.swap_remove(index).1)
    }
}

impl<'de> Deserialize<'de> for Parameters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ParametersVisitor)
    }
}

struct ParametersVisitor;

impl<'de> Visitor<'de> for ParametersVisitor {
    type Value = Parameters;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object of at most {MEMBERS_MAX} parameters")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parameters, A::Error> {
        let mut parameters = Parameters::default();
        while let Some((name, Value(value))) = map.next_entry::<String, _>()? {
            if parameters.0.len() == MEMBERS_MAX {
                return Err(de::Error::invalid_length(MEMBERS_MAX + 1, &self));
            }
            if parameters.take(&name).is_some() {
                return Err(de::Error::custom(format!("parameter {name:.64} comes twice")));
            }
            parameters.0.push((name, value));
        }
        Ok(parameters)
    }
}

/// A parameter's value as the text that a query would hold.
struct Value(String);

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl Visitor<'_> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, text, true or false")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value(value.to_string()))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value(value.to_string()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value(value.to_string()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value(value.to_string()))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value(value.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Elements, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn nested_and_flat_lists_hold_the_same_elements() {
        for json in ["[1, 2.5, -3, 4]", "[[1, 2.5], [-3, 4]]", "[[[[1, 2.5, -3, 4]]]]"] {
            let numbers = [1.0_f32, 2.5, -3.0, 4.0].into_iter().flat_map(f32::to_le_bytes).collect();
            assert_eq!(read(json).unwrap(), Elements::Numbers(numbers), "{json}");
        }
        let files = Elements::Files { count: 2, data: b"\x01\0\0\0A\x02\0\0\0BC".to_vec() };
        assert_eq!(read(r#"["QQ==", "QkM="]"#).unwrap(), files);
        assert_eq!(read("[]").unwrap(), Elements::Empty);
    }

    #[test]
    fn lists_and_parameters_do_not_grow_past_their_limit() {
        let list = |members: usize| format!("[{}0]", "0,".repeat(members - 1));
        assert_eq!(serde_json::from_str::<Few<usize>>(&list(MEMBERS_MAX)).unwrap().0.len(), MEMBERS_MAX);
        assert!(serde_json::from_str::<Few<usize>>(&list(MEMBERS_MAX + 1)).is_err());
        let mut parameters: Parameters = serde_json::from_str(r#"{"conf":0.5,"normalize":true,"id":7}"#).unwrap();
        assert_eq!(parameters.take("normalize").as_deref(), Some("true"));
        assert_eq!(parameters.0, [("conf".to_owned(), "0.5".to_owned()), ("id".to_owned(), "7".to_owned())]);
        for json in [r#"{"a":1,"a":2}"#, r#"{"a":[1]}"#, r#"{"a":null}"#, "[]"] {
            assert!(serde_json::from_str::<Parameters>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn what_is_no_list_of_elements_is_refused_however_deep() {
        let deep = "[".repeat(1_000_000);
        for json in [
            deep.as_str(),
            "[[[[[1]]]]]",
            r#"[1, "QQ=="]"#,
            r#"["QQ==", 1]"#,
            r#"["*"]"#,
            "[null]",
            "[{}]",
            "{}",
            "1",
            "[1",
        ] {
            assert!(read(json).is_err(), "{json:.20}");
        }
    }
}

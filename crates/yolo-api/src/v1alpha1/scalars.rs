//! Text scalars of the API: durations, quantities, decimals.
//!
//! Kubernetes asks for text where a float or a unit would be needed: text survives every client
//! unchanged. The schema holds the form, CEL rules hold the range, `validate` turns them into numbers.

use std::{borrow::Cow, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};

/// Most characters of a scalar: more than any value in range needs, little enough for CEL's cost bound.
const TEXT_CHARS_MAX: u32 = 20;

/// A duration such as `100ms`, `30s`, `1m` or `1h`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DurationText(pub String);

/// A number of bytes or cores such as `256Mi`, `2Gi`, `500m`, `1` (also as a YAML integer).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Quantity(pub String);

/// A number such as `0.25`, written as text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Decimal(pub String);

macro_rules! text_scalar {
    ($type:ty, $name:literal, $schema:expr) => {
        impl From<&str> for $type {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    };
}

text_scalar!(
    DurationText,
    "Duration",
    json_schema!({ "type": "string", "maxLength": TEXT_CHARS_MAX, "pattern": r"^([0-9]{1,9}(\.[0-9]{1,3})?(ms|s|m|h))+$" })
);
text_scalar!(
    Decimal,
    "Decimal",
    json_schema!({ "type": "string", "maxLength": TEXT_CHARS_MAX, "pattern": r"^[0-9]{1,9}(\.[0-9]{1,6})?$" })
);
// As Kubernetes' own Quantity, so that `cpu: 1` needs no quotes. Negative numbers and exponents are left out.
text_scalar!(
    Quantity,
    "Quantity",
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "anyOf": [{ "type": "integer" }, { "type": "string" }],
        "maxLength": TEXT_CHARS_MAX,
        "pattern": r"^[0-9]{1,12}(\.[0-9]{1,3})?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$",
    })
);

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(QuantityVisitor)
    }
}

struct QuantityVisitor;

impl de::Visitor<'_> for QuantityVisitor {
    type Value = Quantity;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a quantity such as 256Mi, or an integer")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Quantity, E> {
        Ok(Quantity(text.to_owned()))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Quantity, E> {
        Ok(Quantity(number.to_string()))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Quantity, E> {
        Ok(Quantity(number.to_string()))
    }
}

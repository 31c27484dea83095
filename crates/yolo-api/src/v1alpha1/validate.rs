//! Text of the spec as numbers. Pure.
//!
//! The API server has checked the same rules (CEL), but an object may have been stored under an older schema: nothing
//! here trusts the form, and every error names the field.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicyPeer};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::{
    scalars::{Decimal, DurationText, Quantity},
    spec::YoloInferenceServiceSpec,
    targets::SOURCE_SERVER,
};

/// A field whose value cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {value:?} is not {expected}")]
pub struct FieldError {
    /// The field, from the root of the object: `spec.targets.window`.
    pub path: &'static str,
    /// What it says.
    pub value: String,
    /// What it should say, with an example.
    pub expected: &'static str,
}

impl DurationText {
    /// The duration that the field `path` says.
    ///
    /// # Errors
    /// [`FieldError`] unless it is a sequence of numbers with the units ms, s, m, h that fits into 10 000 hours.
    pub fn parse(&self, path: &'static str) -> Result<Duration, FieldError> {
        let fail = || FieldError { path, value: self.0.clone(), expected: "a duration such as \"100ms\" or \"1m\"" };
        let mut rest = self.0.as_str();
        let mut seconds = 0.0;
        while !rest.is_empty() {
            let (number, tail) = split_number(rest).ok_or_else(fail)?;
            let letters = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
            let (unit, next) = tail.split_at(letters);
            seconds += number * unit_of(unit, &DURATION_UNITS).ok_or_else(fail)?;
            rest = next;
        }
        if self.0.is_empty() || seconds > DURATION_SECONDS_MAX {
            return Err(fail());
        }
        Duration::try_from_secs_f64(seconds).map_err(|_| fail())
    }
}

impl Quantity {
    /// The number of bytes that the field `path` says, rounded down.
    ///
    /// # Errors
    /// [`FieldError`] unless it is a number with a unit of Kubernetes, below 2^53.
    pub fn bytes(&self, path: &'static str) -> Result<u64, FieldError> {
        self.scaled(path, 1.0, "a number of bytes such as \"256Mi\" or \"2Gi\"")
    }

    /// The number of thousandths of a core that the field `path` says, rounded down.
    ///
    /// # Errors
    /// As [`Quantity::bytes`].
    pub fn millicores(&self, path: &'static str) -> Result<u64, FieldError> {
        self.scaled(path, 1000.0, "a number of cores such as \"500m\" or \"2\"")
    }

    fn scaled(&self, path: &'static str, factor: f64, expected: &'static str) -> Result<u64, FieldError> {
        let fail = || FieldError { path, value: self.0.clone(), expected };
        let (number, unit) = split_number(&self.0).ok_or_else(fail)?;
        let value = number * factor * unit_of(unit, &QUANTITY_UNITS).ok_or_else(fail)?;
        if value > EXACT_INTEGER_MAX {
            return Err(fail());
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 <= value <= 2^53")]
        Ok(value as u64)
    }
}

impl Decimal {
    /// The number that the field `path` says; never negative, never infinite.
    ///
    /// # Errors
    /// [`FieldError`] unless it is digits with at most one point.
    pub fn number(&self, path: &'static str) -> Result<f64, FieldError> {
        let fail = || FieldError { path, value: self.0.clone(), expected: "a number in quotes such as \"0.25\"" };
        match split_number(&self.0) {
            Some((number, "")) if number.is_finite() => Ok(number),
            _ => Err(fail()),
        }
    }
}

const DURATION_UNITS: [(&str, f64); 4] = [("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
/// Beyond any duration that the schema allows; keeps sums exact to the microsecond.
const DURATION_SECONDS_MAX: f64 = 3.6e7;
/// Largest f64 below which every integer is exact: 2^53.
const EXACT_INTEGER_MAX: f64 = 9_007_199_254_740_992.0;
const QUANTITY_UNITS: [(&str, f64); 10] = [
    ("", 1.0),
    ("m", 1e-3),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("Ki", 1024.0),
    ("Mi", 1_048_576.0),
    ("Gi", 1_073_741_824.0),
    ("Ti", 1_099_511_627_776.0),
];

/// The number at the start (digits, at most one point) and what follows it.
fn split_number(text: &str) -> Option<(f64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    // `parse` alone would accept ".5" and "5."; the schema does not.
    let plain = digits.starts_with(|c: char| c.is_ascii_digit()) && digits.ends_with(|c: char| c.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten().map(|number| (number, rest))
}

fn unit_of(unit: &str, units: &[(&str, f64)]) -> Option<f64> {
    units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor)
}

/// Checks one of `network.allowedClients` as the API server does a peer of a new `NetworkPolicy`.
///
/// # Errors
/// [`FieldError`] of the first part that it would refuse.
pub fn client(peer: &NetworkPolicyPeer) -> Result<(), FieldError> {
    let selectors = [
        ("spec.network.allowedClients.namespaceSelector", &peer.namespace_selector),
        ("spec.network.allowedClients.podSelector", &peer.pod_selector),
    ];
    let mut given = selectors.into_iter().filter_map(|(path, given)| Some((path, given.as_ref()?))).peekable();
    let selected = given.peek().is_some();
    match (&peer.ip_block, selected) {
        (Some(block), false) => ip_block(block),
        (None, true) => given.try_for_each(|(path, given)| selector(path, given)),
        (block, _) => Err(FieldError {
            path: "spec.network.allowedClients",
            value: block.as_ref().map_or_else(String::new, |block| block.cidr.clone()),
            expected: "an ipBlock alone, or selectors alone",
        }),
    }
}

fn selector(path: &'static str, selector: &LabelSelector) -> Result<(), FieldError> {
    let check = |holds: bool, value: &str, expected| {
        if holds { Ok(()) } else { Err(FieldError { path, value: value.to_owned(), expected }) }
    };
    let key = |text: &str| check(is_label_key(text), text, "the key of a label");
    let value = |text: &str| check(text.is_empty() || is_label_name(text), text, "the value of a label");
    for (name, text) in selector.match_labels.iter().flatten() {
        key(name)?;
        value(text)?;
    }
    for expression in selector.match_expressions.iter().flatten() {
        key(&expression.key)?;
        let (operator, values) = (expression.operator.as_str(), expression.values.as_deref().unwrap_or_default());
        let known = match operator {
            "In" | "NotIn" => !values.is_empty(),
            "Exists" | "DoesNotExist" => values.is_empty(),
            _ => false,
        };
        check(known, operator, "the operator In or NotIn with values, or Exists or DoesNotExist without")?;
        values.iter().try_for_each(|text| value(text))?;
    }
    Ok(())
}

/// A name, and before it, with a slash, a DNS subdomain if there is one.
fn is_label_key(text: &str) -> bool {
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    let dns = |part: &str| {
        let plain = part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        plain && !part.is_empty() && !part.starts_with('-') && !part.ends_with('-')
    };
    is_label_name(name) && prefix.is_none_or(|prefix| prefix.len() <= 253 && prefix.split('.').all(dns))
}

fn is_label_name(text: &str) -> bool {
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    let ends = |end: Option<char>| end.is_some_and(|end| end.is_ascii_alphanumeric());
    plain && text.len() <= 63 && ends(text.chars().next()) && ends(text.chars().next_back())
}

/// As the API server from Kubernetes 1.36 on (`StrictIPCIDRValidation`); earlier ones take more. Refused is the first
/// that is no range, or is excepted and not a smaller part of the block's.
fn ip_block(block: &IPBlock) -> Result<(), FieldError> {
    let wrong = |path, text: &str, expected| FieldError { path, value: text.to_owned(), expected };
    let range = |path, text: &str| {
        let expected = "an address range such as \"10.0.0.0/8\", with no leading zero and no bit set beyond its length";
        address_range(text).ok_or_else(|| wrong(path, text, expected))
    };
    let whole = range("spec.network.allowedClients.ipBlock.cidr", &block.cidr)?;
    let path = "spec.network.allowedClients.ipBlock.except";
    for text in block.except.iter().flatten() {
        let part = range(path, text)?;
        if part.prefix_len() <= whole.prefix_len() || !whole.contains(&part) {
            return Err(wrong(path, text, "a smaller address range within ipBlock.cidr"));
        }
    }
    Ok(())
}

/// The range that `text` says, written without ambiguity.
fn address_range(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    // Refuses leading zeros, which some read as octal; `IpNet` does not.
    let address: IpAddr = address.parse().ok()?;
    let net = IpNet::new(address, length.parse().ok()?).ok()?;
    let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    (net.network() == address && length == net.prefix_len().to_string() && !mapped).then_some(net)
}

/// Fields of `spec` that are set and accepted but do not act in this version; the status names them.
pub fn inactive_fields(spec: &YoloInferenceServiceSpec) -> Vec<&'static str> {
    let targets = spec.targets();
    let api_source = targets.api_latency.as_ref().map(|target| target.source.as_str());
    [("spec.targets.apiLatency.source", api_source.is_some_and(|source| source != SOURCE_SERVER))]
        .into_iter()
        .filter_map(|(field, set)| set.then_some(field))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "spec.x";

    #[test]
    fn durations_are_read_as_written() {
        for (text, millis) in [("100ms", 100), ("1m", 60_000), ("1h30m", 5_400_000), ("1.5s", 1_500), ("0s", 0)] {
            assert_eq!(DurationText::from(text).parse(PATH).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for text in ["", "100", "ms", "1d", "-1s", "1.s", "1e3s", "999999999h", "1s ", "NaNs"] {
            assert_eq!(DurationText::from(text).parse(PATH).unwrap_err().path, PATH, "{text}");
        }
    }

    #[test]
    fn quantities_are_read_as_kubernetes_does() {
        for (text, bytes) in
            [("0", 0), ("256Mi", 268_435_456), ("2Gi", 2_147_483_648), ("1.5Ki", 1536), ("1M", 1_000_000)]
        {
            assert_eq!(Quantity::from(text).bytes(PATH).unwrap(), bytes, "{text}");
        }
        for (text, millis) in [("500m", 500), ("1", 1000), ("2.5", 2500)] {
            assert_eq!(Quantity::from(text).millicores(PATH).unwrap(), millis, "{text}");
        }
        for text in ["", "Mi", "1Zi", "-1", "9999999999Ti", "1 Gi"] {
            assert!(Quantity::from(text).bytes(PATH).is_err(), "{text}");
        }
        assert_eq!(
            Quantity::from("2GB").bytes("spec.targets.memoryPerWorker").unwrap_err().to_string(),
            "spec.targets.memoryPerWorker: \"2GB\" is not a number of bytes such as \"256Mi\" or \"2Gi\""
        );
    }

    #[test]
    fn decimals_are_plain_numbers() {
        assert_eq!(Decimal::from("0.25").number(PATH), Ok(0.25));
        for text in ["", ".5", "inf", "NaN", "-0.1", "1e3", "0.2.5", "0.25%"] {
            assert!(Decimal::from(text).number(PATH).is_err(), "{text}");
        }
    }

    #[test]
    fn address_ranges_are_judged_as_by_the_api_server() {
        let judged = |cidr: &str, except: &[&str]| {
            let except = except.iter().map(|text| (*text).to_owned()).collect();
            ip_block(&IPBlock { cidr: cidr.to_owned(), except: Some(except) }).map_err(|error| error.to_string())
        };
        for (cidr, except) in [("10.0.0.0/8", "10.1.0.0/16"), ("fd00::/8", "fd01::/16"), ("0.0.0.0/0", "10.0.0.0/8")] {
            assert_eq!(judged(cidr, &[except]), Ok(()), "{cidr}");
        }
        let none = ["", "10.0.0.0", "10.0.0.0/33", "10.0.0/8", "fd00::/129", "example.com/8"];
        let ambiguous = ["10.0.0.5/8", "fd00::1/8", "010.0.0.0/8", "10.0.0.0/08", "10.0.0.0/+8", "::ffff:10.0.0.0/104"];
        for cidr in none.into_iter().chain(ambiguous) {
            assert!(judged(cidr, &[]).unwrap_err().starts_with("spec.network.allowedClients.ipBlock.cidr"), "{cidr}");
        }
        for except in ["11.1.0.0/16", "10.0.0.0/8", "0.0.0.0/0", "fd00::/16", "10.1.0.0", "10.1.0.1/16", "10.01.0.0/16"]
        {
            let error = judged("10.0.0.0/8", &[except]).unwrap_err();
            assert!(
                error.starts_with("spec.network.allowedClients.ipBlock.except") && error.contains(except),
                "{error}"
            );
        }
    }

    #[test]
    fn selectors_are_judged_as_by_the_api_server() {
        let judged = |peer: &str| client(&serde_yaml_ng::from_str(peer).unwrap()).map_err(|error| error.to_string());
        let expression = |text: &str| judged(&format!("{{podSelector: {{matchExpressions: [{{{text}}}]}}}}"));
        for text in ["key: app, operator: In, values: [shop, '']", "key: example.com/App_1, operator: DoesNotExist"] {
            assert_eq!(expression(text), Ok(()), "{text}");
        }
        for (text, says) in [
            ("key: app, operator: in, values: [shop]", "\"in\""),
            ("key: app, operator: In", "\"In\""),
            ("key: app, operator: Exists, values: [shop]", "\"Exists\""),
            ("key: app, operator: NotIn, values: [a shop]", "\"a shop\""),
            ("key: -app, operator: Exists", "\"-app\""),
            ("key: Example.com/app, operator: Exists", "\"Example.com/app\""),
            ("key: a/b/c, operator: Exists", "\"a/b/c\""),
        ] {
            let error = expression(text).unwrap_err();
            assert!(error.starts_with("spec.network.allowedClients.podSelector") && error.contains(says), "{error}");
        }
        let namespaces = |labels: &str| judged(&format!("{{namespaceSelector: {{matchLabels: {{{labels}}}}}}}"));
        assert_eq!(namespaces("kubernetes.io/metadata.name: shop, tier: ''"), Ok(()));
        assert!(namespaces("team: the shop").unwrap_err().contains("namespaceSelector: \"the shop\""));
        assert!(judged("{}").is_err() && judged("{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}").is_err());
    }

    #[test]
    fn every_field_that_does_not_act_is_named() {
        let named = |spec: &str| inactive_fields(&serde_yaml_ng::from_str(spec).unwrap());
        let all = "{model: {source: {imagePath: /a}}, targets: {apiLatency: {source: ingress}}}";
        assert_eq!(named(all), ["spec.targets.apiLatency.source"]);
        assert_eq!(named("{model: {source: {imagePath: /a}}}"), Vec::<&str>::new());
    }
}

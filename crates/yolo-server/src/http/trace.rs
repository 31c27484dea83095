//! W3C trace context: a request's place in its client's trace (<https://www.w3.org/TR/trace-context/>).

use axum::http::{HeaderMap, HeaderValue};
use opentelemetry::trace::TraceState;

use crate::{limits, random};

/// Header that carries the context, in both directions.
pub const TRACEPARENT: &str = "traceparent";

/// Header with what other systems keep of a trace.
const TRACESTATE: &str = "tracestate";

/// A trace and this request's place in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// 32 hexadecimal digits; the client's, or a new trace.
    pub trace_id: String,
    /// The client's span, 16 hexadecimal digits, if it named one.
    pub parent_id: Option<String>,
    /// This request's span.
    pub span_id: String,
    /// Whether the trace is recorded.
    pub sampled: bool,
    /// What other systems keep of it, passed on to the collector; nothing of a trace that begins here.
    pub state: TraceState,
}

impl TraceContext {
    /// Continues the client's trace; begins one if the client names none, or not in the form of the standard. Of the
    /// first the client decided whether it is recorded, of the other `sampled` says so.
    pub fn of(headers: &HeaderMap, sampled: bool) -> Self {
        let span_id = random::digits();
        let given = headers.get(TRACEPARENT).and_then(|value| parse(value.to_str().ok()?));
        match given {
            Some((trace_id, parent_id, flags)) => Self {
                trace_id: trace_id.to_owned(),
                parent_id: Some(parent_id.to_owned()),
                span_id,
                sampled: flags & 1 == 1,
                state: state(headers).unwrap_or_default(),
            },
            None => Self {
                trace_id: random::digits() + &random::digits(),
                parent_id: None,
                span_id,
                sampled,
                state: TraceState::NONE,
            },
        }
    }

    /// The context as a header's value.
    pub fn header(&self) -> Option<HeaderValue> {
        let Self { trace_id, span_id, sampled, .. } = self;
        HeaderValue::from_str(&format!("00-{trace_id}-{span_id}-{:02x}", u8::from(*sampled))).ok()
    }
}

/// The list in the lines of `tracestate`; `None` if it is malformed or too long.
fn state(headers: &HeaderMap) -> Option<TraceState> {
    let lines: Result<Vec<_>, _> = headers.get_all(TRACESTATE).iter().map(HeaderValue::to_str).collect();
    let list = lines.ok()?.join(",");
    (list.len() <= limits::TRACESTATE_BYTES_MAX).then(|| list.parse().ok())?
}

/// Trace, parent and flags of `version-trace-parent-flags`; a later version may add fields at its end.
fn parse(value: &str) -> Option<(&str, &str, u8)> {
    let mut fields = value.splitn(5, '-');
    let mut hex = |digits: usize| {
        let field = fields.next()?;
        let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (field.len() == digits && field.bytes().all(lower)).then_some(field)
    };
    let (version, trace_id, parent_id, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
    let known = version != "ff" && (version != "00" || fields.next().is_none());
    let named = [trace_id, parent_id].iter().all(|id| id.bytes().any(|digit| digit != b'0'));
    if known && named { Some((trace_id, parent_id, u8::from_str_radix(flags, 16).ok()?)) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn of(value: &str) -> TraceContext {
        TraceContext::of(&HeaderMap::from_iter([(TRACEPARENT.parse().unwrap(), value.parse().unwrap())]), false)
    }

    #[test]
    fn a_trace_is_continued_with_a_span_of_its_own() {
        let context = of(&format!("00-{TRACE}-00f067aa0ba902b7-01"));
        assert_eq!((context.trace_id.as_str(), context.parent_id.as_deref()), (TRACE, Some("00f067aa0ba902b7")));
        let header = context.header().unwrap();
        let expected = format!("00-{TRACE}-{}-01", context.span_id);
        assert_eq!(header.to_str().unwrap(), expected);
        assert!(context.span_id != "00f067aa0ba902b7" && parse(&expected).is_some());
        assert!(!of(&format!("cc-{TRACE}-00f067aa0ba902b7-00-more")).sampled, "a later version");
    }

    #[test]
    fn the_state_of_a_trace_is_kept_unless_it_is_malformed_or_long() {
        let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
        let of = |parent: &str, lines: &[&str]| {
            let mut headers = HeaderMap::from_iter([(TRACEPARENT.parse().unwrap(), parent.parse().unwrap())]);
            for line in lines {
                headers.append(TRACESTATE, line.parse().unwrap());
            }
            TraceContext::of(&headers, true).state.header()
        };
        assert_eq!(of(&parent, &["rojo=1,congo=t61", "other=x y"]), "rojo=1,congo=t61,other=x y");
        for lines in [&["no list"][..], &["UPPER=1"], &[&format!("a={}", "x".repeat(512))], &[]] {
            assert_eq!(of(&parent, lines), "", "{lines:?}");
        }
        assert_eq!(of("none", &["rojo=1"]), "", "of no trace");
    }

    #[test]
    fn what_the_standard_does_not_allow_begins_a_new_trace() {
        let zeros = "0".repeat(32);
        for value in [
            String::new(),
            format!("00-{TRACE}-00f067aa0ba902b7"),
            format!("00-{TRACE}-00f067aa0ba902b7-01-more"),
            format!("ff-{TRACE}-00f067aa0ba902b7-01"),
            format!("00-{zeros}-00f067aa0ba902b7-01"),
            format!("00-{TRACE}-0000000000000000-01"),
            format!("00-{}-00f067aa0ba902b7-01", TRACE.to_uppercase()),
        ] {
            let context = of(&value);
            assert!(context.parent_id.is_none() && context.trace_id != TRACE, "{value}");
            assert!(parse(context.header().unwrap().to_str().unwrap()).is_some());
        }
    }
}

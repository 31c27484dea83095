//! Reads the text of a server's `/metrics`: the classic Prometheus format and OpenMetrics alike.
//!
//! Our own, because the kept-alive crate for it (`openmetrics-parser`) is under the LGPL and builds a tree of every
//! series of the page, while a handful of families is read here, of every pod, every 5 seconds.
//! Strict where it matters: a page that is not an exposition (a login page, say), a sample that is cut, a number that
//! is none, or an own timestamp (our server writes none, so the values would be older than the scrape) refuse the whole page.
//!
//! Source: <https://prometheus.io/docs/instrumenting/exposition_formats/>, OpenMetrics 1.0.

use super::ReadError;
use super::raw::{RawSample, family};

/// Most labels on one series; ours have two.
const LABELS_MAX: usize = 16;

/// Reads a page taken at `at_s` (seconds of our clock).
///
/// # Errors
/// [`ReadError`] of the first line that is wrong, or the first family that is missing.
pub(super) fn parse(text: &str, at_s: f64) -> Result<RawSample, ReadError> {
    let mut raw = RawSample::at(at_s);
    for line in text.lines() {
        if line == "# EOF" {
            break;
        }
        if !line.is_empty() && !line.starts_with('#') {
            sample(line, &mut raw)?;
        }
    }
    raw.complete()
}

/// One line: `name{label="value",…} value`, after which only an exemplar may stand.
fn sample(line: &str, raw: &mut RawSample) -> Result<(), ReadError> {
    let end = line.find(|c: char| !is_name_char(c)).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || rest.is_empty() {
        return Err(ReadError::Malformed { what: "a line" });
    }
    if family(name).is_none() {
        return Ok(());
    }
    let (labels, rest) = labels(rest)?;
    let value = rest.strip_prefix(' ').ok_or(ReadError::Malformed { what: "a value" })?;
    let value = value.split_once(" # ").map_or(value, |(value, _exemplar)| value);
    let value = value.trim_end().parse::<f64>().map_err(|_| ReadError::Malformed { what: "a value" })?;
    let of = |wanted: &str| labels.iter().find(|(name, _)| *name == wanted).map(|(_, value)| *value);
    raw.put(name, of, value)
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == ':'
}

type Labels<'t> = Vec<(&'t str, &'t str)>;

/// The labels, and what follows their closing brace. A value with an escape is refused: no label that we read has one.
fn labels(text: &str) -> Result<(Labels<'_>, &str), ReadError> {
    let wrong = || ReadError::Malformed { what: "a label" };
    let mut found = Vec::new();
    let Some(mut rest) = text.strip_prefix('{') else { return Ok((found, text)) };
    loop {
        if let Some(after) = rest.strip_prefix('}') {
            return Ok((found, after));
        }
        let (name, after) = rest.split_once("=\"").ok_or_else(wrong)?;
        let (value, after) = after.split_once('"').ok_or_else(wrong)?;
        if name.is_empty() || !name.chars().all(is_name_char) || value.contains('\\') || found.len() == LABELS_MAX {
            return Err(wrong());
        }
        found.push((name, value));
        rest = after.strip_prefix(',').unwrap_or(after);
        if rest.len() == after.len() && !rest.starts_with('}') {
            return Err(wrong());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::raw::tests::page;

    #[test]
    fn whole_page_is_read_with_exemplars_and_comments() {
        let text =
            format!("# HELP a b\n\n# TYPE yolo_arrivals_total counter\n{}go_goroutines 9\n# EOF\nrubbish", page(7.0));
        let text = text.replace("yolo_queue_depth 7\n", "yolo_queue_depth 7 # {trace_id=\"x\"} 0.67\n");
        let raw = parse(&text, 12.5).unwrap();
        assert_eq!(raw, parse(&page(7.0), 12.5).unwrap());
        assert_eq!(raw.value("yolo_queue_depth", ""), Some(7.0));
        assert_eq!(raw.value("yolo_batch_curve_seconds", "8,mean"), Some(7.0));
        assert_eq!(raw.value("yolo_http_request_duration_seconds_bucket", "ok,+Inf"), Some(7.0));
        assert_eq!(raw.value("yolo_http_request_duration_seconds_bucket", "shed,+Inf"), None, "narrowed to ok");
    }

    #[test]
    fn every_prefix_of_a_page_is_refused_or_lacks_only_what_may_be_lacking() {
        let text = page(1234.0);
        let whole = parse(&text, 0.0).unwrap();
        for end in 0..text.len() {
            if let Ok(cut) = parse(&text[..end], 0.0) {
                assert!(cut.complete().is_ok());
                assert!(text.len() - end <= "yolo_workers 1234\n".len(), "cut after {end} of {} bytes", text.len());
            }
        }
        assert!(whole.complete().is_ok());
    }

    #[test]
    fn hostile_lines_refuse_the_page() {
        for bad in [
            "<html><body>Sign in</body></html>",
            "{}",
            "yolo_queue_depth",
            "yolo_queue_depth ",
            "yolo_queue_depth 1 1700000000000",
            "yolo_queue_depth NaN",
            "yolo_queue_depth +Inf",
            "yolo_queue_depth -3",
            "yolo_queue_depth 0x10",
            "yolo_queue_depth 1e999",
            "yolo_queue_depth{ 1",
            "yolo_queue_depth{a=\"b} 1",
            "yolo_batches_total{size=\"1\" 1",
            "yolo_batches_total{size=\"1\"x=\"2\"} 1",
            "yolo_batches_total{size=\"\\\"\"} 1",
            "yolo_batches_total{=\"1\"} 1",
            "yolo_batches_total 1",
            "yolo_batches_total{size=\"1\"}1",
            "9yolo 1",
        ] {
            // Instead of the series that the page would else have.
            let text = page(1.0).replace("yolo_queue_depth 1\n", "") + bad;
            assert!(parse(&text, 0.0).is_err(), "{bad}");
        }
        let many = (0..2000).fold(page(1.0), |text, n| text + &format!("yolo_stage_queued{{stage=\"s{n}\"}} 1\n"));
        assert!(matches!(parse(&many, 0.0), Err(ReadError::Malformed { what: "the number of series" })));
    }
}

//! Classic Prometheus text from OpenMetrics text.
//!
//! The two differ in what we use only by the counters' family name (classic: the sample's own name, with `_total`),
//! the trailing dot that OpenMetrics help texts get, `# UNIT` and `# EOF`.

/// Rewrites an OpenMetrics document of counters, gauges and histograms as classic text.
pub fn classic(open_metrics: &str) -> String {
    let mut document = String::with_capacity(open_metrics.len());
    let mut lines = open_metrics.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(comment) = line.strip_prefix("# ") else {
            document.extend([line, "\n"]);
            continue;
        };
        // UNIT and EOF have no place in the classic text.
        let Some((kind @ ("HELP" | "TYPE"), rest)) = comment.split_once(' ') else { continue };
        let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        // A family's help comes right before its type. A gauge may have the name of a counter without its `_total`.
        let type_line = if kind == "TYPE" { Some(&line) } else { lines.peek() };
        let total = if type_line.is_some_and(|line| line.ends_with(" counter")) { "_total" } else { "" };
        let rest = if kind == "HELP" { rest.strip_suffix('.').unwrap_or(rest) } else { rest };
        document.extend(["# ", kind, " ", name, total, " ", rest, "\n"]);
    }
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_renamed_and_the_rest_is_kept() {
        let open = "# HELP yolo_a Things.\n# TYPE yolo_a counter\nyolo_a_total 1\n# HELP yolo_b Level.\n\
                    # TYPE yolo_b gauge\n# UNIT yolo_b bytes\nyolo_b{x=\"# y\"} 2\n\
                    # HELP yolo_a Level.\n# TYPE yolo_a gauge\nyolo_a 3\n# EOF\n";
        let expected = "# HELP yolo_a_total Things\n# TYPE yolo_a_total counter\nyolo_a_total 1\n\
                        # HELP yolo_b Level\n# TYPE yolo_b gauge\nyolo_b{x=\"# y\"} 2\n\
                        # HELP yolo_a Level\n# TYPE yolo_a gauge\nyolo_a 3\n";
        assert_eq!(classic(open), expected);
    }
}

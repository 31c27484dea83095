//! Classic Prometheus text from OpenMetrics text.
//!
//! The two differ in what we use only by the counters' family name (classic: the sample's own name, with `_total`),
//! the trailing dot that OpenMetrics help texts get, `# UNIT` and `# EOF`.

/// Rewrites an OpenMetrics document of counters, gauges and histograms as classic text.
pub fn classic(open_metrics: &str) -> String {
    let counters: Vec<&str> =
        open_metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let mut document = String::with_capacity(open_metrics.len());
    for line in open_metrics.lines() {
        match line.strip_prefix("# ") {
            None => document.push_str(line),
            Some(comment) => match comment.split_once(' ') {
                Some((kind @ ("HELP" | "TYPE"), rest)) => {
                    let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
                    let total = if counters.contains(&name) { "_total" } else { "" };
                    let rest = if kind == "HELP" { rest.strip_suffix('.').unwrap_or(rest) } else { rest };
                    for piece in ["# ", kind, " ", name, total, " ", rest] {
                        document.push_str(piece);
                    }
                }
                _ => continue, // UNIT and EOF have no place in the classic text
            },
        }
        document.push('\n');
    }
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_renamed_and_the_rest_is_kept() {
        let open = "# HELP yolo_a Things.\n# TYPE yolo_a counter\nyolo_a_total 1\n# HELP yolo_b Level.\n\
                    # TYPE yolo_b gauge\n# UNIT yolo_b bytes\nyolo_b{x=\"# y\"} 2\n# EOF\n";
        let expected = "# HELP yolo_a_total Things\n# TYPE yolo_a_total counter\nyolo_a_total 1\n\
                        # HELP yolo_b Level\n# TYPE yolo_b gauge\nyolo_b{x=\"# y\"} 2\n";
        assert_eq!(classic(open), expected);
    }
}

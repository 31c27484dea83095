//! What the chain must reproduce: closed forms, published tables and an independent simulation (control.md §4).

use super::search::Goal;
use super::{Latencies, Search, Server};

fn line(alpha_ms: f64, beta_ms: f64) -> Vec<f64> {
    (1..=128).map(|n| (alpha_ms + beta_ms * f64::from(n)) / 1e3).collect()
}

fn server(times: &[f64], batch: u32, dispersion: f64) -> Server<'_> {
    Server::new(times, batch, dispersion).unwrap()
}

/// The mean as the integral of the tail.
fn mean_s(latencies: &Latencies) -> f64 {
    let end_s = latencies.quantile(1.0 - 1e-9) * 1.05;
    let parts = 20_000_u32;
    let width_s = end_s / f64::from(parts);
    (0..parts).map(|part| latencies.beyond((f64::from(part) + 0.5) * width_s)).sum::<f64>() * width_s
}

#[test]
fn without_batches_it_is_the_closed_form_of_m_d_1() {
    let times = line(5.0, 5.0);
    // Nearer to saturation the queue is longer than the 66 images that the chain of b = 1 tells apart.
    for utilization in [0.3, 0.6, 0.85] {
        let server = server(&times, 1, 1.0);
        let found = mean_s(&server.latencies(utilization * server.saturation()).unwrap());
        let exact = 0.010 + utilization * 0.010 / (2.0 * (1.0 - utilization));
        assert!((found / exact - 1.0).abs() < 2e-4, "{utilization}: {found} for {exact}");
    }
}

/// Inoue 2019 (arXiv 1912.06322): an upper bound of the mean without a batch limit, and the chain's own means.
#[test]
fn means_keep_inoues_bound() {
    let times = line(6.0, 2.2);
    let rows = [
        (20.0, 8.933, 8.928),
        (116.5, 14.541, 13.547),
        (200.0, 19.400, 19.027),
        (300.0, 31.655, 31.615),
        (380.0, 65.239, 65.236),
    ];
    for (rate, bound_ms, chain_ms) in rows {
        let found = mean_s(&server(&times, 128, 1.0).latencies(rate).unwrap()) * 1e3;
        assert!(found <= bound_ms, "{rate}/s: {found} beyond {bound_ms}");
        assert!((found / chain_ms - 1.0).abs() < 2e-3, "{rate}/s: {found} for {chain_ms}");
    }
}

#[test]
fn largest_rates_are_the_golden_ones() {
    let golden = [
        (6.0, 2.2, 16, 0.180, [377.3, 367.0, 347.6]),
        (6.0, 2.2, 8, 0.080, [312.4, 289.1, 248.1]),
        (10.0, 6.0, 8, 0.150, [122.0, 109.3, 88.9]),
        (5.0, 28.0, 1, 0.180, [21.74, 16.55, 12.34]),
        (5.0, 28.0, 2, 0.180, [22.97, 17.26, 12.83]),
    ];
    for (alpha, beta, batch, limit_s, rates) in golden {
        let times = line(alpha, beta);
        for (dispersion, exact) in [1.0, 2.0, 4.0].into_iter().zip(rates) {
            let found = Search::run(&server(&times, batch, dispersion), Goal { limit_s, slow: 0.05 });
            assert!(
                (found / exact - 1.0).abs() < 5e-3,
                "{alpha}+{beta}b b={batch} I={dispersion}: {found} for {exact}"
            );
        }
    }
}

#[test]
fn latencies_and_busy_shares_are_the_golden_ones() {
    let times = line(6.0, 2.2);
    for (batch, rate, p95_ms, busy) in [(4, 189.2, 32.68, 0.9369), (16, 349.5, 84.12, 0.9997)] {
        let found = server(&times, batch, 1.0).latencies(rate).unwrap();
        assert!((found.quantile(0.95) * 1e3 / p95_ms - 1.0).abs() < 5e-3, "{} for {p95_ms}", found.quantile(0.95));
        assert!((found.busy - busy).abs() < 1e-3, "{} for {busy}", found.busy);
    }
}

/// With a delay the chain starts leftovers at once, the simulator of control.md §1 (finding 6: 19, 10 and 1 ms at .3, .8
/// and .95) when the oldest is d old: where most batches follow others the chain sees less of it.
#[test]
fn a_queue_delay_adds_at_most_itself_and_vanishes_under_load() {
    let times = line(6.0, 2.2);
    let added_ms = [0.05, 0.3, 0.8, 0.95].map(|share| {
        let plain = server(&times, 16, 1.0);
        let rate = share * plain.saturation();
        let delayed = Server { delay_s: 0.020, ..plain };
        1e3 * (delayed.latencies(rate).unwrap().quantile(0.95) - plain.latencies(rate).unwrap().quantile(0.95))
    });
    assert!((15.0..20.0).contains(&added_ms[0]) && (10.0..19.0).contains(&added_ms[1]), "{added_ms:?}");
    assert!((-0.1..1.0).contains(&added_ms[2]) && (-0.1..1.0).contains(&added_ms[3]), "{added_ms:?}");
}

#[test]
fn tails_are_shares_that_fall_with_the_limit() {
    let times = line(6.0, 2.2);
    for (batch, share, dispersion) in [(1, 0.5, 1.0), (8, 0.9, 4.0), (16, 0.97, 1.0), (32, 0.2, 8.0)] {
        let server = server(&times, batch, dispersion);
        let latencies = server.latencies(share * server.saturation()).unwrap();
        let tails: Vec<f64> = (0..400).map(|ms| latencies.beyond(f64::from(ms) / 1e3)).collect();
        assert!((tails[0] - 1.0).abs() < 1e-9, "everything takes longer than nothing: {}", tails[0]);
        assert!(tails.windows(2).all(|pair| pair[1] <= pair[0] + 1e-12 && (0.0..=1.0).contains(&pair[1])));
    }
}

#[test]
fn waiting_sums_to_one_and_is_left_as_it_is_by_a_step() {
    let times = line(6.0, 2.2);
    for (batch, share, dispersion) in [(1, 0.9, 1.0), (8, 0.95, 4.0), (32, 0.5, 1.0)] {
        let server = server(&times, batch, dispersion);
        let rate = share * server.saturation();
        let starters = server.starters(rate);
        let waiting = super::stationary::waiting(&server, rate, &starters);
        assert!((waiting.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        let mut next = vec![0.0; waiting.len()];
        for (n, weight) in waiting.iter().enumerate() {
            let size = n.clamp(1, batch as usize);
            let counts = super::distribution(rate * server.time(size), dispersion);
            for (count, probability) in counts.iter().enumerate() {
                let to = (n.saturating_sub(size) + count).min(waiting.len() - 1);
                next[to] += weight * probability;
            }
        }
        let change: f64 = waiting.iter().zip(&next).map(|(a, b)| (a - b).abs()).sum();
        assert!(change < 1e-10, "b={batch}: {change}");
    }
}

#[test]
fn beyond_saturation_and_for_no_rate_there_is_no_latency() {
    let times = line(6.0, 2.2);
    let server = server(&times, 8, 1.0);
    for rate in [0.0, -1.0, f64::NAN, f64::INFINITY, server.saturation(), 1e308] {
        assert!(server.latencies(rate).is_none(), "{rate}");
    }
    assert!(Server::new(&[0.0, f64::NAN], 2, 1.0).is_none());
    assert!(Server::new(&times, 129, 1.0).is_none());
}

#[test]
fn a_limit_below_one_image_allows_no_rate() {
    let times = line(50.0, 10.0);
    assert!(Search::run(&server(&times, 8, 1.0), Goal { limit_s: 0.0599, slow: 0.05 }) <= 0.0);
    assert!(Search::run(&server(&times, 8, 1.0), Goal { limit_s: 0.0601, slow: 0.05 }) > 0.0);
}

/// Law 4: μ* falls in I and t, rises in x and ε.
#[test]
fn largest_rates_are_monotone() {
    let rate = |scale: f64, dispersion: f64, limit_s: f64, slow: f64| {
        let times: Vec<f64> = line(6.0, 2.2).iter().map(|time| time * scale).collect();
        Search::run(&server(&times, 8, dispersion), Goal { limit_s, slow })
    };
    let falls = |rates: &[f64]| rates.windows(2).all(|pair| pair[1] < pair[0]);
    assert!(falls(&[1.0, 1.3, 2.0, 4.0, 8.0].map(|i| rate(1.0, i, 0.080, 0.05))));
    assert!(falls(&[1.0, 1.02, 1.2, 2.0].map(|scale| rate(scale, 1.0, 0.080, 0.05))));
    assert!(falls(&[0.2, 0.1, 0.080, 0.060, 0.040].map(|limit_s| rate(1.0, 1.0, limit_s, 0.05))));
    assert!(falls(&[0.5, 0.2, 0.1, 0.05, 0.01].map(|slow| rate(1.0, 1.0, 0.080, slow))));
}

/// Law 10: other units of time, same queue.
#[test]
fn time_scales_out() {
    let times = line(6.0, 2.2);
    let slow: Vec<f64> = times.iter().map(|time| time * 7.0).collect();
    let base = Search::run(&server(&times, 8, 2.0), Goal { limit_s: 0.080, slow: 0.05 });
    let scaled = Search::run(&server(&slow, 8, 2.0), Goal { limit_s: 0.560, slow: 0.05 });
    assert!((base / scaled / 7.0 - 1.0).abs() < 1e-9, "{base} {scaled}");
}

/// `cargo test -p yolo-planner -- --nocapture solutions_cost` prints the figures.
#[test]
fn solutions_cost_what_they_say() {
    let times = line(6.0, 2.2);
    for batch in [1, 2, 4, 8, 16, 32] {
        let server = server(&times, batch, 1.0);
        let goal = Goal { limit_s: 0.180, slow: 0.05 };
        let mut search = Search::new(&server, goal, None);
        let start = std::time::Instant::now();
        while search.found(&server).is_none() {
            search.step(&server, goal);
        }
        let each_us = start.elapsed().as_secs_f64() * 1e6 / f64::from(search.steps());
        println!("b={batch}: {} solutions of {each_us:.0} µs, said {} µs", search.steps(), server.cost() / 1000);
        assert!(search.steps() <= 44, "bisection alone would do: {}", search.steps());
    }
}

//! What must stay flat, as the server itself exports it.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Memory in MB (10^6 bytes), and counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    pub resident_mb: f64,
    pub files: f64,
    pub threads: f64,
    pub tasks: f64,
}

/// `None` while the server is not ready.
pub async fn sample(admin: SocketAddr) -> Option<Sample> {
    let mut stream = TcpStream::connect(admin).await.ok()?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n").await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
    value("yolo_ready").filter(|ready| *ready > 0.5)?;
    Some(Sample {
        resident_mb: value("process_resident_memory_bytes")? / 1e6,
        files: value("process_open_fds")?,
        threads: value("process_threads")?,
        tasks: value("yolo_runtime_tasks")?,
    })
}

/// Growth along the least-squares line through what `of` picks of `samples`, each with its second.
pub fn growth(samples: &[(f64, Sample)], of: fn(&Sample) -> f64) -> f64 {
    let count = f64::from(u32::try_from(samples.len()).unwrap());
    let x = samples.iter().map(|(second, _)| second).sum::<f64>() / count;
    let y = samples.iter().map(|(_, sample)| of(sample)).sum::<f64>() / count;
    let covariance: f64 = samples.iter().map(|(second, sample)| (second - x) * (of(sample) - y)).sum();
    let slope = covariance / samples.iter().map(|(second, _)| (second - x).powi(2)).sum::<f64>();
    slope * (samples[samples.len() - 1].0 - samples[0].0)
}

//! `yolo-load`: one phase of open-loop load against one service; prints a summary as JSON.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use yolo_loadgen::client::{Client, Limits, Target};
use yolo_loadgen::pictures::{Mode, Pictures};
use yolo_loadgen::schedule::{self, Phase};

/// Sends pictures at a mean rate, each at its scheduled time, and prints rates, latencies and outcomes.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Address of the service, such as 127.0.0.1:8080.
    #[arg(long)]
    address: SocketAddr,
    /// Path with query.
    #[arg(long, default_value = "/predict")]
    path: String,
    /// Mean requests a second.
    #[arg(long)]
    rate: f64,
    /// Length in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// Folder of JPEG files.
    #[arg(long)]
    pictures: PathBuf,
    /// Whether each request's bytes are new.
    #[arg(long, value_enum, default_value_t = Bodies::Distinct)]
    bodies: Bodies,
    /// Kept-alive connections.
    #[arg(long, default_value_t = Limits::default().connections)]
    connections: usize,
    /// Most requests in flight.
    #[arg(long, default_value_t = Limits::default().in_flight_max)]
    in_flight_max: usize,
    /// Seed of the arrival times.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// An address beside loopback that may be loaded; may be repeated.
    #[arg(long)]
    allow: Vec<IpAddr>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Bodies {
    Distinct,
    Repeated,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let run = SystemTime::UNIX_EPOCH.elapsed().context("the clock is before 1970")?.as_secs();
    let pictures = Pictures::read(&args.pictures, run)?;
    let target = Target { address: args.address, host: args.address.to_string(), path: args.path };
    let limits = Limits { connections: args.connections, in_flight_max: args.in_flight_max, ..Limits::default() };
    let epoch = tokio::time::Instant::now();
    let client = Client::new(target, limits, &args.allow, epoch)?;
    let length = Duration::from_secs(args.seconds.into());
    let arrivals = schedule::arrivals(&[Phase { rate_per_second: args.rate, length }], args.seed);
    let mode = match args.bodies {
        Bodies::Distinct => Mode::Distinct,
        Bodies::Repeated => Mode::Repeated,
    };
    let recording = client.run(arrivals, (&pictures, mode), std::future::pending()).await;
    println!("{}", serde_json::to_string_pretty(&recording.summary(Duration::ZERO, length))?);
    Ok(())
}

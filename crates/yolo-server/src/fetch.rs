//! `yolo-server fetch`: brings a model to a file that the server then reads, before it, as an init container.
//!
//! A transfer that breaks goes on where it was, in this process and, by the part file, in the next one. Nothing has the
//! model's name before its SHA-256 is right.

mod location;
mod part;
mod registry;
mod source;
mod store;

use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use futures::StreamExt;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::time::timeout;

use crate::{limits, random, termination};
use location::Location;
use part::Part;
use source::{Failure, Source, Transfer};

/// How often a transfer says where it is.
const PROGRESS: Duration = Duration::from_secs(5);

/// Settings of one fetch. Credentials come from the environment alone.
#[derive(Debug, Clone, Parser)]
#[command(name = "yolo-server fetch", version, about = "Fetches a model and checks its SHA-256")]
pub struct Fetch {
    /// Where the model is: s3://, gs://, az://, https:// or oci://.
    #[arg(long)]
    pub uri: String,
    /// Its SHA-256, 64 hexadecimal digits; only an oci uri that is pinned with @sha256: goes without.
    #[arg(long)]
    pub sha256: Option<String>,
    /// The file to write, in a directory that exists.
    #[arg(long)]
    pub to: PathBuf,
    /// Failures in a row, without a byte between them, after which it gives up.
    #[arg(long, default_value_t = 5)]
    pub tries: u32,
    /// Where the reason is written when there will be no model.
    #[arg(long, default_value = "/dev/termination-log")]
    pub termination_log: PathBuf,
}

/// Why there is no model. The text names the uri, without its query, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nothing of that name.
    #[error("there is no model at {uri}: {detail}")]
    Missing {
        /// As configured, without its query.
        uri: String,
        /// What was answered.
        detail: String,
    },
    /// Not the file that was asked for.
    #[error("the model at {uri} has SHA-256 {found}, expected {expected}")]
    DigestMismatch {
        /// As configured, without its query.
        uri: String,
        /// Digest as configured.
        expected: String,
        /// Digest of what came.
        found: String,
    },
    /// A place or a file that cannot hold a model for this server.
    #[error("the model at {uri} is not supported: {detail}")]
    Unsupported {
        /// As configured, without its query.
        uri: String,
        /// What does not fit.
        detail: String,
    },
    /// The place refuses, or cannot be reached.
    #[error("the model at {uri} cannot be fetched: {detail}")]
    Source {
        /// As configured, without its query.
        uri: String,
        /// The innermost cause.
        detail: String,
    },
    /// The file cannot be written.
    #[error("the model cannot be written to {file}: {detail}")]
    Disk {
        /// As configured.
        file: String,
        /// The system's words.
        detail: String,
    },
}

impl FetchError {
    /// Closed set: the code in the termination log, which becomes a condition's reason.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "model_missing",
            Self::DigestMismatch { .. } => "model_digest_mismatch",
            Self::Unsupported { .. } => "model_unsupported",
            Self::Source { .. } | Self::Disk { .. } => "model_fetch_failed",
        }
    }
}

/// Fetches the model, or writes the reason to the termination log.
///
/// Cancellation: dropped at any moment, what came stays in the part file and is gone on with.
///
/// # Errors
/// [`FetchError`].
pub async fn run(args: &Fetch) -> Result<(), FetchError> {
    let fetched = fetch(args).await;
    if let Err(error) = &fetched {
        termination::tell(&args.termination_log, error.code(), error.to_string());
    }
    fetched
}

async fn fetch(args: &Fetch) -> Result<(), FetchError> {
    let unsupported = |detail| FetchError::Unsupported { uri: args.uri.clone(), detail };
    let location = Location::parse(&args.uri).map_err(unsupported)?;
    if args.sha256.is_none() && !location.pinned() {
        return Err(unsupported("give its SHA-256, or pin an oci uri with @sha256:".to_owned()));
    }
    // Fails only if one is installed already: then that one serves.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let disk = |error: io::Error| FetchError::Disk { file: args.to.display().to_string(), detail: error.to_string() };
    let mut part = Part::open(&args.to).map_err(disk)?;
    let told = |failure| tell(&location, failure);
    if part.len() > 0 && args.sha256.as_ref().is_some_and(|sha256| sha256.eq_ignore_ascii_case(&part.sha256())) {
        tracing::info!(uri = %location, bytes = part.len(), "Model is here already.");
        return part.finish().map_err(disk);
    }
    let source = Source::new(&location).map_err(told)?;
    let start = Instant::now();
    let mut patience = Patience { left: args.tries, most: args.tries, transfers: 0 };
    // Bytes of an earlier transfer may be of another file: only then is a wrong digest no answer yet.
    let mut pieced = part.len() > 0;
    loop {
        let before = part.len();
        let outcome = transfer(&source, &mut part, args.sha256.as_deref()).await.map_err(disk)?;
        match outcome {
            Ok(Checked::Right) => break,
            Ok(Checked::Wrong { .. }) if pieced => {
                part.clear().map_err(disk)?;
                pieced = false;
            }
            Ok(Checked::Wrong { expected, found }) => {
                part.remove().map_err(disk)?;
                return Err(FetchError::DigestMismatch { uri: location.to_string(), expected, found });
            }
            Err(Failure::Stale) if before > 0 => {
                part.clear().map_err(disk)?;
                pieced = false;
            }
            Err(failure @ (Failure::Interrupted(_) | Failure::Stale)) => {
                pieced = part.len() > 0;
                patience.wait(part.len() > before, &failure).await.map_err(|()| told(failure))?;
            }
            Err(failure) => return Err(told(failure)),
        }
    }
    tracing::info!(uri = %location, bytes = part.len(), seconds = start.elapsed().as_secs_f64(), "Model is fetched.");
    part.finish().map_err(disk)
}

/// What the bytes are once all are there.
enum Checked {
    Right,
    Wrong { expected: String, found: String },
}

/// Reads on from where `part` ends. The outer error is the disk's.
async fn transfer(source: &Source, part: &mut Part, expected: Option<&str>) -> io::Result<Result<Checked, Failure>> {
    let stalled = |_| Failure::Interrupted(format!("no byte came for {} s", limits::FETCH_STALL_MAX.as_secs()));
    let opened = timeout(limits::FETCH_STALL_MAX, source.open(part.len())).await.map_err(stalled);
    let Transfer { size, sha256, mut bytes } = match opened.and_then(|opened| opened) {
        Ok(transfer) => transfer,
        Err(failure) => return Ok(Err(failure)),
    };
    let expected = expected.map(str::to_ascii_lowercase).or_else(|| sha256.clone()).unwrap_or_default();
    if let Some(found) = sha256.filter(|sha256| *sha256 != expected) {
        return Ok(Ok(Checked::Wrong { expected, found }));
    }
    if size > limits::MODEL_BYTES_MAX {
        let detail = format!("{size} bytes; an ONNX file has at most {}", limits::MODEL_BYTES_MAX);
        return Ok(Err(Failure::Unsupported(detail)));
    }
    let mut told = Instant::now();
    while part.len() < size {
        let chunk = match timeout(limits::FETCH_STALL_MAX, bytes.next()).await.map_err(stalled) {
            Ok(Some(Ok(chunk))) => chunk,
            Ok(Some(Err(failure))) | Err(failure) => return Ok(Err(failure)),
            Ok(None) => return Ok(Err(Failure::Interrupted("the transfer ended too early".to_owned()))),
        };
        part.append(&chunk)?;
        if told.elapsed() >= PROGRESS {
            told = Instant::now();
            tracing::info!(bytes = part.len(), of = size, "Model is on its way.");
        }
    }
    let found = part.sha256();
    Ok(Ok(if part.len() == size && found == expected { Checked::Right } else { Checked::Wrong { expected, found } }))
}

/// Bounded retries: by failures in a row, and in all.
struct Patience {
    left: u32,
    most: u32,
    transfers: u32,
}

impl Patience {
    /// Waits before the next try, longer from failure to failure.
    async fn wait(&mut self, progressed: bool, failure: &Failure) -> Result<(), ()> {
        self.transfers += 1;
        self.left = if progressed { self.most } else { self.left.saturating_sub(1) };
        if self.left == 0 || self.transfers >= limits::FETCH_TRANSFERS_MAX {
            return Err(());
        }
        let doublings = (self.most - self.left).min(16);
        let wait = limits::FETCH_WAIT_MIN.saturating_mul(1 << doublings).min(limits::FETCH_WAIT_MAX);
        // Spread, so that the pods of a rollout do not come back together.
        let wait = wait.mul_f64(random::within(0.5, 1.0));
        tracing::warn!(?failure, wait_s = wait.as_secs_f64(), "Transfer broke and is taken up again.");
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

fn tell(uri: &impl Display, failure: Failure) -> FetchError {
    let uri = uri.to_string();
    match failure {
        Failure::Missing(detail) => FetchError::Missing { uri, detail },
        Failure::Unsupported(detail) => FetchError::Unsupported { uri, detail },
        Failure::Refused(detail) | Failure::Interrupted(detail) => FetchError::Source { uri, detail },
        Failure::Stale => FetchError::Source { uri, detail: "the server refuses the file's own length".to_owned() },
    }
}

/// A variable of the environment that is set and not empty.
fn credential(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Certificate authorities beside the system's, DER: those of `YOLO_CA_CERTIFICATES`, PEM.
fn trusted() -> Result<Vec<Vec<u8>>, Failure> {
    let pem = credential("YOLO_CA_CERTIFICATES").unwrap_or_default();
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes()).map(|der| der.map(|der| der.to_vec()));
    certificates.collect::<Result<_, _>>().map_err(|_| Failure::Refused("YOLO_CA_CERTIFICATES holds no PEM".to_owned()))
}

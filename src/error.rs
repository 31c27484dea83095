//! Why a reconcile failed: one variant a step, and the category that decides the retry.

use kube::core::error_boundary::InvalidObject;

use crate::call::{Category, WriteError};
use crate::leader::LeaderError;
use crate::validate::Invalid;

/// Why a reconcile failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This process may not write.
    #[error("failed to reconcile without leadership")]
    NotLeader(#[source] LeaderError),
    /// The stored object does not fit our types: it was written past the schema, or by another version.
    #[error("failed to read the object")]
    Malformed(#[source] Box<InvalidObject>),
    /// A value that the schema cannot refuse.
    #[error("failed to validate the spec")]
    Validate(#[source] Invalid),
    /// A child object could not be written.
    #[error("failed to apply")]
    Apply(#[source] WriteError),
    /// The status could not be written.
    #[error("failed to report")]
    Report(#[source] WriteError),
    /// The whole reconcile took too long.
    #[error("failed to finish within {0:?}")]
    TooSlow(std::time::Duration),
}

impl Error {
    /// Closed set: metric label and log field.
    pub fn category(&self) -> &'static str {
        match self {
            Self::NotLeader(_) => "not_leader",
            Self::Malformed(_) => "malformed",
            Self::Validate(_) => "invalid",
            Self::Apply(error) | Self::Report(error) => error.category().as_str(),
            Self::TooSlow(_) => "too_slow",
        }
    }

    /// When to try again.
    pub fn retry(&self) -> Retry {
        match self {
            // Only a change of the object helps; the watch brings it.
            Self::Malformed(_) | Self::Validate(_) => Retry::Slow,
            Self::NotLeader(_) | Self::TooSlow(_) => Retry::Transient,
            Self::Apply(error) | Self::Report(error) => match error.category() {
                Category::Denied | Category::Missing | Category::Internal => Retry::Denied,
                // NameTaken: an earlier service's object goes by itself, and nothing tells when a stranger's does. The
                // label of an account is looked up in memory.
                Category::Conflict
                | Category::Api
                | Category::Timeout
                | Category::NotLeader
                | Category::NameTaken
                | Category::AccountNotAllowed => Retry::Transient,
            },
        }
    }

    /// The failure and its causes in one line.
    pub fn chain(&self) -> String {
        match self {
            Self::Apply(error) | Self::Report(error) => format!("{self}: {}", error.detail()),
            Self::NotLeader(error) => format!("{self}: {error}"),
            Self::Malformed(error) => format!("{self}: {error}"),
            Self::Validate(error) => format!("{self}: {error}"),
            Self::TooSlow(_) => self.to_string(),
        }
    }
}

/// How soon a failed reconcile is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Soon, with doubling pauses: it may go away by itself.
    Transient,
    /// With doubling pauses up to minutes: a person must act, but nothing tells us when.
    Denied,
    /// At the usual requeue: the watch tells when the object changes.
    Slow,
}

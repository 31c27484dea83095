//! One call to the Kubernetes API: permitted by evidence of leadership, bounded in time, named when it fails.

use std::future::Future;
use std::time::Duration;

use kube::Client;

use crate::leader::{LeaderError, LeaderToken};
use crate::limits;
use crate::metrics::Metrics;

/// What is written; for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The object's kind.
    pub kind: &'static str,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Target {
    /// Names an object.
    pub fn new(kind: &'static str, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// Why a write failed.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The evidence does not permit a write.
    #[error("failed to write {target}")]
    NotLeader {
        /// What.
        target: Target,
        /// Why not.
        #[source]
        source: LeaderError,
    },
    /// The API server, or the way there, refused.
    #[error("failed to write {target}")]
    Api {
        /// What.
        target: Target,
        /// The API server's answer.
        #[source]
        source: Box<kube::Error>,
    },
    /// An object of this name is somebody else's.
    #[error("{target} exists already and {holder}; delete or rename it, or give this service another name")]
    NameTaken {
        /// What.
        target: Target,
        /// Whose it is, as a clause.
        holder: String,
    },
    /// The pods may not have the service account that the spec names.
    #[error(
        "spec.server.serviceAccountName: {target} does not exist or does not have the label {}; add it, or name another one",
        crate::accounts::ALLOWED_SELECTOR
    )]
    AccountNotAllowed {
        /// Which.
        target: Target,
    },
    /// No answer in time. The write may have taken effect; all our writes may be repeated.
    #[error("no answer for {target} within {limit:?}")]
    Timeout {
        /// What.
        target: Target,
        /// The limit.
        limit: Duration,
    },
    /// The object could not be turned into JSON.
    #[error("failed to serialise {target}")]
    Serialise {
        /// What.
        target: Target,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// Closed set: metric label, log field, and what decides the retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Category {
    /// Another writer was faster, or owns a field.
    Conflict,
    /// Quota, Pod Security, admission, RBAC, schema: only a person can end it.
    Denied,
    /// 404: the object or its namespace is gone.
    Missing,
    /// 429, 5xx or no connection.
    Api,
    /// No answer in time.
    Timeout,
    /// Somebody else's object has a name that a service needs.
    NameTaken,
    /// The pods may not have the service account that was asked for.
    AccountNotAllowed,
    /// The lease is lost or ends.
    NotLeader,
    /// Not JSON.
    Internal,
}

impl Category {
    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::Denied => "denied",
            Self::Missing => "missing",
            Self::Api => "api",
            Self::Timeout => "timeout",
            Self::NameTaken => "name_taken",
            Self::AccountNotAllowed => "account_not_allowed",
            Self::NotLeader => "not_leader",
            Self::Internal => "internal",
        }
    }
}

impl WriteError {
    /// The class of the failure.
    pub fn category(&self) -> Category {
        match self {
            Self::NotLeader { .. } => Category::NotLeader,
            Self::Timeout { .. } => Category::Timeout,
            Self::NameTaken { .. } => Category::NameTaken,
            Self::AccountNotAllowed { .. } => Category::AccountNotAllowed,
            Self::Serialise { .. } => Category::Internal,
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => match status.code {
                    409 => Category::Conflict,
                    404 => Category::Missing,
                    429 => Category::Api,
                    400..=499 => Category::Denied,
                    _ => Category::Api,
                },
                _ => Category::Api,
            },
        }
    }

    /// The API server's own words, which name the quota, policy or field.
    pub fn detail(&self) -> String {
        match self {
            Self::Api { target, source } => match source.as_ref() {
                kube::Error::Api(status) => format!("{target}: {}", status.message),
                other => format!("{target}: {other}"),
            },
            other => other.to_string(),
        }
    }
}

/// What it takes to write: a client, the evidence, and the counters.
#[derive(Clone, Copy)]
pub struct Access<'a> {
    /// The API client.
    pub client: &'a Client,
    /// Evidence of leadership.
    pub leader: &'a LeaderToken,
    /// Counts the calls.
    pub metrics: &'a Metrics,
}

impl Access<'_> {
    /// Performs one write.
    ///
    /// # Errors
    /// [`WriteError`], which names `target`.
    ///
    /// # Cancellation
    /// The write may or may not have taken effect.
    pub async fn write<T>(
        &self,
        target: &Target,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, WriteError> {
        let outcome = self.bounded(target, call).await;
        self.metrics.wrote(target.kind, label(&outcome));
        outcome
    }

    /// Performs one read; bounded and named as a write is.
    ///
    /// # Errors
    /// [`WriteError`], which names `target`.
    pub async fn read<T>(
        &self,
        target: &Target,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, WriteError> {
        let outcome = self.bounded(target, call).await;
        self.metrics.read(target.kind, label(&outcome));
        outcome
    }

    async fn bounded<T>(
        &self,
        target: &Target,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, WriteError> {
        self.leader.check().map_err(|source| WriteError::NotLeader { target: target.clone(), source })?;
        match tokio::time::timeout(limits::API_CALL, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(source)) => Err(WriteError::Api { target: target.clone(), source: Box::new(source) }),
            Err(_elapsed) => Err(WriteError::Timeout { target: target.clone(), limit: limits::API_CALL }),
        }
    }
}

/// `ok`, or the category.
fn label<T>(outcome: &Result<T, WriteError>) -> &'static str {
    outcome.as_ref().map_or_else(|error| error.category().as_str(), |_| "ok")
}

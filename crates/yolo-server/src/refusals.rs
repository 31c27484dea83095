//! Contents that were refused for load a moment ago: offered again they are a retry, not new demand.
//!
//! Without this a client that retries without saying so would look like rising traffic, and an autoscaler would follow.

use std::time::{Duration, Instant};

use quick_cache::sync::Cache;

/// How long a refused picture that comes again is the same demand.
const RETRY_WITHIN: Duration = Duration::from_secs(5);
/// Refused pictures that are remembered: five seconds of refusals at 800 a second, 200 kB.
const REFUSALS_MAX: usize = 4_096;

/// Contents refused lately.
#[derive(Debug)]
pub struct Refusals(Cache<[u8; 32], Instant>);

impl Default for Refusals {
    fn default() -> Self {
        Self(Cache::new(REFUSALS_MAX))
    }
}

impl Refusals {
    /// A picture of this content was refused now.
    pub fn remember(&self, content: [u8; 32]) {
        self.0.insert(content, Instant::now());
    }

    /// Whether a picture of this content was refused within the last seconds.
    pub fn recent(&self, content: &[u8; 32]) -> bool {
        self.0.get(content).is_some_and(|refused| refused.elapsed() <= RETRY_WITHIN)
    }
}

//! SHA-256 of what comes in pieces.

use ring::digest::{Context, SHA256};

/// A digest that grows with what is read.
#[derive(Clone)]
pub struct Sha256(Context);

impl Default for Sha256 {
    fn default() -> Self {
        Self::new()
    }
}

impl Sha256 {
    /// The digest of nothing.
    pub fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    /// Adds what follows.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Of everything so far: 64 hexadecimal digits, lower case.
    pub fn hex(self) -> String {
        self.0.finish().as_ref().iter().fold(String::new(), |digits, byte| format!("{digits}{byte:02x}"))
    }
}

//! Names of tasks: not to be guessed, since a name is all that reading a result takes.
//!
//! The last digits check the rest, so that a task which is gone (410) is told from a name that was never given (404)
//! without remembering either.

use ring::rand::{SecureRandom, SystemRandom};

/// 128 bits, as a UUID has.
const RANDOM_BYTES: usize = 16;
/// Hexadecimal digits that check the others: one wrong name in 65 536 passes.
const CHECK_DIGITS: usize = 4;

/// Gives names that begin with a prefix, and knows them again.
#[derive(Debug, Clone)]
pub struct Names {
    prefix: String,
}

impl Names {
    /// Names of tasks that only this process knows: they carry its host's name, which is the pod's.
    pub fn of_this_process() -> Self {
        Self { prefix: format!("{}.", host()) }
    }

    /// Names of tasks in a store that all pods share.
    pub const fn shared() -> Self {
        Self { prefix: String::new() }
    }

    /// A new name; `None` if the system has no randomness.
    pub fn next(&self) -> Option<String> {
        let mut random = [0; RANDOM_BYTES];
        SystemRandom::new().fill(&mut random).ok()?;
        let digits = random.iter().fold(self.prefix.clone(), |text, byte| format!("{text}{byte:02x}"));
        let check = check(&digits);
        Some(digits + &check)
    }

    /// Whether the name was given here, now or before.
    pub fn gave(&self, name: &str) -> bool {
        let split = name.len().checked_sub(CHECK_DIGITS).and_then(|at| name.split_at_checked(at));
        split.is_some_and(|(digits, given)| {
            digits.len() == self.prefix.len() + 2 * RANDOM_BYTES
                && digits.starts_with(&self.prefix)
                && given == check(digits)
        })
    }
}

/// This host's name: in Kubernetes the pod's.
pub fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn check(digits: &str) -> String {
    blake3::hash(digits.as_bytes()).to_hex().chars().take(CHECK_DIGITS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_names_are_known_again_and_others_are_not() {
        for names in [Names::of_this_process(), Names::shared()] {
            let name = names.next().unwrap();
            assert!(names.gave(&name), "{name}");
            let other = if name.ends_with('0') { '1' } else { '0' };
            let typo = format!("{}{other}", name.split_at(name.len() - 1).0);
            for wrong in ["", "0", "ä", typo.as_str(), name.split_at(1).1, "../../etc/passwd"] {
                assert!(!names.gave(wrong), "{wrong}");
            }
            assert_ne!(names.next(), names.next());
        }
        assert!(!Names::of_this_process().gave(&Names::shared().next().unwrap()), "another pod's, or the store's");
    }
}

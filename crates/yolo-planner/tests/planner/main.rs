//! The planner from outside: laws, golden sequences, and a loop with a toy fleet.
// `cfg(test)` tells clippy that helpers, too, are test code, where a panic is a failed test.
#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts of a toy fleet are far below 2^32"
)]

#[cfg(test)]
mod closed_loop;
#[cfg(test)]
mod cost;
#[cfg(test)]
mod diagnosis;
#[cfg(test)]
mod faulty;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod guards;
#[cfg(test)]
mod laws;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod paces;
#[cfg(test)]
mod plain;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod repeats;
#[cfg(test)]
mod support;
#[cfg(test)]
mod trust;

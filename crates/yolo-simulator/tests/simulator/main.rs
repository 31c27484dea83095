//! The fleet from outside: queueing theory, conservation, scenarios by hand, and the planner in the loop.
// `cfg(test)` tells clippy that helpers, too, are test code, where a panic is a failed test.
#[cfg(test)]
mod contract;
#[cfg(test)]
mod fleet;
#[cfg(test)]
mod loops;
#[cfg(test)]
mod recordings;
#[cfg(test)]
mod reports;

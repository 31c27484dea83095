//! Open-loop load generator and client for YOLO HTTP APIs.
//!
//! Open loop means: the arrival times are drawn beforehand and do not wait for answers, and a latency counts
//! from the *scheduled* arrival. A slow server therefore cannot slow its own load down and hide the queue
//! (coordinated omission).
//!
//! [`schedule`] draws the arrivals, [`pictures`] supplies the files and [`envelope`] the form they travel in, [`client`]
//! sends them over a pool of kept-alive connections (for capacity also in a closed loop), [`record`] holds one outcome a request and sums them up, [`scrape`] reads what the server
//! says about itself.
#![forbid(unsafe_code)]

pub mod client;
pub mod envelope;
pub mod pictures;
mod pool;
pub mod record;
pub mod schedule;
pub mod scrape;

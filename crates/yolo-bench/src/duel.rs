//! Who is faster, the server or its best peer, and how near the ceiling: in short slices by turns, all of them started
//! before.
//!
//! Turns of whole contenders lie a minute apart, in which a shared machine changes its speed by more than the
//! contenders differ: between two turns of one server rates differed by a tenth, between two of these slices by a
//! hundredth or two. Idle contenders cost nothing but memory, which is not measured here.

use std::time::{Duration, Instant};

use crate::ceiling;
use crate::contender::Contender;
use crate::load;
use crate::machine;
use crate::site::Site;
use crate::turn::{Service, UNCACHED};

/// Long enough for some 40 pictures, short enough to be near its neighbours.
const SLICE: Duration = Duration::from_secs(3);

/// A slice of each, in pictures a second.
#[derive(Debug, Clone, Copy)]
pub struct Slices {
    /// This project's server.
    pub ours: f64,
    /// Its best peer.
    pub peer: f64,
    /// The in-process ceiling.
    pub ceiling: f64,
    /// Cores that other work on the machine kept busy meanwhile.
    pub foreign_cores: f64,
}

/// Every side of a duel, started.
pub struct Duel<'a> {
    site: &'a Site,
    ours: Service,
    peer: (Contender, Service),
    ceiling: ceiling::Standing,
}

impl<'a> Duel<'a> {
    /// Starts the server, a peer and the ceiling.
    ///
    /// # Errors
    /// If one of them does not start.
    pub fn start(site: &'a Site, peer: Contender) -> anyhow::Result<Self> {
        Ok(Self {
            site,
            ours: Service::start(site, Contender::Ours, UNCACHED)?,
            peer: (peer, Service::start(site, peer, UNCACHED)?),
            ceiling: ceiling::Standing::start(site)?,
        })
    }

    /// A slice of each. Another one begins each round.
    ///
    /// # Errors
    /// If one of them does not serve.
    pub fn round(&mut self, round: usize) -> anyhow::Result<Slices> {
        let (start, foreign_s) = (Instant::now(), self.foreign_s()?);
        let (mut ours, mut peer, mut ceiling) = (0.0, 0.0, 0.0);
        for place in 0..3 {
            match (round + place) % 3 {
                0 => ours = self.rate(Contender::Ours, &self.ours)?,
                1 => peer = self.rate(self.peer.0, &self.peer.1)?,
                _ => ceiling = self.ceiling.rate()?,
            }
        }
        let foreign_cores = (self.foreign_s()? - foreign_s) / start.elapsed().as_secs_f64();
        Ok(Slices { ours, peer, ceiling, foreign_cores })
    }

    fn rate(&self, contender: Contender, service: &Service) -> anyhow::Result<f64> {
        Ok(load::closed(contender, service.address, (&self.site.pictures, SLICE))?.rate)
    }

    fn foreign_s(&self) -> anyhow::Result<f64> {
        let own_s = self.ours.running.cpu_s()? + self.peer.1.running.cpu_s()? + self.ceiling.cpu_s();
        Ok(machine::busy_s()? - own_s - machine::process_s(std::process::id()))
    }
}

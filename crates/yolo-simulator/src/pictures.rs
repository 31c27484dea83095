//! Which picture a request brings: Zipf popularity over a fixed set, with a share of pictures never seen before.

use crate::random::Random;

/// The law of the pictures.
#[derive(Debug, Clone, PartialEq)]
pub struct Popularity {
    /// Pictures that come again.
    pub keys: usize,
    /// Exponent of Zipf's law, 0.6–1 in measured web traffic (Breslau et al. 1999).
    pub exponent: f64,
    /// Share of requests with a new picture.
    pub new_share: f64,
    /// Bytes that a cached result takes.
    pub entry_bytes: u64,
}

/// Draws pictures.
#[derive(Debug, Clone)]
pub struct Pictures {
    /// Share of the requests for the most popular 1, 2, 3, … pictures.
    cumulative: Vec<f64>,
    new_share: f64,
    next_new: u64,
    random: Random,
}

impl Pictures {
    /// A generator of `law`.
    pub fn new(law: &Popularity, random: Random) -> Self {
        let mut sum = 0.0;
        let weights = (1..=law.keys.max(1)).map(|rank| {
            sum += libm::pow(rank as f64, -law.exponent);
            sum
        });
        let mut cumulative: Vec<f64> = weights.collect();
        for share in &mut cumulative {
            *share /= sum;
        }
        Self { next_new: cumulative.len() as u64, cumulative, new_share: law.new_share, random }
    }

    /// The next picture's key.
    pub fn draw(&mut self) -> u64 {
        let unit = self.random.unit();
        if self.new_share > 0.0 && unit <= self.new_share {
            self.next_new += 1;
            return self.next_new;
        }
        let among = self.random.unit();
        self.cumulative.partition_point(|share| *share < among) as u64
    }

    /// Share of the requests that each known picture gets.
    pub fn shares(&self) -> impl Iterator<Item = f64> {
        let before = std::iter::once(0.0).chain(self.cumulative.iter().copied());
        self.cumulative.iter().zip(before).map(|(until, from)| (until - from) * (1.0 - self.new_share))
    }
}

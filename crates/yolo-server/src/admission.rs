//! Whether an image may join the queue: pure, decided before the image costs anything.
//!
//! An image is refused if it would wait longer than its deadline, or its request's time-out, allows until its batch starts,
//! or if the queue is full.
//! Work that an idle worker could start now is never refused.

use std::time::Duration;

use crate::batcher::Lane;
use crate::limits;

/// What admission looks at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// The image's lane.
    pub lane: Lane,
    /// Images of that lane admitted and not started.
    pub queued: usize,
    /// Inference workers.
    pub workers: usize,
    /// Workers that wait for images.
    pub idle_workers: usize,
    /// Time until the first busy worker is done; zero if one is idle.
    pub rest_of_running: Duration,
    /// Batch size that pays.
    pub batch_effective: usize,
    /// 95th percentile of that batch's time.
    pub batch_time_p95: Duration,
    /// Mean of that batch's time.
    pub batch_time: Duration,
    /// Largest batch that may be pulled.
    pub batch_max: usize,
    /// Time that decoding needs for the images before this one.
    pub decode_wait: Duration,
    /// Longest wait until a batch starts.
    pub deadline: Duration,
    /// The image's own: less where its request gives it up earlier.
    pub start_within: Duration,
    /// Bytes of one prepared picture.
    pub image_bytes: usize,
    /// Memory for prepared pictures, in bytes.
    pub queue_bytes_max: usize,
}

/// Why an image was refused for load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Refusal {
    /// The queue is at its bound.
    QueueFull {
        /// When there will be room, about.
        retry_after: Duration,
    },
    /// The image would start after its deadline.
    PredictedLate {
        /// Predicted wait.
        wait: Duration,
        /// When the wait will be within the deadline, about.
        retry_after: Duration,
    },
}

impl Refusal {
    /// Of what would wait for `wait`, and may for `start_within`.
    pub(crate) fn late(wait: Duration, start_within: Duration) -> Self {
        Self::PredictedLate { wait, retry_after: wait.saturating_sub(start_within).max(RETRY_AFTER_MIN) }
    }
}

/// Shortest `Retry-After`: the header counts whole seconds.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);

impl Load {
    /// Decides on one more image.
    ///
    /// # Errors
    /// [`Refusal`] with the time after which to try again.
    pub fn admit(&self) -> Result<(), Refusal> {
        if self.queued < self.idle_workers {
            return Ok(());
        }
        let wait = self.wait();
        if self.queued >= self.capacity() {
            return Err(Refusal::QueueFull { retry_after: wait.max(RETRY_AFTER_MIN) });
        }
        if self.lane == Lane::Interactive && wait > self.start_within {
            return Err(Refusal::late(wait, self.start_within));
        }
        Ok(())
    }

    /// Predicted wait until the batch of an image that arrives now starts.
    ///
    /// The running batch's rest plus the batches before it, all taken at their 95th percentile; decoding runs beside
    /// inference, so the slower of the two counts.
    pub fn wait(&self) -> Duration {
        let a_round = (self.workers * self.batch_effective).max(1);
        let rounds = u32::try_from(self.queued / a_round).unwrap_or(u32::MAX);
        let engine_wait = self.rest_of_running.saturating_add(self.batch_time_p95.saturating_mul(rounds));
        engine_wait.max(self.decode_wait)
    }

    /// Bound of the lane's queue.
    ///
    /// Interactive: two rounds of full batches, or what can be started within the deadline if that is more. Spare: two
    /// rounds of batches that pay, so that workers never wait for them, and at most [`limits::SPARE_SHARE`] of the
    /// memory.
    pub fn capacity(&self) -> usize {
        if self.lane == Lane::Spare {
            let by_memory = self.queue_bytes_max / limits::SPARE_SHARE / self.image_bytes.max(1);
            let rounds = 2 * self.batch_effective * self.workers;
            return rounds.min(limits::QUEUE_IMAGES_MAX / limits::SPARE_SHARE).min(by_memory).max(1);
        }
        let rounds = 2 * self.batch_max * self.workers;
        let in_time = self.deadline.as_secs_f64() * self.throughput();
        let by_memory = self.queue_bytes_max / self.image_bytes.max(1);
        rounds.max(ceil(in_time)).min(limits::QUEUE_IMAGES_MAX).min(by_memory).max(1)
    }

    /// Images a second that the workers sustain at the effective batch size.
    pub fn throughput(&self) -> f64 {
        let images = u32::try_from(self.workers * self.batch_effective).unwrap_or(u32::MAX);
        f64::from(images) / self.batch_time.as_secs_f64().max(1e-6)
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive number; the cast saturates")]
fn ceil(number: f64) -> usize {
    number.ceil() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load() -> Load {
        Load {
            lane: Lane::Interactive,
            queued: 0,
            workers: 2,
            idle_workers: 0,
            rest_of_running: Duration::from_millis(40),
            batch_effective: 4,
            batch_time_p95: Duration::from_millis(100),
            batch_time: Duration::from_millis(80),
            batch_max: 4,
            decode_wait: Duration::ZERO,
            deadline: Duration::from_millis(500),
            start_within: Duration::from_millis(500),
            image_bytes: 3 * 640 * 640,
            queue_bytes_max: limits::QUEUE_BYTES_MAX,
        }
    }

    #[test]
    fn an_idle_worker_never_refuses() {
        let late = Load { start_within: Duration::ZERO, batch_time_p95: Duration::from_secs(9), ..load() };
        assert!(late.admit().is_err());
        assert_eq!(Load { idle_workers: 1, ..late }.admit(), Ok(()));
        assert!(Load { idle_workers: 1, queued: 1, ..late }.admit().is_err(), "that worker is spoken for");
    }

    #[test]
    fn the_wait_counts_whole_rounds_of_batches() {
        assert_eq!(Load { queued: 7, ..load() }.wait(), Duration::from_millis(40), "joins the next round");
        assert_eq!(Load { queued: 8, ..load() }.wait(), Duration::from_millis(140));
        let decoding = Load { decode_wait: Duration::from_millis(300), ..load() };
        assert_eq!(decoding.wait(), Duration::from_millis(300));
    }

    #[test]
    fn a_late_image_is_refused_with_the_time_it_takes_to_catch_up() {
        let busy = Load { queued: 40, batch_time_p95: Duration::from_secs(1), ..load() };
        let wait = Duration::from_millis(5_040);
        let retry_after = Duration::from_millis(4_540);
        assert_eq!(busy.admit(), Err(Refusal::PredictedLate { wait, retry_after }));
        let hasty = Load { start_within: Duration::from_millis(39), ..load() };
        let (wait, retry_after) = (Duration::from_millis(40), RETRY_AFTER_MIN);
        assert_eq!(hasty.admit(), Err(Refusal::PredictedLate { wait, retry_after }), "its request would give it up");
        assert_eq!(hasty.capacity(), load().capacity(), "that is nothing to the others");
    }

    #[test]
    fn spare_images_wait_as_long_as_it_takes_but_few_of_them_in_the_queue() {
        let spare = Load { lane: Lane::Spare, batch_time_p95: Duration::from_mins(1), ..load() };
        assert_eq!(Load { queued: 15, ..spare }.admit(), Ok(()));
        assert!(matches!(Load { queued: 16, ..spare }.admit(), Err(Refusal::QueueFull { .. })));
        assert_eq!(Load { image_bytes: 16 << 20, ..spare }.capacity(), 4);
    }

    #[test]
    fn the_queue_has_a_bound_by_images_and_by_memory() {
        let slow = Load { deadline: Duration::from_millis(1), ..load() };
        assert_eq!(slow.capacity(), 16, "two rounds");
        assert_eq!(load().capacity(), 50, "half a second at 100 images/s");
        let patient = Load { deadline: Duration::from_mins(10), ..load() };
        assert_eq!(patient.capacity(), limits::QUEUE_BYTES_MAX / (3 * 640 * 640));
        assert_eq!(Load { image_bytes: 3 * 320 * 320, ..patient }.capacity(), limits::QUEUE_IMAGES_MAX);
        assert_eq!(Load { image_bytes: 64 << 20, ..load() }.capacity(), 4);
        let full = Load { queued: 16, deadline: Duration::from_millis(141), ..slow };
        assert!(matches!(full.admit(), Err(Refusal::QueueFull { .. })));
    }
}

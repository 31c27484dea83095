//! Whose image is next: one of each flow in turn, a stream's newest frame only, spare images last but not never.
//!
//! ```text
//!   Interactive   A B C      <- one image of each flow, then again from the first
//!                 A   C
//!                 A
//!   Spare         D E        <- when the lane above is empty, and every 20th batch
//! ```

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// While spare images wait, one batch in this many begins with them: 5 %.
const SPARE_EVERY: u32 = 20;

/// One request. Its images take turns with those of other requests.
///
/// Ordered by age: a later request's is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowId(u64);

impl FlowId {
    /// An id that no other request of this process has.
    pub fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// How urgent an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Somebody waits for the answer.
    Interactive,
    /// It may wait for capacity that nobody else wants; at least 5 % of the batches are its own.
    Spare,
}

/// The camera that a frame comes from. All frames of a stream are one flow, and only the newest request's are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamKey(Arc<str>);

impl From<&str> for StreamKey {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

/// What takes a turn.
#[derive(Debug, PartialEq, Eq)]
enum Key {
    Request(FlowId),
    Stream(StreamKey),
}

#[derive(Debug)]
struct Flow<T> {
    key: Key,
    /// Oldest first; never empty.
    images: VecDeque<T>,
    /// The latest request that put an image here.
    newest: FlowId,
    /// Whether a newer frame has been promised this one's place.
    promised: bool,
}

/// Where an image belongs in the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its request.
    pub flow: FlowId,
    /// How urgent it is.
    pub lane: Lane,
    /// Its camera, if the client named one.
    pub stream: Option<StreamKey>,
}

impl Place {
    /// The place of a request that somebody waits for, of no stream.
    pub fn of_new_request() -> Self {
        Self { flow: FlowId::next(), lane: Lane::Interactive, stream: None }
    }
}

/// The waiting images of all flows.
#[derive(Debug)]
pub(crate) struct FairQueue<T> {
    interactive: VecDeque<Flow<T>>,
    spare: VecDeque<Flow<T>>,
    batches_without_spare: u32,
}

impl<T> FairQueue<T> {
    pub(crate) const fn new() -> Self {
        Self { interactive: VecDeque::new(), spare: VecDeque::new(), batches_without_spare: 0 }
    }

    const fn lane(&self, lane: Lane) -> &VecDeque<Flow<T>> {
        match lane {
            Lane::Interactive => &self.interactive,
            Lane::Spare => &self.spare,
        }
    }

    const fn lane_mut(&mut self, lane: Lane) -> &mut VecDeque<Flow<T>> {
        match lane {
            Lane::Interactive => &mut self.interactive,
            Lane::Spare => &mut self.spare,
        }
    }

    /// Images of both lanes.
    pub(crate) fn len(&self) -> usize {
        self.len_of(Lane::Interactive) + self.len_of(Lane::Spare)
    }

    /// Images of one lane.
    pub(crate) fn len_of(&self, lane: Lane) -> usize {
        self.lane(lane).iter().map(|flow| flow.images.len()).sum()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.interactive.is_empty() && self.spare.is_empty()
    }

    /// Every image, in no particular order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.interactive.iter().chain(&self.spare).flat_map(|flow| &flow.images)
    }

    /// The image that the next batch begins with.
    pub(crate) fn first(&self) -> Option<&T> {
        let [before, after] = self.order();
        let head = |lane| self.lane(lane).front().and_then(|flow: &Flow<T>| flow.images.front());
        head(before).or_else(|| head(after))
    }

    fn order(&self) -> [Lane; 2] {
        let spare_first = self.batches_without_spare + 1 >= SPARE_EVERY;
        if spare_first { [Lane::Spare, Lane::Interactive] } else { [Lane::Interactive, Lane::Spare] }
    }

    /// Adds an image to its flow. Of a stream's frames only those of the newest request stay, in the turn of the others,
    /// which are returned.
    pub(crate) fn push(&mut self, place: &Place, image: T) -> VecDeque<T> {
        let Place { flow: id, lane, stream } = place;
        let (id, key) = (*id, stream.clone().map_or(Key::Request(*id), Key::Stream));
        let flows = self.lane_mut(*lane);
        let Some(flow) = flows.iter_mut().find(|flow| flow.key == key) else {
            flows.push_back(Flow { key, images: VecDeque::from([image]), newest: id, promised: false });
            return VecDeque::new();
        };
        if id == flow.newest {
            flow.images.push_back(image); // of the same batch
            return VecDeque::new();
        }
        if id < flow.newest {
            return VecDeque::from([image]); // decoded later than a frame that was taken after it
        }
        (flow.newest, flow.promised) = (id, false);
        std::mem::replace(&mut flow.images, VecDeque::from([image]))
    }

    /// Promises the place of a stream's queued frame to one of another request; false if there is none, or it is promised.
    pub(crate) fn promise(&mut self, lane: Lane, stream: &StreamKey, request: FlowId) -> bool {
        let queued = self.stream_mut(lane, stream).filter(|flow| flow.newest != request);
        queued.is_some_and(|flow| !std::mem::replace(&mut flow.promised, true))
    }

    /// Takes a promise back.
    pub(crate) fn withdraw(&mut self, lane: Lane, stream: &StreamKey) {
        if let Some(flow) = self.stream_mut(lane, stream) {
            flow.promised = false;
        }
    }

    fn stream_mut(&mut self, lane: Lane, stream: &StreamKey) -> Option<&mut Flow<T>> {
        self.lane_mut(lane).iter_mut().find(|flow| matches!(&flow.key, Key::Stream(key) if key == stream))
    }

    /// Takes a batch of up to `count` images that are `alike` its first, one of each flow in turn. Flows whose next image
    /// is not keep their turns: the next batch begins with them.
    pub(crate) fn take(&mut self, count: usize, alike: impl Fn(&T, &T) -> bool) -> Vec<T> {
        let spare_before = self.len_of(Lane::Spare);
        let mut batch = Vec::with_capacity(count.min(self.len()));
        for lane in self.order() {
            let flows = self.lane_mut(lane);
            let mut unlike = VecDeque::new();
            while batch.len() < count
                && let Some(mut flow) = flows.pop_front()
            {
                if let (Some(first), Some(next)) = (batch.first(), flow.images.front())
                    && !alike(first, next)
                {
                    unlike.push_back(flow);
                    continue;
                }
                batch.extend(flow.images.pop_front());
                if !flow.images.is_empty() {
                    flows.push_back(flow);
                }
            }
            unlike.append(flows);
            *flows = unlike;
        }
        let passed_over = spare_before > 0 && self.len_of(Lane::Spare) == spare_before;
        self.batches_without_spare = if passed_over { self.batches_without_spare + 1 } else { 0 };
        batch
    }

    /// Removes the images for which `gone` holds.
    pub(crate) fn remove(&mut self, gone: impl Fn(&T) -> bool) -> Vec<T> {
        let mut removed = Vec::new();
        for flows in [&mut self.interactive, &mut self.spare] {
            for flow in flows.iter_mut().filter(|flow| flow.images.iter().any(&gone)) {
                let (leave, stay): (VecDeque<_>, VecDeque<_>) = flow.images.drain(..).partition(&gone);
                flow.images = stay;
                removed.extend(leave);
            }
            flows.retain(|flow| !flow.images.is_empty());
        }
        removed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn any<T>(_: &T, _: &T) -> bool {
        true
    }

    fn request(lane: Lane) -> Place {
        Place { lane, ..Place::of_new_request() }
    }

    fn frame(stream: &str) -> Place {
        Place { stream: Some(stream.into()), ..request(Lane::Interactive) }
    }

    #[test]
    fn a_batch_of_64_delays_a_single_image_by_one_turn() {
        let mut queue = FairQueue::new();
        let (many, one) = (request(Lane::Interactive), request(Lane::Interactive));
        for number in 0..64 {
            queue.push(&many, number);
        }
        queue.push(&one, 64);
        assert_eq!(queue.take(3, any), [0, 64, 1]);
        assert_eq!(queue.len(), 62);
    }

    #[test]
    fn a_batch_holds_only_what_is_alike_and_the_rest_is_next() {
        let mut queue = FairQueue::new();
        for image in [10, 20, 11, 21, 12] {
            queue.push(&request(Lane::Interactive), image);
        }
        queue.push(&request(Lane::Spare), 22);
        let alike = |first: &i32, next: &i32| first / 10 == next / 10;
        assert_eq!(queue.take(2, alike), [10, 11]);
        assert_eq!(queue.take(4, alike), [20, 21, 22], "of a lane below too");
        assert_eq!(queue.take(4, alike), [12]);
    }

    #[test]
    fn a_stream_keeps_only_its_newest_frame_and_its_turn() {
        let mut queue = FairQueue::new();
        let late = frame("gate");
        assert!(queue.push(&frame("gate"), "gate 1").is_empty());
        assert!(queue.push(&frame("hall"), "hall 1").is_empty());
        assert_eq!(queue.push(&frame("gate"), "gate 2"), ["gate 1"]);
        assert_eq!(queue.push(&late, "gate 0"), ["gate 0"], "an older frame that was decoded later");
        assert_eq!(queue.take(4, any), ["gate 2", "hall 1"]);
        assert!(queue.push(&frame("gate"), "gate 3").is_empty());
    }

    #[test]
    fn the_frames_of_one_request_go_together() {
        let mut queue = FairQueue::new();
        let (gate, batch, next) = (StreamKey::from("gate"), frame("gate"), frame("gate"));
        for number in 0..3 {
            assert!(!queue.promise(Lane::Interactive, &gate, batch.flow), "none takes the place of another");
            assert!(queue.push(&batch, number).is_empty());
        }
        assert!(queue.promise(Lane::Interactive, &gate, next.flow));
        assert_eq!(queue.push(&next, 3), [0, 1, 2], "and give way together");
        assert_eq!(queue.take(4, any), [3]);
    }

    #[test]
    fn a_place_is_promised_to_one_frame_at_a_time() {
        let mut queue = FairQueue::new();
        let (gate, later) = (StreamKey::from("gate"), FlowId::next());
        assert!(!queue.promise(Lane::Interactive, &gate, later), "nothing to replace");
        queue.push(&frame("gate"), 1);
        assert!(queue.promise(Lane::Interactive, &gate, later));
        assert!(!queue.promise(Lane::Interactive, &gate, later));
        queue.withdraw(Lane::Interactive, &gate);
        assert!(queue.promise(Lane::Interactive, &gate, later));
        queue.push(&frame("gate"), 2);
        assert!(queue.promise(Lane::Interactive, &gate, later), "the promise was kept");
    }

    #[test]
    fn spare_images_come_last_but_begin_one_batch_in_twenty() {
        let mut queue = FairQueue::new();
        let spare = request(Lane::Spare);
        let mut spare_batches = Vec::new();
        for batch in 1..=40 {
            queue.push(&spare, "spare");
            queue.push(&request(Lane::Interactive), "interactive");
            if queue.take(1, any) == ["spare"] {
                spare_batches.push(batch);
            }
        }
        assert_eq!(spare_batches, [20, 40]);
        assert_eq!(queue.take(3, any), ["interactive", "interactive", "spare"], "and what is left of a batch");
    }

    #[test]
    fn an_empty_lane_earns_no_turns() {
        let mut queue = FairQueue::new();
        for _ in 0..100 {
            queue.push(&request(Lane::Interactive), "interactive");
            queue.take(1, any);
        }
        queue.push(&request(Lane::Spare), "spare");
        queue.push(&request(Lane::Interactive), "interactive");
        assert_eq!(queue.take(1, any), ["interactive"]);
    }

    #[test]
    fn removed_images_leave_no_empty_flow() {
        let mut queue = FairQueue::new();
        let pair = request(Lane::Interactive);
        for number in 0..2 {
            queue.push(&pair, number);
        }
        queue.push(&request(Lane::Spare), 2);
        assert_eq!(queue.remove(|number| *number != 1), [0, 2]);
        assert_eq!((queue.first(), queue.len()), (Some(&1), 1));
        queue.remove(|_| true);
        assert!(queue.is_empty() && queue.take(1, any).is_empty());
    }
}

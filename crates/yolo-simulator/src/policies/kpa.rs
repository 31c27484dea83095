//! Knative's pod autoscaler (serving, `pkg/autoscaler/scaling`); its activator, which buffers at zero pods, is left out.

use crate::scaler::{Look, Order, Scaler};

const PERIOD_S: u32 = 2;
/// Stable and panic windows.
const STABLE_S: usize = 60;
const PANIC_S: usize = 6;
/// Panic begins when the panic window wants so many times the serving pods.
const PANIC_RATIO: u32 = 2;
/// Largest growth and largest shrinking of one decision.
const UP_MAX: u32 = 1000;
const DOWN_MAX: u32 = 2;

/// The autoscaler's state.
#[derive(Debug, Clone)]
pub struct Kpa {
    target: f64,
    /// When panic was last confirmed, and the most pods wanted since it began.
    panic: Option<(f64, u32)>,
}

impl Kpa {
    /// Aims at `target` images in a pod.
    pub const fn new(target: f64) -> Self {
        Self { target, panic: None }
    }

    /// Pods for the in-flight means of both windows.
    fn wanted(&mut self, now_s: f64, (stable, burst): (f64, f64), ready: u32) -> u32 {
        let raw = |inflight: f64| (inflight / self.target).ceil() as u32;
        let clamp = |pods: u32| pods.clamp(ready / DOWN_MAX, UP_MAX * ready.max(1));
        let (stable, over) = (clamp(raw(stable)), raw(burst));
        let burst = clamp(over);
        let began = over >= PANIC_RATIO * ready.max(1);
        let confirmed_s = if began { Some(now_s) } else { self.panic.map(|(at_s, _)| at_s) };
        match confirmed_s {
            Some(at_s) if now_s - at_s < STABLE_S as f64 => {
                let most = self.panic.map_or(0, |(_, most)| most).max(stable).max(burst);
                self.panic = Some((at_s, most));
                most
            }
            _ => {
                self.panic = None;
                stable
            }
        }
    }
}

impl Scaler for Kpa {
    fn period_s(&self) -> u32 {
        PERIOD_S
    }

    fn decide(&mut self, look: &Look<'_>) -> Order {
        let inflight = |seconds| look.mean(seconds, |second| f64::from(second.inflight));
        let pods = self.wanted(look.now_s, (inflight(STABLE_S), inflight(PANIC_S)), look.ready);
        Order::pods(look, pods.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panic_holds_the_most_until_a_minute_without_one() {
        let mut kpa = Kpa::new(10.0);
        assert_eq!(kpa.wanted(0.0, (30.0, 30.0), 3), 3);
        assert_eq!(kpa.wanted(2.0, (35.0, 90.0), 3), 9, "three times the serving pods are wanted");
        assert_eq!(kpa.wanted(4.0, (35.0, 20.0), 9), 9, "no shrinking in panic");
        assert_eq!(kpa.wanted(61.0, (20.0, 20.0), 9), 9);
        assert_eq!(kpa.wanted(62.0, (20.0, 20.0), 9), 4, "at most halved");
    }
}

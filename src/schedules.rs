//! Known peaks of `spec.scaling.schedules`: the fewest pods that they ask for at a time.
//!
//! Pure. Cron as in a `CronJob`: five fields, Sunday is 0 or 7, in the schedule's time zone; the zones' data is
//! compiled in, since an image without an operating system has none.

use std::time::Duration;

use cronexpr::{Crontab, MakeTimestamp, parse_crontab};
use yolo_api::v1alpha1::scaling::Schedule;
use yolo_planner::units::{Replicas, Timestamp};

/// A peak that comes again and again.
#[derive(Debug, Clone)]
pub struct Peak {
    starts: Crontab,
    lasts: Duration,
    replicas_min: Replicas,
}

/// Why a schedule is none.
#[derive(Debug, thiserror::Error)]
#[error("spec.scaling.schedules, {name:?}: {reason}")]
pub struct InvalidSchedule {
    name: String,
    reason: String,
}

impl Peak {
    /// The peak that `schedule` names.
    ///
    /// # Errors
    /// [`InvalidSchedule`] if its cron, time zone or duration is none, or names a day that no calendar has.
    pub fn parse(schedule: &Schedule) -> Result<Self, InvalidSchedule> {
        let invalid = |reason: String| InvalidSchedule { name: schedule.name.clone(), reason };
        let zone = schedule.time_zone.as_deref().unwrap_or("UTC");
        let starts = parse_crontab(&format!("{} {zone}", schedule.cron)).map_err(|error| invalid(error.to_string()))?;
        if starts.find_next(MakeTimestamp(jiff::Timestamp::UNIX_EPOCH)).is_err() {
            return Err(invalid(format!("{:?} never comes", schedule.cron)));
        }
        let lasts = schedule.duration.parse("duration").map_err(|error| invalid(error.to_string()))?;
        Ok(Self { starts, lasts, replicas_min: Replicas::new(u32::try_from(schedule.replicas_min).unwrap_or(0)) })
    }

    /// Whether any of its times lies within `now ..= now + ahead`.
    fn touches(&self, now: jiff::Timestamp, ahead: Duration) -> bool {
        // The first start that has not ended before now.
        let earliest = now.saturating_sub(self.lasts).ok().and_then(|at| self.starts.find_next(MakeTimestamp(at)).ok());
        let latest = now.saturating_add(ahead).ok();
        earliest.zip(latest).is_some_and(|(start, latest)| start.timestamp() <= latest)
    }
}

/// The fewest pods that `peaks` ask for from `now` until `ahead` of it: pods are ordered so long before they serve.
pub fn floor(peaks: &[Peak], now: Timestamp, ahead: Duration) -> Replicas {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "`as` saturates, and what is out of range is no time of a peak"
    )]
    let Ok(now) = jiff::Timestamp::from_second(now.get() as i64) else { return Replicas::default() };
    let touched = peaks.iter().filter(|peak| peak.touches(now, ahead));
    touched.map(|peak| peak.replicas_min).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peak(cron: &str, zone: Option<&str>, duration: &str, replicas_min: i32) -> Result<Peak, InvalidSchedule> {
        Peak::parse(&Schedule {
            name: "rush".to_owned(),
            cron: cron.to_owned(),
            time_zone: zone.map(ToOwned::to_owned),
            duration: duration.into(),
            replicas_min,
        })
    }

    fn pods_at(peaks: &[Peak], time: &str, ahead_s: u64) -> u32 {
        let second = time.parse::<jiff::Timestamp>().unwrap().as_second();
        floor(peaks, Timestamp::whole(u32::try_from(second).unwrap()), Duration::from_secs(ahead_s)).get()
    }

    #[test]
    fn peak_counts_from_its_start_to_its_end() {
        let peaks = [peak("0 8 * * 1-5", None, "2h", 6).unwrap()];
        // A Thursday.
        assert_eq!(pods_at(&peaks, "2026-11-26T07:59:59Z", 0), 0);
        assert_eq!(pods_at(&peaks, "2026-11-26T08:00:00Z", 0), 6);
        assert_eq!(pods_at(&peaks, "2026-11-26T09:59:59Z", 0), 6);
        assert_eq!(pods_at(&peaks, "2026-11-26T10:00:00Z", 0), 0);
        // Saturday and Sunday.
        assert_eq!(pods_at(&peaks, "2026-11-28T09:00:00Z", 0), 0);
        assert_eq!(pods_at(&peaks, "2026-11-29T09:00:00Z", 0), 0);
    }

    #[test]
    fn pods_are_asked_for_as_long_before_as_they_take_to_serve() {
        let peaks = [peak("0 8 * * *", None, "1h", 4).unwrap()];
        assert_eq!(pods_at(&peaks, "2026-11-26T07:59:00Z", 59), 0);
        assert_eq!(pods_at(&peaks, "2026-11-26T07:59:00Z", 60), 4);
    }

    #[test]
    fn time_zone_moves_with_its_summer_time() {
        let peaks = [peak("0 8 * * *", Some("Europe/Berlin"), "1h", 4).unwrap()];
        assert_eq!(pods_at(&peaks, "2026-07-01T06:30:00Z", 0), 4);
        assert_eq!(pods_at(&peaks, "2026-12-01T06:30:00Z", 0), 0);
        assert_eq!(pods_at(&peaks, "2026-12-01T07:30:00Z", 0), 4);
    }

    #[test]
    fn highest_of_overlapping_peaks_wins_and_one_over_midnight_lasts() {
        let peaks = [peak("0 22 * * *", None, "8h", 3).unwrap(), peak("0 1 * * *", None, "1h", 9).unwrap()];
        assert_eq!(pods_at(&peaks, "2026-11-26T23:30:00Z", 0), 3);
        assert_eq!(pods_at(&peaks, "2026-11-27T01:30:00Z", 0), 9);
        assert_eq!(pods_at(&peaks, "2026-11-27T05:30:00Z", 0), 3);
        assert_eq!(pods_at(&[], "2026-11-27T05:30:00Z", 0), 0);
    }

    #[test]
    fn what_is_no_schedule_says_why() {
        let zone = peak("0 8 * * *", Some("Mars/Olympus"), "1h", 1).unwrap_err().to_string();
        assert!(zone.starts_with("spec.scaling.schedules, \"rush\": ") && zone.contains("Mars/Olympus"), "{zone}");
        let never = peak("0 8 31 2 *", None, "1h", 1).unwrap_err().to_string();
        assert!(never.contains("never comes"), "{never}");
        assert!(peak("0 25 * * *", None, "1h", 1).is_err());
        assert!(peak("0 8 * * *", None, "soon", 1).is_err());
    }
}

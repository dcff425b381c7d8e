//! Telling the operator, without flooding the log: so many of a kind at once, then only how many there were.

use std::collections::BTreeMap;
use std::time::Duration;

use tracing::error;

use crate::ipam::effect::Alarm;
use crate::ipam::ids::Tick;

/// So many alarms of one kind are told within [`WINDOW`].
const MOST: u32 = 20;
/// A subnet's addresses going missing at once raises hundreds; the first few say what is going on.
const WINDOW: Duration = Duration::from_mins(1);

/// What was told lately, by kind; the kinds are words of our own code, so there are few.
#[derive(Debug, Default)]
pub(super) struct Alarms {
    kinds: BTreeMap<&'static str, Window>,
}

#[derive(Debug)]
struct Window {
    since: Tick,
    told: u32,
    suppressed: u64,
}

impl Alarms {
    /// Tells an alarm, unless too many of its kind were told lately.
    pub(super) fn tell(&mut self, alarm: &Alarm, now: Tick) {
        self.tell_suppressed(now);
        let window = self.kinds.entry(alarm.kind).or_insert(Window {
            since: now,
            told: 0,
            suppressed: 0,
        });
        if window.told < MOST {
            window.told = window.told.saturating_add(1);
            error!(kind = alarm.kind, "{}", alarm.message);
        } else {
            window.suppressed = window.suppressed.saturating_add(1);
        }
    }

    /// Says how many were held back, where their time is over.
    pub(super) fn tell_suppressed(&mut self, now: Tick) {
        self.kinds.retain(|kind, window| {
            let open = now.since(window.since) < WINDOW;
            if !open && window.suppressed > 0 {
                let count = window.suppressed;
                error!(
                    kind,
                    suppressed = count,
                    "{count} more alarms of kind {kind} were not logged"
                );
            }
            open
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Counts the lines and keeps the last one.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<String>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let text = String::from_utf8_lossy(bytes).into_owned();
            self.0.lock().unwrap().push(text);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_flood_is_cut_off_and_counted_and_other_kinds_are_still_told() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .finish();
        let alarm = |kind, number: u32| Alarm {
            kind,
            message: format!("alarm number {number}"),
        };
        let lines = |log: &Log| std::mem::take(&mut *log.0.lock().unwrap());
        tracing::subscriber::with_default(subscriber, || {
            let mut alarms = Alarms::default();
            for number in 0..500 {
                alarms.tell(&alarm("quarantined", number), Tick(1000));
            }
            assert_eq!(lines(&log).len(), 20);
            alarms.tell(&alarm("store", 1), Tick(2000));
            assert_eq!(lines(&log).len(), 1);

            alarms.tell_suppressed(Tick(60_999));
            assert!(lines(&log).is_empty(), "the minute is not over");
            alarms.tell_suppressed(Tick(61_000));
            let told = lines(&log);
            assert_eq!(told.len(), 1);
            assert!(
                told[0].contains("480 more alarms of kind quarantined"),
                "{told:?}"
            );
            alarms.tell_suppressed(Tick(200_000));
            assert!(lines(&log).is_empty(), "said once");

            alarms.tell(&alarm("quarantined", 501), Tick(200_000));
            assert_eq!(lines(&log).len(), 1);
        });
    }
}

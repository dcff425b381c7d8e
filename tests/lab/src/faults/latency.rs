//! How long things take.

use std::time::Duration;

use crate::vpc::rng::Rng;

/// A distribution of durations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Latency {
    /// No time at all.
    Zero,
    /// Always the same.
    Fixed(Duration),
    /// Anything between two bounds alike.
    Uniform(Duration, Duration),
    /// Log-normal: most near the median, a long tail. `sigma` 0.5 puts the 99th percentile at 3.2 medians.
    LogNormal {
        /// The 50th percentile.
        median: Duration,
        /// Spread of the logarithm.
        sigma: f64,
        /// The longest allowed.
        max: Duration,
    },
}

impl Latency {
    /// Always so many milliseconds.
    pub const fn millis(millis: u64) -> Self {
        Self::Fixed(Duration::from_millis(millis))
    }

    /// Always so many seconds.
    pub const fn secs(secs: u64) -> Self {
        Self::Fixed(Duration::from_secs(secs))
    }

    /// A duration.
    pub fn sample(&self, rng: &mut Rng) -> Duration {
        match *self {
            Self::Zero => Duration::ZERO,
            Self::Fixed(span) => span,
            Self::Uniform(from, to) => from + to.saturating_sub(from).mul_f64(rng.fraction()),
            Self::LogNormal { median, sigma, max } => {
                let factor = (sigma * rng.normal()).exp().min(1000.0);
                median.mul_f64(factor).min(max)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributions_keep_their_promises() {
        let mut rng = Rng::new(3);
        let ms = Duration::from_millis;
        let uniform = Latency::Uniform(ms(10), ms(20));
        assert!((0..500).all(|_| (ms(10)..=ms(20)).contains(&uniform.sample(&mut rng))));
        let tail = Latency::LogNormal {
            median: ms(100),
            sigma: 0.5,
            max: ms(1000),
        };
        let mut drawn: Vec<Duration> = (0..1001).map(|_| tail.sample(&mut rng)).collect();
        drawn.sort();
        assert!((ms(85)..ms(115)).contains(&drawn[500]), "{:?}", drawn[500]);
        assert!(drawn[1000] <= ms(1000) && drawn[990] > ms(200));
    }
}

//! Makes a failing script smaller: delta debugging over its items (Zeller, Hildebrandt, "Simplifying and Isolating
//! Failure-Inducing Input", 2002), judged by the same oracle failing.

use crate::script::Script;
use crate::world;

fn fails(script: &Script, seed: u64, oracle: &str) -> bool {
    world::run(script, seed, false)
        .violation
        .is_some_and(|violation| violation.oracle == oracle)
}

/// The smallest script found that still breaks the same promise; `None` when this one breaks none.
pub fn shrink(script: &Script, seed: u64) -> Option<Script> {
    let violation = world::run(script, seed, false).violation?;
    let oracle = violation.oracle;
    let mut best = script.clone();
    // What comes after the violation cannot have caused it; the end comes sooner, too.
    let mut cut = best.clone();
    cut.items.retain(|(at, _)| at.0 <= violation.at);
    cut.settings.length = crate::script::Span(0);
    if fails(&cut, seed, oracle) {
        best = cut;
    }
    let mut chunk = best.items.len().div_ceil(2).max(1);
    loop {
        let mut removed = false;
        let mut start = 0;
        while start < best.items.len() {
            let mut less = best.clone();
            let end = (start + chunk).min(less.items.len());
            less.items.drain(start..end);
            if fails(&less, seed, oracle) {
                best = less;
                removed = true;
            } else {
                start += chunk;
            }
        }
        if chunk == 1 && !removed {
            return Some(best);
        }
        if !removed || chunk > 1 {
            chunk = chunk.div_ceil(2).max(1);
        }
    }
}

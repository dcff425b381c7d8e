//! Boot, judge what the last cut left, let it write, cut the power, and again.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::Dice;
use crate::disk::Cut;
use crate::guest::WRITERS;
use crate::machine::{Kit, Machine};

/// What is known of the store from outside.
#[derive(Default)]
struct Known {
    /// The highest count acknowledged, by writer.
    acknowledged: BTreeMap<u32, u64>,
    /// The highest generation heard of.
    generation: u64,
    /// Commits acknowledged in all.
    commits: u64,
    /// Openings that found sled's files unusable and lost nothing.
    rebuilt: u32,
}

pub(crate) fn run(kit: &Kit, rounds: u32, seed: u64) {
    let folder = std::env::temp_dir().join(format!("aws-cni-power-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let mut dice = Dice(seed.max(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut known = Known::default();
    let begun = Instant::now();
    // The last boot only judges.
    for round in 0..=rounds {
        let cut = match dice.below(4) {
            0 => Cut::Nothing,
            1 => Cut::Some(50),
            2 => Cut::Some(95),
            _ => Cut::Torn,
        };
        let mut machine = Machine::boot(kit, &folder, cut, dice.clone());
        // Any instant means also while it opens.
        let while_opening = round > 0 && round < rounds && dice.below(4) == 0;
        machine.wait_for(if while_opening { "opening" } else { "opened" });
        if round < rounds {
            if !while_opening {
                machine.wait_for("ack");
            }
            thread::sleep(Duration::from_millis(dice.below(3000)));
        }
        let (heard, disk) = machine.cut();
        known.hear(&heard, round);
        println!(
            "round {round} of {rounds}: {cut:?}, {} commits acknowledged so far and none missing, {} flushes, {} of {} \
             unflushed sectors lost and {} torn, {} rebuilt, {} s",
            known.commits,
            disk.flushes,
            disk.lost_sectors,
            disk.lost_sectors + disk.kept_sectors + disk.torn_sectors,
            disk.torn_sectors,
            known.rebuilt,
            begun.elapsed().as_secs()
        );
    }
    fs::remove_dir_all(&folder).unwrap();
    println!(
        "{rounds} power cuts, {} commits acknowledged, none missing, {} openings rebuilt sled from copy and journal, {} s",
        known.commits,
        known.rebuilt,
        begun.elapsed().as_secs()
    );
}

impl Known {
    fn hear(&mut self, heard: &[String], round: u32) {
        let mut entries: BTreeMap<&str, &str> = BTreeMap::new();
        for line in heard {
            let words: Vec<&str> = line.splitn(4, ' ').collect();
            match words.as_slice() {
                ["opening"] => entries.clear(),
                ["has", key, value] => drop(entries.insert(key, value)),
                ["opened", generation, origin, damage] => {
                    let generation = generation.parse().unwrap();
                    assert!(
                        generation > self.generation || round == 0,
                        "round {round}: generation {generation} after {}",
                        self.generation
                    );
                    self.generation = generation;
                    self.rebuilt += u32::from(!damage.is_empty());
                    self.judge(&entries, &format!("round {round}, {origin} {damage}"));
                }
                ["ack", writer, count, generation] => {
                    self.acknowledged
                        .insert(writer.parse().unwrap(), count.parse().unwrap());
                    self.generation = self.generation.max(generation.parse().unwrap());
                    self.commits += 1;
                }
                _ => panic!("round {round}: the guest says {line:?}"),
            }
        }
    }

    fn judge(&mut self, entries: &BTreeMap<&str, &str>, whence: &str) {
        for writer in 0..WRITERS {
            let count_of = |side: &str| -> u64 {
                let value = entries.get(format!("{side}/{writer}").as_str());
                value.map_or(0, |value| value.parse().unwrap())
            };
            let found = count_of("left");
            let told = self.acknowledged.get(&writer).copied().unwrap_or_default();
            assert!(
                // One step may have been durable and not yet told.
                (told..=told + 1).contains(&found),
                "{whence}: writer {writer} was told {told} and finds {found}"
            );
            assert_eq!(found, count_of("right"), "{whence}: commits are atomic");
            let steps: Vec<&&str> = entries
                .keys()
                .filter(|key| key.starts_with(&format!("step/{writer}/")))
                .collect();
            match found {
                0 => assert!(steps.is_empty(), "{whence}: {steps:?}"),
                found => assert_eq!(steps, [&format!("step/{writer}/{found}").as_str()], "{whence}"),
            }
            // Read back once, it must stay, too.
            self.acknowledged.insert(writer, found);
        }
    }
}

//! The store in a virtual machine whose power is cut while it writes; and the store for ten million operations, because
//! this is the one program that has it and can be built optimised without the AWS SDK.
//!
//! `rounds` runs on the host: it starts the machine, hears over a serial port what the guest's store acknowledged,
//! kills the machine at a chance moment, and judges at the next boot what is there. The machine's disk is served by
//! this program, too, with a volatile cache: what was not flushed is lost in the cut, all of it or a chance part of it,
//! sector by sector. `guest` is what runs inside; `scripts/power-cut.sh` builds the rest.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::duplicate_mod,
    reason = "a test's way to fail is to panic"
)]

#[allow(unreachable_pub, reason = "the daemon's own file")]
#[path = "../../../src/causes.rs"]
mod causes;
#[path = "../../../src/store/tests/churn.rs"]
mod churn;
mod disk;
mod guest;
mod machine;
mod rounds;
// Linting builds every target's tests, and the store's want these.
#[allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "the daemon uses more of it than this test"
)]
#[path = "../../../src/store/mod.rs"]
mod store;
#[cfg(test)]
#[path = "../../../src/testing.rs"]
mod testing;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["guest", directory, port] => guest::live(Path::new(directory), Path::new(port)),
        ["probe", directory] => store::probe_in_this_process(Path::new(directory)),
        ["rounds", kernel, initrd, image, count, seed] => {
            let machine = machine::Kit {
                kernel: kernel.into(),
                initrd: initrd.into(),
                image: image.into(),
            };
            rounds::run(&machine, count.parse().unwrap(), seed.parse().unwrap());
            ExitCode::SUCCESS
        }
        ["churn", directory, pods, operations] => {
            let options = store::Options::default();
            let (pods, operations) = (pods.parse().unwrap(), operations.parse().unwrap());
            let churned = churn::churn(Path::new(directory), &options, pods, operations);
            println!("{operations} operations with {pods} pods: {churned:?}");
            ExitCode::SUCCESS
        }
        _ => {
            println!(
                "usage: aws-cni-power rounds KERNEL INITRD IMAGE COUNT SEED | churn DIRECTORY PODS OPERATIONS"
            );
            ExitCode::FAILURE
        }
    }
}

/// Repeatable chance: xorshift64.
#[derive(Debug, Clone)]
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

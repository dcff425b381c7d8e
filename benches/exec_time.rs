//! Time from exec to exit of CNI VERSION, beside a static hello: `exec-time HELLO BINARY`.
//!
//! Runs the two in turn so that a drifting machine drifts for both, and prints medians and their ratio.

use std::error::Error;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const RUNS: usize = 1000;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(hello), Some(binary)) = (args.next(), args.next()) else {
        return Err("usage: exec-time HELLO BINARY".into());
    };
    let mut hello_times = Vec::with_capacity(RUNS);
    let mut binary_times = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        hello_times.push(exec(&hello)?);
        binary_times.push(exec(&binary)?);
    }
    let (hello, binary) = (median(&mut hello_times), median(&mut binary_times));
    println!("exec to exit, median of {RUNS} in turn:");
    println!("  static hello     {:>7.3} ms", millis(hello));
    println!("  aws-cni VERSION  {:>7.3} ms", millis(binary));
    println!("  ratio            {:>7.2} (budget 1.50)", binary.as_secs_f64() / hello.as_secs_f64());
    Ok(())
}

fn exec(program: &str) -> Result<Duration, Box<dyn Error>> {
    let start = Instant::now();
    let status = Command::new(program)
        .env_clear()
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()?;
    if !status.success() {
        return Err(format!("{program}: {status}").into());
    }
    Ok(start.elapsed())
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

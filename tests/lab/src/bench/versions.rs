//! Exec to exit: what starting the plugin costs before it does anything.

use super::statistics::Sample;
use super::{BenchError, BenchOptions, exec};

const RUNS: usize = 400;

#[derive(Debug)]
pub(super) struct Versions {
    pub(super) hello: Sample,
    pub(super) plugin: Sample,
}

pub(super) fn measure(options: &BenchOptions) -> Result<Versions, BenchError> {
    let mut versions = Versions {
        hello: Sample::default(),
        plugin: Sample::default(),
    };
    for _ in 0..RUNS {
        versions.hello.push(exec::run_plain(&options.hello, &[])?.took);
        let version = [("CNI_COMMAND", "VERSION")];
        versions
            .plugin
            .push(exec::run_plain(&options.binary, &version)?.took);
    }
    Ok(versions)
}

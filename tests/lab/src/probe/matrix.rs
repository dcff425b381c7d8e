//! Every source to every target at once, as a table.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use super::{Failure, Protocol, exchange_here};
use crate::netns::Netns;

/// Where exchanges start.
#[derive(Debug, Clone)]
pub struct Source {
    /// What to call it in the table.
    pub name: String,
    /// Its namespace.
    pub netns: Netns,
}

/// Where exchanges go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// What to call it in the table.
    pub name: String,
    /// The echo server.
    pub address: SocketAddr,
}

/// The outcome of each exchange: the source address that was seen, or why there was none.
#[derive(Debug, Clone, Default)]
pub struct Matrix {
    sources: Vec<String>,
    targets: Vec<String>,
    cells: BTreeMap<(usize, usize), Result<SocketAddr, Failure>>,
}

impl Matrix {
    /// Whether every exchange succeeded.
    pub fn all_reached(&self) -> bool {
        self.cells.values().all(Result::is_ok)
    }

    /// How many exchanges succeeded, of how many.
    pub fn reached(&self) -> (usize, usize) {
        let reached = self.cells.values().filter(|cell| cell.is_ok()).count();
        (reached, self.cells.len())
    }

    /// Source, target and reason of each failure.
    pub fn failures(&self) -> impl Iterator<Item = (&str, &str, &Failure)> {
        self.named().filter_map(|(source, target, cell)| match cell {
            Ok(_) => None,
            Err(failure) => Some((source, target, failure)),
        })
    }

    /// Source, target and the source address the target saw, for each success.
    pub fn seen(&self) -> impl Iterator<Item = (&str, &str, SocketAddr)> {
        self.named()
            .filter_map(|(source, target, cell)| Some((source, target, *cell.as_ref().ok()?)))
    }

    fn named(&self) -> impl Iterator<Item = (&str, &str, &Result<SocketAddr, Failure>)> {
        self.cells.iter().filter_map(|((source, target), cell)| {
            Some((
                self.sources.get(*source)?.as_str(),
                self.targets.get(*target)?.as_str(),
                cell,
            ))
        })
    }
}

/// One row for each source: a dot for each target reached, a letter for a failure, and its legend.
impl fmt::Display for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.sources.iter().map(String::len).max().unwrap_or(0);
        for (row, source) in self.sources.iter().enumerate() {
            write!(f, "  {source:width$}  ")?;
            for column in 0..self.targets.len() {
                f.write_str(match self.cells.get(&(row, column)) {
                    Some(Ok(_)) => "●",
                    Some(Err(Failure::TimedOut)) => "t",
                    Some(Err(Failure::Refused)) => "r",
                    Some(Err(Failure::Unreachable)) => "u",
                    Some(Err(Failure::Other(_))) => "x",
                    None => " ",
                })?;
            }
            writeln!(f)?;
        }
        let (reached, all) = self.reached();
        write!(
            f,
            "  {reached} of {all} reached (t timed out, r refused, u unreachable, x other)"
        )
    }
}

/// Lets every source exchange a message with every target, the sources side by side.
pub fn matrix(sources: &[Source], targets: &[Target], protocol: Protocol, within: Duration) -> Matrix {
    let rows: Vec<Vec<_>> = thread::scope(|scope| {
        let rows: Vec<_> = sources
            .iter()
            .map(|source| scope.spawn(move || row(source, targets, protocol, within)))
            .collect();
        rows.into_iter()
            .map(|row| row.join().unwrap_or_default())
            .collect()
    });
    let cells = rows.into_iter().enumerate().flat_map(|(row, cells)| {
        let numbered = cells.into_iter().enumerate();
        numbered.map(move |(column, cell)| ((row, column), cell))
    });
    Matrix {
        sources: sources.iter().map(|source| source.name.clone()).collect(),
        targets: targets.iter().map(|target| target.name.clone()).collect(),
        cells: cells.collect(),
    }
}

/// Threads started inside the namespace stay inside, so a slow target holds up no other.
fn row(
    source: &Source,
    targets: &[Target],
    protocol: Protocol,
    within: Duration,
) -> Vec<Result<SocketAddr, Failure>> {
    const AT_ONCE: usize = 16;
    let inside = source.netns.run(|| {
        let mut cells = Vec::with_capacity(targets.len());
        for some in targets.chunks(AT_ONCE) {
            thread::scope(|scope| {
                let running: Vec<_> = some
                    .iter()
                    .map(|target| scope.spawn(|| exchange_here(protocol, target.address, within)))
                    .collect();
                cells.extend(running.into_iter().map(|cell| {
                    cell.join()
                        .unwrap_or_else(|_| Err(Failure::Other("the exchange panicked".to_owned())))
                }));
            });
        }
        cells
    });
    inside.unwrap_or_else(|error| vec![Err(Failure::Other(error.to_string())); targets.len()])
}

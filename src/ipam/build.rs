//! Turns `data/instance-limits.csv` and its corrections into a sorted static table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

type AnyError = Box<dyn std::error::Error>;

const LIMITS: &str = "../../data/instance-limits.csv";
const CORRECTIONS: &str = "../../data/instance-limits-corrections.csv";

fn main() -> Result<(), AnyError> {
    let out = env::var("OUT_DIR")?;
    let mut rows = BTreeMap::new();
    for path in [LIMITS, CORRECTIONS] {
        println!("cargo:rerun-if-changed={path}");
        let table = rows_of(path)?;
        if path == CORRECTIONS {
            check_corrections(&rows, &table)?;
        }
        rows.extend(table);
    }
    fs::write(Path::new(&out).join("limits_table.rs"), limits_table(&rows)?)?;
    Ok(())
}

/// What is known of an instance type.
#[derive(PartialEq)]
struct Limits {
    /// ENIs on the default card.
    enis: u32,
    /// IPv4 addresses an ENI.
    ipv4: u32,
    /// Whether prefixes can be delegated.
    prefixes: bool,
    /// The other cards and how many ENIs each carries.
    further: Vec<(u32, u32)>,
}

/// By instance type.
type Rows = BTreeMap<String, Limits>;

fn rows_of(path: &str) -> Result<Rows, AnyError> {
    let csv = fs::read_to_string(path)?;
    csv.lines()
        .enumerate()
        .skip(1)
        .filter(|(_, line)| !line.is_empty())
        .map(|(number, line)| parse_row(line).ok_or_else(|| format!("{path}:{}: {line}", number + 1).into()))
        .collect()
}

/// A correction that corrects nothing is out of date and is to be removed.
fn check_corrections(rows: &Rows, corrections: &Rows) -> Result<(), AnyError> {
    for (name, limits) in corrections {
        if rows.get(name).is_none_or(|known| known == limits) {
            return Err(format!("{CORRECTIONS}: {name} is not in {LIMITS} or the same there").into());
        }
    }
    Ok(())
}

/// One `(type, ENIs, IPv4 addresses an ENI, prefixes, further cards)` row a type, sorted for binary search.
fn limits_table(rows: &Rows) -> Result<String, AnyError> {
    let mut table = format!("pub(super) static LIMITS: [Row; {}] = [\n", rows.len());
    for (name, limits) in rows {
        let Limits {
            enis,
            ipv4,
            prefixes,
            further,
        } = limits;
        writeln!(table, "    ({name:?}, {enis}, {ipv4}, {prefixes}, &{further:?}),")?;
    }
    table.push_str("];\n");
    Ok(table)
}

fn parse_row(line: &str) -> Option<(String, Limits)> {
    let mut fields = line.split(',');
    let name = fields.next()?.to_owned();
    let (enis, ipv4) = (fields.next()?, fields.next()?);
    let (hypervisor, is_bare_metal) = (fields.next()?, fields.next()?);
    let prefixes = hypervisor == "nitro" || is_bare_metal.parse().ok()?;
    let cards: Vec<(u32, u32)> = fields.next()?.split(';').map(parse_card).collect::<Option<_>>()?;
    let default: u32 = fields.next()?.trim().parse().ok()?;
    let limits = Limits {
        enis: enis.parse().ok()?,
        ipv4: ipv4.parse().ok()?,
        prefixes,
        further: cards.into_iter().filter(|(card, _)| *card != default).collect(),
    };
    Some((name, limits))
}

/// `index:ENIs`.
fn parse_card(text: &str) -> Option<(u32, u32)> {
    let (card, enis) = text.split_once(':')?;
    Some((card.parse().ok()?, enis.parse().ok()?))
}

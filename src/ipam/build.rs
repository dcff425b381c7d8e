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

/// ENIs on the default card, IPv4 addresses an ENI, and whether prefixes can be delegated, by instance type.
type Rows = BTreeMap<String, (u32, u32, bool)>;

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

/// One `(type, ENIs, IPv4 addresses an ENI, prefixes)` row a type, sorted for binary search.
fn limits_table(rows: &Rows) -> Result<String, AnyError> {
    let mut table = format!(
        "pub(super) static LIMITS: [(&str, u32, u32, bool); {}] = [\n",
        rows.len()
    );
    for (name, (enis, ipv4, prefixes)) in rows {
        writeln!(table, "    ({name:?}, {enis}, {ipv4}, {prefixes}),")?;
    }
    table.push_str("];\n");
    Ok(table)
}

fn parse_row(line: &str) -> Option<(String, (u32, u32, bool))> {
    let mut fields = line.split(',');
    let name = fields.next()?.to_owned();
    let (enis, ipv4) = (fields.next()?, fields.next()?);
    let (hypervisor, is_bare_metal) = (fields.next()?, fields.next()?);
    let prefixes = hypervisor == "nitro" || is_bare_metal.parse().ok()?;
    Some((name, (enis.parse().ok()?, ipv4.parse().ok()?, prefixes)))
}

//! `docs/conformance.md` accounts for every numbered case, and names no test that does not exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The numbers that were given out; the others never were.
const CASES: [u32; 90] = [
    1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15, 17, 18, 19, 21, 22, 23, 25, 26, 27, 29, 30, 31, 33, 34, 35, 37,
    38, 39, 41, 42, 43, 45, 46, 47, 49, 50, 51, 53, 54, 55, 57, 58, 59, 61, 62, 63, 65, 66, 67, 69, 70, 71,
    73, 74, 75, 77, 78, 79, 81, 82, 83, 85, 86, 87, 89, 90, 91, 93, 94, 95, 97, 98, 99, 101, 102, 103, 105,
    106, 107, 109, 110, 111, 113, 114, 115, 117, 118, 119,
];

fn functions(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            functions(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let named = |(_, rest): (usize, &str)| -> String {
                let part = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
                rest.chars().skip("fn ".len()).take_while(part).collect()
            };
            let starts = text.match_indices("fn ").map(|(at, _)| (at, &text[at..]));
            found.extend(starts.map(named));
        }
    }
}

#[test]
fn every_case_is_accounted_for_and_every_test_that_is_named_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut known = BTreeSet::new();
    for folder in ["src", "tests"] {
        functions(&root.join(folder), &mut known);
    }
    let page = fs::read_to_string(root.join("docs/conformance.md")).unwrap();
    let mut cases = BTreeSet::new();
    for line in page.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, number, _, here, tests, _] = cells[..] else {
            continue;
        };
        let Ok(number) = number.parse::<u32>() else {
            continue;
        };
        let named: Vec<&str> = tests.split('`').filter(|name| !name.trim().is_empty()).collect();
        for name in &named {
            assert!(known.contains(*name), "{number}: no test is called {name}");
        }
        let waits = here.starts_with("waits: ");
        let told = waits || here == "same" || here.starts_with("same: ") || here.starts_with("differs: ");
        assert!(told, "{number}: {here:?} says nothing");
        assert!(waits || !named.is_empty(), "{number}: nothing proves it");
        assert!(cases.insert(number), "{number} is there twice");
    }
    assert_eq!(cases.into_iter().collect::<Vec<_>>(), CASES);
}

//! `docs/reconcile.md` is the tables of `ipam::verdict` in another form. `UPDATE_DOCS=1 cargo test --test it reconcile_doc`
//! writes it anew.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use aws_cni::ipam::verdict::{self, AddressWords, Drift, EniWords, Verdict};
use aws_cni::ipam::verdict::{Ec2EniWord, Ec2Word, EniWord, ImdsWord, KernelWord, LinkWord, StoreWord};

const HEAD: &str = "# Who is believed

What becomes of an address, a prefix or an ENI when EC2, IMDS, the kernel and the store do not say the same. The tables are those of `src/ipam/verdict.rs`, printed by a test that holds this page to them; every row is tested (`cargo test -p aws-cni-ipam verdicts`).

Four things hold in every row: nothing is given back to EC2, or forgotten, that the kernel or the store says is used; IMDS alone adds or asks, and what it omits changes nothing; what EC2 omits once stays, unless it was being given back; and witnesses that contradict each other lead to quarantine (nobody new gets it, nobody frees it), or to keeping and telling.

A prefix is one row: the kernel's word on it is that of any of its addresses, the store's the first in the order *held, resting, free*. A sandbox that holds an address in quarantine keeps it.

When a word counts: EC2 *omits* what a Describe lacks that lists the primary ENI and was asked a minute after EC2 had last named it; it *keeps omitting* what a later one, a minute after the first, still lacks. IMDS's sweep counts for a minute, the kernel's reading until an address is given out or taken back.

";

const TAIL: &str = "
## Contradictions

They are counted by kind since the start, once each time one comes up; `ipamd status --json` has the counts and those that stand now under `drift`. All but the two `ec2-extra-…` are alarms in the log (`kind=drift`, `quarantined`, `eni-unlisted`, `eni-lost`) that name every witness's word and its age; of one kind 20 a minute are told, then their number.

Of IPv6, EC2's and IMDS's words are on a /80 as a whole (`ec2-omits-address`, `imds-omits-prefix`), the kernel's and the store's on each address (`kernel-extra-route`, `kernel-omits-route`).

";

/// One line: the words of each witness that lead to the same verdict.
#[derive(Clone, PartialEq)]
struct Line {
    words: [BTreeSet<(usize, &'static str)>; 4],
    verdict: Verdict,
}

/// Puts lines together that differ in one witness's words only.
fn merged(mut lines: Vec<Line>) -> Vec<Line> {
    for witness in [1, 2, 3, 0, 1, 2, 3] {
        let mut kept: Vec<Line> = Vec::new();
        for line in lines {
            let same = |other: &&mut Line| {
                let others = (0..4).filter(|index| *index != witness);
                line.verdict == other.verdict
                    && others
                        .into_iter()
                        .all(|index| line.words[index] == other.words[index])
            };
            match kept.iter_mut().find(same) {
                Some(other) => other.words[witness].extend(line.words[witness].iter().copied()),
                None => kept.push(line),
            }
        }
        lines = kept;
    }
    lines
}

fn table(lines: Vec<Line>, sizes: [usize; 4]) -> String {
    let mut text =
        String::from("| EC2 | IMDS | kernel | store | verdict | because |\n|---|---|---|---|---|---|\n");
    for line in merged(lines) {
        for (words, size) in line.words.iter().zip(sizes) {
            let all: Vec<&str> = words.iter().map(|(_, text)| *text).collect();
            let cell = if all.len() == size {
                "any".to_owned()
            } else {
                all.join(", ")
            };
            write!(text, "| {cell} ").unwrap();
        }
        let doubt = line.verdict.doubt.map(|why| format!(", quarantined: {why}"));
        let (act, because) = (line.verdict.act, line.verdict.because);
        writeln!(text, "| **{act}**{} | {because} |", doubt.unwrap_or_default()).unwrap();
    }
    text
}

macro_rules! every {
    ($words:ident, $judge:path, $ec2:ident, $kernel:ident, $store:ident) => {{
        let mut lines = Vec::new();
        for (e, ec2) in $ec2::ALL.iter().enumerate() {
            for (s, store) in $store::ALL.iter().enumerate() {
                for (k, kernel) in $kernel::ALL.iter().enumerate() {
                    for (i, imds) in ImdsWord::ALL.iter().enumerate() {
                        let words = $words {
                            ec2: *ec2,
                            imds: *imds,
                            kernel: *kernel,
                            store: *store,
                        };
                        let cells = [
                            (e, ec2.text()),
                            (i, imds.text()),
                            (k, kernel.text()),
                            (s, store.text()),
                        ];
                        lines.push(Line {
                            words: cells.map(|cell| BTreeSet::from([cell])),
                            verdict: $judge(words),
                        });
                    }
                }
            }
        }
        table(
            lines,
            [
                $ec2::ALL.len(),
                ImdsWord::ALL.len(),
                $kernel::ALL.len(),
                $store::ALL.len(),
            ],
        )
    }};
}

fn page() -> String {
    let mut text = HEAD.to_owned();
    text += "## Addresses and prefixes\n\n";
    text += &every!(AddressWords, verdict::address, Ec2Word, KernelWord, StoreWord);
    text += "\n## ENIs\n\nThe primary ENI is never in question: it goes with the instance, and an answer without it is not believed.\n\n";
    text += &every!(EniWords, verdict::eni, Ec2EniWord, LinkWord, EniWord);
    text += TAIL;
    let kinds: Vec<String> = Drift::ALL.iter().map(|kind| format!("`{kind}`")).collect();
    text += &kinds.join(", ");
    text += ".\n";
    text
}

#[test]
fn the_page_on_witnesses_is_the_tables_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reconcile.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page(),
        "docs/reconcile.md is not what UPDATE_DOCS=1 would write"
    );
}

//! From a file's text to its ENIConfigs: every mistake is named with its line, and one that is wrong hides no other.

use super::{EniConfig, EniConfigProblem, EniConfigs, Lost};
use crate::config::known::distance;
use crate::config::parse::is_dns_subdomain;
use crate::config::yaml::{self, Node, Value};

const API_VERSION: &str = "crd.k8s.amazonaws.com/v1alpha1";
const KIND: &str = "ENIConfig";
/// What `kubectl get -o yaml` wraps several objects in.
const LISTS: [&str; 2] = ["List", "ENIConfigList"];

const FIELDS: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];
const SPEC_FIELDS: [&str; 4] = ["subnet", "subnets", "securityGroups", "zone"];

/// Groups an ENI can have at most, whatever the account's quota
/// (<https://docs.aws.amazon.com/vpc/latest/userguide/amazon-vpc-limits.html#vpc-limits-security-groups>).
const MOST_GROUPS: usize = 16;
const MOST_SUBNETS: usize = 64;
const MOST_CONFIGS: usize = 1000;
/// Of one file: who has that many has another problem.
const MOST_PROBLEMS: usize = 20;

/// Reads a whole file and adds what it has to `all`.
pub(in crate::config) fn read(text: &str, path: &str, all: &mut EniConfigs) {
    let documents = match yaml::documents(text) {
        Ok(documents) => documents,
        Err(fault) => {
            let origin = format!("{path}:{}", fault.line);
            return all.problems.push(EniConfigProblem {
                origin,
                what: fault.why,
                lost: Lost::Unknown,
            });
        }
    };
    let mut found = File {
        path,
        all,
        problems: Vec::new(),
    };
    if documents.is_empty() {
        found.problem(1, Lost::Nothing, "has no ENIConfig".to_owned());
    }
    for document in &documents {
        found.document(document);
    }
    found.finish();
}

struct File<'a> {
    path: &'a str,
    all: &'a mut EniConfigs,
    problems: Vec<EniConfigProblem>,
}

impl File<'_> {
    fn problem(&mut self, line: usize, lost: Lost, what: String) {
        let origin = format!("{}:{line}", self.path);
        self.problems.push(EniConfigProblem { origin, what, lost });
    }

    fn finish(mut self) {
        let more = self.problems.len().saturating_sub(MOST_PROBLEMS);
        // What is left out may be what tells that something is lost.
        let lost = self
            .problems
            .iter()
            .skip(MOST_PROBLEMS)
            .any(|it| it.lost != Lost::Nothing);
        self.problems.truncate(MOST_PROBLEMS);
        if more > 0 {
            let lost = if lost { Lost::Unknown } else { Lost::Nothing };
            self.problem(1, lost, format!("and {more} problems more"));
        }
        self.all.problems.append(&mut self.problems);
    }

    fn document(&mut self, document: &Node) {
        let kind = document.get("kind").and_then(Node::text);
        let is_list = kind.is_some_and(|kind| LISTS.contains(&kind));
        let Some(Node {
            value: Value::List(items),
            ..
        }) = document.get("items").filter(|_| is_list)
        else {
            return self.object(document);
        };
        for item in items {
            self.object(item);
        }
    }

    fn object(&mut self, object: &Node) {
        let mut mistakes = Mistakes::default();
        let config = self.config(object, &mut mistakes);
        let name = config.as_ref().map(|config| config.name.clone());
        let lost = name.map_or(Lost::Unknown, Lost::Named);
        let is_good = mistakes.0.is_empty();
        if !is_good && let Lost::Named(name) = &lost {
            // One good and one bad of a name: nobody knows which was meant.
            self.all.configs.retain(|other| other.name != *name);
        }
        for (line, what) in mistakes.0 {
            self.problem(line, lost.clone(), what);
        }
        if let (Some(config), true) = (config, is_good) {
            self.keep(object.line, config);
        }
    }

    /// A name that comes twice names neither: nobody knows which was meant.
    fn keep(&mut self, line: usize, config: EniConfig) {
        let name = &config.name;
        let lost = Lost::Named(name.clone());
        let is_ruled_out = |problem: &EniConfigProblem| problem.lost == lost;
        if let Some(at) = self.all.configs.iter().position(|other| other.name == *name) {
            let other = self.all.configs.remove(at);
            let what = format!("the same name stands in {}", other.origin);
            self.problem(line, lost, what);
        } else if self.all.problems.iter().chain(&self.problems).any(is_ruled_out) {
            self.problem(line, lost, "another of the same name is wrong, too".to_owned());
        } else if self.all.configs.len() >= MOST_CONFIGS {
            self.problem(line, lost, format!("more than {MOST_CONFIGS} ENIConfigs"));
        } else {
            self.all.configs.push(config);
        }
    }

    /// The name is told even when the rest is wrong, as far as there is one.
    fn config(&self, object: &Node, mistakes: &mut Mistakes) -> Option<EniConfig> {
        let Value::Map(fields) = &object.value else {
            mistakes.add(
                object.line,
                format!("an ENIConfig is a map, and this is {}", object.kind()),
            );
            return None;
        };
        mistakes.unknown_fields(fields, &FIELDS, "");
        mistakes.expect_text(object, "apiVersion", API_VERSION);
        mistakes.expect_text(object, "kind", KIND);
        let name = name(object, mistakes);
        let spec = spec(object, mistakes);
        let (subnets, groups, zone) = spec.unwrap_or_default();
        Some(EniConfig {
            name: name?,
            subnets: subnets.into_iter().map(Into::into).collect(),
            groups: groups.into_iter().map(Into::into).collect(),
            zone,
            origin: format!("{}:{}", self.path, object.line),
        })
    }
}

type Spec = (Vec<String>, Vec<String>, Option<String>);

fn name(object: &Node, mistakes: &mut Mistakes) -> Option<String> {
    let Some(name) = object.get("metadata").and_then(|metadata| metadata.get("name")) else {
        mistakes.add(object.line, "metadata.name is missing".to_owned());
        return None;
    };
    let text = name.text().filter(|text| is_dns_subdomain(text));
    if text.is_none() {
        let what = "metadata.name must be lower-case letters, digits, '-' and '.', at most 253; quoted if it looks like \
                    a number"
            .to_owned();
        mistakes.add(name.line, what);
    }
    text.map(str::to_owned)
}

fn spec(object: &Node, mistakes: &mut Mistakes) -> Option<Spec> {
    let Some(spec) = object.get("spec") else {
        mistakes.add(object.line, "spec is missing".to_owned());
        return None;
    };
    let Value::Map(fields) = &spec.value else {
        mistakes.add(spec.line, format!("spec must be a map, and is {}", spec.kind()));
        return None;
    };
    mistakes.unknown_fields(fields, &SPEC_FIELDS, "spec.");
    let groups = mistakes.ids(
        spec.get("securityGroups"),
        "spec.securityGroups",
        "sg-",
        MOST_GROUPS,
    );
    Some((subnets(spec, mistakes), groups, zone(spec, mistakes)))
}

fn subnets(spec: &Node, mistakes: &mut Mistakes) -> Vec<String> {
    let present = |key: &str| spec.get(key).filter(|node| !node.is_null());
    match (present("subnet"), present("subnets")) {
        (None, None) => {
            mistakes.add(spec.line, "spec.subnet is missing".to_owned());
            Vec::new()
        }
        (Some(_), Some(several)) => {
            mistakes.add(
                several.line,
                "spec.subnets stands beside spec.subnet; keep one".to_owned(),
            );
            Vec::new()
        }
        (Some(one), None) => mistakes.id(one, "spec.subnet", "subnet-").into_iter().collect(),
        (None, Some(several)) => {
            let found = mistakes.ids(Some(several), "spec.subnets", "subnet-", MOST_SUBNETS);
            if matches!(&several.value, Value::List(items) if items.is_empty()) {
                mistakes.add(several.line, "spec.subnets is empty".to_owned());
            }
            found
        }
    }
}

fn zone(spec: &Node, mistakes: &mut Mistakes) -> Option<String> {
    let zone = spec.get("zone").filter(|node| !node.is_null())?;
    let text = zone.text().filter(|text| is_zone(text));
    if text.is_none() {
        mistakes.add(
            zone.line,
            "spec.zone must be a zone's name such as eu-west-1a".to_owned(),
        );
    }
    text.map(str::to_owned)
}

fn is_zone(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=64).contains(&text.len()) && text.bytes().all(plain)
}

/// An id of EC2's: the prefix, and 8 or 17 hexadecimal digits
/// (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/resource-ids.html>).
fn is_id(text: &str, prefix: &str) -> bool {
    text.strip_prefix(prefix).is_some_and(|digits| {
        matches!(digits.len(), 8 | 17)
            && digits
                .bytes()
                .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    })
}

#[derive(Default)]
struct Mistakes(Vec<(usize, String)>);

impl Mistakes {
    fn add(&mut self, line: usize, what: String) {
        self.0.push((line, what));
    }

    /// A field nobody reads may be a group that nobody applies.
    fn unknown_fields(&mut self, fields: &[(String, Node)], known: &[&str], path: &str) {
        for (name, node) in fields.iter().filter(|(name, _)| !known.contains(&name.as_str())) {
            let meant = suggestion(name, known)
                .map_or_else(String::new, |meant| format!("; did you mean {path}{meant}?"));
            self.add(
                node.line,
                format!("there is no field {path}{}{meant}", shown(name)),
            );
        }
    }

    fn expect_text(&mut self, object: &Node, key: &str, expected: &str) {
        match object.get(key) {
            None => self.add(object.line, format!("{key} is missing; it must be {expected}")),
            Some(node) if node.text() == Some(expected) => {}
            Some(node) => {
                let found = node.text().map_or_else(|| node.kind().to_owned(), shown);
                self.add(node.line, format!("{key} is {found}, and must be {expected}"));
            }
        }
    }

    fn id(&mut self, node: &Node, field: &str, prefix: &str) -> Option<String> {
        let found = node.text().filter(|text| is_id(text, prefix));
        if found.is_none() {
            let is = node.text().map_or_else(|| node.kind().to_owned(), shown);
            let what = format!("{field} is {is}, and must be {prefix} with 8 or 17 hexadecimal digits");
            self.add(node.line, what);
        }
        found.map(str::to_owned)
    }

    fn ids(&mut self, node: Option<&Node>, field: &str, prefix: &str, most: usize) -> Vec<String> {
        let Some(node) = node.filter(|node| !node.is_null()) else {
            return Vec::new();
        };
        let Value::List(items) = &node.value else {
            self.add(
                node.line,
                format!("{field} must be a list, and is {}", node.kind()),
            );
            return Vec::new();
        };
        if items.len() > most {
            self.add(
                node.line,
                format!("{field} has {} entries; {most} are taken", items.len()),
            );
            return Vec::new();
        }
        let mut found = Vec::new();
        for item in items {
            let Some(id) = self.id(item, field, prefix) else {
                continue;
            };
            if found.contains(&id) {
                self.add(item.line, format!("{field} has {id} twice"));
            } else {
                found.push(id);
            }
        }
        found
    }
}

/// Nobody wants a screenful of somebody else's text in a log line.
fn shown(text: &str) -> String {
    let short: String = text.chars().take(40).collect();
    let more = if short.len() < text.len() { "…" } else { "" };
    format!("{short:?}{more}")
}

/// The field that was probably meant: one much like it, or one that is a part of it.
fn suggestion<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    if name.len() > 40 {
        return None;
    }
    let plain = |text: &str| text.replace(['_', '-'], "").to_ascii_lowercase();
    let name = plain(name);
    let closest = known.iter().min_by_key(|field| distance(&name, &plain(field)));
    let is_near = |field: &&&str| distance(&name, &plain(field)) <= 2;
    let part = |field: &&&str| name.ends_with(&plain(field)) || name.starts_with(&plain(field));
    closest
        .filter(is_near)
        .or_else(|| known.iter().rev().find(part))
        .copied()
}

//! What of pods the node's kernel has.

use serde_json::Value;

use super::{Node, NodeError};

/// The table of pod routes in the shared layout.
const POD_TABLE: &str = "512";

impl Node {
    /// Links with the prefix of pods, routes over them or in the table of pod routes, rules for single pods. Empty when
    /// nothing of any pod is left.
    pub fn pod_objects(&self) -> Result<Vec<String>, NodeError> {
        let links = self.links()?.into_iter().map(|link| link.name);
        let mut found: Vec<String> = links.filter(|name| name.starts_with("eni")).collect();
        let of_pods =
            |route: &&Value| text(route, "dev").starts_with("eni") || text(route, "table") == POD_TABLE;
        for family in ["-4", "-6"] {
            let routes = self.ip_json(&[family, "route", "show", "table", "all"])?;
            found.extend(list(&routes).filter(of_pods).map(ToString::to_string));
            let rules = self.ip_json(&[family, "rule", "show"])?;
            let of_one = list(&rules).filter(|rule| is_of_one_pod(rule));
            found.extend(of_one.map(ToString::to_string));
        }
        Ok(found)
    }
}

fn is_of_one_pod(rule: &Value) -> bool {
    match rule.get("priority").and_then(Value::as_u64) {
        Some(512) => rule.get("dst").is_some(),
        Some(1536) => text(rule, "src") != "all",
        _ => false,
    }
}

fn list(answer: &Value) -> impl Iterator<Item = &Value> {
    answer.as_array().into_iter().flatten()
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

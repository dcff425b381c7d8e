//! Upstream's features that this version lacks: said so, never skipped in silence.

use super::problem::ProblemKind;
use super::reader::{Read, Reader};

/// Pods would get wrong addresses, or none of the isolation that was asked for.
const REFUSED: &[(&str, &str)] = &[("ENABLE_POD_ENI", "security groups for pods")];

/// Something is missing, but what runs is right; each with what to expect.
const REMARKED: &[(&str, &str)] = &[
    ("ANNOTATE_POD_IP", "pods are not annotated by this version yet"),
    (
        "ENABLE_V6_EGRESS",
        "pods get no IPv6 egress from this version yet",
    ),
    (
        "DISABLE_POD_V6",
        "has no effect here; chain the tuning plugin (AWS_CNI_CONFLIST_CHAIN_DIR)",
    ),
];

/// Taken and checked, but nothing in the daemon acts on them yet; each with where to turn instead. What upstream's
/// manifest sets by itself is not among them: a remark about it would come at every start and help nobody.
const WITHOUT_EFFECT: &[(&str, &str)] = &[(
    "INTROSPECTION_BIND_ADDRESS",
    "has no effect in this version; `ipamd status --json` shows the daemon's state",
)];

/// Remarks on settings that were given and do nothing.
pub(super) fn note_without_effect(r: &mut Reader<'_>) {
    for (name, remark) in WITHOUT_EFFECT {
        if let (true, Some(raw)) = (r.asks_for_something(name), r.raw(name)) {
            r.warn(name, &raw, ProblemKind::Remark((*remark).to_owned()));
        }
    }
}

/// Reads the switches of what is not there.
pub(super) fn check(r: &mut Reader<'_>) {
    for (name, feature) in REFUSED {
        let on = r.boolean(name, false);
        refuse_if(r, on, name, feature);
    }
    for (name, remark) in REMARKED {
        if let (true, Some(raw)) = (r.boolean(name, false), r.raw(name)) {
            r.warn(name, &raw, ProblemKind::Remark((*remark).to_owned()));
        }
    }
    network_policy(r);
}

fn refuse_if(r: &mut Reader<'_>, on: bool, name: &'static str, feature: &'static str) {
    if let (true, Some(raw)) = (on, r.raw(name)) {
        r.refuse(name, &raw, ProblemKind::NotSupported { feature });
    }
}

/// Upstream's own default of both families is off, which once stopped every node whose manifest lacked the variable;
/// here IPv4 is on unless it is switched off.
/// Returns whether pods get IPv6 addresses.
pub(super) fn families(r: &mut Reader<'_>) -> bool {
    let v6 = r.boolean("ENABLE_IPv6", false);
    // With IPv6 upstream's default holds: a cluster of that family need not switch the other one off.
    let v4 = r.boolean("ENABLE_IPv4", !v6);
    if let (true, true, Some(raw)) = (v4, v6, r.raw("ENABLE_IPv6")) {
        let allowed = "one of ENABLE_IPv4 and ENABLE_IPv6, because a pod gets one address".to_owned();
        r.refuse("ENABLE_IPv6", &raw, ProblemKind::Refused { allowed });
    }
    if let (false, false, Some(raw)) = (v4, v6, r.raw("ENABLE_IPv4")) {
        let allowed = "true, because no other address family is on".to_owned();
        r.refuse("ENABLE_IPv4", &raw, ProblemKind::Refused { allowed });
    }
    v6
}

/// `strict` promises that a pod is isolated until its policies are in force. Nothing here keeps that promise.
fn network_policy(r: &mut Reader<'_>) {
    let name = "NETWORK_POLICY_ENFORCING_MODE";
    let mode = r.read(name, "standard".to_owned(), "none, standard or strict", |text| {
        let word = text.to_ascii_lowercase();
        match word.as_str() {
            "none" | "standard" | "strict" => Read::Value(word),
            _ => Read::Refuse,
        }
    });
    refuse_if(r, mode == "strict", name, "strict network policy enforcement");
}

//! Warm targets: which count, and which are named because they do not.

use super::*;

#[test]
fn targets_have_no_effect_with_ipv6() {
    let told = remarks(&[
        ("ENABLE_IPv6", "true"),
        ("ENABLE_IPv4", "false"),
        ("ENABLE_PREFIX_DELEGATION", "true"),
        ("WARM_ENI_TARGET", "1"),
        ("WARM_PREFIX_TARGET", "1"),
        ("WARM_IP_TARGET", "5"),
    ]);
    let names: Vec<&str> = told.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        ["WARM_IP_TARGET"],
        "what the manifest sets by itself is not remarked on"
    );
}

/// Conformance: dataplane 126 refuses the first two rows; here the manifest's 1 takes effect, and says so.
#[test]
fn dataplane_126_prefix_delegation_without_any_target_gets_one_prefix() {
    let on = ("ENABLE_PREFIX_DELEGATION", "true");
    for (pairs, effective, speaks) in [
        (vec![on], 1, Some("ENABLE_PREFIX_DELEGATION")),
        (
            vec![on, ("WARM_PREFIX_TARGET", "0")],
            1,
            Some("WARM_PREFIX_TARGET"),
        ),
        // Upstream compares text, so this one slips through and flaps for ever (quirk Q5).
        (
            vec![on, ("WARM_PREFIX_TARGET", "00")],
            1,
            Some("WARM_PREFIX_TARGET"),
        ),
        (vec![on, ("WARM_PREFIX_TARGET", "1")], 1, None),
        (vec![on, ("WARM_PREFIX_TARGET", "3")], 3, None),
        (vec![on, ("WARM_IP_TARGET", "5")], 0, None),
        (
            vec![on, ("WARM_IP_TARGET", "5"), ("WARM_PREFIX_TARGET", "0")],
            0,
            None,
        ),
    ] {
        let config = load(&pairs);
        let names: Vec<_> = config
            .warnings
            .iter()
            .map(|warning| warning.variable.as_str())
            .collect();
        assert_eq!(config.pool.warm_prefix_target, effective, "{pairs:?}");
        assert_eq!(
            shown(&config, "WARM_PREFIX_TARGET"),
            effective.to_string(),
            "{pairs:?}"
        );
        assert_eq!(names, speaks.into_iter().collect::<Vec<_>>(), "{pairs:?}");
    }
}

/// Quirks Q4 and Q36, and what other targets are worth beside each other. What upstream's manifest sets by itself (both
/// at 1) is no choice of the operator's.
#[test]
fn targets_that_do_nothing_beside_others_are_named_with_the_one_that_counts() {
    let pd = ("ENABLE_PREFIX_DELEGATION", "true");
    let manifest = [("WARM_ENI_TARGET", "1"), ("WARM_PREFIX_TARGET", "1")];
    let adaptive = ("ADAPTIVE_WARM_POOL", "true");
    assert_eq!(remarks(&manifest), []);
    assert_eq!(remarks(&[pd, manifest[0], manifest[1]]), []);
    assert_eq!(remarks(&[adaptive, manifest[0], manifest[1]]), []);
    assert_eq!(remarks(&[("WARM_IP_TARGET", "2"), manifest[0], manifest[1]]), []);
    for (pairs, expected) in [
        (
            vec![pd, manifest[1], ("WARM_ENI_TARGET", "2")],
            vec![("WARM_ENI_TARGET", "WARM_PREFIX_TARGET says")],
        ),
        (
            vec![pd, ("WARM_IP_TARGET", "2"), ("WARM_PREFIX_TARGET", "2")],
            vec![("WARM_PREFIX_TARGET", "precedence")],
        ),
        (
            vec![("WARM_IP_TARGET", "2"), ("WARM_ENI_TARGET", "2")],
            vec![("WARM_ENI_TARGET", "precedence")],
        ),
        (
            vec![("MINIMUM_IP_TARGET", "12")],
            vec![("MINIMUM_IP_TARGET", "WARM_IP_TARGET says how many")],
        ),
        (vec![("MINIMUM_IP_TARGET", "12"), ("WARM_IP_TARGET", "1")], vec![]),
        (
            vec![("WARM_PREFIX_TARGET", "2")],
            vec![("WARM_PREFIX_TARGET", "without ENABLE_PREFIX_DELEGATION")],
        ),
        (
            vec![
                adaptive,
                pd,
                ("WARM_ENI_TARGET", "2"),
                ("WARM_IP_TARGET", "3"),
                ("MINIMUM_IP_TARGET", "4"),
                ("WARM_PREFIX_TARGET", "5"),
            ],
            vec![
                ("WARM_ENI_TARGET", "ADAPTIVE_WARM_POOL"),
                ("WARM_IP_TARGET", "ADAPTIVE_WARM_POOL"),
                ("MINIMUM_IP_TARGET", "ADAPTIVE_WARM_POOL"),
                ("WARM_PREFIX_TARGET", "ADAPTIVE_WARM_POOL"),
            ],
        ),
    ] {
        let found = remarks(&pairs);
        assert_eq!(found.len(), expected.len(), "{pairs:?}: {found:?}");
        for ((name, text), (expected, words)) in found.iter().zip(expected) {
            assert_eq!(name, expected);
            assert!(text.contains(words), "{text}");
        }
    }
}

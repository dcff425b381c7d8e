//! Files as people write them, and as nobody should; and which ENIConfig holds.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::*;
use crate::config::types::EniConfigSelection;

const KEY: &str = "k8s.amazonaws.com/eniConfig";

/// As the documentation of EKS has it.
fn crd(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: crd.k8s.amazonaws.com/v1alpha1\nkind: ENIConfig\nmetadata:\n  name: {name}\nspec:\n{spec}"
    )
}

fn simple(name: &str) -> String {
    crd(
        name,
        "  securityGroups:\n    - sg-0123456789abcdef0\n  subnet: subnet-0aaaaaaaaaaaaaaaa\n",
    )
}

struct Directory(tempfile::TempDir);

impl Directory {
    fn of(files: &[(&str, &str)]) -> Self {
        let directory = Self(tempfile::tempdir().unwrap());
        for (name, text) in files {
            std::fs::write(directory.0.path().join(name), text).unwrap();
        }
        directory
    }

    fn read(&self) -> EniConfigs {
        EniConfigDirectory::new(self.0.path().to_owned()).read()
    }
}

fn read(text: &str) -> EniConfigs {
    Directory::of(&[("one.yaml", text)]).read()
}

fn names(all: &EniConfigs) -> Vec<&str> {
    all.configs.iter().map(|config| config.name.as_str()).collect()
}

/// Problems without the directory in front, which is another in each run.
fn problems(all: &EniConfigs) -> Vec<String> {
    let text = |problem: &EniConfigProblem| problem.to_string().rsplit('/').next().unwrap().to_owned();
    all.problems.iter().map(text).collect()
}

#[test]
fn the_crds_own_format_is_read() {
    let all = read(&simple("eu-west-1a"));
    assert_eq!(problems(&all), [""; 0]);
    let config = &all.configs[0];
    assert_eq!(config.name, "eu-west-1a");
    assert_eq!(config.subnets, ["subnet-0aaaaaaaaaaaaaaaa".into()]);
    assert_eq!(config.groups, ["sg-0123456789abcdef0".into()]);
    assert_eq!(config.zone, None);
    assert!(config.origin.ends_with("one.yaml:1"), "{}", config.origin);
}

/// What the API server adds says nothing to us.
#[test]
fn what_kubectl_prints_is_read() {
    let text = "apiVersion: v1\nitems:\n- apiVersion: crd.k8s.amazonaws.com/v1alpha1\n  kind: ENIConfig\n  metadata:\n    \
                annotations:\n      kubectl.kubernetes.io/last-applied-configuration: |\n        {\"a\":{}}\n    \
                creationTimestamp: \"2026-01-01T00:00:00Z\"\n    generation: 1\n    name: eu-west-1a\n    \
                resourceVersion: \"99\"\n    uid: 1-2\n  spec:\n    securityGroups:\n    - sg-01234567\n    \
                subnet: subnet-01234567\n- apiVersion: crd.k8s.amazonaws.com/v1alpha1\n  kind: ENIConfig\n  metadata:\n    \
                name: eu-west-1b\n  spec:\n    subnet: subnet-01234568\n  status: {}\nkind: List\nmetadata:\n  \
                resourceVersion: \"\"\n";
    let all = read(text);
    assert_eq!(problems(&all), [""; 0]);
    assert_eq!(names(&all), ["eu-west-1a", "eu-west-1b"]);
    assert_eq!(all.configs[1].groups, []);
}

#[test]
fn files_documents_and_json_add_up_in_the_order_of_their_names() {
    let json = "{\n\t\"apiVersion\":\t\"crd.k8s.amazonaws.com/v1alpha1\", \"kind\": \"ENIConfig\",\n\t\"metadata\": {\
                \"name\": \"c\"}, \"spec\": {\"subnet\": \"subnet-01234567\", \"securityGroups\": []}}";
    let two = format!("{}---\n{}---\n", simple("a"), simple("b"));
    let directory = Directory::of(&[
        ("20.json", json),
        ("10.yaml", &two),
        ("30.yml", &simple("d")),
        (".hidden.yaml", "nonsense: ["),
        ("40.yaml.rpmnew", "nonsense: ["),
    ]);
    let all = directory.read();
    assert_eq!(names(&all), ["a", "b", "c", "d"]);
    assert_eq!(
        problems(&all),
        ["40.yaml.rpmnew: not read, as its name ends in neither .yaml nor .yml nor .json"]
    );
    assert!(!all.is_incomplete());
}

#[test]
fn several_subnets_and_a_zone_are_ours() {
    let all = read(&crd(
        "pods",
        "  zone: eu-west-1a\n  subnets: [subnet-01234567, subnet-01234568]\n",
    ));
    assert_eq!(problems(&all), [""; 0]);
    assert_eq!(all.configs[0].zone.as_deref(), Some("eu-west-1a"));
    assert_eq!(
        all.configs[0].subnets,
        ["subnet-01234567".into(), "subnet-01234568".into()]
    );
}

/// All mistakes of all files at once, each with its place and what is lost.
#[test]
fn every_mistake_is_named_at_once() {
    let directory = Directory::of(&[
        (
            "a.yaml",
            &format!("{}---\n{}", simple("good"), "kind: ENIConfig\nspec: {}\n"),
        ),
        (
            "b.yaml",
            &crd(
                "b",
                "  subnet: subnet-XYZ\n  securityGroup: sg-01234567\n  securityGroups: [sg-01234567, 7, sg-01234567]\n",
            ),
        ),
        ("c.yaml", "a: [1\n"),
        ("d.yaml", &simple("good")),
        ("e.yaml", ""),
        (
            "f.yaml",
            &crd("UPPER", "  subnet: subnet-01234567\n  subnets: []\n"),
        ),
    ]);
    let all = directory.read();
    assert_eq!(names(&all), [""; 0]);
    let said = problems(&all);
    let expected = [
        "a.yaml:10: apiVersion is missing; it must be crd.k8s.amazonaws.com/v1alpha1",
        "a.yaml:10: metadata.name is missing",
        "a.yaml:11: spec.subnet is missing",
        "b.yaml:7: ENIConfig \"b\" cannot be used: there is no field spec.\"securityGroup\"; did you mean spec.securityGroups?",
        "b.yaml:8: ENIConfig \"b\" cannot be used: spec.securityGroups is a number or boolean, and must be sg- with 8 or 17 hexadecimal digits",
        "b.yaml:8: ENIConfig \"b\" cannot be used: spec.securityGroups has sg-01234567 twice",
        "b.yaml:6: ENIConfig \"b\" cannot be used: spec.subnet is \"subnet-XYZ\", and must be subnet- with 8 or 17 hexadecimal digits",
        "c.yaml:",
        "d.yaml:1: ENIConfig \"good\" cannot be used: the same name stands in ",
        "e.yaml:1: has no ENIConfig",
        "f.yaml:4: metadata.name must be lower-case",
        "f.yaml:7: spec.subnets stands beside spec.subnet; keep one",
    ];
    for text in expected {
        // A path within a message is cut by `problems`.
        let whole: Vec<String> = all.problems.iter().map(ToString::to_string).collect();
        assert!(
            whole.iter().any(|problem| problem.contains(text)),
            "{text}\n---\n{}",
            whole.join("\n")
        );
    }
    assert_eq!(said.len(), expected.len(), "{said:#?}");
    assert!(all.is_incomplete());
}

#[test]
fn fields_that_do_not_exist_are_errors_with_the_one_that_was_meant() {
    for (typed, meant) in [
        ("subnetId", "subnet"),
        ("Subnet", "subnet"),
        ("subnetIDs", "subnets"),
        ("security_groups", "securityGroups"),
        ("securityGroupIds", "securityGroups"),
        ("availability-zone", "zone"),
    ] {
        let all = read(&crd("a", &format!("  subnet: subnet-01234567\n  {typed}: x\n")));
        let said = problems(&all);
        assert!(
            said.iter()
                .any(|text| text.contains(&format!("did you mean spec.{meant}?"))),
            "{typed}: {said:?}"
        );
        assert_eq!(names(&all), [""; 0]);
    }
    let all = read(&crd("a", "  subnet: subnet-01234567\n  frobnicate: x\n"));
    assert!(problems(&all)[0].ends_with("there is no field spec.\"frobnicate\""));
}

#[test]
fn wrong_types_are_named_as_what_they_are() {
    for (spec, what) in [
        ("  subnet: 7\n", "spec.subnet is a number or boolean"),
        ("  subnet: [subnet-01234567]\n", "spec.subnet is a list"),
        ("  subnet: null\n", "spec.subnet is missing"),
        ("  subnet: \"\"\n", "spec.subnet is \"\""),
        (
            "  subnets: subnet-01234567\n",
            "spec.subnets must be a list, and is text",
        ),
        ("  subnets: []\n", "spec.subnets is empty"),
        (
            "  subnet: subnet-01234567\n  securityGroups: sg-01234567\n",
            "spec.securityGroups must be a list, and is text",
        ),
        (
            "  subnet: subnet-01234567\n  securityGroups: {a: b}\n",
            "must be a list, and is a map",
        ),
        (
            "  subnet: subnet-01234567\n  zone: Ireland!\n",
            "spec.zone must be",
        ),
        ("  - subnet\n", "spec must be a map, and is a list"),
        ("  subnet: subnet-0123456\n", "spec.subnet is \"subnet-0123456\""),
        ("  subnet: subnet-0123456G\n", "hexadecimal"),
    ] {
        let all = read(&crd("a", spec));
        assert_eq!(names(&all), [""; 0], "{spec}");
        let said = problems(&all);
        assert!(said.iter().any(|text| text.contains(what)), "{spec}: {said:?}");
        assert_eq!(all.problems[0].lost, Lost::Named("a".into()));
    }
    for text in ["- a\n", "just text\n", "7\n", "kind: List\nitems: 5\n"] {
        let all = read(text);
        assert!(all.is_incomplete(), "{text}");
    }
}

#[test]
fn hostile_files_cost_nothing_but_a_problem() {
    let groups = format!(
        "  subnet: subnet-01234567\n  securityGroups: [{}]\n",
        "sg-01234567, ".repeat(17)
    );
    let fields: String = (0..5000).fold(String::new(), |text, n| text + &format!("  f{n}: x\n"));
    let long_name = crd(&"a".repeat(254), "  subnet: subnet-01234567\n");
    let huge = format!("# {}\n{}", "x".repeat(300 << 10), simple("a"));
    let bomb = format!("{}x: &x [a, a]\ny: [*x, *x]\n", simple("a"));
    for (text, most, what) in [
        (crd("a", &groups), 1, "17 entries; 16 are taken"),
        (crd("a", &fields), 21, "problems more"),
        (long_name, 1, "metadata.name must be"),
        (huge, 1, "longer than 262144 bytes"),
        (bomb, 1, "aliases"),
        ("[".repeat(1000), 1, "recursion limit"),
        ("\u{0}\u{1}".to_owned(), 1, ""),
    ] {
        let all = read(&text);
        assert_eq!(names(&all), [""; 0], "{what}");
        let said = problems(&all);
        assert!((1..=most).contains(&said.len()), "{said:?}");
        assert!(said.last().unwrap().contains(what), "{said:?}");
        assert!(said.iter().all(|text| text.len() < 400));
        assert!(all.is_incomplete());
    }
}

#[test]
fn directories_links_and_bytes_are_problems_and_the_rest_counts() {
    let directory = Directory::of(&[("good.yaml", &simple("good"))]);
    let path = directory.0.path();
    std::fs::create_dir(path.join("dir.yaml")).unwrap();
    std::fs::write(path.join("latin.yaml"), b"kind: \xe9").unwrap();
    std::os::unix::fs::symlink("/dev/zero", path.join("zero.yaml")).unwrap();
    std::os::unix::fs::symlink("nowhere", path.join("broken.yaml")).unwrap();
    let all = directory.read();
    assert_eq!(names(&all), ["good"]);
    assert_eq!(all.problems.len(), 4, "{:?}", problems(&all));
    assert!(all.problems.iter().all(|problem| problem.lost == Lost::Unknown));
    // No directory is no ENIConfig; a file in its place is a problem.
    assert_eq!(
        EniConfigDirectory::new(path.join("nowhere")).read(),
        EniConfigs::default()
    );
    assert!(
        EniConfigDirectory::new(path.join("good.yaml"))
            .read()
            .is_incomplete()
    );
}

/// Whichever comes first: one name, two meanings, none of them used.
#[test]
fn a_name_that_comes_twice_names_nothing() {
    let good = simple("a");
    let bad = crd("a", "  subnet: 7\n");
    let third = simple("b");
    for files in [
        vec![&good, &good, &third],
        vec![&good, &bad, &third],
        vec![&bad, &good, &third],
        vec![&good, &good, &good, &third],
    ] {
        let text = files
            .into_iter()
            .fold(String::new(), |text, one| format!("{text}---\n{one}"));
        let all = read(&text);
        assert_eq!(names(&all), ["b"], "{text}");
        assert!(
            all.problems
                .iter()
                .any(|problem| problem.lost == Lost::Named("a".into()))
        );
    }
}

fn selection(labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> EniConfigSelection {
    let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    };
    EniConfigSelection {
        directory: PathBuf::from("/x"),
        labels: map(labels),
        annotations: map(annotations),
        label_key: KEY.to_owned(),
        annotation_key: KEY.to_owned(),
    }
}

fn configs(of: &[(&str, Option<&str>)]) -> EniConfigs {
    let config = |(name, zone): &(&str, Option<&str>)| EniConfig {
        name: (*name).to_owned(),
        subnets: vec![format!("subnet-of-{name}").as_str().into()],
        groups: vec![],
        zone: zone.map(str::to_owned),
        origin: String::new(),
    };
    EniConfigs {
        configs: of.iter().map(config).collect(),
        problems: vec![],
    }
}

fn chosen(all: &EniConfigs, selection: &EniConfigSelection) -> Result<String, NoEniConfig> {
    choose(all, selection, "eu-west-1a").map(|choice| choice.name)
}

/// The order of reference ipamd 1.7, each step with everything below it present as well.
#[test]
fn the_first_that_names_one_wins() {
    let all = configs(&[
        ("first", None),
        ("annotated", None),
        ("labelled", None),
        ("for-zone", Some("eu-west-1a")),
        ("eu-west-1a", None),
        ("default", None),
    ]);
    let first = ("vpc.amazonaws.com/externalEniConfig", "first");
    let labelled = (KEY, "labelled");
    let annotated = (KEY, "annotated");
    for (labels, annotations, expected) in [
        (vec![first, labelled], vec![annotated], "first"),
        (vec![labelled], vec![annotated], "annotated"),
        (vec![labelled], vec![], "labelled"),
        (vec![(KEY, "")], vec![(KEY, "")], "for-zone"),
        (vec![], vec![], "for-zone"),
    ] {
        assert_eq!(
            chosen(&all, &selection(&labels, &annotations)).as_deref(),
            Ok(expected),
            "{labels:?} {annotations:?}"
        );
    }
    let nobody = selection(&[], &[]);
    assert_eq!(
        chosen(&configs(&[("default", None), ("eu-west-1a", None)]), &nobody).as_deref(),
        Ok("eu-west-1a")
    );
    assert_eq!(
        chosen(&configs(&[("eu-west-1b", None), ("default", None)]), &nobody).as_deref(),
        Ok("default")
    );
}

/// Another zone's ENIConfig is never this zone's, whatever it is called.
#[test]
fn a_zone_that_is_said_counts_before_the_name() {
    let all = configs(&[
        ("eu-west-1a", Some("eu-west-1b")),
        ("default", Some("eu-west-1c")),
    ]);
    let zone = "eu-west-1a".to_owned();
    assert_eq!(
        chosen(&all, &selection(&[], &[])),
        Err(NoEniConfig::None { zone: zone.clone() })
    );
    let two = configs(&[("x", Some("eu-west-1a")), ("y", Some("eu-west-1a"))]);
    let names = "x, y".to_owned();
    assert_eq!(
        chosen(&two, &selection(&[], &[])),
        Err(NoEniConfig::Ambiguous { zone, names })
    );
    assert_eq!(chosen(&two, &selection(&[(KEY, "y")], &[])).as_deref(), Ok("y"));
}

/// As upstream's users set it up; the label is the cloud provider's, and the node knows it without asking anybody.
#[test]
fn the_zones_label_needs_not_be_told() {
    let all = configs(&[("eu-west-1a", None), ("other", None)]);
    let by_zone = |labels: &[(&str, &str)]| EniConfigSelection {
        label_key: "topology.kubernetes.io/zone".to_owned(),
        ..selection(labels, &[])
    };
    assert_eq!(chosen(&all, &by_zone(&[])).as_deref(), Ok("eu-west-1a"));
    let told = [("topology.kubernetes.io/zone", "other")];
    assert_eq!(chosen(&all, &by_zone(&told)).as_deref(), Ok("other"));
    // Named by a label and not there is missing, as upstream has it; there is no default then.
    let elsewhere = configs(&[("eu-west-1b", None), ("default", None)]);
    let missing = chosen(&elsewhere, &by_zone(&[])).unwrap_err();
    assert!(matches!(missing, NoEniConfig::Missing { .. }), "{missing}");
}

#[test]
fn one_that_is_named_and_not_there_is_missing_and_nothing_takes_its_place() {
    let all = configs(&[("eu-west-1a", None), ("default", None)]);
    let missing = chosen(&all, &selection(&[(KEY, "gone")], &[])).unwrap_err();
    assert_eq!(
        missing.to_string(),
        "there is no ENIConfig \"gone\", which label k8s.amazonaws.com/eniConfig asks for"
    );
    assert!(!missing.is_doubt());
}

/// The wrong subnet is worse than none: while something cannot be read, nothing falls through to `default`.
#[test]
fn a_broken_file_never_moves_a_node_to_another_subnet() {
    let with = |of: &[(&str, Option<&str>)], lost: Lost| {
        let mut all = configs(of);
        all.problems.push(EniConfigProblem {
            origin: "f".into(),
            what: "w".into(),
            lost,
        });
        all
    };
    let nobody = selection(&[], &[]);
    let default = [("default", None)];
    assert_eq!(
        chosen(&with(&default, Lost::Nothing), &nobody).as_deref(),
        Ok("default")
    );
    for lost in [
        Lost::Unknown,
        Lost::Named("eu-west-1a".into()),
        Lost::Named("x".into()),
    ] {
        let doubt = chosen(&with(&default, lost.clone()), &nobody).unwrap_err();
        assert!(doubt.is_doubt(), "{lost:?}: {doubt}");
        let there = with(&[("eu-west-1a", None)], lost);
        assert_eq!(chosen(&there, &nobody).as_deref(), Ok("eu-west-1a"));
    }
    let named = selection(&[(KEY, "x")], &[]);
    for lost in [Lost::Unknown, Lost::Named("x".into())] {
        let broken = chosen(&with(&default, lost), &named).unwrap_err();
        assert!(matches!(broken, NoEniConfig::Broken { .. }), "{broken}");
    }
    let missing = chosen(&with(&default, Lost::Named("y".into())), &named).unwrap_err();
    assert!(matches!(missing, NoEniConfig::Missing { .. }), "{missing}");
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(64))]
    /// One character changed anywhere: what is used is always something that is written there.
    #[test]
    fn a_damaged_file_gives_no_other_subnet(at in 0usize..200, with in "[ -~\n\t]") {
        let mut text: Vec<char> = simple("eu-west-1a").chars().collect();
        let at = at % text.len();
        text[at] = with.chars().next().unwrap();
        let text: String = text.into_iter().collect();
        for config in read(&text).configs {
            for subnet in config.subnets {
                proptest::prop_assert!(text.contains(subnet.as_str()));
            }
            for group in config.groups {
                proptest::prop_assert!(text.contains(group.as_str()));
            }
        }
    }
}

//! The command line of the one binary.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const BINARY: &str = env!("CARGO_BIN_EXE_aws-cni");
const APPLETS: [&str; 4] = ["aws-cni", "egress-cni", "ipamd", "aws-cni-support"];

fn run(name: &str, args: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    Command::new(BINARY)
        .arg0(name)
        .args(args)
        .env_remove("CNI_COMMAND")
        .env("AWS_CNI_SOCKET", folder.path().join("absent.sock"))
        .env("AWS_CNI_STATE_DIR", folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn the_name_selects_the_applet_exactly() {
    for unknown in ["aws-cn", "AWS-CNI", "xaws-cni", "aws-cni.old", "-aws-cni", ""] {
        let output = run(unknown, &[]);
        assert_eq!(output.status.code(), Some(2), "{unknown:?}");
        assert!(out(&output).is_empty());
        assert!(
            err(&output).contains("aws-cni, egress-cni, ipamd, aws-cni-support"),
            "{}",
            err(&output)
        );
    }
    let output = run("/opt/cni/bin/egress-cni", &[]);
    assert!(err(&output).starts_with("egress CNI plugin "), "{}", err(&output));
}

#[test]
fn the_first_word_selects_the_applet_too_but_never_under_a_runtime() {
    assert_eq!(out(&run("aws-cni", &["--list"])), APPLETS.join("\n") + "\n");
    let output = run("aws-cni", &["egress-cni"]);
    assert!(err(&output).starts_with("egress CNI plugin "), "{}", err(&output));
    let output = run("aws-cni", &["frobnicate"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        err(&output).contains("\"frobnicate\" is no applet"),
        "{}",
        err(&output)
    );

    let under_runtime = Command::new(BINARY)
        .arg("frobnicate")
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(under_runtime.status.success());
    assert!(out(&under_runtime).starts_with("{\"cniVersion\":\"1.1.0\""));
}

#[test]
fn help_and_version_are_answered_by_every_plugin_and_tool() {
    for applet in ["aws-cni", "egress-cni", "aws-cni-support"] {
        let output = run(applet, &["--version"]);
        assert!(output.status.success());
        let text = out(&output);
        assert!(
            text.starts_with(&format!("{applet} {} (commit ", env!("CARGO_PKG_VERSION"))),
            "{text}"
        );
        let output = run(applet, &["--help"]);
        assert!(
            output.status.success() && out(&output).contains("Usage: "),
            "{applet}"
        );
        let output = run(applet, &["--frobnicate"]);
        assert_eq!(output.status.code(), Some(2), "{applet}");
        assert!(out(&output).is_empty());
    }
    assert!(out(&run("aws-cni", &["--help"])).contains("ipamd"));
}

#[test]
fn without_a_command_a_plugin_says_what_it_is_on_stderr() {
    let output = run("aws-cni", &[]);
    assert!(output.status.success());
    assert!(out(&output).is_empty());
    assert_eq!(
        err(&output),
        format!(
            "AWS CNI {}\nCNI protocol versions supported: 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0\n",
            env!("CARGO_PKG_VERSION")
        )
    );
}

fn install(folder: &Path, extra: &[&str]) -> Output {
    let folder = folder.to_str().unwrap();
    run("aws-cni", &[&["--install", folder], extra].concat())
}

#[test]
fn install_links_every_applet_and_is_idempotent() {
    let folder = tempfile::tempdir_in(Path::new(BINARY).parent().unwrap()).unwrap();
    let own = fs::metadata(BINARY).unwrap();
    for extra in [&[][..], &["--symbolic"]] {
        let output = install(folder.path(), extra);
        assert!(output.status.success(), "{}", err(&output));
        for applet in APPLETS {
            assert_eq!(
                fs::metadata(folder.path().join(applet)).unwrap().ino(),
                own.ino(),
                "{applet}"
            );
        }
    }
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().count(),
        APPLETS.len(),
        "nothing temporary stays"
    );
    let output = Command::new(folder.path().join("egress-cni"))
        .env("CNI_COMMAND", "VERSION")
        .output()
        .unwrap();
    assert!(output.status.success());
}

#[test]
fn install_replaces_older_builds_and_dead_links_and_refuses_what_is_not_ours() {
    let folder = tempfile::tempdir().unwrap();
    let older = folder.path().join("ipamd");
    fs::copy(BINARY, &older).unwrap();
    symlink("/nowhere", folder.path().join("egress-cni")).unwrap();
    let foreign = folder.path().join("aws-cni");
    fs::write(&foreign, "somebody else's").unwrap();

    let output = install(folder.path(), &["--symbolic"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        err(&output).contains("exists and is not ours"),
        "{}",
        err(&output)
    );
    assert_eq!(fs::read(&foreign).unwrap(), b"somebody else's");
    assert!(!older.is_symlink(), "a refusal changes nothing");

    fs::remove_file(&foreign).unwrap();
    let output = install(folder.path(), &["--symbolic"]);
    assert!(output.status.success(), "{}", err(&output));
    assert!(older.is_symlink());
    assert_eq!(run("aws-cni", &["--symbolic"]).status.code(), Some(2));
}

#[test]
fn support_says_what_it_finds_without_a_daemon_and_what_it_cannot_do_yet() {
    let output = run("aws-cni-support", &[]);
    assert_eq!(output.status.code(), Some(1));
    let text = out(&output);
    assert!(
        text.contains("absent.sock is missing") && text.contains("deletes that wait for it: none"),
        "{text}"
    );
    let output = run("aws-cni-support", &["--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["socketExists"], false);
    for action in ["bundle", "diagnose"] {
        let output = run("aws-cni-support", &[action]);
        assert_eq!(output.status.code(), Some(2));
        assert!(
            err(&output).contains(&format!("cannot {action} yet")),
            "{}",
            err(&output)
        );
    }
}

/// `ipamd config check` with custom networking and these files.
fn check_eni_configs(files: &[(&str, &str)], labels: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    Command::new(BINARY)
        .arg0("ipamd")
        .args(["config", "check"])
        .env_clear()
        .env("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "true")
        .env("AWS_CNI_ENICONFIG_DIR", folder.path())
        .env("AWS_CNI_NODE_LABELS", labels)
        .env("AWS_CNI_MAX_PODS", "10")
        .output()
        .unwrap()
}

#[test]
fn config_check_lists_every_problem_of_eni_configs_at_once() {
    let good = "apiVersion: crd.k8s.amazonaws.com/v1alpha1\nkind: ENIConfig\nmetadata: {name: a}\n\
                spec: {subnet: subnet-01234567}\n";
    let output = check_eni_configs(&[("a.yaml", good)], "");
    assert!(output.status.success(), "{}", err(&output));
    assert_eq!(out(&output), "the configuration is valid\n");
    let output = check_eni_configs(&[], "");
    assert!(
        output.status.success() && out(&output).contains("has no ENIConfig"),
        "{}",
        out(&output)
    );

    let misspelt = good.replace("subnet:", "subnetId:").replace("name: a", "name: b");
    let files = [
        ("a.yaml", good),
        ("b.yaml", misspelt.as_str()),
        ("c.yaml", "{"),
        ("d.txt", ""),
    ];
    let output = check_eni_configs(&files, "k8s.amazonaws.com/eniConfig=gone");
    assert_eq!(output.status.code(), Some(2));
    let text = err(&output);
    for expected in [
        "4 problems with ENIConfigs:",
        "b.yaml:4: ENIConfig \"b\" cannot be used: there is no field spec.\"subnetId\"; did you mean spec.subnet?",
        "b.yaml:4: ENIConfig \"b\" cannot be used: spec.subnet is missing",
        "c.yaml:2: ",
        "ENIConfig \"gone\", which label k8s.amazonaws.com/eniConfig asks for",
    ] {
        assert!(text.contains(expected), "{expected}\n---\n{text}");
    }
    assert!(out(&output).contains("d.txt: not read"), "{}", out(&output));
}

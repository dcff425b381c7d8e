//! The `egress-cni` plugin. In this release it passes through what came before when it is switched off, which is how
//! nodes that need no egress run it, and refuses to pretend when it is switched on.

use std::net::IpAddr;
use std::process::ExitCode;

use serde::Deserialize;
use serde_json::Value;

use super::plugin;
use crate::cni::environment::Verb;
use crate::cni::error::{CniError, Code, pretty};
use crate::cni::previous::PreviousResult;
use crate::cni::request::Call;

#[derive(Deserialize)]
struct Conf {
    #[serde(default)]
    mtu: Option<String>,
    #[serde(default)]
    enabled: String,
    #[serde(default, rename = "nodeIP")]
    node_ip: String,
    #[serde(default, rename = "prevResult")]
    previous: Option<Value>,
    #[serde(default, rename = "pluginLogFile")]
    log_file: Option<String>,
    #[serde(default, rename = "pluginLogLevel")]
    log_level: Option<String>,
}

pub(super) fn run(args: &[String]) -> ExitCode {
    plugin::run("egress-cni", "egress CNI plugin", args, serve)
}

fn serve(call: &Call) -> Result<String, CniError> {
    let conf = load(call)?;
    plugin::start_log(
        "egress-cni",
        conf.log_file.as_deref(),
        conf.log_level.as_deref().unwrap_or_default(),
    );
    match call.verb {
        Verb::Add => add(&conf),
        // Nothing was ever made, so there is nothing to delete, to check or to collect; a DEL that failed here would
        // keep a pod from going away.
        Verb::Del | Verb::Check | Verb::Gc | Verb::Status => Ok(String::new()),
    }
}

fn load(call: &Call) -> Result<Conf, CniError> {
    let failed = |cause: String| internal(format!("failed to parse config: {cause}"));
    let conf: Conf = serde_json::from_slice(&call.stdin).map_err(|error| failed(error.to_string()))?;
    if let Some(previous) = &conf.previous {
        PreviousResult::parse(previous, call.version).map_err(|error| failed(error.to_string()))?;
    }
    if !conf.node_ip.is_empty() && conf.node_ip.parse::<IpAddr>().is_err() {
        return Err(failed(format!("invalid IP address: {}", conf.node_ip)));
    }
    Ok(conf)
}

/// Upstream's order: chained at all, then the MTU, then whether it is switched on.
fn add(conf: &Conf) -> Result<String, CniError> {
    let previous = conf
        .previous
        .as_ref()
        .ok_or_else(|| internal("must be called as a chained plugin"))?;
    check_mtu(conf.mtu.as_deref().unwrap_or_default())?;
    if conf.enabled != "true" {
        return Ok(pretty(previous));
    }
    Err(internal(
        "egress-cni is switched on, but this release does not implement it; next: set \"enabled\" to \"false\" for \
         egress-cni in the conflist",
    ))
}

fn check_mtu(text: &str) -> Result<(), CniError> {
    text.parse::<i64>().map(|_| ()).map_err(|_| {
        internal(format!(
            "failed to parse mtu: strconv.Atoi: parsing {text:?}: invalid syntax"
        ))
    })
}

fn internal(message: impl Into<String>) -> CniError {
    CniError::new(Code::Internal, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::environment::Environment;
    use crate::cni::version::Version;

    fn call(verb: Verb, conf: &Value) -> Call {
        Call {
            verb,
            environment: Environment::default(),
            version: Version::V0_4_0,
            stdin: serde_json::to_vec(conf).unwrap(),
        }
    }

    fn previous() -> Value {
        serde_json::json!({
            "cniVersion": "0.4.0",
            "interfaces": [{"name": "eth0", "mac": "3", "sandbox": "/run/netns/x"}],
            "ips": [{"version": "4", "interface": 0, "address": "10.0.1.5/32"}],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dns": {"nameservers": ["10.0.0.2"]},
        })
    }

    fn conf(mtu: &str, enabled: &str, previous: Option<Value>) -> Value {
        let mut conf = serde_json::json!({
            "cniVersion": "0.4.0", "name": "aws-cni", "type": "egress-cni",
            "mtu": mtu, "enabled": enabled, "nodeIP": "",
        });
        if let Some(previous) = previous {
            conf["prevResult"] = previous;
        }
        conf
    }

    #[test]
    fn dataplane_110_disabled_passes_the_previous_result_through() {
        let answer = serve(&call(Verb::Add, &conf("9001", "false", Some(previous())))).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&answer).unwrap(), previous());
        assert!(answer.starts_with("{\n    \""));
        for enabled in ["", "TRUE", "1"] {
            serve(&call(Verb::Add, &conf("9001", enabled, Some(previous())))).unwrap();
        }
    }

    #[test]
    fn dataplane_110_mtu_and_chaining_are_checked_before_enabled() {
        let bad_mtu = serve(&call(Verb::Add, &conf("abc", "false", Some(previous())))).unwrap_err();
        assert!(
            bad_mtu
                .message
                .contains("strconv.Atoi: parsing \"abc\": invalid syntax"),
            "{bad_mtu}"
        );
        let alone = serve(&call(Verb::Add, &conf("abc", "false", None))).unwrap_err();
        assert_eq!(alone.message, "must be called as a chained plugin");
        assert_eq!(alone.code.number(), 999);
    }

    #[test]
    fn del_never_stands_in_the_way() {
        assert_eq!(serve(&call(Verb::Del, &conf("abc", "true", None))).unwrap(), "");
        let empty = serde_json::json!({});
        assert!(serve(&call(Verb::Add, &conf("100", "false", Some(empty)))).is_ok());
    }

    #[test]
    fn a_wrong_node_address_or_record_fails_both() {
        let mut wrong = conf("9001", "false", Some(previous()));
        wrong["nodeIP"] = "10.0.0.999".into();
        let mut foreign = conf("9001", "false", Some(previous()));
        foreign["prevResult"]["cniVersion"] = "9.9.9".into();
        for verb in [Verb::Add, Verb::Del] {
            let error = serve(&call(verb, &wrong)).unwrap_err();
            assert_eq!(
                error.message,
                "failed to parse config: invalid IP address: 10.0.0.999"
            );
            let error = serve(&call(verb, &foreign)).unwrap_err();
            assert!(
                error.message.contains("unmarshalled CNIVersion is \"9.9.9\""),
                "{error}"
            );
        }
    }

    #[test]
    fn enabled_says_that_it_is_not_implemented() {
        let error = serve(&call(Verb::Add, &conf("9001", "true", Some(previous())))).unwrap_err();
        assert!(error.message.contains("does not implement it"), "{error}");
    }
}

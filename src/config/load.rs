//! From variables to a [`Config`]: one function for each of its parts, one line for each variable.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::eni_config::settings as eni_config;
use super::features;
use super::network;
use super::parse;
use super::pool;
use super::problem::{ConfigErrors, ProblemKind};
use super::reader::{Read, Reader, absolute_path, or_default, or_refuse};
use super::types::{AccessKey, AwsConfig, Config, ConflistConfig, DaemonConfig, LogConfig};
use crate::observe::{LogDestination, LogLevel};

/// Where the configuration file is looked for unless `AWS_CNI_CONFIG` says otherwise.
pub const DEFAULT_FILE: &str = "/etc/aws-cni/ipamd.env";

/// The daemon's socket unless `AWS_CNI_SOCKET` says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/aws-cni/ipamd.sock";

/// Where what outlives a reboot is kept unless `AWS_CNI_STATE_DIR` says otherwise.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/aws-cni";
/// Where plugins that are chained behind ours are described.
const DEFAULT_CHAIN_DIR: &str = "/etc/aws-cni/conflist.d";

/// How long an ADD waits for an address unless told otherwise.
pub const DEFAULT_ADD_DEADLINE: Duration = Duration::from_secs(30);

/// `sun_path` holds 108 bytes with its terminator (unix(7)).
const SOCKET_PATH_BYTES: usize = 107;

/// The socket holds no request longer ([`crate::rpc::server::Limits`]), and waiting longer outlives every runtime's own deadline (kubelet: 2 × `runtimeRequestTimeout`, 4 minutes).
const LONGEST_ADD_DEADLINE: u32 = 300;

impl Config {
    /// Reads environment and file content; the environment has precedence.
    ///
    /// Upstream's variables keep upstream's names, meanings and forgiveness. What it silently tolerates becomes a
    /// warning; an error is only what cannot be honoured safely, and all of them come at once.
    pub fn load(env: &BTreeMap<String, String>, file: Option<&str>) -> Result<Self, ConfigErrors> {
        let mut reader = Reader::new(env, file, config_path(env).display().to_string());
        reader.read(
            "AWS_CNI_CONFIG",
            PathBuf::from(DEFAULT_FILE),
            "an absolute path",
            absolute_path,
        );
        let pool = pool::read(&mut reader);
        let eni_config = eni_config::read(&mut reader, pool.custom_networking);
        features::check(&mut reader);
        let network = network::read(&mut reader);
        let aws = aws(&mut reader);
        let daemon = daemon(&mut reader);
        let log = log(&mut reader);
        let conflist = conflist(&mut reader);
        features::note_without_effect(&mut reader);
        let Reader {
            errors,
            warnings,
            mut settings,
            ..
        } = reader;
        if !errors.is_empty() {
            return Err(ConfigErrors { errors, warnings });
        }
        settings.sort_by_key(|setting| setting.name);
        Ok(Self {
            pool,
            eni_config,
            network,
            aws,
            daemon,
            log,
            conflist,
            warnings,
            settings,
        })
    }
}

/// The path of the configuration file, given an environment.
pub fn config_path(env: &BTreeMap<String, String>) -> PathBuf {
    env.get("AWS_CNI_CONFIG")
        .filter(|path| !path.is_empty())
        .map_or_else(|| PathBuf::from(DEFAULT_FILE), PathBuf::from)
}

fn aws(r: &mut Reader<'_>) -> AwsConfig {
    const HANDED_OVER: &[&str] = &[
        "AWS_PROFILE",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_USE_FIPS_ENDPOINT",
        "AWS_USE_DUALSTACK_ENDPOINT",
    ];
    r.note_unreachable_sdk_names(HANDED_OVER);
    let default_region = r.text("AWS_DEFAULT_REGION");
    let (for_ec2, for_all, legacy) = (
        url(r, "AWS_ENDPOINT_URL_EC2"),
        url(r, "AWS_ENDPOINT_URL"),
        url(r, "AWS_EC2_ENDPOINT"),
    );
    AwsConfig {
        cluster_name: r.read(
            "CLUSTER_NAME",
            None,
            "text of at most 256 characters, as it becomes a tag",
            |text| match text {
                "" => Read::Unset,
                _ => or_refuse(parse::is_tag_value(text).then(|| Some(text.to_owned()))),
            },
        ),
        additional_eni_tags: tags(r),
        http_timeout: r.read(
            "HTTP_TIMEOUT",
            Duration::from_secs(10),
            "whole seconds, at least 10",
            |text| or_default(parse::count(text, 10).map(|seconds| Duration::from_secs(seconds.into()))),
        ),
        max_attempts: r.read(
            "AWS_MAX_ATTEMPTS",
            2,
            "a whole number from 1 to 10",
            |text| match text {
                "" => Read::Unset,
                _ => or_default(parse::count(text, 1).filter(|attempts| *attempts <= 10)),
            },
        ),
        region: r.text("AWS_REGION").or(default_region),
        ec2_endpoint: for_ec2.or(for_all).or(legacy),
        metadata_endpoint: metadata_endpoint(r),
        profile: r.only_in_file("AWS_PROFILE"),
        access_key: access_key(r),
        use_fips: r
            .only_in_file("AWS_USE_FIPS_ENDPOINT")
            .and_then(|text| parse::boolean(&text)),
        use_dual_stack: r
            .only_in_file("AWS_USE_DUALSTACK_ENDPOINT")
            .and_then(|text| parse::boolean(&text)),
        ca_bundle: r.read(
            "AWS_CA_BUNDLE",
            None,
            "an absolute path of a PEM file",
            |text| match text {
                "" => Read::Unset,
                _ => or_refuse(
                    Some(PathBuf::from(text))
                        .filter(|path| path.is_absolute())
                        .map(Some),
                ),
            },
        ),
    }
}

fn tags(r: &mut Reader<'_>) -> BTreeMap<String, String> {
    let allowed = format!(
        "a JSON object of at most {} strings, keys of at most 128 characters without \"k8s.amazonaws.com\" and not \
         starting with \"aws:\", values of at most 256",
        parse::MOST_TAGS
    );
    r.read("ADDITIONAL_ENI_TAGS", BTreeMap::new(), &allowed, |text| {
        match (text, parse::tags(text)) {
            ("", _) => Read::Unset,
            // EC2 would refuse every ENI; which of them to leave out is not ours to say.
            (_, Some((tags, _))) if tags.len() > parse::MOST_TAGS => Read::Refuse,
            (_, Some((tags, dropped))) => Read::Without(tags, dropped),
            (_, None) => Read::FallBack,
        }
    })
}

fn url(r: &mut Reader<'_>, name: &'static str) -> Option<String> {
    r.read(
        name,
        None,
        "a URL such as https://ec2.eu-west-1.amazonaws.com",
        |text| match text {
            "" => Read::Unset,
            _ => or_refuse(is_url(text).then(|| Some(text.to_owned()))),
        },
    )
}

fn is_url(text: &str) -> bool {
    let rest = text
        .strip_prefix("http://")
        .or_else(|| text.strip_prefix("https://"));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/') && !rest.contains(char::is_whitespace))
}

/// The address of the metadata service: its own variable, or the IPv6 one when the mode says so
/// (<https://docs.aws.amazon.com/sdkref/latest/guide/feature-imds-credentials.html>).
fn metadata_endpoint(r: &mut Reader<'_>) -> Option<String> {
    let mode = r.read(
        "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE",
        None,
        "IPv4 or IPv6",
        |text| match text.to_ascii_lowercase().as_str() {
            "" => Read::Unset,
            "ipv4" | "ipv6" => Read::Value(Some(text.to_owned())),
            _ => Read::FallBack,
        },
    );
    let by_mode = mode
        .filter(|mode| mode.eq_ignore_ascii_case("ipv6"))
        .map(|_| "http://[fd00:ec2::254]".to_owned());
    r.read(
        "AWS_EC2_METADATA_SERVICE_ENDPOINT",
        None,
        "a URL such as http://169.254.169.254",
        |text| match text {
            "" => Read::Unset,
            _ => or_refuse((is_url(text) && text.starts_with("http://")).then(|| Some(text.to_owned()))),
        },
    )
    .or(by_mode)
}

fn access_key(r: &Reader<'_>) -> Option<AccessKey> {
    Some(AccessKey {
        id: r.only_in_file("AWS_ACCESS_KEY_ID")?,
        secret: r.only_in_file("AWS_SECRET_ACCESS_KEY")?,
        session_token: r.only_in_file("AWS_SESSION_TOKEN"),
    })
}

fn daemon(r: &mut Reader<'_>) -> DaemonConfig {
    let socket = format!("an absolute path of at most {SOCKET_PATH_BYTES} bytes");
    let deadline = format!("whole seconds from 1 to {LONGEST_ADD_DEADLINE}");
    let introspection = r.read(
        "INTROSPECTION_BIND_ADDRESS",
        "127.0.0.1:61679".to_owned(),
        "host:port or unix:/path",
        |text| {
            if text.is_empty() {
                Read::FallBack
            } else {
                Read::Value(text.to_owned())
            }
        },
    );
    DaemonConfig {
        socket: r.read(
            "AWS_CNI_SOCKET",
            DEFAULT_SOCKET.into(),
            &socket,
            |text| match text.len() {
                0..=SOCKET_PATH_BYTES => absolute_path(text),
                _ => Read::Refuse,
            },
        ),
        state_dir: r.read(
            "AWS_CNI_STATE_DIR",
            DEFAULT_STATE_DIR.into(),
            "an absolute path",
            absolute_path,
        ),
        add_deadline: r.read(
            "AWS_CNI_ADD_DEADLINE",
            DEFAULT_ADD_DEADLINE,
            &deadline,
            |text| match text {
                "" => Read::Unset,
                _ => or_refuse(
                    parse::count(text, 1)
                        .filter(|seconds| *seconds <= LONGEST_ADD_DEADLINE)
                        .map(|seconds| Duration::from_secs(seconds.into())),
                ),
            },
        ),
        go_checkpoint: r.read(
            "AWS_VPC_K8S_CNI_BACKING_STORE",
            "/var/run/aws-node/ipam.json".into(),
            "an absolute path",
            absolute_path,
        ),
        import: r.boolean_or_empty("AWS_CNI_IMPORT", true),
        introspection: (!r.boolean("DISABLE_INTROSPECTION", false)).then_some(introspection),
        metrics: !r.boolean("DISABLE_METRICS", false),
    }
}

fn conflist(r: &mut Reader<'_>) -> ConflistConfig {
    ConflistConfig {
        bandwidth: r.boolean("ENABLE_BANDWIDTH_PLUGIN", false),
        chain_dir: r.read(
            "AWS_CNI_CONFLIST_CHAIN_DIR",
            DEFAULT_CHAIN_DIR.into(),
            "an absolute path",
            absolute_path,
        ),
    }
}

fn log(r: &mut Reader<'_>) -> LogConfig {
    LogConfig {
        level: level(r, "AWS_VPC_K8S_CNI_LOGLEVEL"),
        destination: destination(r, "AWS_VPC_K8S_CNI_LOG_FILE", true),
        plugin_level: level(r, "AWS_VPC_K8S_PLUGIN_LOG_LEVEL"),
        plugin_destination: destination(r, "AWS_VPC_K8S_PLUGIN_LOG_FILE", false),
    }
}

fn level(r: &mut Reader<'_>, name: &'static str) -> LogLevel {
    r.read(name, LogLevel::default(), LogLevel::WORDS, |text| match text {
        "" => Read::Unset,
        _ => or_default(text.parse().ok()),
    })
}

fn destination(r: &mut Reader<'_>, name: &'static str, stdout: bool) -> LogDestination {
    let allowed = if stdout {
        "journald, stdout, stderr or an absolute path"
    } else {
        "journald, stderr or an absolute path (stdout carries the plugin's answer to the runtime)"
    };
    let destination = r.read(name, LogDestination::Auto, allowed, |text| match text {
        "" | "journald" => Read::Unset,
        "stderr" => Read::Value(LogDestination::Stderr),
        "stdout" if stdout => Read::Value(LogDestination::Stdout),
        "stdout" => Read::Refuse,
        path if Path::new(path).is_absolute() => Read::Value(LogDestination::File(
            outside_container(path).unwrap_or(path).into(),
        )),
        _ => Read::FallBack,
    });
    if let Some(raw) = r.raw(name).filter(|raw| outside_container(&raw.text).is_some()) {
        let remark =
            format!("/host is where the Go daemon's container mounts the node; logging to {destination}");
        r.warn(name, &raw, ProblemKind::Remark(remark));
    }
    destination
}

/// The path on the node of a path inside the Go daemon's container.
fn outside_container(path: &str) -> Option<&str> {
    path.strip_prefix("/host")
        .filter(|rest| rest.starts_with("/var/log/"))
}

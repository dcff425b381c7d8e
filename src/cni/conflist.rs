//! The conflist that makes a runtime call `aws-cni`, from the node's settings and what is chained behind it.

use std::time::Duration;

use serde_json::{Map, Value, json};

/// Its name, the Go daemon's: runtimes keep results under it, so pods of either can be deleted by the other.
pub const NAME: &str = "aws-cni";
/// Its file's name, which sorts before others.
pub const FILE: &str = "10-aws.conflist";

/// The versions we speak that a runtime may choose from. libcni before 1.2 reads `cniVersion` alone
/// (<https://github.com/containernetworking/cni/blob/main/SPEC.md#configuration-format>).
const VERSIONS: [&str; 3] = ["0.4.0", "1.0.0", "1.1.0"];
/// What reference plugins of all distributions speak; every plugin of a list is called with the same version.
const VERSIONS_OF_ALL: [&str; 2] = ["0.4.0", "1.0.0"];
const VERSION: &str = "1.0.0";

/// What the conflist is to say.
#[derive(Debug, Clone, PartialEq)]
pub struct Conflist {
    /// `AWS_VPC_K8S_CNI_VETHPREFIX`.
    pub veth_prefix: String,
    /// `POD_MTU`.
    pub mtu: u32,
    /// `AWS_VPC_K8S_PLUGIN_LOG_FILE`; `None` is journald.
    pub log_file: Option<String>,
    /// `AWS_VPC_K8S_PLUGIN_LOG_LEVEL`.
    pub log_level: String,
    /// `AWS_CNI_ADD_DEADLINE`, when it was given.
    pub add_deadline: Option<Duration>,
    /// Plugins behind ours, in order.
    pub chained: Vec<Chained>,
}

/// A plugin behind ours.
#[derive(Debug, Clone, PartialEq)]
pub struct Chained {
    /// The name of its executable.
    kind: String,
    /// Its whole configuration, keys that we don't know included.
    conf: Map<String, Value>,
}

/// Why a plugin cannot be chained.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Not a JSON object.
    #[error("is not a plugin's configuration: a JSON object with \"type\"")]
    NotAPlugin,
    /// No usable executable name.
    #[error("\"type\" must be the name of an executable, without a path")]
    Type,
    /// It would be called twice.
    #[error("\"type\" is {0}, which the conflist has already")]
    Twice(String),
}

impl Chained {
    /// Takes a plugin's configuration.
    ///
    /// # Errors
    /// When it is none.
    pub fn new(conf: Value) -> Result<Self, ChainError> {
        let Value::Object(conf) = conf else {
            return Err(ChainError::NotAPlugin);
        };
        let kind = conf.get("type").and_then(Value::as_str).ok_or(ChainError::Type)?;
        if kind.is_empty() || kind.contains('/') || kind.starts_with('.') {
            return Err(ChainError::Type);
        }
        Ok(Self {
            kind: kind.to_owned(),
            conf,
        })
    }

    /// The reference plugin that shapes traffic by the pod's annotations (`ENABLE_BANDWIDTH_PLUGIN`).
    pub fn bandwidth() -> Self {
        let mut conf = Map::new();
        conf.insert("type".to_owned(), json!("bandwidth"));
        conf.insert("capabilities".to_owned(), json!({ "bandwidth": true }));
        Self {
            kind: "bandwidth".to_owned(),
            conf,
        }
    }

    /// The name of its executable.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    fn declares(&self, capability: &str) -> bool {
        let declared = self.conf.get("capabilities").and_then(|all| all.get(capability));
        declared.and_then(Value::as_bool) == Some(true)
    }
}

impl Conflist {
    /// Refuses what a runtime would stumble over.
    ///
    /// # Errors
    /// [`ChainError::Twice`].
    pub fn check(&self) -> Result<(), ChainError> {
        let mut kinds = vec![NAME];
        for plugin in &self.chained {
            if kinds.contains(&plugin.kind()) {
                return Err(ChainError::Twice(plugin.kind.clone()));
            }
            kinds.push(plugin.kind());
        }
        Ok(())
    }

    /// The file's content, with a newline at its end.
    pub fn render(&self) -> String {
        let mut list = Map::new();
        list.insert("cniVersion".to_owned(), json!(VERSION));
        let alone = self.chained.is_empty();
        let versions = if alone {
            &VERSIONS[..]
        } else {
            &VERSIONS_OF_ALL[..]
        };
        list.insert("cniVersions".to_owned(), json!(versions));
        list.insert("name".to_owned(), json!(NAME));
        // Whether others implement CHECK is not known.
        list.insert("disableCheck".to_owned(), json!(!alone));
        // Otherwise libcni 1.3 also reads files beside this one.
        list.insert("loadOnlyInlinedPlugins".to_owned(), json!(true));
        let chained = self
            .chained
            .iter()
            .map(|plugin| Value::Object(plugin.conf.clone()));
        let plugins: Vec<Value> = std::iter::once(self.own()).chain(chained).collect();
        list.insert("plugins".to_owned(), Value::Array(plugins));
        format!("{:#}\n", Value::Object(list))
    }

    fn own(&self) -> Value {
        let mut own = Map::new();
        own.insert("type".to_owned(), json!(NAME));
        own.insert("name".to_owned(), json!(NAME));
        own.insert("vethPrefix".to_owned(), json!(self.veth_prefix));
        own.insert("mtu".to_owned(), json!(self.mtu.to_string()));
        own.insert("pluginLogLevel".to_owned(), json!(self.log_level));
        if let Some(file) = &self.log_file {
            own.insert("pluginLogFile".to_owned(), json!(file));
        }
        if let Some(deadline) = self.add_deadline {
            own.insert("addDeadlineSeconds".to_owned(), json!(deadline.as_secs()));
        }
        let mut capabilities = Map::new();
        capabilities.insert("io.kubernetes.cri.pod-annotations".to_owned(), json!(true));
        // Two plugins that lead the same port to the same pod stand in each other's way.
        if !self.chained.iter().any(|plugin| plugin.declares("portMappings")) {
            capabilities.insert("portMappings".to_owned(), json!(true));
        }
        own.insert("capabilities".to_owned(), Value::Object(capabilities));
        Value::Object(own)
    }
}

#[cfg(test)]
mod tests {
    use super::super::conf::NetConf;
    use super::super::version::Version;
    use super::*;

    fn conflist(chained: Vec<Chained>) -> Conflist {
        Conflist {
            veth_prefix: "eni".to_owned(),
            mtu: 9001,
            log_file: None,
            log_level: "info".to_owned(),
            add_deadline: None,
            chained,
        }
    }

    fn rendered(conflist: &Conflist) -> Value {
        serde_json::from_str(&conflist.render()).unwrap()
    }

    fn chained(conf: Value) -> Chained {
        Chained::new(conf).unwrap()
    }

    #[test]
    fn alone_we_are_the_only_plugin_and_speak_everything() {
        let list = rendered(&conflist(Vec::new()));
        assert_eq!(list["plugins"].as_array().unwrap().len(), 1);
        assert_eq!(list["cniVersions"], json!(["0.4.0", "1.0.0", "1.1.0"]));
        assert_eq!(list["disableCheck"], false);
        assert_eq!(list["name"], "aws-cni");
        assert_eq!(list["plugins"][0]["capabilities"]["portMappings"], true);
    }

    /// Conformance: dataplane case 130; what the plugin reads of it is what was meant.
    #[test]
    fn dataplane_130_the_plugin_reads_what_the_settings_say() {
        let settings = Conflist {
            veth_prefix: "pod".to_owned(),
            mtu: 5000,
            log_file: Some("/var/log/aws-routed-eni/plugin.log".to_owned()),
            log_level: "debug".to_owned(),
            add_deadline: Some(Duration::from_secs(45)),
            chained: Vec::new(),
        };
        let mut own = rendered(&settings)["plugins"][0].clone();
        own["name"] = json!("aws-cni");
        own["cniVersion"] = json!("1.0.0");
        let conf = NetConf::parse(own.to_string().as_bytes(), Version::V1_0_0).unwrap();
        assert_eq!((conf.mtu, conf.veth_prefix.as_str()), (5000, "pod"));
        assert_eq!(
            conf.log_file.as_deref(),
            Some("/var/log/aws-routed-eni/plugin.log")
        );
        assert_eq!(conf.log_level, "debug");
        assert_eq!(conf.add_deadline, Some(Duration::from_secs(45)));
    }

    /// Conformance: dataplane case 131 and the Go daemon's defect of losing keys it does not know.
    #[test]
    fn dataplane_131_chained_plugins_come_behind_with_every_key_they_have() {
        let portmap =
            json!({ "type": "portmap", "capabilities": { "portMappings": true }, "snat": true, "x": [1] });
        let list = rendered(&conflist(vec![chained(portmap.clone()), Chained::bandwidth()]));
        assert_eq!(list["plugins"][1], portmap);
        assert_eq!(list["plugins"][2]["type"], "bandwidth");
        assert_eq!(list["cniVersions"], json!(["0.4.0", "1.0.0"]));
        assert_eq!(list["disableCheck"], true);
        let own = &list["plugins"][0]["capabilities"];
        assert_eq!(own["portMappings"], Value::Null, "portmap has the ports");
    }

    #[test]
    fn what_is_no_plugin_is_refused() {
        for (conf, error) in [
            (json!([]), ChainError::NotAPlugin),
            (json!({}), ChainError::Type),
            (json!({ "type": 7 }), ChainError::Type),
            (json!({ "type": "../sh" }), ChainError::Type),
            (json!({ "type": "" }), ChainError::Type),
        ] {
            assert_eq!(Chained::new(conf), Err(error));
        }
        let twice = conflist(vec![
            chained(json!({ "type": "tuning" })),
            chained(json!({ "type": "tuning" })),
        ]);
        assert_eq!(twice.check(), Err(ChainError::Twice("tuning".to_owned())));
        let own = conflist(vec![chained(json!({ "type": "aws-cni" }))]);
        assert!(own.check().is_err());
    }
}

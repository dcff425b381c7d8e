//! How many pods kubelet takes: `maxPods` of its configuration file and of the drop-ins beside it.
//!
//! On EKS nodes `nodeadm` writes `/etc/kubernetes/kubelet/config.json` and starts kubelet with `--config-dir` set to
//! `config.json.d`, where later names win (awslabs/amazon-eks-ami, `nodeadm/internal/kubelet/config.go`;
//! <https://kubernetes.io/docs/tasks/administer-cluster/kubelet-config-file/#kubelet-configuration-merging-order>).

use std::ffi::OsStr;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::yaml;

/// Where kubelet's configuration is looked for unless `AWS_CNI_KUBELET_CONFIG` says otherwise.
pub const DEFAULT_KUBELET_CONFIG: &str = "/etc/kubernetes/kubelet/config.json";

/// Kubelet's configurations have a few KiB.
const LONGEST: u64 = 1 << 20;

/// What kubelet's files say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KubeletLimit {
    /// The most pods it takes, and the file that says so.
    pub max_pods: Option<(u32, PathBuf)>,
    /// Files that are there and could not be used, each with the reason.
    pub remarks: Vec<String>,
}

/// Reads the file at `path` and every `*.conf` of the directory named like it with `.d` behind. What is not there says
/// nothing; what cannot be read is remarked on, and the rest counts.
pub fn kubelet_limit(path: &Path) -> KubeletLimit {
    let mut limit = KubeletLimit::default();
    let drop_ins = drop_ins(path).unwrap_or_else(|(directory, error)| {
        limit.remarks.push(format!("{}: {error}", directory.display()));
        Vec::new()
    });
    for file in [path.to_owned()].into_iter().chain(drop_ins) {
        match max_pods(&file) {
            Ok(0) => {}
            Ok(max_pods) => limit.max_pods = Some((max_pods, file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => limit.remarks.push(format!("{}: {error}", file.display())),
        }
    }
    limit
}

fn max_pods(file: &Path) -> io::Result<u32> {
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut text = Vec::new();
    std::fs::File::open(file)?.take(LONGEST).read_to_end(&mut text)?;
    said(&text).map_err(|why| io::Error::other(format!("no kubelet configuration ({why})")))
}

/// Kubelet takes 0 for "not set", and so do we for what is not there. `nodeadm` writes JSON, kubeadm YAML; kubelet
/// reads both.
pub(super) fn said(text: &[u8]) -> Result<u32, String> {
    if let Ok(fields) = serde_json::from_slice::<Map<String, Value>>(text) {
        let Some(value) = fields.get("maxPods") else {
            return Ok(0);
        };
        let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
        return number.ok_or_else(|| format!("maxPods is {value}"));
    }
    let text = std::str::from_utf8(text).map_err(|_| "not UTF-8".to_owned())?;
    let documents = yaml::documents(text).map_err(|fault| fault.to_string())?;
    let fields = documents.first().filter(|fields| fields.is_map());
    let fields = fields.ok_or("neither JSON nor YAML with fields")?;
    match fields.get("maxPods").filter(|value| !value.is_null()) {
        None => Ok(0),
        Some(value) => value
            .number()
            .ok_or_else(|| format!("line {}: maxPods is no whole number", value.line)),
    }
}

/// The drop-ins in the order in which they apply.
fn drop_ins(path: &Path) -> Result<Vec<PathBuf>, (PathBuf, io::Error)> {
    let mut name = path.as_os_str().to_owned();
    name.push(".d");
    let directory = PathBuf::from(name);
    let entries = match std::fs::read_dir(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.and_then(Iterator::collect::<io::Result<Vec<_>>>),
    };
    let entries = entries.map_err(|error| (directory, error))?;
    let mut files: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension() == Some(OsStr::new("conf")));
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Node(tempfile::TempDir);

    impl Node {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn path(&self) -> PathBuf {
            self.0.path().join("config.json")
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            path
        }

        fn limit(&self) -> KubeletLimit {
            kubelet_limit(&self.path())
        }
    }

    #[test]
    fn no_file_says_nothing() {
        assert_eq!(Node::new().limit(), KubeletLimit::default());
        assert_eq!(
            kubelet_limit(Path::new("/nowhere/at/all.json")),
            KubeletLimit::default()
        );
    }

    #[test]
    fn a_file_without_the_field_says_nothing_kubelets_flag_may() {
        let node = Node::new();
        node.write(
            "config.json",
            r#"{"kind": "KubeletConfiguration", "clusterDNS": ["10.0.0.1"]}"#,
        );
        assert_eq!(node.limit(), KubeletLimit::default());
    }

    /// As `nodeadm` writes them: the file has the number it computed, a drop-in what the user set.
    #[test]
    fn the_last_drop_in_that_says_something_wins() {
        let node = Node::new();
        let base = node.write(
            "config.json",
            r#"{"kind": "KubeletConfiguration", "maxPods": 58}"#,
        );
        assert_eq!(node.limit().max_pods, Some((58, base)));
        let first = node.write("config.json.d/10-mine.conf", r#"{"maxPods": 35}"#);
        assert_eq!(node.limit().max_pods, Some((35, first)));
        let last = node.write("config.json.d/40-nodeadm.conf", r#"{"maxPods": 110}"#);
        node.write(
            "config.json.d/50-dns.conf",
            r#"{"clusterDomain": "cluster.local", "maxPods": 0}"#,
        );
        node.write("config.json.d/60-note.txt", "maxPods: 7");
        let limit = node.limit();
        assert_eq!(limit.max_pods, Some((110, last)));
        assert!(limit.remarks.is_empty(), "{limit:?}");
    }

    /// As kubeadm writes it.
    #[test]
    fn yaml_is_read_as_well() {
        let node = Node::new();
        let yaml = "apiVersion: kubelet.config.k8s.io/v1beta1\nauthentication:\n  anonymous:\n    enabled: false\n\
                    clusterDNS:\n- 10.96.0.10\nkind: KubeletConfiguration\nmaxPods: 58\nnodeStatusReportFrequency: 0s\n";
        let base = node.write("config.json", yaml);
        assert_eq!(node.limit().max_pods, Some((58, base)));
        let drop_in = node.write("config.json.d/10-mine.conf", "# mine\nmaxPods: 35\n");
        node.write("config.json.d/20-none.conf", "maxPods: null\n");
        node.write("config.json.d/30-none.conf", "kind: KubeletConfiguration\n");
        let limit = node.limit();
        assert_eq!((limit.max_pods, limit.remarks), (Some((35, drop_in)), vec![]));
    }

    #[test]
    fn what_cannot_be_read_is_remarked_on_and_the_rest_counts() {
        for garbage in [
            "apiVersion: kubelet.config.k8s.io/v1beta1\nmaxPods: \"58\"\n",
            "maxPods: -1",
            "maxPods: 4294967296",
            "maxPods: [1]",
            "- maxPods: 58",
            "maxPods: 58\nmaxPods: 59\n",
            "a: &a [x]\nmaxPods: *a\n",
            "maxPods: !!int 58",
            "maxPods 58",
            "",
            "[]",
            "\u{0}\u{1}",
            r#"{"maxPods": "58"}"#,
            r#"{"maxPods": -1}"#,
            r#"{"maxPods": 1e300}"#,
            r#"{"maxPods": 58"#,
        ] {
            let node = Node::new();
            node.write("config.json", garbage);
            let good = node.write("config.json.d/40-nodeadm.conf", r#"{"maxPods": 20}"#);
            let limit = node.limit();
            assert_eq!(limit.max_pods, Some((20, good)), "{garbage:?}");
            assert_eq!(limit.remarks.len(), 1, "{garbage:?}: {limit:?}");
            assert!(
                limit.remarks[0].contains("config.json: no kubelet configuration"),
                "{limit:?}"
            );
        }
    }

    #[test]
    fn directories_and_devices_in_its_place_are_remarked_on() {
        let node = Node::new();
        std::fs::create_dir(node.path()).unwrap();
        node.write("config.json.d", "");
        let remarks = node.limit().remarks;
        assert_eq!(remarks.len(), 2, "{remarks:?}");
        assert!(
            remarks[1].ends_with("config.json: not a regular file"),
            "{remarks:?}"
        );
    }
}

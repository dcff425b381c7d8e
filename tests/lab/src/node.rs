//! A node: a namespace that looks like a worker instance, its directories and its programs.

mod objects;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::fabric::{ENI_MTU, LinkName, ToolError, ip_batch, ip_json, nft, nft_json};
use crate::lab::MARK;
use crate::netns::{Netns, NetnsError};
use crate::pod::{Conflist, Pod, PodIdentity, Runtime};
use crate::probe::{ECHO_PORT, EchoError, EchoServer, Source, Target};
use crate::process::{Daemon, DaemonSpec, ProcessError};
use crate::varlink::{CallError, call};
use crate::vpc::{AttachedEni, EniId, Instance, InstanceId, Mac};

/// The names under which the product's one binary is installed.
const APPLETS: [&str; 4] = ["aws-cni", "ipamd", "aws-cni-support", "egress-cni"];

/// A query of the daemon is answered from memory.
const CALL: Duration = Duration::from_secs(10);

/// Why a node can't be made or looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// A namespace could not be made or entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A kernel object could not be made, changed or read.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// Its echo server could not be started.
    #[error(transparent)]
    Echo(#[from] EchoError),
    /// A directory or link could not be made.
    #[error("making {path}: {error}", path = path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

/// How the link of a newly attached ENI shows up, beyond what the VPC's own attach delay says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkArrival {
    /// How long after EC2 made the attachment the link appears.
    pub late_by: Duration,
    /// Its name when it appears.
    pub name: LinkName,
    /// After how long it gets which other name, as udev renames links.
    pub renamed: Option<(Duration, String)>,
    /// The link never appears.
    pub never: bool,
}

impl Default for LinkArrival {
    fn default() -> Self {
        Self {
            late_by: Duration::ZERO,
            name: LinkName::Eth,
            renamed: None,
            never: false,
        }
    }
}

/// How a node is set up before the daemon starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeOptions {
    /// `rp_filter` of all links: 0 off, 1 strict, 2 loose (ip-sysctl).
    pub rp_filter: u8,
    /// What further links do when they appear.
    pub arrival: LinkArrival,
    /// How the primary ENI's link is called.
    pub primary_name: LinkName,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self {
            rp_filter: 2, // what the Go daemon's init container leaves behind; AL2023's own default is strict
            arrival: LinkArrival::default(),
            primary_name: LinkName::Eth,
        }
    }
}

/// Where a node keeps its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeDirs {
    /// All of them.
    pub root: PathBuf,
    /// The daemon's state: `AWS_CNI_STATE_DIR`.
    pub state: PathBuf,
    /// Sockets.
    pub run: PathBuf,
    /// Logs.
    pub log: PathBuf,
    /// The product's binary under its names: `CNI_PATH`.
    pub bin: PathBuf,
}

impl NodeDirs {
    fn make(root: PathBuf) -> Result<Self, NodeError> {
        let dirs = Self {
            state: root.join("state"),
            run: root.join("run"),
            log: root.join("log"),
            bin: root.join("bin"),
            root,
        };
        for path in [&dirs.state, &dirs.run, &dirs.log, &dirs.bin] {
            std::fs::create_dir_all(path).map_err(|error| NodeError::Directory {
                path: path.clone(),
                error,
            })?;
        }
        Ok(dirs)
    }

    /// The daemon's socket: `AWS_CNI_SOCKET`.
    pub fn socket(&self) -> PathBuf {
        self.run.join("ipamd.sock")
    }

    /// Where the node's kubelet would have its configuration: `AWS_CNI_KUBELET_CONFIG`.
    pub fn kubelet_config(&self) -> PathBuf {
        self.root.join("kubelet.json")
    }
}

/// A link as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkFacts {
    /// Its name.
    pub name: String,
    /// Its hardware address.
    pub mac: String,
    /// Whether it is up.
    pub up: bool,
    /// Its MTU.
    pub mtu: u64,
}

/// A worker instance.
#[derive(Debug)]
pub struct Node {
    name: String,
    instance: InstanceId,
    primary_eni: EniId,
    netns: Netns,
    dirs: NodeDirs,
    options: Mutex<NodeOptions>,
    environment: BTreeMap<String, String>,
    address: Ipv4Addr,
    address6: OnceLock<Ipv6Addr>,
    configured: (Mutex<bool>, Condvar),
    _echo: EchoServer,
    sandboxes: AtomicU64,
}

impl Node {
    pub(crate) fn new(
        name: &str,
        instance: &Instance,
        root: PathBuf,
        options: NodeOptions,
        environment: BTreeMap<String, String>,
    ) -> Result<Self, NodeError> {
        let netns = Netns::new()?;
        let rp_filter = options.rp_filter.to_string();
        netns.sysctl(&[
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv4/conf/all/rp_filter", &rp_filter),
            ("net/ipv4/conf/default/rp_filter", &rp_filter),
        ])?;
        Ok(Self {
            name: name.to_owned(),
            instance: instance.id.clone(),
            primary_eni: instance.primary_eni.clone(),
            address: instance.private_ip,
            address6: OnceLock::new(),
            configured: <(Mutex<bool>, Condvar)>::default(),
            _echo: EchoServer::start(&netns, ECHO_PORT)?,
            netns,
            dirs: NodeDirs::make(root)?,
            options: Mutex::new(options),
            environment,
            sandboxes: AtomicU64::new(0),
        })
    }

    /// Its name in the lab.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its EC2 instance.
    pub fn instance(&self) -> &InstanceId {
        &self.instance
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its directories.
    pub fn dirs(&self) -> &NodeDirs {
        &self.dirs
    }

    /// Its primary ENI.
    pub fn primary_eni(&self) -> &EniId {
        &self.primary_eni
    }

    /// The primary ENI's address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The primary ENI's own IPv6 address, once its link is there.
    pub fn address6(&self) -> Option<Ipv6Addr> {
        self.address6.get().copied()
    }

    /// Changes how links show up from now on.
    pub fn set_arrival(&self, arrival: LinkArrival) {
        self.lock_options().arrival = arrival;
    }

    pub(crate) fn options(&self) -> NodeOptions {
        self.lock_options().clone()
    }

    fn lock_options(&self) -> MutexGuard<'_, NodeOptions> {
        self.options.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Configures the primary ENI's link as a machine image does: address, subnet route, default route; of IPv6 what
    /// DHCP gives and the router announces.
    pub(crate) fn configure_primary(&self, eni: &AttachedEni, link: &str) -> Result<(), NodeError> {
        let (address, subnet) = (eni.owned.primary, eni.subnet_cidr);
        ip_batch(
            &self.netns,
            &format!(
                "addr add {address}/{} broadcast {} dev {link}\n\
                 link set {link} up mtu {ENI_MTU}\n\
                 route add default via {} dev {link}\n",
                subnet.prefix_len(),
                subnet.last(),
                subnet.nth(1),
            ),
        )?;
        if let (Some(_), Some(address)) = (eni.subnet_ipv6_cidr, eni.owned.ipv6.first()) {
            ip_batch(
                &self.netns,
                &format!(
                    "addr add {address}/128 dev {link} nodad\n\
                     route add default via fe80:ec2::1 dev {link}\n"
                ),
            )?;
            self.address6.get_or_init(|| *address);
        }
        *self.configured.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.configured.1.notify_all();
        Ok(())
    }

    /// Waits until the primary ENI is configured.
    pub(crate) fn wait_configured(&self, within: Duration) -> bool {
        let (configured, changed) = &self.configured;
        let done = configured.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = changed.wait_timeout_while(done, within, |done| !*done);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Renames a link, as udev does: the kernel allows it while the link is down, and since 6.2 also when up.
    pub fn rename_link(&self, from: &str, to: &str) -> Result<(), NodeError> {
        Ok(ip_batch(&self.netns, &format!("link set {from} name {to}\n"))?)
    }

    /// Runs a script of `ip` commands in the node, stopping at the first that fails.
    pub fn ip(&self, script: &str) -> Result<(), NodeError> {
        Ok(ip_batch(&self.netns, script)?)
    }

    /// What `ip -json …` says in the node.
    pub fn ip_json(&self, arguments: &[&str]) -> Result<Value, NodeError> {
        Ok(ip_json(&self.netns, arguments)?)
    }

    /// Runs an nftables script in the node as one transaction, as another program on the node would.
    pub fn nft(&self, script: &str) -> Result<(), NodeError> {
        Ok(nft(&self.netns, script)?)
    }

    /// What `nft -j …` says in the node.
    pub fn nft_json(&self, arguments: &[&str]) -> Result<Value, NodeError> {
        Ok(nft_json(&self.netns, arguments)?)
    }

    /// Its links but `lo`.
    pub fn links(&self) -> Result<Vec<LinkFacts>, NodeError> {
        let answer = self.ip_json(&["link", "show"])?;
        let links = answer.as_array().into_iter().flatten().filter_map(link_facts);
        Ok(links.filter(|link| link.name != "lo").collect())
    }

    /// The link with a hardware address, if it is there.
    pub fn link_by_mac(&self, mac: Mac) -> Result<Option<LinkFacts>, NodeError> {
        let mac = mac.to_string();
        Ok(self.links()?.into_iter().find(|link| link.mac == mac))
    }

    /// Waits until the link with a hardware address is there, or gone, and says whether that happened.
    pub fn wait_link(&self, mac: Mac, there: bool, within: Duration) -> Result<bool, NodeError> {
        let until = Instant::now() + within;
        while self.link_by_mac(mac)?.is_some() != there {
            if Instant::now() >= until {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(true)
    }

    /// Installs the product's binary under all its names, as `--install --symbolic` would.
    pub fn install(&self, binary: &Path) -> Result<(), NodeError> {
        for applet in APPLETS {
            let path = self.dirs.bin.join(applet);
            match symlink(binary, &path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(NodeError::Directory { path, error });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A program to be started as a daemon on this node, with the environment that leads it to this lab.
    pub fn daemon_spec(&self, program: impl Into<PathBuf>) -> DaemonSpec {
        let program = program.into();
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        let log = self.dirs.log.join(format!("{name}.log"));
        self.environment
            .iter()
            .fold(DaemonSpec::new(&program, log), |spec, (name, value)| {
                spec.env(name, value)
            })
            .env("AWS_CNI_STATE_DIR", &self.dirs.state)
            .env("AWS_CNI_SOCKET", self.dirs.socket())
            // The machine's own kubelet, if it has one, is none of the node's.
            .env("AWS_CNI_KUBELET_CONFIG", self.dirs.kubelet_config())
            .env(MARK, self.lab_dir())
    }

    fn lab_dir(&self) -> &Path {
        self.dirs.root.parent().unwrap_or(&self.dirs.root)
    }

    /// The installed `ipamd`.
    pub fn ipamd_spec(&self) -> DaemonSpec {
        self.daemon_spec(self.dirs.bin.join("ipamd"))
    }

    /// Starts a daemon in the node.
    pub fn start(&self, spec: DaemonSpec) -> Result<Daemon, ProcessError> {
        Daemon::start(&self.netns, spec)
    }

    /// Calls a method of the daemon's interface, such as `Status`, and returns what it answers.
    pub fn call_ipamd(&self, method: &str, parameters: &Value) -> Result<Value, CallError> {
        let method = format!("local.awscni.Ipamd1.{method}");
        call(&self.dirs.socket(), &method, parameters, CALL)
    }

    /// The runtime of this node with the installed `aws-cni` as its only plugin.
    pub fn runtime(&self) -> Runtime {
        let conflist = Conflist::aws_cni(self.dirs.bin.clone())
            .env("AWS_CNI_STATE_DIR", &self.dirs.state)
            .env("AWS_CNI_SOCKET", self.dirs.socket())
            .env(MARK, self.lab_dir());
        Runtime {
            node: self.netns.clone(),
            conflist,
        }
    }

    /// A pod of the node's own runtime.
    pub fn pod(&self, namespace: &str, name: &str) -> Result<Pod, NodeError> {
        self.pod_of(Arc::new(self.runtime()), namespace, name)
    }

    /// A pod of another runtime, such as one with a longer list.
    pub fn pod_of(&self, runtime: Arc<Runtime>, namespace: &str, name: &str) -> Result<Pod, NodeError> {
        let sandbox = self.sandboxes.fetch_add(1, Ordering::Relaxed);
        Ok(Pod::new(runtime, PodIdentity::new(namespace, name, sandbox))?)
    }

    /// The node's own echo server as a target of exchanges.
    pub fn target(&self) -> Target {
        Target {
            name: self.name.clone(),
            address: (self.address, ECHO_PORT).into(),
        }
    }

    /// The same by IPv6, if it has that.
    pub fn target6(&self) -> Option<Target> {
        Some(Target {
            name: format!("{} by IPv6", self.name),
            address: (self.address6()?, ECHO_PORT).into(),
        })
    }

    /// The node as a starting point of exchanges.
    pub fn source(&self) -> Source {
        Source {
            name: self.name.clone(),
            netns: self.netns.clone(),
        }
    }
}

fn link_facts(link: &Value) -> Option<LinkFacts> {
    let flags = link.get("flags")?.as_array()?;
    Some(LinkFacts {
        name: link.get("ifname")?.as_str()?.to_owned(),
        mac: link.get("address")?.as_str()?.to_owned(),
        up: flags.iter().any(|flag| flag == "UP"),
        mtu: link.get("mtu")?.as_u64()?,
    })
}

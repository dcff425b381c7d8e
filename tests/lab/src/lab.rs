//! The whole VPC in a box: cloud, wires and nodes, built in one go and gone with its value.
//!
//! ```no_run
//! # use aws_cni_lab::lab::Lab;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let lab = Lab::builder().node("a", "t3.medium").node("b", "m5.large").build()?;
//! let node = lab.node("a")?;
//! node.install("/path/to/aws-cni".as_ref())?;
//! let daemon = node.start(node.ipamd_spec())?;
//! daemon.wait_socket(&node.dirs().socket(), std::time::Duration::from_secs(30))?;
//! let pod = node.pod("default", "web-0")?;
//! println!("{}", pod.add()?.stdout);
//! # Ok(())
//! # }
//! ```
//!
//! Many labs run side by side: nothing in one has a name outside of it. It needs root, or a user namespace
//! ([`crate::netns`]). Nothing is left when the process ends, however it ends: namespaces are held by descriptors,
//! daemons die with the lab ([`crate::process`]), and the directory is removed by a process of its own.

mod driver;
mod workspace;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use driver::{Driver, DriverHandle, Nodes};
pub(crate) use workspace::MARK;
pub use workspace::Workspace;

use crate::cloud::{Cloud, CloudConfig};
use crate::fabric::{Fabric, FabricError, Networks, Networks6};
use crate::faults::Preset;
use crate::http::Server;
use crate::netns::raise_open_files;
use crate::node::{Node, NodeError, NodeOptions};
use crate::probe::{ECHO_PORT, EchoError, EchoServer, Target};
use crate::vpc::{ApiError, GroupId, Ipv4Cidr, NewInstance, SubnetId, VpcId, Want};

/// Why a lab can't be built or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabError {
    /// The wires.
    #[error(transparent)]
    Fabric(#[from] FabricError),
    /// A node.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// An echo server.
    #[error(transparent)]
    Echo(#[from] EchoError),
    /// The model refused.
    #[error("setting up the VPC: {0}")]
    Cloud(#[from] ApiError),
    /// A directory, a server or a thread.
    #[error("{doing}: {error}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        error: io::Error,
    },
    /// No node has this name.
    #[error("the lab has no node {0:?}")]
    NoNode(String),
    /// The link of a node's primary ENI did not come.
    #[error("the primary ENI of node {0:?} has no link")]
    NoLink(String),
    /// The lab has fewer subnets.
    #[error("the lab has no subnet number {0}")]
    NoSubnet(usize),
}

/// From launch to the moment a daemon may start; longer than any lag of EC2 or IMDS.
const BOOT: Duration = Duration::from_mins(1);

fn io_error(doing: &'static str) -> impl FnOnce(io::Error) -> LabError {
    move |error| LabError::Io { doing, error }
}

/// A node to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSpec {
    /// Its name in the lab.
    pub name: String,
    /// Its instance type.
    pub instance_type: String,
    /// Its subnet, by position.
    pub subnet: usize,
    /// How its kernel is set up and how links show up.
    pub options: NodeOptions,
}

impl NodeSpec {
    /// A node in the first subnet with default options.
    pub fn new(name: &str, instance_type: &str) -> Self {
        Self {
            name: name.to_owned(),
            instance_type: instance_type.to_owned(),
            subnet: 0,
            options: NodeOptions::default(),
        }
    }
}

/// What a lab is to be.
#[derive(Debug, Clone)]
pub struct LabBuilder {
    cloud: CloudConfig,
    networks: Networks,
    subnets: Vec<(String, Ipv4Cidr)>,
    nodes: Vec<(NodeSpec, Customize)>,
}

/// Changes how an instance is launched.
pub type Customize = fn(&mut NewInstance);

impl LabBuilder {
    /// Adds a node in the first subnet.
    #[must_use]
    pub fn node(self, name: &str, instance_type: &str) -> Self {
        self.node_with(NodeSpec::new(name, instance_type), |_| {})
    }

    /// Adds a node as specified, with its launch changed: hop limit, prefixes, addresses from the start.
    #[must_use]
    pub fn node_with(mut self, spec: NodeSpec, customize: Customize) -> Self {
        self.nodes.push((spec, customize));
        self
    }

    /// Timings and limits of the cloud.
    #[must_use]
    pub fn preset(mut self, preset: Preset) -> Self {
        self.cloud.preset = preset;
        self
    }

    /// What decides ids, addresses and delays.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.cloud.seed = seed;
        self
    }

    /// Other subnets than the two /20 networks; the first is number 0.
    #[must_use]
    pub fn subnets(mut self, subnets: &[(&str, Ipv4Cidr)]) -> Self {
        self.subnets = subnets
            .iter()
            .map(|(zone, cidr)| ((*zone).to_owned(), *cidr))
            .collect();
        self
    }

    /// The VPC has an IPv6 network, too, and each subnet a /64 of it; the primary ENI of each node
    /// has an address of its own there, as worker nodes of IPv6 clusters have.
    #[must_use]
    pub fn ipv6(mut self) -> Self {
        self.networks.six = Some(Networks6::default());
        self
    }

    /// Builds everything and waits until each node's primary ENI is up.
    pub fn build(self) -> Result<Lab, LabError> {
        raise_open_files().map_err(|errno| LabError::Io {
            doing: "raising the limit of open files",
            error: errno.into(),
        })?;
        let workspace = Workspace::new().map_err(io_error("making the lab's directory"))?;
        let cloud = Cloud::new(&self.cloud).map_err(io_error("starting the cloud"))?;
        let fabric = Arc::new(Fabric::new(self.networks)?);
        let vpc = create_vpc(&cloud, fabric.networks(), &self.subnets)?;
        let servers = serve(&cloud, &fabric)?;
        let outside = fabric.outside();
        let hosts = [&outside.internet, &outside.on_premises, &outside.second_vpc];
        let echo = hosts.map(|host| EchoServer::start(&host.netns, ECHO_PORT));
        let mut lab = Lab {
            driver: None,
            nodes: Arc::default(),
            by_name: BTreeMap::new(),
            _servers: servers,
            _echo: echo.into_iter().collect::<Result<_, _>>()?,
            cloud,
            vpc,
            fabric,
            workspace,
        };
        for (spec, customize) in self.nodes {
            lab.launch(spec, customize)?;
        }
        let changes = lab.cloud.follow();
        let mut driver = Driver::new(Arc::clone(&lab.fabric), Arc::clone(&lab.nodes), changes);
        driver.drain()?;
        lab.driver = Some(driver.start().map_err(io_error("starting the lab's driver"))?);
        Ok(lab)
    }
}

/// The VPC as the cloud knows it.
#[derive(Debug, Clone)]
pub struct VpcIds {
    /// The VPC.
    pub vpc: VpcId,
    /// Its subnets in order.
    pub subnets: Vec<SubnetId>,
    /// The security group of the nodes.
    pub group: GroupId,
}

/// A running lab; dropping it ends everything in it.
#[derive(Debug)]
pub struct Lab {
    driver: Option<DriverHandle>,
    nodes: Arc<Nodes>,
    by_name: BTreeMap<String, Arc<Node>>,
    _servers: Vec<Server>,
    _echo: Vec<EchoServer>,
    cloud: Cloud,
    vpc: VpcIds,
    fabric: Arc<Fabric>,
    workspace: Workspace,
}

impl Lab {
    /// A lab without nodes, with instant answers and two subnets.
    pub fn builder() -> LabBuilder {
        let subnet = |third| Ipv4Cidr::new(Ipv4Addr::new(10, 0, third, 0), 20);
        LabBuilder {
            cloud: CloudConfig::default(),
            networks: Networks::default(),
            subnets: vec![
                ("eu-central-1a".to_owned(), subnet(16)),
                ("eu-central-1b".to_owned(), subnet(32)),
            ],
            nodes: Vec::new(),
        }
    }

    /// The cloud: model, faults, call log.
    pub fn cloud(&self) -> &Cloud {
        &self.cloud
    }

    /// The wires: router, guard, networks outside.
    pub fn fabric(&self) -> &Fabric {
        &self.fabric
    }

    /// The ids of VPC, subnets and group.
    pub fn vpc(&self) -> &VpcIds {
        &self.vpc
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Result<Arc<Node>, LabError> {
        let node = self.by_name.get(name).cloned();
        node.ok_or_else(|| LabError::NoNode(name.to_owned()))
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.by_name.values()
    }

    /// The directory everything of this lab is in.
    pub fn dir(&self) -> &std::path::Path {
        self.workspace.path()
    }

    /// Changes of the VPC that the kernel refused; a test that finds one has found a mistake in the lab or itself.
    pub fn troubles(&self) -> Vec<String> {
        self.driver
            .as_ref()
            .map(DriverHandle::troubles)
            .unwrap_or_default()
    }

    /// The internet's echo server.
    pub fn internet(&self) -> Target {
        target("internet", self.fabric.outside().internet.address)
    }

    /// The internet's echo server by IPv6, if the lab has that.
    pub fn internet6(&self) -> Option<Target> {
        let address = self.fabric.networks().six?.internet_host();
        Some(target("internet by IPv6", address))
    }

    /// The echo server on premises.
    pub fn on_premises(&self) -> Target {
        target("on-premises", self.fabric.outside().on_premises.address)
    }

    /// The echo server in the VPC's second network.
    pub fn second_vpc(&self) -> Target {
        target("second-vpc", self.fabric.outside().second_vpc.address)
    }

    /// Launches another node and waits for its primary ENI.
    pub fn add_node(&mut self, spec: NodeSpec, customize: Customize) -> Result<Arc<Node>, LabError> {
        let node = self.launch(spec, customize)?;
        if node.wait_configured(BOOT) {
            Ok(node)
        } else {
            Err(LabError::NoLink(node.name().to_owned()))
        }
    }

    /// Terminates a node's instance; its links go, its namespace stays with whoever still holds the node.
    pub fn terminate(&mut self, name: &str) -> Result<(), LabError> {
        let node = self
            .by_name
            .remove(name)
            .ok_or_else(|| LabError::NoNode(name.to_owned()))?;
        self.cloud.terminate_instance(node.instance())?;
        self.nodes.lock().remove(node.instance());
        Ok(())
    }

    fn launch(&mut self, spec: NodeSpec, customize: Customize) -> Result<Arc<Node>, LabError> {
        let subnet = self
            .vpc
            .subnets
            .get(spec.subnet)
            .ok_or(LabError::NoSubnet(spec.subnet))?;
        let mut launch = NewInstance::new(&spec.instance_type, subnet, &self.vpc.group);
        launch.tags.insert("Name".to_owned(), spec.name.clone());
        if self.fabric.networks().six.is_some() {
            launch.wanted.ipv6 = Want::Count(1);
        }
        customize(&mut launch);
        let mut nodes = self.nodes.lock();
        // It booted a while ago: EC2 and IMDS have caught up with its primary ENI.
        let launched = Instant::now().checked_sub(BOOT).unwrap_or_else(Instant::now);
        let instance = self
            .cloud
            .model_ahead(|model| model.run_instance(launch, launched))?;
        let endpoint = format!("http://{}", self.fabric.ec2_endpoint().ip());
        let node = Node::new(
            &spec.name,
            &instance,
            self.workspace.path().join(&spec.name),
            spec.options,
            BTreeMap::from([("AWS_ENDPOINT_URL_EC2".to_owned(), endpoint)]),
        )?;
        let node = Arc::new(node);
        nodes.insert(instance.id, Arc::clone(&node));
        self.by_name.insert(spec.name, Arc::clone(&node));
        Ok(node)
    }
}

fn target(name: &str, address: impl Into<IpAddr>) -> Target {
    Target {
        name: name.to_owned(),
        address: (address.into(), ECHO_PORT).into(),
    }
}

fn create_vpc(
    cloud: &Cloud,
    networks: &Networks,
    subnets: &[(String, Ipv4Cidr)],
) -> Result<VpcIds, LabError> {
    let cidrs: Vec<_> = networks.all_vpc().collect();
    Ok(cloud.model(|model| -> Result<_, ApiError> {
        let six = networks.six;
        let vpc = model.create_vpc(&cidrs, six.map(|six| six.vpc));
        let group = model.create_group(&vpc, "nodes")?;
        let created = subnets.iter().zip(1..).map(|((zone, cidr), number)| {
            model.create_subnet(&vpc, zone, *cidr, six.map(|six| six.subnet(number)))
        });
        let subnets = created.collect::<Result<_, _>>()?;
        Ok(VpcIds { vpc, subnets, group })
    })?)
}

fn serve(cloud: &Cloud, fabric: &Fabric) -> Result<Vec<Server>, LabError> {
    let doing = "serving in the router's namespace";
    let ec2 = cloud.serve_ec2(fabric.listen_ec2()?).map_err(io_error(doing))?;
    let imds = cloud.serve_imds(fabric.listen_imds()?).map_err(io_error(doing))?;
    Ok(vec![ec2, imds])
}

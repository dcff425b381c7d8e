//! What a terminated instance has left, reaped by another node: the pool's own decisions by a clock of the test's, over the
//! real SDK, against the lab's EC2.

use std::collections::{BTreeMap, VecDeque};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use aws_cni::cloud::{Ec2, Ec2Settings};
use aws_cni::config::AwsConfig;
use aws_cni::ipam::cloud::{CloudAnswer, CloudCall, CloudEni, DescribeScope};
use aws_cni::ipam::effect::{Alarm, Effect};
use aws_cni::ipam::event::Event;
use aws_cni::ipam::ids::Tick;
use aws_cni::ipam::limits;
use aws_cni::ipam::node::NodeFacts;
use aws_cni::ipam::policy::{Policy, WarmTarget};
use aws_cni::ipam::pool::Pool;
use aws_cni::ipam::recover::Start;
use aws_cni::ipam::witness::KernelFacts;
use aws_cni_lab::cloud::{Cloud, CloudConfig};
use aws_cni_lab::faults::Rule;
use aws_cni_lab::http::Server;
use aws_cni_lab::vpc::{AttachEni, CreateEni, EniId, GroupId, InstanceId, NewInstance, Stages, SubnetId};

/// 2026-11-21T08:00:00Z, when the node has booted.
const BOOTED: u64 = 1_795_248_000;
const THREE_HOURS_BEFORE: &str = "2026-11-21T05:00:00Z";

struct Vpc {
    cloud: Cloud,
    subnet: SubnetId,
    group: GroupId,
}

impl Vpc {
    fn new() -> Self {
        let cloud = Cloud::new(&CloudConfig::default()).unwrap();
        let (subnet, group) = cloud.model(|model| {
            let vpc = model.create_vpc(&["10.0.0.0/16".parse().unwrap()], None);
            let group = model.create_group(&vpc, "nodes").unwrap();
            let cidr = "10.0.0.0/24".parse().unwrap();
            (
                model.create_subnet(&vpc, "eu-central-1a", cidr, None).unwrap(),
                group,
            )
        });
        Self { cloud, subnet, group }
    }

    fn instance(&self) -> InstanceId {
        let spec = NewInstance::new("m5.large", &self.subnet, &self.group);
        self.cloud.run_instance(spec).unwrap().id
    }

    /// An ENI an instance has made, and detached again: nobody has deleted it yet.
    fn detached(&self, owner: &InstanceId) -> EniId {
        self.cloud.model(|model| {
            let now = Instant::now();
            let request = CreateEni {
                description: format!("aws-K8S-{owner}"),
                tags: BTreeMap::from([
                    ("node.k8s.amazonaws.com/instance_id".to_owned(), owner.to_string()),
                    (
                        "node.k8s.amazonaws.com/createdAt".to_owned(),
                        THREE_HOURS_BEFORE.to_owned(),
                    ),
                ]),
                ..CreateEni::plain(self.subnet.clone(), vec![self.group.clone()])
            };
            let id = model.create_eni(request, now).unwrap().id.clone();
            let at_once = Stages {
                link: Duration::ZERO,
                status: Duration::ZERO,
            };
            let attach = AttachEni {
                eni: id.clone(),
                instance: owner.clone(),
                device: 1,
                card: 0,
            };
            let attachment = model.attach_eni(&attach, at_once, now).unwrap();
            model.detach_eni(&attachment, at_once, now).unwrap();
            model.advance(Instant::now());
            id
        })
    }

    fn has(&self, id: &EniId) -> bool {
        self.cloud.model(|model| model.enis().contains_key(id))
    }
}

fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

/// A node: the pool, EC2, and hands that do nothing but keep it going.
struct Node {
    pool: Pool,
    ec2: Ec2,
    now: Tick,
    wake: Option<Tick>,
    alarms: Vec<Alarm>,
    _servers: (Server, Server),
}

impl Node {
    async fn start(vpc: &Vpc) -> Self {
        let id = vpc.instance();
        let (ec2_listener, ec2_endpoint) = listen();
        let (imds_listener, metadata_endpoint) = listen();
        let config = AwsConfig {
            http_timeout: Duration::from_secs(20),
            max_attempts: 2,
            ec2_endpoint: Some(ec2_endpoint),
            metadata_endpoint: Some(metadata_endpoint),
            ..AwsConfig::default()
        };
        let servers = (
            vpc.cloud.serve_ec2_for(ec2_listener, Some(id.clone())).unwrap(),
            vpc.cloud.serve_imds_for(imds_listener, Some(id.clone())).unwrap(),
        );
        let ec2 = Ec2::new(Ec2Settings::of_node(&config, Some("eu-central-1")));
        let primary = Self::primary(&ec2, &id).await;
        let vpc_id = vpc
            .cloud
            .model(|model| model.vpcs().keys().next().unwrap().clone());
        let start = Start {
            policy: Policy {
                warm: WarmTarget::Enis(0),
                ..Policy::default()
            },
            limits: limits::lookup(&"m5.large".into()),
            facts: NodeFacts {
                instance: id.to_string().into(),
                instance_type: "m5.large".into(),
                zone: "eu-central-1a".to_owned(),
                vpc: vpc_id.to_string().into(),
                vpc_cidrs: vec!["10.0.0.0/16".parse().unwrap()],
                subnet: primary.subnet.clone(),
                subnet_cidr: "10.0.0.0/24".parse().unwrap(),
                primary_eni: primary.id.clone(),
                primary_mac: primary.mac,
                primary_address: primary.primary,
                security_groups: primary.groups.clone(),
                boot: "b0075b00-0000".into(),
                booted_at: BOOTED,
            },
            records: BTreeMap::new(),
            kernel: KernelFacts::default(),
            gone: std::collections::BTreeSet::new(),
        };
        let now = Tick(10_000);
        let (pool, effects) = Pool::recover(start, now);
        let mut node = Self {
            pool,
            ec2,
            now,
            wake: None,
            alarms: vec![],
            _servers: servers,
        };
        node.carry_out(effects).await;
        node
    }

    async fn primary(ec2: &Ec2, id: &InstanceId) -> CloudEni {
        let call = CloudCall::DescribeEnis {
            instance: id.to_string().into(),
            scope: DescribeScope::Attached,
        };
        match ec2.execute(&call).await {
            Ok(CloudAnswer::Enis(mut enis)) => enis.remove(0),
            other => panic!("{other:?}"),
        }
    }

    /// What a step wants, and everything that follows from it.
    async fn carry_out(&mut self, effects: Vec<Effect>) {
        let mut steps = VecDeque::from([effects]);
        while let Some(effects) = steps.pop_front() {
            for effect in effects {
                let event = match effect {
                    Effect::Commit { commit, .. } => Event::Committed { commit },
                    Effect::Call { call, request } => Event::CallEnded {
                        call,
                        result: self.ec2.execute(&request).await,
                    },
                    Effect::ReadKernel => Event::Kernel(KernelFacts::default()),
                    Effect::WakeAt(at) => {
                        self.wake = Some(at);
                        continue;
                    }
                    Effect::Alarm(alarm) => {
                        self.alarms.push(alarm);
                        continue;
                    }
                    _ => continue,
                };
                steps.push_back(self.pool.step(event, self.now));
            }
        }
    }

    async fn live(&mut self, span: Duration) {
        let end = self.now.after(span);
        while let Some(wake) = self.wake.filter(|wake| *wake <= end) {
            self.wake = None;
            self.now = self.now.max(wake);
            let effects = self.pool.step(Event::Timer, self.now);
            self.carry_out(effects).await;
        }
        self.now = end;
    }
}

/// Conformance 114, T9: detaching and deleting are two calls, and the instance ended between them.
#[tokio::test]
async fn ipamd_114_what_an_instance_left_that_ended_between_detach_and_delete_is_reaped_by_another_node() {
    let vpc = Vpc::new();
    let (gone, stopped) = (vpc.instance(), vpc.instance());
    let (left, kept) = (vpc.detached(&gone), vpc.detached(&stopped));
    vpc.cloud.terminate_instance(&gone).unwrap();
    assert!(vpc.has(&left), "the subject of this test");
    let mut node = Node::start(&vpc).await;
    node.live(Duration::from_hours(2)).await;
    assert!(!vpc.has(&left), "{:?}", node.alarms);
    assert!(vpc.has(&kept), "its owner lives");
    let said = node.alarms.iter().find(|alarm| alarm.kind == "leak-deleted");
    assert!(
        said.is_some_and(|alarm| alarm.message.contains(gone.0.as_str())),
        "{:?}",
        node.alarms
    );
}

/// Two nodes of one VPC, awake by turns: each ENI is deleted once, and nobody is refused.
#[tokio::test]
async fn two_nodes_share_the_work() {
    let vpc = Vpc::new();
    let gone = vpc.instance();
    let left: Vec<EniId> = (0..8).map(|_| vpc.detached(&gone)).collect();
    vpc.cloud.terminate_instance(&gone).unwrap();
    let mut nodes = [Node::start(&vpc).await, Node::start(&vpc).await];
    for _ in 0..5 * 60 {
        for node in &mut nodes {
            node.live(Duration::from_mins(1)).await;
        }
    }
    assert!(left.iter().all(|id| !vpc.has(id)));
    let reaped = |node: &Node| {
        node.alarms
            .iter()
            .filter(|alarm| alarm.kind == "leak-deleted")
            .count()
    };
    assert_eq!(nodes.iter().map(reaped).sum::<usize>(), left.len());
}

/// Design invariant 8: the missing permission costs this feature, and says so.
#[tokio::test]
async fn without_the_permission_nothing_else_suffers() {
    let vpc = Vpc::new();
    let gone = vpc.instance();
    let left = vpc.detached(&gone);
    vpc.cloud.terminate_instance(&gone).unwrap();
    let rule = Rule::ec2_error("DescribeInstances", "UnauthorizedOperation", "not you");
    vpc.cloud.faults().inject(rule);
    let mut node = Node::start(&vpc).await;
    node.live(Duration::from_hours(2)).await;
    assert!(vpc.has(&left));
    let status = node.pool.status(node.now);
    assert!(status.serving && status.free > 0, "{status:?}");
    let said = |kind: &str| node.alarms.iter().any(|alarm| alarm.kind == kind);
    assert!(said("leaks") && said("denied"), "{:?}", node.alarms);
}

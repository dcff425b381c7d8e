//! The lab's servers on the wire, as a client without any AWS library sees them.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers, too"
)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use aws_cni_lab::calls::Service;
use aws_cni_lab::cloud::{Cloud, CloudConfig};
use aws_cni_lab::faults::{Effect, Latency, Outage, Preset, Rule, Scope};
use aws_cni_lab::http::Server;
use aws_cni_lab::vpc::{
    AttachEni, CreateEni, EniId, Instance, Mac, NewInstance, Stages, VpcChange, Want, Wanted,
};

struct Lab {
    cloud: Cloud,
    node: Instance,
    imds: Server,
    ec2: Server,
}

fn lab() -> Lab {
    let cloud = Cloud::new(&CloudConfig::default()).unwrap();
    let (subnet, group) = cloud.model(|model| {
        let vpc = model.create_vpc(&["10.0.0.0/16".parse().unwrap()], None);
        let group = model.create_group(&vpc, "nodes").unwrap();
        let cidr = "10.0.0.0/20".parse().unwrap();
        (
            model.create_subnet(&vpc, "eu-central-1a", cidr, None).unwrap(),
            group,
        )
    });
    let node = cloud
        .run_instance(NewInstance::new("m5.large", &subnet, &group))
        .unwrap();
    let listener = || TcpListener::bind("127.0.0.1:0").unwrap();
    let imds = cloud.serve_imds_for(listener(), Some(node.id.clone())).unwrap();
    let ec2 = cloud.serve_ec2_for(listener(), Some(node.id.clone())).unwrap();
    Lab {
        cloud,
        node,
        imds,
        ec2,
    }
}

/// One request on a connection of its own: status and body, or why there is none.
fn exchange(to: SocketAddr, method: &str, path: &str, headers: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n{headers}\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| std::io::Error::other("closed without an answer"))?;
    Ok((head[9..12].parse().unwrap(), body.to_owned()))
}

impl Lab {
    fn imds(&self, method: &str, path: &str, headers: &str) -> (u16, String) {
        exchange(self.imds.local_addr(), method, path, headers).unwrap()
    }

    fn get(&self, path: &str) -> (u16, String) {
        let ttl = "X-aws-ec2-metadata-token-ttl-seconds: 60\r\n";
        let (status, token) = self.imds("PUT", "/latest/api/token", ttl);
        assert_eq!(status, 200);
        let path = format!("/latest/meta-data/{path}");
        self.imds("GET", &path, &format!("X-aws-ec2-metadata-token: {token}\r\n"))
    }

    fn macs(&self) -> Vec<String> {
        let (status, body) = self.get("network/interfaces/macs/");
        assert_eq!(status, 200);
        body.lines()
            .map(|line| line.trim_end_matches('/').to_owned())
            .collect()
    }

    fn create(&self, addresses: u32) -> EniId {
        let wanted = Wanted {
            addresses: Want::Count(addresses),
            ..Wanted::default()
        };
        self.cloud.model(|model| {
            let request = CreateEni {
                wanted,
                ..CreateEni::plain(self.node.subnet.clone(), vec![])
            };
            model.create_eni(request, Instant::now()).unwrap().id.clone()
        })
    }

    fn attach(&self, eni: &EniId, device: u32, stages: Stages) -> Mac {
        let request = AttachEni {
            eni: eni.clone(),
            instance: self.node.id.clone(),
            device,
            card: 0,
        };
        self.cloud.model(|model| {
            model.attach_eni(&request, stages, Instant::now()).unwrap();
            model.enis()[eni].mac
        })
    }

    fn describe(&self) -> std::io::Result<(u16, String)> {
        let headers = "Authorization: AWS4-HMAC-SHA256 Credential=x, SignedHeaders=y, Signature=z\r\n\
                       X-Amz-Date: 20260101T000000Z\r\n";
        let path = "/?Action=DescribeNetworkInterfaces&Version=2016-11-15";
        exchange(self.ec2.local_addr(), "GET", path, headers)
    }
}

#[test]
fn imds_wants_a_token() {
    let lab = lab();
    let ttl = |text: &str| format!("X-aws-ec2-metadata-token-ttl-seconds: {text}\r\n");
    assert_eq!(lab.imds("GET", "/latest/meta-data/mac", "").0, 401);
    for bad in [
        "",
        "X-aws-ec2-metadata-token-ttl-seconds: 0\r\n",
        &ttl("21601"),
        &ttl("x"),
    ] {
        assert_eq!(lab.imds("PUT", "/latest/api/token", bad).0, 400, "{bad}");
    }
    let forwarded = format!("{}X-Forwarded-For: 1.2.3.4\r\n", ttl("60"));
    assert_eq!(lab.imds("PUT", "/latest/api/token", &forwarded).0, 403);
    let wrong = "X-aws-ec2-metadata-token: wrong\r\n";
    assert_eq!(lab.imds("GET", "/latest/meta-data/mac", wrong).0, 401);
    assert_eq!(lab.get("instance-id"), (200, lab.node.id.to_string()));
    assert_eq!(lab.get("no-such-thing").0, 404);
}

#[test]
fn imds_tells_nodes_apart_by_their_address() {
    let lab = lab();
    let server = lab
        .cloud
        .serve_imds(TcpListener::bind("127.0.0.1:0").unwrap())
        .unwrap();
    let (status, _) = exchange(server.local_addr(), "GET", "/latest/meta-data/mac", "").unwrap();
    assert_eq!(status, 404, "127.0.0.1 is nobody's address");
    let own = lab
        .cloud
        .model(|model| model.instance_at(lab.node.private_ip.into()));
    assert_eq!(own, Some(lab.node.id.clone()));
}

#[test]
fn imds_shows_an_eni_when_its_link_is_there_and_it_has_caught_up() {
    let lab = lab();
    let changes = lab.cloud.subscribe();
    assert!(matches!(changes.recv(), Ok(VpcChange::EniAttached(_))));
    let hour = Duration::from_hours(1);
    let late = lab.create(1);
    let stages = |link| Stages { link, status: hour };
    lab.attach(&late, 2, stages(hour));
    assert_eq!(lab.macs().len(), 1);
    let eni = lab.create(3);
    let mac = lab.attach(&eni, 1, stages(Duration::from_millis(30)));
    let Ok(VpcChange::EniAttached(attached)) = changes.recv_timeout(Duration::from_secs(20)) else {
        panic!("the link must be announced");
    };
    assert_eq!((attached.mac, attached.owned.secondary.len()), (mac, 3));
    assert!(lab.macs().contains(&mac.to_string()) && lab.macs().len() == 2);
    let directory = format!("network/interfaces/macs/{mac}");
    assert_eq!(lab.get(&format!("{directory}/local-ipv4s")).1.lines().count(), 4);
    assert_eq!(lab.get(&format!("{directory}/ipv4-prefix")).0, 404);
    assert_eq!(
        lab.get(&format!("{directory}/network-card")).0,
        404,
        "only types with several cards"
    );
    assert_eq!(
        lab.get(&format!("{directory}/subnet-ipv4-cidr-block")).1,
        "10.0.0.0/20"
    );

    lab.cloud
        .faults()
        .timing(&Scope::All, |timing| timing.imds_lag = Latency::secs(600));
    let prefix = Wanted {
        prefixes: Want::Count(1),
        ..Wanted::default()
    };
    lab.cloud
        .model(|model| model.assign(&eni, &prefix, false, Instant::now()).map(drop))
        .unwrap();
    assert!(matches!(changes.recv(), Ok(VpcChange::AddressesChanged { .. })));
    assert_eq!(lab.get(&format!("{directory}/ipv4-prefix")).0, 404, "IMDS lags");
    lab.cloud.faults().apply(Preset::Instant);
    assert_eq!(lab.get(&format!("{directory}/ipv4-prefix")).0, 200);
}

#[test]
fn imds_can_withhold_and_make_up() {
    let lab = lab();
    let faults = lab.cloud.faults();
    let mac = lab.macs().remove(0);
    let directory = format!("network/interfaces/macs/{mac}");
    let ghost = Mac([0x0a, 1, 2, 3, 4, 5]);
    let stray = Ipv4Addr::new(10, 0, 0, 99);
    faults.lies(&lab.node.id, |lies| {
        lies.imds_ghost_macs.insert(ghost);
        lies.imds_adds_addresses
            .insert((lab.node.primary_eni.clone(), stray.into()));
    });
    assert_eq!(lab.macs().len(), 2);
    assert_eq!(
        lab.get(&format!("network/interfaces/macs/{ghost}/interface-id"))
            .0,
        404
    );
    assert!(
        lab.get(&format!("{directory}/local-ipv4s"))
            .1
            .contains("10.0.0.99")
    );
    faults.lies(&lab.node.id, |lies| {
        lies.imds_redirects_directories = true;
        lies.imds_hides_enis.insert(lab.node.primary_eni.clone());
    });
    assert_eq!(lab.macs(), [ghost.to_string()]);
    assert_eq!(lab.get("network/interfaces/macs").0, 301);
    faults.lies(&lab.node.id, |lies| lies.imds_empty_macs = true);
    assert_eq!(lab.get("network/interfaces/macs/"), (200, String::new()));
    faults.inject(Rule::imds_status("meta-data/network/interfaces/macs*", 500).once());
    assert_eq!(lab.get("network/interfaces/macs/").0, 500);
    faults.heal();
    assert_eq!(lab.macs(), [mac]);
    let counters = lab.cloud.calls().counters(Service::Imds, 0);
    assert_eq!(counters["api/token"], counters.values().sum::<usize>() / 2);
}

#[test]
fn imds_version_1_is_a_choice() {
    let lab = lab();
    let open = lab.cloud.run_instance(NewInstance {
        imds_tokens_required: false,
        role: None,
        ..NewInstance::new(
            "t3.medium",
            &lab.node.subnet,
            &lab.cloud
                .model(|model| model.groups().keys().next().unwrap().clone()),
        )
    });
    let open = open.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = lab.cloud.serve_imds_for(listener, Some(open.id.clone())).unwrap();
    let get = |path: &str| exchange(server.local_addr(), "GET", path, "").unwrap();
    assert_eq!(
        get("/latest/meta-data/instance-type"),
        (200, "t3.medium".to_owned())
    );
    assert_eq!(get("/latest/meta-data/iam/security-credentials/").0, 404);
    assert_eq!(get("/latest"), (404, get("/nowhere").1));
}

#[test]
fn describes_may_lag() {
    let lab = lab();
    lab.cloud
        .faults()
        .timing(&Scope::All, |timing| timing.describe_lag = Latency::secs(600));
    let long_ago = Instant::now().checked_sub(Duration::from_mins(5)).unwrap();
    let create = |at: Instant| {
        let request = CreateEni::plain(lab.node.subnet.clone(), vec![]);
        lab.cloud
            .model(|model| model.create_eni(request, at).unwrap().id.clone())
    };
    let (fresh, old) = (create(Instant::now()), create(long_ago));
    let sees = |eni: &EniId| lab.describe().unwrap().1.contains(eni.as_str());
    let lag = |latency| {
        lab.cloud
            .faults()
            .timing(&Scope::All, |timing| timing.describe_lag = latency);
    };
    assert!(!sees(&fresh), "omission: created, but not shown yet");
    lag(Latency::Zero);
    assert!(sees(&fresh) && sees(&old));
    lag(Latency::secs(60));
    lab.cloud
        .model(|model| model.delete_eni(&old, Instant::now()))
        .unwrap();
    assert!(sees(&old), "excess: deleted, but still shown");
    lag(Latency::Zero);
    assert!(!sees(&old));
}

#[test]
fn unsigned_calls_are_refused() {
    let lab = lab();
    let path = "/?Action=DescribeVpcs&Version=2016-11-15";
    let (status, body) = exchange(lab.ec2.local_addr(), "GET", path, "").unwrap();
    assert!(
        status == 403 && body.contains("<Code>MissingAuthenticationToken</Code>"),
        "{body}"
    );
    let half = "Authorization: AWS4-HMAC-SHA256 Credential=x\r\n";
    let (status, body) = exchange(lab.ec2.local_addr(), "GET", path, half).unwrap();
    assert!(
        status == 401 && body.contains("<Code>AuthFailure</Code>"),
        "{body}"
    );
    assert!(body.contains("<RequestID>"));
}

#[test]
fn outages_take_every_form() {
    let lab = lab();
    let faults = lab.cloud.faults();
    assert_eq!(lab.describe().unwrap().0, 200);
    faults.outage(
        Service::Ec2,
        Scope::Instance(lab.node.id.clone()),
        Some(Outage::Reset),
    );
    assert!(lab.describe().is_err());
    assert_eq!(lab.get("mac").0, 200, "IMDS isn't concerned");
    faults.outage(Service::Ec2, Scope::Instance(lab.node.id.clone()), None);
    assert_eq!(lab.describe().unwrap().0, 200);
    faults.inject(Rule::ec2("Describe*", Effect::LoseRequest).once());
    assert_eq!(
        lab.describe().unwrap_err().to_string(),
        "closed without an answer"
    );
    assert_eq!(lab.describe().unwrap().0, 200);
}

#[test]
fn a_refusing_server_comes_back() {
    let lab = lab();
    // Taken only to learn a free port; the servers of other tests ask for any port, too, hence the retries.
    let (server, address) = (0..50)
        .find_map(|_| {
            let address = TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?;
            let server = lab.cloud.serve_ec2(TcpListener::bind(address).ok()?).ok()?;
            Some((server, address))
        })
        .unwrap();
    assert!(TcpStream::connect(address).is_ok());
    for _ in 0..100 {
        server.refuse(true).unwrap();
        let refused = TcpStream::connect(address).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        server.refuse(false).unwrap();
        assert!(exchange(address, "GET", "/", "").is_ok());
    }
    drop(server);
    assert!(TcpListener::bind(address).is_ok(), "the address is free again");
}

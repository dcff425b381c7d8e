//! The VPC's networks change while the node runs.

use aws_cni_lab::calls::Service;
use aws_cni_lab::faults::{Outage, Scope};

use crate::pair::{assert_reach, own, sources};
use crate::scene::{PATIENCE, Scene};

/// What the lab's internet becomes when the VPC gains it.
const GAINED: &str = "198.51.100.0/24";

/// The node's nft table, without what its counters have counted.
fn ruleset(scene: &Scene) -> String {
    let list = ["--stateless", "list", "table", "ip", "aws-cni"];
    scene.node.nft_json(&list).unwrap().to_string()
}

/// The Go daemon reads the networks every 30 s; here it is every 60 s, at a restart, and soon after a failure.
#[test]
fn dataplane_26_27_ipamd_99_a_network_the_vpc_gains_is_exempt_from_snat_and_a_failing_imds_changes_nothing() {
    let mut scene = Scene::new("t3.small");
    let pods = scene.pods("web", 2);
    scene.add(&pods, 2);
    scene.settle();
    let internet = [scene.lab.internet()];
    assert_reach(&sources(&pods), &internet, |_| scene.node.address());
    scene.kill();
    scene
        .faults()
        .outage(Service::Imds, Scope::All, Some(Outage::Reset));
    let vpc = scene.lab.vpc().vpc.clone();
    let gained = GAINED.parse().unwrap();
    scene
        .lab
        .cloud()
        .model(|model| model.add_vpc_cidr(&vpc, gained).unwrap());

    scene.start();
    let before = ruleset(&scene);
    let failed = "the VPC's networks could not be read";
    scene.daemon().wait_log(failed, PATIENCE).unwrap();
    assert_eq!(ruleset(&scene), before);
    assert_reach(&sources(&pods), &internet, |_| scene.node.address());

    let pid = scene.daemon().pid();
    scene.faults().outage(Service::Imds, Scope::All, None);
    scene.eventually("the network to be exempt", || {
        ruleset(&scene).contains("198.51.100.0")
    });
    assert_reach(&sources(&pods), &internet, own(&pods));
    assert_eq!(scene.daemon().pid(), pid, "without another start");
    assert_eq!(scene.lab.fabric().dropped_spoofed().unwrap(), 0);
    scene.check(&pods);
}

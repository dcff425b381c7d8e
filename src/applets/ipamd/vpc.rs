//! Follows the VPC's networks: they decide what leaves the node with its own address.

use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use crate::cloud::Imds;
use crate::ipam::cidr::Ipv4Cidr;
use crate::ipam::ids::Mac;

/// Networks come to a VPC rarely; one request a minute is what an idle node may cost IMDS.
pub(super) const EVERY: Duration = Duration::from_mins(1);
/// The first wait after a reading that failed, doubling up to [`EVERY`]: what is remembered may be out of date.
const AGAIN: Duration = Duration::from_secs(2);

/// Tells the VPC's networks after `first` and then every so often, in order and without duplicates, for as long as
/// the runtime lives. They are told although they may not have changed: whoever could not act on them tries again.
pub(super) fn follow(
    imds: Arc<Imds>,
    primary: Mac,
    first: Duration,
    every: Duration,
    tell: impl Fn(Vec<Ipv4Cidr>) + Send + 'static,
) {
    tokio::spawn(async move {
        tokio::time::sleep(first).await;
        let mut again = AGAIN;
        loop {
            let mut wait = every;
            match imds.vpc_cidrs(primary).await {
                Ok(cidrs) if cidrs.is_empty() => {
                    warn!("IMDS lists no network of the VPC; nothing is changed");
                }
                Ok(mut cidrs) => {
                    cidrs.sort_unstable();
                    cidrs.dedup();
                    tell(cidrs);
                    again = AGAIN;
                }
                Err(error) => {
                    warn!("the VPC's networks could not be read, nothing is changed: {error}");
                    wait = again.min(every);
                    again = again.saturating_mul(2);
                }
            }
            tokio::time::sleep(wait).await;
        }
    });
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use aws_cni_lab::calls::Service;
    use aws_cni_lab::cloud::{Cloud, CloudConfig};
    use aws_cni_lab::faults::{Outage, Scope};
    use aws_cni_lab::vpc::NewInstance;
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;
    use crate::cloud::ImdsLimits;

    fn networks(texts: &[&str]) -> Vec<Ipv4Cidr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// Nothing is told while IMDS is away, so nothing changes; a network that came meanwhile is told afterwards.
    #[tokio::test]
    async fn dataplane_26_27_ipamd_99_a_new_network_is_told_and_a_failure_is_not() {
        let cloud = Cloud::new(&CloudConfig::default()).unwrap();
        let (vpc, subnet, group) = cloud.model(|model| {
            let vpc = model.create_vpc(&["10.1.0.0/16".parse().unwrap()], None);
            model.add_vpc_cidr(&vpc, "10.0.0.0/16".parse().unwrap()).unwrap();
            let group = model.create_group(&vpc, "nodes").unwrap();
            let cidr = "10.1.0.0/24".parse().unwrap();
            let subnet = model.create_subnet(&vpc, "eu-central-1a", cidr, None).unwrap();
            (vpc, subnet, group)
        });
        let node = cloud
            .run_instance(NewInstance::new("m5.large", &subnet, &group))
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let _server = cloud.serve_imds_for(listener, Some(node.id.clone())).unwrap();
        let imds = Arc::new(Imds::new(Some(&endpoint), ImdsLimits::default()).unwrap());
        let primary = imds.discover().await.unwrap().primary_mac;

        let (told, mut heard) = unbounded_channel();
        let often = Duration::from_millis(5);
        follow(imds, primary, Duration::ZERO, often, move |cidrs| {
            drop(told.send(cidrs));
        });
        let both = networks(&["10.0.0.0/16", "10.1.0.0/16"]);
        assert_eq!(heard.recv().await, Some(both.clone()));
        assert_eq!(
            heard.recv().await,
            Some(both.clone()),
            "told again, in the same order"
        );

        cloud
            .faults()
            .outage(Service::Imds, Scope::All, Some(Outage::Reset));
        let third = "10.2.0.0/16".parse().unwrap();
        cloud.model(|model| model.add_vpc_cidr(&vpc, third)).unwrap();
        cloud.faults().outage(Service::Imds, Scope::All, None);
        let all = networks(&["10.0.0.0/16", "10.1.0.0/16", "10.2.0.0/16"]);
        loop {
            let cidrs = heard.recv().await.unwrap();
            if cidrs == all {
                break;
            }
            assert_eq!(cidrs, both);
        }
    }
}

//! Follows what IMDS tells of the primary ENI and may change while it runs: the VPC's networks, which decide what leaves
//! the node with its own address, and its security groups, which all our ENIs shall have.

use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use crate::cloud::{Imds, ImdsError};
use crate::ipam::cidr::Ipv4Cidr;
use crate::ipam::ids::{Mac, SecurityGroupId};

/// One request a minute is what an idle node may cost IMDS, so the two take turns: each is read every other minute.
pub(super) const EVERY: Duration = Duration::from_mins(1);
/// The first wait after a reading that failed, doubling up to [`EVERY`]: what is remembered may be out of date.
const AGAIN: Duration = Duration::from_secs(2);

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum News {
    /// The VPC's networks, in order and without duplicates.
    Networks(Vec<Ipv4Cidr>),
    /// The primary ENI's security groups.
    Groups(Vec<SecurityGroupId>),
}

/// Tells the VPC's networks after `first`, and then groups and networks in turn, for as long as the runtime lives. They
/// are told although they may not have changed: whoever could not act on them tries again.
pub(super) fn follow(
    imds: Arc<Imds>,
    primary: Mac,
    first: Duration,
    every: Duration,
    tell: impl Fn(News) + Send + 'static,
) {
    tokio::spawn(async move {
        tokio::time::sleep(first).await;
        let mut again = AGAIN;
        let mut wants_groups = false;
        loop {
            let mut wait = every;
            if wants_groups {
                match groups(&imds, primary).await {
                    Ok(news) => news.into_iter().for_each(&tell),
                    // EC2 tells them, too, if later.
                    Err(error) => warn!("the primary ENI's security groups could not be read: {error}"),
                }
                wants_groups = false;
            } else {
                match networks(&imds, primary).await {
                    Ok(news) => {
                        news.into_iter().for_each(&tell);
                        wants_groups = true;
                        again = AGAIN;
                    }
                    Err(error) => {
                        warn!("the VPC's networks could not be read, nothing is changed: {error}");
                        wait = again.min(every);
                        again = again.saturating_mul(2);
                    }
                }
            }
            tokio::time::sleep(wait).await;
        }
    });
}

async fn networks(imds: &Imds, primary: Mac) -> Result<Option<News>, ImdsError> {
    let mut cidrs = imds.vpc_cidrs(primary).await?;
    if cidrs.is_empty() {
        warn!("IMDS lists no network of the VPC; nothing is changed");
        return Ok(None);
    }
    cidrs.sort_unstable();
    cidrs.dedup();
    Ok(Some(News::Networks(cidrs)))
}

/// An empty list is no news: EC2 knows no ENI without a group.
async fn groups(imds: &Imds, primary: Mac) -> Result<Option<News>, ImdsError> {
    let groups = imds.security_groups(primary).await?;
    Ok((!groups.is_empty()).then_some(News::Groups(groups)))
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
        let (groups_told, mut groups_heard) = unbounded_channel();
        let often = Duration::from_millis(5);
        follow(imds, primary, Duration::ZERO, often, move |news| match news {
            News::Networks(cidrs) => drop(told.send(cidrs)),
            News::Groups(groups) => drop(groups_told.send(groups)),
        });
        let both = networks(&["10.0.0.0/16", "10.1.0.0/16"]);
        assert_eq!(heard.recv().await, Some(both.clone()));
        assert_eq!(
            heard.recv().await,
            Some(both.clone()),
            "told again, in the same order"
        );

        let groups: Vec<String> = vec![group.to_string()];
        let heard_groups = groups_heard.recv().await.unwrap();
        assert_eq!(
            heard_groups.iter().map(ToString::to_string).collect::<Vec<_>>(),
            groups
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

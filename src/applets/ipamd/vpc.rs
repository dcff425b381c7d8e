//! Follows what IMDS tells of the primary ENI and may change while it runs: the VPC's networks, which decide what leaves
//! the node with its own address, and its security groups, which all our ENIs shall have.

use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use crate::cloud::{Imds, ImdsError};
use crate::ipam::cidr::Ipv4Cidr;
use crate::ipam::ids::{Mac, SecurityGroupId};

/// One request a minute is what an idle node may cost IMDS, so the two take turns: each is read every other minute. Where
/// one has changed, somebody is at work on the VPC, and the other is read at once.
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
        let mut turns = Turns::default();
        loop {
            let wait = match turns.next {
                Turn::Networks => match networks(&imds, primary).await {
                    Ok(news) => turns.heard(news, every, &tell),
                    Err(error) => {
                        warn!("the VPC's networks could not be read, nothing is changed: {error}");
                        turns.again(every)
                    }
                },
                Turn::Groups => match groups(&imds, primary).await {
                    Ok(news) => turns.heard(news, every, &tell),
                    Err(error) => {
                        // EC2 tells them, too, if later.
                        warn!("the primary ENI's security groups could not be read: {error}");
                        turns.pass(every)
                    }
                },
            };
            tokio::time::sleep(wait).await;
        }
    });
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Turn {
    #[default]
    Networks,
    Groups,
}

/// Who is read next, and when.
#[derive(Debug, Default)]
struct Turns {
    next: Turn,
    networks: Option<News>,
    groups: Option<News>,
    failures: u32,
}

impl Turns {
    /// Tells what was read. What has changed since the last reading does not let the other wait.
    fn heard(&mut self, news: Option<News>, every: Duration, tell: &impl Fn(News)) -> Duration {
        let last = match self.next {
            Turn::Networks => &mut self.networks,
            Turn::Groups => &mut self.groups,
        };
        let has_changed = last.is_some() && news.is_some() && *last != news;
        if news.is_some() {
            last.clone_from(&news);
        }
        news.into_iter().for_each(tell);
        let wait = self.pass(every);
        if has_changed { Duration::ZERO } else { wait }
    }

    fn pass(&mut self, every: Duration) -> Duration {
        self.failures = 0;
        self.next = match self.next {
            Turn::Networks => Turn::Groups,
            Turn::Groups => Turn::Networks,
        };
        every
    }

    /// The same again, soon, and ever later.
    fn again(&mut self, every: Duration) -> Duration {
        let wait = AGAIN.saturating_mul(2_u32.saturating_pow(self.failures));
        self.failures = self.failures.saturating_add(1);
        wait.min(every)
    }
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

    /// In an hour in which nothing happens each is asked for thirty times, and a change costs one request more.
    #[test]
    fn the_two_take_turns_and_a_change_of_one_has_the_other_read_at_once() {
        let told = std::cell::Cell::new(0);
        let tell = |_: News| told.set(told.get() + 1);
        let minute = Duration::from_mins(1);
        let news = |turn: Turn, n: u8| match turn {
            Turn::Networks => Some(News::Networks(networks(&[&format!("10.{n}.0.0/16")]))),
            Turn::Groups => Some(News::Groups(vec![format!("sg-{n}").as_str().into()])),
        };
        let mut turns = Turns::default();
        let mut asked = Vec::new();
        for _ in 0..60 {
            asked.push(turns.next);
            assert_eq!(turns.heard(news(turns.next, 1), minute, &tell), minute);
        }
        assert_eq!(asked.iter().filter(|turn| **turn == Turn::Groups).count(), 30);
        assert_eq!(told.get(), 60, "told although nothing has changed");
        for changed in [Turn::Networks, Turn::Groups] {
            turns.next = changed;
            assert_eq!(turns.heard(news(changed, 2), minute, &tell), Duration::ZERO);
            assert_ne!(turns.next, changed);
            // Both have changed: the first is not asked again for that.
            assert_eq!(turns.heard(news(turns.next, 1), minute, &tell), minute);
            turns = Turns {
                networks: news(Turn::Networks, 1),
                groups: news(Turn::Groups, 1),
                ..turns
            };
        }
        turns.next = Turn::Networks;
        let waits: Vec<u64> = (0..7).map(|_| turns.again(minute).as_secs()).collect();
        assert_eq!(waits, [2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(turns.next, Turn::Networks);
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

//! The maps that lead hostPorts to pods: opened by the plugin, put right by the daemon, closed by either.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::diff::{Contents, difference};
use super::encode;
use super::model::{Datum, Element, Key};
use super::table::{Nft, NftError, listed};
use crate::ipam::ip::IpFamily;
use crate::ipam::ports::HostPort;
use crate::net::ruleset::{HOST_PORT, HOST_PORT_AT, HOST_PORT_POD};

/// How long it is tried while somebody else changes tables of the node; kube-proxy does so in bursts.
const PATIENCE: Duration = Duration::from_secs(3);
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_millis(16);

/// Pods and the ports of the node that lead to them.
pub type PodPorts = BTreeMap<IpAddr, Vec<HostPort>>;

impl Nft {
    /// These ports lead to this pod, and no longer to another.
    ///
    /// # Errors
    /// When the kernel refuses; ENOENT when no daemon has made the table yet.
    pub fn open_ports(&mut self, pod: IpAddr, ports: &[HostPort]) -> Result<(), NftError> {
        let wanted = contents(&[(pod, ports.to_vec())].into());
        match self.transact(&self.additions(&wanted)) {
            // One of them still leads elsewhere. Nothing has changed: the whole transaction is void.
            Err(error) if error.errno == Errno::EBUSY || error.errno == Errno::EEXIST => {}
            result => return Ok(result?),
        }
        let keys: BTreeSet<Key> = wanted.values().flatten().filter_map(key).cloned().collect();
        let in_the_way = |element: &Element| {
            let is_wanted = key(element).is_some_and(|key| keys.contains(key));
            is_wanted && !holds(&wanted, element)
        };
        self.change_ports(|found| filtered(found, in_the_way), &wanted)?;
        Ok(())
    }

    /// No port leads to these addresses any more. Returns whether one did.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn close_ports(&mut self, pods: &[IpAddr]) -> Result<bool, NftError> {
        let leads_there = |element: &Element| match element {
            Element::Entry(_, Datum::Endpoint(pod, _)) | Element::Entry(Key::Pair(pod, _), _) => {
                pods.contains(pod)
            }
            _ => false,
        };
        self.change_ports(|found| filtered(found, leads_there), &Contents::new())
    }

    /// Exactly these ports lead to pods, for recovery and repair. Returns whether anything differed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn ports_only(&mut self, pods: &PodPorts) -> Result<bool, NftError> {
        let wanted = contents(pods);
        self.change_ports(
            |found| filtered(found, |element| !holds(&wanted, element)),
            &wanted,
        )
    }

    /// What leads to pods now.
    ///
    /// # Errors
    /// When the kernel refuses or can't be understood.
    pub fn port_contents(&mut self) -> Result<Contents, NftError> {
        let mut found = Contents::new();
        for set in [HOST_PORT, HOST_PORT_AT, HOST_PORT_POD] {
            let elements = self.held(set)?;
            if !elements.is_empty() {
                found.insert(set.name, elements);
            }
        }
        Ok(found)
    }

    /// One transaction, which the kernel refuses when anything was changed since what it rests on was read: an element is
    /// deleted by its key, and by then its key may lead to another pod.
    fn change_ports(
        &mut self,
        gone: impl Fn(&Contents) -> Contents,
        wanted: &Contents,
    ) -> Result<bool, NftError> {
        let start = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            let changed = |error: &NftError| match error {
                NftError::Kernel(error) => matches!(error.errno, Errno::ERESTART | Errno::EINTR),
                _ => false,
            };
            match self.try_to_change_ports(&gone, wanted) {
                Err(error) if changed(&error) && start.elapsed() < PATIENCE => {}
                result => return result,
            }
            std::thread::sleep(pause);
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    fn try_to_change_ports(
        &mut self,
        gone: impl Fn(&Contents) -> Contents,
        wanted: &Contents,
    ) -> Result<bool, NftError> {
        let generation = self.generation()?;
        let found = self.port_contents()?;
        let mut messages = Vec::new();
        for (set, elements) in &gone(&found) {
            messages.extend(encode::delete_elements(self.name(), set, &listed(elements)));
        }
        let absent = wanted.iter().map(|(set, elements)| {
            let (_, absent) = difference(found.get(set), elements);
            (*set, absent)
        });
        messages.extend(self.additions(&absent.collect()));
        self.transact_at(Some(generation), &messages)?;
        Ok(!messages.is_empty())
    }

    fn additions(&self, contents: &Contents) -> Vec<encode::Message> {
        let sets = contents.iter();
        sets.flat_map(|(set, elements)| encode::add_elements(self.name(), set, &listed(elements)))
            .collect()
    }
}

fn key(element: &Element) -> Option<&Key> {
    match element {
        Element::Range(_) => None,
        Element::Entry(key, _) => Some(key),
    }
}

fn filtered(found: &Contents, take: impl Fn(&Element) -> bool) -> Contents {
    let each = found.iter().map(|(set, elements)| {
        let taken: BTreeSet<Element> = elements.iter().filter(|element| take(element)).cloned().collect();
        (*set, taken)
    });
    each.filter(|(_, taken)| !taken.is_empty()).collect()
}

fn holds(contents: &Contents, element: &Element) -> bool {
    contents.values().any(|elements| elements.contains(element))
}

/// Of several pods that claim one port, the kernel takes one; the pool gives no port twice.
fn contents(pods: &PodPorts) -> Contents {
    let mut contents = Contents::new();
    let mut add = |set, element| {
        contents.entry(set).or_default().insert(element);
    };
    for (pod, ports) in pods {
        for port in ports.iter().filter(|port| is_of_family(*pod, port)) {
            let (number, endpoint) = (
                port.transport.number(),
                Datum::Endpoint(*pod, port.container_port),
            );
            match port.host_ip {
                None => add(
                    HOST_PORT.name,
                    Element::Entry(Key::Port(number, port.host_port), endpoint),
                ),
                Some(ip) => add(
                    HOST_PORT_AT.name,
                    Element::Entry(Key::PortAt(ip, number, port.host_port), endpoint),
                ),
            }
            add(
                HOST_PORT_POD.name,
                Element::Entry(Key::Pair(*pod, *pod), Datum::Nothing),
            );
        }
    }
    contents
}

fn is_of_family(pod: IpAddr, port: &HostPort) -> bool {
    let family = IpFamily::of(pod);
    port.host_ip.is_none_or(|ip| IpFamily::of(ip) == family)
}

//! Sandboxes that come and go in the world, and what their clients are told.

use super::*;

impl World {
    pub(crate) fn add(&mut self, n: u32, patience: Duration) -> WaiterId {
        self.add_interface(key(n), Wish::Any, None, patience)
    }

    pub(crate) fn add_interface(
        &mut self,
        key: SandboxKey,
        wish: Wish,
        main: Option<IfName>,
        patience: Duration,
    ) -> WaiterId {
        self.add_with(key, patience, |request| {
            request.wish = wish;
            request.main = main;
        })
    }

    /// An ADD of which something is unusual.
    pub(crate) fn add_with(
        &mut self,
        key: SandboxKey,
        patience: Duration,
        change: impl FnOnce(&mut AddRequest),
    ) -> WaiterId {
        self.next_waiter += 1;
        let waiter = WaiterId(self.next_waiter);
        self.gone.remove(&key);
        self.clients.insert(
            waiter,
            Client {
                key: Some(key.clone()),
                ..Client::default()
            },
        );
        let mut request = AddRequest {
            waiter,
            host_veth: veth(&key),
            key,
            pod: PodRef::default(),
            netns: String::new(),
            wish: Wish::Any,
            main: None,
            ports: Vec::new(),
            deadline: self.now.after(patience),
        };
        change(&mut request);
        self.event(Event::Add(request));
        if self.eager {
            self.settle();
        }
        waiter
    }

    pub(crate) fn del(&mut self, n: u32) -> WaiterId {
        self.next_waiter += 1;
        let waiter = WaiterId(self.next_waiter);
        self.clients.insert(waiter, Client::default());
        let of_sandbox = |held: &SandboxKey| held.container == key(n).container;
        for (held, address) in std::mem::take(&mut self.live) {
            if of_sandbox(&held) {
                self.released.insert(address, self.now);
            } else {
                self.live.insert(held, address);
            }
        }
        self.routes.retain(|_, holder| !of_sandbox(holder));
        self.event(Event::Del { waiter, key: key(n) });
        if self.eager {
            self.settle();
        }
        waiter
    }

    pub(crate) fn gc(&mut self, valid: &[u32]) -> WaiterId {
        self.next_waiter += 1;
        let waiter = WaiterId(self.next_waiter);
        self.clients.insert(waiter, Client::default());
        let valid = valid
            .iter()
            .map(|n| (key(*n).container, key(*n).ifname))
            .collect();
        let network = "aws-cni".into();
        self.event(Event::Gc {
            waiter,
            network,
            valid,
        });
        if self.eager {
            self.settle();
        }
        waiter
    }

    pub(crate) fn give_up(&mut self, waiter: WaiterId) {
        if let Some(client) = self
            .clients
            .get_mut(&waiter)
            .filter(|client| client.last.is_none() && !client.gone)
        {
            client.gone = true;
            let (key, grant) = (client.key.clone(), client.grant.clone());
            if let (Some(key), Some(grant)) = (key, grant.filter(|grant| !grant.repeated)) {
                self.routes
                    .retain(|address, holder| (*address, &*holder) != (grant.address, &key));
            }
            self.event(Event::GiveUp { waiter });
        }
    }

    pub(crate) fn granted(&self, waiter: WaiterId) -> Option<Ipv4Addr> {
        match self.granted_any(waiter)? {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(address) => panic!("{address} was granted where IPv4 addresses are"),
        }
    }

    pub(crate) fn granted_six(&self, waiter: WaiterId) -> Option<Ipv6Addr> {
        match self.granted_any(waiter)? {
            IpAddr::V4(address) => panic!("{address} was granted where IPv6 addresses are"),
            IpAddr::V6(address) => Some(address),
        }
    }

    fn granted_any(&self, waiter: WaiterId) -> Option<IpAddr> {
        let client = self.clients.get(&waiter)?;
        (client.last == Some(Reply::Durable)).then_some(client.grant.as_ref()?.address)
    }

    pub(crate) fn refused(&self, waiter: WaiterId) -> Option<&Refusal> {
        match self.clients.get(&waiter)?.last.as_ref()? {
            Reply::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// Calls whose action starts so.
    pub(crate) fn calls(&self, action: &str) -> usize {
        self.log.iter().filter(|line| line.starts_with(action)).count()
    }
}

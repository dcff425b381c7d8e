//! The one task that owns the pool: every request, answer, notification and timer reaches it through one mailbox.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::alarms::Alarms;
use super::answers;
use super::clock;
use super::deferred::Deferred;
use super::hands::Hands;
use super::host;
use super::mail::Mail;
use super::ports;
use crate::ipam::effect::{Change, Effect, ReleasedAddress, Reply};
use crate::ipam::event::{AddRequest, Event};
use crate::ipam::ids::{CommitId, TableId, Tick, WaiterId};
use crate::ipam::model::Allocation as Held;
use crate::ipam::pool::Pool;
use crate::ipam::wishes::Wish;
use crate::net::guard::Author;
use crate::net::layout::RuleLayout;
use crate::net::pod::{LinkRemoval, PodRemoval};
use crate::rpc::server::{Call, Incoming, Replies};
use crate::rpc::types::{
    self, Allocation, ErrorKind, Guarded, Reply as Answer, Request, ServiceError, Status,
};
use crate::store::{Store, Write};

/// Stands in for a watchdog nobody set.
const NEVER: Duration = Duration::from_hours(24);

/// The pool, and the hands that do what it wants done.
pub(super) struct Actor {
    pool: Pool,
    store: Store,
    hands: Hands,
    mail: UnboundedSender<Mail>,
    layout: RuleLayout,
    waiting: BTreeMap<WaiterId, Replies>,
    wake: Option<Tick>,
    deferred: Deferred,
    /// Answers that are not logged yet, with what was assigned.
    said: Vec<(Reply, Option<Held>)>,
    alarms: Alarms,
    guarded: Guarded,
}

impl Actor {
    /// Takes the pool over; `mail` is where the hands report to.
    pub(super) fn new(
        pool: Pool,
        store: Store,
        hands: Hands,
        mail: UnboundedSender<Mail>,
        layout: RuleLayout,
        deferred: Deferred,
    ) -> Self {
        Self {
            pool,
            store,
            hands,
            mail,
            layout,
            waiting: BTreeMap::new(),
            wake: None,
            deferred,
            said: Vec::new(),
            alarms: Alarms::default(),
            guarded: Guarded::default(),
        }
    }

    /// Handles one piece of mail from the inside.
    pub(super) fn receive(&mut self, mail: Mail) {
        match mail {
            Mail::Event(event) => self.step(*event),
            Mail::Housekeeping => {
                self.work_off_deferred();
                self.alarms.tell_suppressed(clock::now());
            }
            Mail::Unwired { waiter, reply } => self.answer(waiter, reply),
            Mail::Disturbed { gone, all } => self.restore(gone, all),
            Mail::TableTouched => self.hands.lead_ports(ports::recorded(&self.pool)),
            Mail::Guarded(guarded) => self.guarded = guarded,
            Mail::Committed {
                commit,
                behind,
                failure: None,
            } => {
                self.execute(behind);
                self.step(Event::Committed { commit });
            }
            Mail::Committed {
                commit,
                failure: Some(reason),
                ..
            } => {
                warn!(reason, "the store could not make a change durable");
                self.step(Event::CommitFailed { commit, reason });
            }
        }
    }

    /// Handles what the socket says.
    pub(super) fn hear(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Call(call) => self.take(*call),
            Incoming::HungUp { id } => {
                let waiter = WaiterId(id);
                self.waiting.remove(&waiter);
                self.give_up(waiter);
            }
        }
    }

    /// When the pool wants to be woken.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.wake.map(|at| Instant::now() + at.since(clock::now()))
    }

    /// The time asked for has come.
    pub(super) fn wake(&mut self) {
        self.wake = None;
        self.step(Event::Timer);
    }

    /// Asks the pool for the DELs that plugins had to leave behind.
    pub(super) fn work_off_deferred(&mut self) {
        for (waiter, key) in self.deferred.collect() {
            self.step(Event::Del { waiter, key });
        }
    }

    /// Of pods whose route or rule went only those that live are to have it back.
    fn restore(&self, gone: BTreeMap<IpAddr, Author>, all: bool) {
        // Each DEL is news of a pod that nobody has any more.
        if !all && gone.keys().all(|address| self.holder(*address).is_none()) {
            return;
        }
        let mut pods = host::recorded(&self.pool, self.layout);
        pods.retain(|pod| all || gone.contains_key(&pod.address));
        if !pods.is_empty() {
            self.hands.restore(pods, gone, all);
        }
    }

    fn status(&self) -> Status {
        let mut status = answers::status(self.pool.status(clock::now()));
        status.guarded = self.guarded.clone();
        let disputed = status.guarded.disputed.iter();
        let told = disputed.map(|thing| format!("{thing} is left as it is: others keep changing it"));
        status.reasons.extend(told);
        status
    }

    /// Gives the store back, for closing it.
    pub(super) fn into_store(self) -> Store {
        self.store
    }

    fn take(&mut self, call: Call) {
        let waiter = WaiterId(call.id);
        match call.request {
            Request::Add(add) => {
                if let Some(refusal) = answers::too_long(&add) {
                    say(&call.replies, Err(Box::new(refusal)));
                    return;
                }
                let patience = call.deadline.saturating_duration_since(Instant::now());
                let request = AddRequest {
                    waiter,
                    key: add.key(),
                    pod: add.pod,
                    host_veth: add.host_veth,
                    netns: add.netns,
                    wish: add.card.map_or(Wish::Any, Wish::Card),
                    main: add.main,
                    ports: add.host_ports,
                    deadline: clock::now().after(patience),
                };
                self.waiting.insert(waiter, call.replies);
                self.step(Event::Add(request));
            }
            Request::Del(del) => {
                self.waiting.insert(waiter, call.replies);
                self.step(Event::Del {
                    waiter,
                    key: del.key(),
                });
            }
            Request::Gc(gc) => {
                self.waiting.insert(waiter, call.replies);
                let valid = gc.valid.into_iter().map(|held| (held.container_id, held.ifname));
                self.step(Event::Gc {
                    waiter,
                    network: gc.network,
                    valid: valid.collect(),
                });
            }
            Request::Cordon(types::Cordon { cordoned }) => {
                info!(cordoned, "{}", if cordoned { "cordoned" } else { "uncordoned" });
                self.waiting.insert(waiter, call.replies);
                self.step(Event::Cordon { waiter, cordoned });
            }
            Request::Check(check) => say(&call.replies, self.check(&check)),
            Request::Status => say(&call.replies, Ok(Answer::Status(self.status()))),
            Request::Dump => say(&call.replies, Ok(Answer::Dump(self.pool.dump(clock::now())))),
        }
    }

    /// A plugin that is gone may have died in the middle of wiring; what it was told of is released and taken away.
    fn give_up(&mut self, waiter: WaiterId) {
        let told = |held: &&Held| held.told == Some(waiter);
        let unwanted = self.pool.allocations().values().find(told).cloned();
        self.step(Event::GiveUp { waiter });
        let Some(held) = unwanted.filter(|held| !self.pool.allocations().contains_key(&held.key)) else {
            return;
        };
        info!(address = %held.address, container = %held.key.container, "released: its plugin is gone");
        let pod = removal(held.address, held.table(), &held.host_veth, self.layout);
        self.hands.unwire(vec![pod], None);
    }

    fn check(&self, check: &types::Check) -> Result<Answer, Box<ServiceError>> {
        let key = check.key();
        let held = self.pool.allocations().get(&key).and_then(|held| {
            let eni = self.pool.enis().get(&held.eni)?;
            Some(Allocation {
                address: held.address,
                eni_table: eni.table(),
                device: eni.device?,
                card: eni.card,
                eni: eni.id.clone(),
                eni_primary: Some(eni.primary),
                layout: self.layout,
                host_veth: held.host_veth.clone(),
            })
        });
        held.map(Answer::Checked).ok_or_else(|| {
            let error = ServiceError::new(ErrorKind::NotFound, format!("no address is allocated to {key}"));
            Box::new(error.with_next_step("delete the pod's sandbox; the runtime then makes a new one"))
        })
    }

    /// Lets the pool decide, and does what it wants.
    pub(super) fn step(&mut self, event: Event) {
        debug!(?event, "step");
        let effects = self.pool.step(event, clock::now());
        self.execute(effects);
    }

    /// Executes effects in order; what stands behind a commit waits for it.
    pub(super) fn execute(&mut self, effects: Vec<Effect>) {
        let mut effects = effects.into_iter();
        while let Some(effect) = effects.next() {
            match effect {
                Effect::Commit { commit, changes } => {
                    self.commit(commit, changes, effects.collect());
                    return;
                }
                Effect::Reply { waiter, reply } => self.reply(waiter, reply),
                Effect::WakeAt(at) => self.wake = Some(at),
                Effect::Alarm(alarm) => self.alarms.tell(&alarm, clock::now()),
                Effect::Unwire(released) => self.unwire(&released),
                other => self.hands.act(other),
            }
        }
    }

    fn unwire(&self, released: &[ReleasedAddress]) {
        released.iter().for_each(log_release);
        self.hands.unwire(removals(released, self.layout), None);
    }

    fn commit(&self, commit: CommitId, changes: Vec<Change>, behind: Vec<Effect>) {
        let mail = self.mail.clone();
        let writes = changes.into_iter().map(write).collect();
        self.store.commit(
            writes,
            Box::new(move |result| {
                let done = Mail::Committed {
                    commit,
                    behind,
                    failure: result.err().map(|error| error.to_string()),
                };
                // The actor is gone only when the daemon ends.
                drop(mail.send(done));
            }),
        );
    }

    /// A plugin that asked for a DEL cleans the kernel itself, with what it is told. Nobody does so after GC, nor after
    /// a DEL whose plugin could ask nobody what to clean.
    fn reply(&mut self, waiter: WaiterId, reply: Reply) {
        self.note(&reply);
        let left_to_us = match &reply {
            Reply::Collected(held) => held.clone(),
            Reply::Released { addresses, .. } if self.deferred.holds(waiter) => {
                return self.deferred.released(waiter, addresses.clone());
            }
            Reply::Settled if self.deferred.holds(waiter) => self.deferred.take_released(waiter),
            _ => return self.answer(waiter, reply),
        };
        self.hands
            .unwire(removals(&left_to_us, self.layout), Some((waiter, reply)));
    }

    fn note(&mut self, reply: &Reply) {
        let held = match reply {
            Reply::Durable | Reply::Settled => return,
            Reply::Assigned(grant) => self.holder(grant.address),
            _ => None,
        };
        self.said.push((reply.clone(), held));
    }

    fn holder(&self, address: IpAddr) -> Option<Held> {
        let key = self.pool.known(address)?.holder.as_ref()?;
        self.pool.allocations().get(key).cloned()
    }

    /// Logs what has been answered; see [`run`] for when.
    pub(super) fn log(&mut self) {
        for (reply, held) in self.said.drain(..) {
            log(&reply, held.as_ref());
        }
    }

    fn answer(&mut self, waiter: WaiterId, reply: Reply) {
        let last = reply.is_final();
        if last && self.deferred.answered(waiter) {
            return;
        }
        let answer = answers::answer(reply, self.layout);
        let replies = if last { self.waiting.remove(&waiter) } else { None };
        // Nobody waits any more when the client has left.
        if let Some(replies) = replies.as_ref().or_else(|| self.waiting.get(&waiter)) {
            say(replies, answer);
        }
    }
}

/// A client that left is told of by `HungUp`, so nothing is lost when it cannot be answered.
fn say(replies: &Replies, answer: Result<Answer, Box<ServiceError>>) {
    let heard = match answer {
        Ok(answer) => replies.send(answer),
        Err(error) => replies.fail(*error),
    };
    if !heard {
        debug!("the client left before its answer");
    }
}

fn removals(released: &[ReleasedAddress], layout: RuleLayout) -> Vec<PodRemoval> {
    let of = |held: &ReleasedAddress| removal(held.address, held.table, &held.host_veth, layout);
    released.iter().map(of).collect()
}

/// What is to be taken out of the kernel.
fn removal(address: IpAddr, table: TableId, host_veth: &str, layout: RuleLayout) -> PodRemoval {
    PodRemoval {
        host_veth: Some(host_veth.to_owned()).filter(|name| !name.is_empty()),
        address,
        eni_table: Some(table),
        layout,
        link: LinkRemoval::DoomIfRouted,
    }
}

fn write(change: Change) -> Write {
    match change {
        Change::Put { key, value } => Write::Put { key, value },
        Change::Remove { key } => Write::Remove { key },
    }
}

/// The message says what the fields say: journalctl shows only the message.
fn log(reply: &Reply, held: Option<&Held>) {
    match reply {
        Reply::Assigned(grant) => {
            let again = if grant.repeated { " again" } else { "" };
            let pod = held.map(|held| &held.pod);
            info!(
                address = %grant.address,
                eni = %grant.eni,
                namespace = pod.map(|pod| pod.namespace.as_str()),
                pod = pod.map(|pod| pod.name.as_str()),
                container = held.map(|held| tracing::field::display(&held.key.container)),
                host_veth = held.map(|held| held.host_veth.as_str()),
                "assigned {}{again} on {}",
                grant.address,
                grant.eni
            );
        }
        Reply::Refused(refusal) => {
            let request_id = refusal.aws.as_ref().and_then(|aws| aws.request_id.as_deref());
            warn!(kind = ?refusal.kind, request_id, "refused: {}; {}", refusal.message, refusal.next_step);
        }
        Reply::Released { addresses, .. } => addresses.iter().for_each(log_release),
        Reply::Collected(held) => held.iter().for_each(log_release),
        Reply::Durable | Reply::Settled => {}
    }
}

fn log_release(held: &ReleasedAddress) {
    info!(
        address = %held.address,
        namespace = held.pod.namespace,
        pod = held.pod.name,
        container = %held.key.container,
        "released {} of pod {}",
        held.address,
        held.pod
    );
}

/// Runs the actor until `stop` resolves and nothing is open any more.
///
/// Log lines wait until the answers they are about are on their way and the disk is at work: writing one to journald
/// takes as long as deciding an ADD.
pub(super) async fn run(
    mut actor: Actor,
    mut calls: tokio::sync::mpsc::Receiver<Incoming>,
    mut mail: UnboundedReceiver<Mail>,
    beat_every: Option<Duration>,
    mut beat: impl FnMut(),
) -> Actor {
    let mut watchdog = tokio::time::interval(beat_every.unwrap_or(NEVER));
    loop {
        let wake = actor.wake_at();
        tokio::select! {
            Some(letter) = mail.recv() => actor.receive(letter),
            incoming = calls.recv() => match incoming {
                Some(incoming) => actor.hear(incoming),
                // The server has stopped and every connection has ended.
                None => return actor,
            },
            () = sleep_until(wake) => actor.wake(),
            _ = watchdog.tick() => beat(),
        }
        if !actor.said.is_empty() {
            tokio::task::yield_now().await;
            actor.log();
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

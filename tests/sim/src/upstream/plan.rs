//! What its one thread does next: steps that block each other (repo: `pkg/ipamd/ipamd.go`, `pkg/awsutils/awsutils.go`).

use std::collections::VecDeque;

use crate::fleet::limits::Api;

/// What comes of a call that EC2 did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Nothing to remember.
    GoOn,
    /// An ENI got entries.
    Assigned(usize, u32),
    /// The attachment has begun.
    Attaching,
}

/// What comes of a call that failed for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Otherwise {
    /// It is only logged.
    GoOn,
    /// The rest of the tick is left.
    Leave,
    /// The process ends, to be started again.
    Crash,
    /// One entry is asked for instead, and if that fails the process ends (`true`) or the tick is left.
    AskForOne(bool),
    /// The new ENI is deleted.
    DeleteNew,
    /// The new ENI is detached and deleted.
    FreeNew,
}

/// A step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A call, tried so often beyond the SDK's own attempts, with a doubling wait that starts at so many milliseconds.
    Call {
        /// Which.
        api: Api,
        /// Tries left.
        tries: u32,
        /// The next wait.
        wait: u64,
        /// When it is done.
        then: Then,
        /// When it is not.
        otherwise: Otherwise,
    },
    /// Nothing for so many milliseconds.
    Sleep(u64),
    /// IMDS is swept until it shows the new ENI; which try this is.
    AwaitImds(u32),
    /// The new ENI is known from now on, with so many entries.
    Adopt(u32),
    /// The socket answers from now on.
    Serve,
    /// What a tick is for.
    Manage,
}

const fn call(api: Api, otherwise: Otherwise) -> Step {
    tried(api, 1, 0, Then::GoOn, otherwise)
}

const fn tried(api: Api, tries: u32, wait: u64, then: Then, otherwise: Otherwise) -> Step {
    Step::Call {
        api,
        tries,
        wait,
        then,
        otherwise,
    }
}

/// A start: describe what IMDS lists, tag the primary ENI, look at its subnet, set its groups, fill it. 5 calls; 0.8 to
/// 0.9 s on an empty node as measured, of which the calls are half a second.
pub fn start(entries: u32) -> VecDeque<Step> {
    [
        Step::Sleep(300),
        tried(Api::EnisById, 12, 10, Then::GoOn, Otherwise::Crash),
        tried(Api::Tag, 5, 500, Then::GoOn, Otherwise::GoOn),
        call(Api::Subnets, Otherwise::GoOn),
        call(Api::Modify, Otherwise::GoOn),
        assign(0, entries, true),
        Step::Serve,
    ]
    .into()
}

/// A tick of 5 s, in two halves: manage the pool, and reconcile (with IMDS alone while nothing is unknown).
pub fn tick() -> [Step; 3] {
    [Step::Sleep(2500), Step::Manage, Step::Sleep(2500)]
}

/// More for an ENI that has room.
pub const fn assign(eni: usize, entries: u32, at_start: bool) -> Step {
    let then = Then::Assigned(eni, entries);
    tried(Api::Assign, 1, 0, then, Otherwise::AskForOne(at_start))
}

/// A new ENI: 6 calls, with a wait for IMDS before the last of them.
pub const fn new_eni(entries: u32) -> [Step; 8] {
    [
        call(Api::Subnets, Otherwise::GoOn),
        call(Api::Create, Otherwise::Leave),
        call(Api::InstancesById, Otherwise::DeleteNew),
        tried(Api::Attach, 1, 0, Then::Attaching, Otherwise::DeleteNew),
        call(Api::Modify, Otherwise::FreeNew),
        Step::AwaitImds(0),
        call(Api::Subnets, Otherwise::GoOn),
        Step::Adopt(entries),
    ]
}

/// An ENI goes: detach, 2 s, delete; both are tried 12 times.
pub const fn free() -> [Step; 4] {
    [
        call(Api::EnisById, Otherwise::Leave),
        tried(Api::Detach, 12, 200, Then::GoOn, Otherwise::Leave),
        Step::Sleep(2000),
        delete(),
    ]
}

/// An ENI that is attached nowhere is deleted.
pub const fn delete() -> Step {
    tried(Api::Delete, 12, 500, Then::GoOn, Otherwise::Leave)
}

/// Entries of one ENI go back.
pub const fn unassign() -> Step {
    call(Api::Unassign, Otherwise::GoOn)
}

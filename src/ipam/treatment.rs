//! How each class of failure is treated, whatever call met it: one row each, and nothing about a class elsewhere.
//!
//! The Go daemon knows three codes and repeats everything else every five seconds for ever (reference ipamd 4.12, Q23).

use super::cloud::FailureClass;
use super::obstacle::Pace;

/// What a failure stands in the way of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// This call, which is repeated as it is.
    Call,
    /// Whatever takes addresses from the same subnet; in the end of a round of asking for less.
    Subnet,
    /// New ENIs in the same subnet: another one may do.
    NewEnisThere,
    /// Every new ENI. One that was created already is deleted again.
    Growth,
}

/// What waiting pods are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pods {
    /// Nothing: they wait, it passes by itself.
    Wait,
    /// The reason at once, if the next try comes after their deadline.
    WaitForNextTry,
    /// The reason at once: another try will not help them.
    Told,
}

/// One class of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Treatment {
    /// Which.
    pub class: FailureClass,
    /// What creating an ENI, attaching it and assigning addresses to it are hindered in.
    pub create: Scope,
    /// See `create`. What a call alone is hindered in is given up after a few attempts.
    pub attach: Scope,
    /// See `create`.
    pub assign: Scope,
    /// When it is tried again.
    pub pace: Pace,
    /// The effect may have happened: EC2 is asked before anything is repeated.
    pub leaves_doubt: bool,
    /// What pods are told.
    pub pods: Pods,
    /// The operator is told at once, by an alarm; of everything, by status.
    pub alarms: bool,
    /// The whole node asks less for a while.
    pub quiets_node: bool,
}

/// What most have in common.
const PLAIN: Treatment = Treatment {
    class: FailureClass::Other,
    create: Scope::NewEnisThere,
    attach: Scope::Call,
    assign: Scope::Call,
    pace: Pace::secs(5, 300),
    leaves_doubt: false,
    pods: Pods::WaitForNextTry,
    alarms: false,
    quiets_node: false,
};

/// What the whole account meets at once passes soon, and is spread over all of the wait.
const TRANSIENT: Treatment = Treatment {
    create: Scope::Call,
    pace: Pace::secs(1, 60).jittered(),
    pods: Pods::Wait,
    ..PLAIN
};

/// The table.
pub const TABLE: [Treatment; 11] = [
    // Nothing was made. The intent of a creation is not kept: it would count as on its way, and while EC2 has no token left
    // for creations, ENIs that have room are to be asked, whose calls have tokens of their own.
    Treatment {
        class: FailureClass::Throttled,
        create: Scope::Growth,
        quiets_node: true,
        ..TRANSIENT
    },
    // Addresses come back when somebody else gives them up, often soon in a busy subnet; in the long run the Go daemon
    // waits as long. Many nodes share a subnet.
    Treatment {
        class: FailureClass::SubnetFull,
        create: Scope::Subnet,
        attach: Scope::Growth,
        assign: Scope::Subnet,
        pace: Pace::secs(10, 120).jittered(),
        pods: Pods::Told,
        ..PLAIN
    },
    Treatment {
        class: FailureClass::AddressLimit,
        create: Scope::Growth,
        attach: Scope::Growth,
        pace: Pace::secs(60, 3600),
        pods: Pods::Told,
        ..PLAIN
    },
    Treatment {
        class: FailureClass::AttachmentLimit,
        create: Scope::Growth,
        attach: Scope::Growth,
        pace: Pace::secs(30, 3600),
        pods: Pods::Told,
        ..PLAIN
    },
    // The account's nodes meet it together.
    Treatment {
        class: FailureClass::AccountLimit,
        create: Scope::Growth,
        attach: Scope::Growth,
        pace: Pace::secs(60, 3600).jittered(),
        pods: Pods::Told,
        ..PLAIN
    },
    // Somebody who repairs a policy or gives the instance a role looks at the node next; and credentials are missing,
    // too, while the metadata service is away.
    Treatment {
        class: FailureClass::Denied,
        attach: Scope::Growth,
        pace: Pace::secs(10, 300),
        pods: Pods::Told,
        alarms: true,
        ..PLAIN
    },
    Treatment {
        class: FailureClass::Gone,
        ..PLAIN
    },
    Treatment {
        class: FailureClass::Conflict,
        ..PLAIN
    },
    Treatment {
        class: FailureClass::NoAnswer,
        leaves_doubt: true,
        ..TRANSIENT
    },
    Treatment {
        class: FailureClass::Server,
        leaves_doubt: true,
        ..TRANSIENT
    },
    PLAIN,
];

impl FailureClass {
    /// How it is treated.
    pub fn treatment(self) -> Treatment {
        let row = TABLE.iter().find(|row| row.class == self);
        row.copied().unwrap_or(PLAIN)
    }

    /// Whether the effect may have happened although the call failed: then EC2 is asked before anything is repeated.
    pub fn leaves_doubt(self) -> bool {
        self.treatment().leaves_doubt
    }

    /// Whether it passes by itself, soon: what waits for the call goes on waiting.
    pub fn is_transient(self) -> bool {
        self.treatment().pods == Pods::Wait
    }

    /// Whether asking again soon cannot help: what waits for the call is told at once.
    pub fn is_hard(self) -> bool {
        self.treatment().pods == Pods::Told
    }
}

impl Pace {
    /// How calls that failed so are spaced.
    pub fn of(class: FailureClass) -> Self {
        class.treatment().pace
    }
}

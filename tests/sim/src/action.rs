//! What can happen in a script.

use std::fmt;
use std::str::FromStr;

use crate::script::{nothing_left, take, words_of};
use crate::words::{
    Asking, DiskTrouble, Hand, How, Left, Lie, Networking, Quirk, Role, Span, Trouble, Warm, Which,
};

macro_rules! actions {
    ($($(#[$doc:meta])* $name:ident = $word:literal { $($(#[$each:meta])* $field:ident: $type:ty,)* })*) => {
        /// One thing that happens.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Action { $($(#[$doc])* $name { $($(#[$each])* $field: $type,)* },)* }

        impl Action {
            /// Its first word.
            pub fn word(&self) -> &'static str {
                match self { $(Self::$name { .. } => $word,)* }
            }
        }

        impl fmt::Display for Action {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())?;
                match self {
                    $(Self::$name { $($field,)* } => { $(write!(f, concat!(" ", stringify!($field), "={}"), $field)?;)* })*
                }
                Ok(())
            }
        }

        impl FromStr for Action {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
                #[allow(unused_mut, reason = "some actions take no words")]
                let mut words = words_of(rest)?;
                let action = match word {
                    $($word => Self::$name {
                        $($field: take(&mut words, stringify!($field))?
                            .ok_or_else(|| format!("{word} needs {}", stringify!($field)))?,)*
                    },)*
                    other => return Err(format!("nobody can {other:?}")),
                };
                nothing_left(&words)?;
                Ok(action)
            }
        }
    };
}

actions! {
    /// A pod comes, lives and goes.
    Pod = "pod" {
        /// Its number.
        n: u32,
        /// How long it lives.
        life: Span,
        /// How long its ADD waits.
        patience: Span,
        /// What is special about it.
        quirk: Quirk,
    }
    /// The runtime deletes a pod, whether it is there or not.
    Del = "del" {
        /// Which.
        n: u32,
    }
    /// The runtime lists what is alive.
    Gc = "gc" {}
    /// The next calls of a kind fail.
    Call = "call" {
        /// Which.
        which: Which,
        /// What becomes of them.
        how: How,
        /// How many.
        times: u32,
    }
    /// All calls of a kind fail for a time.
    Outage = "outage" {
        /// Which.
        which: Which,
        /// What becomes of them.
        how: How,
        /// How long.
        span: Span,
    }
    /// EC2's Describe is late for a time.
    Lag = "lag" {
        /// By how much.
        by: Span,
        /// How long.
        span: Span,
    }
    /// EC2's Describe lies for a time.
    Describe = "describe" {
        /// How.
        lie: Lie,
        /// How long.
        span: Span,
    }
    /// IMDS lies for a time.
    Imds = "imds" {
        /// How.
        lie: Lie,
        /// How long.
        span: Span,
    }
    /// Others take all but so many addresses of a subnet for a time.
    Taken = "taken" {
        /// Which subnet.
        subnet: usize,
        /// How many are left.
        left: u32,
        /// How long.
        span: Span,
    }
    /// Others take one address of every /28 of a subnet for a time.
    Fragmented = "fragmented" {
        /// Which subnet.
        subnet: usize,
        /// How long.
        span: Span,
    }
    /// The kernel does not do as it is told for a time.
    Kernel = "kernel" {
        /// How.
        trouble: Trouble,
        /// How long.
        span: Span,
    }
    /// A link of a secondary ENI is renamed.
    Rename = "rename" {
        /// Which.
        nth: u32,
    }
    /// A rule for a pod is left behind for an address no pod has.
    Stray = "stray" {
        /// Which.
        nth: u32,
    }
    /// The disk does not do as it is told for a time.
    Disk = "disk" {
        /// How.
        trouble: DiskTrouble,
        /// How long.
        span: Span,
    }
    /// The daemon is killed before so many more effects are executed.
    Kill = "kill" {
        /// Before which one.
        effect: u32,
        /// How long it is away.
        down: Span,
    }
    /// Power is lost and comes back: another boot.
    Power = "power" {
        /// How long the machine is off.
        down: Span,
    }
    /// A stored record is damaged or lost, and the daemon is started again.
    Damage = "damage" {
        /// Which record.
        nth: u32,
        /// Lost rather than damaged.
        lost: bool,
    }
    /// The database is lost, and the daemon is started again with a copy of it.
    Restore = "restore" {
        /// How old the copy is.
        age: Span,
    }
    /// Somebody else changes something at EC2.
    Outside = "outside" {
        /// What.
        hand: Hand,
        /// To which.
        nth: u32,
    }
    /// The configuration is changed.
    Config = "config" {
        /// The new target.
        warm: Warm,
        /// The new `MAX_ENI`; 0 for none.
        max_enis: u32,
    }
    /// The daemon dies again and again.
    Crashes = "crashes" {
        /// How often.
        times: u32,
        /// How long it lives each time.
        life: Span,
    }
    /// An ENI of another instance lies about.
    Left = "left" {
        /// What is the matter with it.
        what: Left,
        /// How long ago it was made.
        age: Span,
    }
    /// Somebody tags a subnet.
    Retag = "retag" {
        /// Which subnet.
        subnet: usize,
        /// How.
        role: Role,
    }
    /// The ENIConfig that holds for this node changes.
    Networking = "networking" {
        /// Where new ENIs go.
        to: Networking,
        /// Their security group; 0 for the primary ENI's.
        group: u32,
    }
    /// What EC2 may be asked changes.
    Asking = "asking" {
        /// To what.
        to: Asking,
    }
    /// A subnet has no IPv6 network for a time: nothing is delegated of it.
    Plain = "plain" {
        /// Which subnet.
        subnet: usize,
        /// How long.
        span: Span,
    }
    /// The VPC gets another network.
    Cidr = "cidr" {}
}

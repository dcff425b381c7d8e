//! The part of `nf_tables` we use, as plain values: one register, few expressions.
//!
//! Every expression that reads loads register 1 (and those behind it, for what does not fit) and every one that judges
//! or writes uses it, so registers never appear here and a rule reads from left to right like the line `nft list ruleset` prints.

use std::net::{IpAddr, Ipv4Addr};

/// A chain with its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Unique in the table.
    pub name: String,
    /// Where the kernel calls it; `None` for a chain that is only jumped to.
    pub hook: Option<Hook>,
    /// In order of evaluation.
    pub rules: Vec<Rule>,
}

/// The netfilter hook of a base chain; the policy is always accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// What the chain may do.
    pub kind: ChainKind,
    /// When it runs.
    pub point: HookPoint,
    /// Its place among others of that hook; lower runs earlier.
    pub priority: i32,
}

/// What a base chain is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    /// Sees every packet.
    Filter,
    /// Sees every packet, and has it routed anew when its mark has changed; at [`HookPoint::Output`] only.
    Route,
    /// Sees the first packet of a connection that no earlier nat chain of the hook has translated.
    Nat,
}

/// The hooks we use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookPoint {
    /// Before the routing decision.
    Prerouting,
    /// What the node itself sends.
    Output,
    /// After it, just before the packet leaves.
    Postrouting,
}

/// A rule and why it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Shown by `nft list ruleset`; also how a rule of ours is told from another's.
    pub comment: String,
    /// In order of evaluation.
    pub exprs: Vec<Expr>,
}

/// One step of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// Read a value into the register.
    Load(Load),
    /// Go on only when the register is the value.
    Equal(Value),
    /// Go on only when the register is not the value.
    Differs(Value),
    /// Register := (register & `keep`) ^ `flip`, a 32-bit number in host byte order.
    Bits {
        /// The bits that survive.
        keep: u32,
        /// The bits turned over afterwards; those not kept are thereby set.
        flip: u32,
    },
    /// Write the register to the packet's mark.
    StoreMetaMark,
    /// Write the register to the connection's mark.
    StoreCtMark,
    /// Go on only when the register is in the set.
    InSet(SetName),
    /// Go on only when the register is not in the set.
    NotInSet(SetName),
    /// Do what the verdict map says for the register; go on when it says nothing.
    Dispatch(SetName),
    /// Count packets and bytes that came this far.
    Count,
    /// Leave the rule.
    Verdict(Verdict),
    /// Read several values, one behind the other, for a key of several parts.
    LoadAll(&'static [Load]),
    /// Translate the destination to what the map says for the register; go on when it says nothing.
    DnatTo(SetName),
    /// Translate the source address to one of the node's.
    Masquerade,
    /// Translate the source address.
    Snat {
        /// The new source.
        to: Ipv4Addr,
        /// How the source port is chosen.
        ports: SnatPorts,
    },
}

/// What can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// The packet's mark.
    MetaMark,
    /// The connection's mark.
    CtMark,
    /// Whether the packet goes the way its connection was opened, or back.
    CtDirection,
    /// The index of the link the packet came in on.
    IifIndex,
    /// Its name.
    IifName,
    /// The name of the link it leaves by.
    OifName,
    /// The source address.
    IpSaddr,
    /// The destination address.
    IpDaddr,
    /// The first byte of the IPv4 source.
    IpSaddrFirst,
    /// The first byte of the IPv4 destination.
    IpDaddrFirst,
    /// The number of the protocol above IP.
    Protocol,
    /// The destination port of a protocol that has ports.
    PortDestination,
    /// The routing table's opinion of the destination: local, unicast, …
    DaddrType,
    /// The same, but local only counts on the link the packet came in on.
    DaddrTypeOnIif,
}

/// What the register is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A number that the kernel keeps in host byte order: marks, link indices, address types.
    Number(u32),
    /// A number of one byte: the direction within a connection.
    Byte(u8),
    /// The first bytes of a link name (`eni` for `eni*`).
    NamePrefix(String),
}

/// `RTN_LOCAL`, the address type of the node's own addresses.
pub const ADDRESS_TYPE_LOCAL: u32 = 2;

/// `IP_CT_DIR_ORIGINAL`, the way a connection was opened.
pub const DIRECTION_ORIGINAL: u8 = 0;
/// `IP_CT_DIR_REPLY`, the way back.
pub const DIRECTION_REPLY: u8 = 1;

/// Where to go from a rule or a verdict map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Let the packet pass this hook.
    Accept,
    /// Let it go no further.
    Drop,
    /// Back to the calling chain.
    Return,
    /// Into a chain, then back.
    Jump(String),
    /// Into a chain for good.
    Goto(String),
}

/// How SNAT chooses the source port (`AWS_VPC_K8S_CNI_RANDOMIZESNAT`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SnatPorts {
    /// Keep it where possible (`none`).
    None,
    /// Hash of the connection (`hashrandom`).
    Random,
    /// A random one (`prng`).
    #[default]
    FullyRandom,
}

/// The name of a set or map.
pub type SetName = &'static str;

/// A set or map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Set {
    /// Unique in the table.
    pub name: SetName,
    /// What is looked up.
    pub key: KeyKind,
    /// What is found.
    pub kind: SetKind,
}

/// The type of a set's keys. Addresses are of the table's family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// An address.
    Address,
    /// A link index.
    IfIndex,
    /// A mark.
    Mark,
    /// A protocol and a port.
    Port,
    /// An address, a protocol and a port.
    PortAt,
    /// Two addresses.
    Pair,
}

/// What a set holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetKind {
    /// Ranges of IPv4 addresses.
    Intervals,
    /// A verdict for each key.
    Verdicts,
    /// Keys alone.
    Members,
    /// An address and a port for each key.
    Endpoints,
}

/// An element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// All addresses from `first` to `last`.
    Range(AddressRange),
    /// A key and what is found under it.
    Entry(Key, Datum),
}

/// What is looked up.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// [`KeyKind::Address`].
    Address(IpAddr),
    /// [`KeyKind::IfIndex`] or [`KeyKind::Mark`].
    Number(u32),
    /// [`KeyKind::Port`]: the protocol's number and the port.
    Port(u8, u16),
    /// [`KeyKind::PortAt`].
    PortAt(IpAddr, u8, u16),
    /// [`KeyKind::Pair`].
    Pair(IpAddr, IpAddr),
}

/// What is found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Datum {
    /// Nothing but the key.
    Nothing,
    /// Where to go.
    Verdict(Verdict),
    /// The new destination.
    Endpoint(IpAddr, u16),
    /// Something that we never write.
    Foreign,
}

/// A contiguous range of addresses, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressRange {
    /// The lowest.
    pub first: Ipv4Addr,
    /// The highest.
    pub last: Ipv4Addr,
}

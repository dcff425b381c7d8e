//! Scripts made up from a seed: what kind of node, how many pods, and what goes wrong.

mod six;

use crate::dice::Dice;
use crate::script::{
    Action, Asking, DiskTrouble, Hand, How, Left, Lie, Networking, Quirk, Role, Script, Settings, Span,
    Trouble, Warm, Which,
};

macro_rules! profiles {
    ($($(#[$doc:meta])* $name:ident = $word:literal,)*) => {
        /// What kind of faults a script has.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Profile { $($(#[$doc])* $name,)* }

        impl Profile {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
        }

        impl std::fmt::Display for Profile {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self { $(Self::$name => $word,)* })
            }
        }

        impl std::str::FromStr for Profile {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$name),)*
                    other => Err(format!("{other:?} is none of {}", [$($word),*].join(", "))),
                }
            }
        }
    };
}

profiles! {
    /// Nothing goes wrong but what pods and runtimes do.
    Calm = "calm",
    /// EC2 refuses, loses and delays.
    Cloud = "cloud",
    /// EC2's Describe and IMDS lie.
    Lies = "lies",
    /// Subnets are full or fragmented.
    Crowd = "crowd",
    /// Links, configuration and rules.
    Kernel = "kernel",
    /// The daemon is killed, power is lost, the disk fails.
    Deaths = "deaths",
    /// Others meddle with the node's ENIs and its configuration.
    Hands = "hands",
    /// Modes, targets, ENIConfigs and tags change while pods run.
    Modes = "modes",
    /// Others' trunks, EFAs and public addresses on the node.
    Guests = "guests",
    /// EC2 may be asked little or nothing, and that changes.
    Fixed = "fixed",
    /// Nodes of an IPv6 cluster, with faults of every kind.
    Six = "six",
    /// All of it.
    Storm = "storm",
}

/// How long and how busy scripts are.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Days.
    pub days: u64,
    /// Pods a day.
    pub pods: u64,
}

impl Default for Size {
    fn default() -> Self {
        Self { days: 10, pods: 220 }
    }
}

const DAY: u64 = 86_400_000;

/// Instance types: ENIs and addresses of t3.nano, t3.medium, m5.large, m5.4xlarge, and one of few large ENIs.
const TYPES: [(u32, u32); 5] = [(2, 2), (3, 6), (3, 10), (8, 30), (2, 50)];

fn settings(dice: &mut Dice, size: Size) -> Settings {
    let (enis, addresses) = dice.pick(&TYPES, (3, 10));
    let subnets = dice.pick(&[1, 1, 2, 3], 1);
    // Only what leaves the node a place to grow.
    let (first, others) = if subnets > 1 && dice.chance(500) {
        dice.pick(
            &[
                (Role::None, Role::Pods),
                (Role::Pods, Role::Other),
                (Role::NotPods, Role::Pods),
                (Role::Other, Role::Pods),
                (Role::Pods, Role::None),
            ],
            (Role::None, Role::Pods),
        )
    } else {
        (Role::None, Role::None)
    };
    let networking = if subnets > 1 && dice.chance(250) {
        dice.pick(&[Networking::Second, Networking::Others], Networking::Second)
    } else {
        Networking::Own
    };
    let needs_second = networking != Networking::Own || matches!(first, Role::NotPods | Role::Other);
    let warm = match dice.below(13) {
        11..=12 if dice.chance(500) => Warm::PrefixAdaptive,
        10..=12 => Warm::Adaptive,
        0..=4 => Warm::Enis(dice.pick(&[0, 1, 1, 2], 1)),
        5..=6 => Warm::Ips(dice.pick(&[0, 1, 3, 5], 1), dice.pick(&[0, 0, 6, 12], 0)),
        7..=8 => Warm::Prefixes(dice.pick(&[0, 1, 1, 2], 1)),
        _ => Warm::PrefixIps(dice.pick(&[1, 5, 20], 5), dice.pick(&[0, 20], 0)),
    };
    Settings {
        enis,
        // Chosen by dice of its own.
        cards: 0,
        addresses,
        nitro: dice.chance(800),
        known: dice.chance(950),
        launched: if dice.chance(200) {
            dice.pick(&[1, 3, 5], 1).min(addresses - 1)
        } else {
            0
        },
        subnets,
        first,
        others,
        networking,
        len: dice.pick(&[22, 23, 24, 26], 22),
        warm,
        cooldown: Span::secs(dice.pick(&[30, 30, 30, 5, 120, 0], 30)),
        max_enis: if dice.chance(150) && !needs_second {
            dice.pick(&[1, 2, 3], 2)
        } else {
            0
        },
        max_pods: if dice.chance(250) {
            dice.pick(&[8, 29, 110], 29)
        } else {
            0
        },
        length: Span(size.days * DAY),
        ..Settings::default()
    }
}

/// How many pods find room, and how many come at once.
#[derive(Debug, Clone, Copy)]
struct Room {
    pods: u64,
    at_once: u64,
}

impl Room {
    fn of(settings: &Settings) -> Self {
        let pods = if settings.ec2 == Asking::All {
            u64::from(settings.enis) * u64::from(settings.addresses - 1)
        } else {
            u64::from(settings.launched)
        };
        let listed = Self {
            pods,
            at_once: 40.min(pods * 3 / 2),
        };
        // More than is reserved of a /80 at a time.
        let counted = Self {
            pods: 400,
            at_once: 200,
        };
        if settings.six { counted } else { listed }
    }
}

/// Pods live shorter where there is room for few.
fn life(dice: &mut Dice, room: u64) -> Span {
    let usual = match dice.below(100) {
        0..=39 => dice.between(500, 60_000),
        40..=79 => dice.between(60_000, 1_800_000),
        80..=97 => dice.between(1_800_000, 4 * 3_600_000),
        _ => dice.between(DAY / 2, 2 * DAY),
    };
    Span(usual.saturating_mul(room.min(30)) / 30)
}

fn quirk(dice: &mut Dice) -> Quirk {
    if dice.chance(850) {
        Quirk::None
    } else {
        dice.pick(Quirk::ALL, Quirk::None)
    }
}

fn pod(dice: &mut Dice, room: u64, next: &mut u32) -> Action {
    *next += 1;
    // Now and then a number is used again, as a StatefulSet's pods are.
    let n = if dice.chance(100) {
        *next - u32::try_from(dice.below(u64::from(*next))).unwrap_or(0)
    } else {
        *next
    };
    Action::Pod {
        n,
        life: life(dice, room),
        patience: Span(dice.pick(&[5000, 20_000, 60_000, 110_000], 60_000)),
        quirk: quirk(dice),
    }
}

/// A day's pods: some come one by one, some in bursts.
fn pods_of(
    day: u64,
    size: Size,
    room: Room,
    dice: &mut Dice,
    next: &mut u32,
    items: &mut Vec<(Span, Action)>,
) {
    let mut left = size.pods;
    while left > 0 {
        let at = day * DAY + dice.below(DAY);
        let burst = if dice.chance(100) {
            dice.between(2, room.at_once).min(left)
        } else {
            1
        };
        for _ in 0..burst {
            let spread = dice.below(if burst > 1 { 5000 } else { 1 });
            items.push((Span(at + spread), pod(dice, room.pods, next)));
        }
        left -= burst;
    }
    for _ in 0..dice.below(4) {
        items.push((Span(day * DAY + dice.below(DAY)), Action::Gc {}));
    }
    for _ in 0..dice.below(4) {
        let n = u32::try_from(dice.below(u64::from(*next) + 50)).unwrap_or(0);
        items.push((Span(day * DAY + dice.below(DAY)), Action::Del { n }));
    }
}

fn span(dice: &mut Dice) -> Span {
    Span(dice.pick(
        &[1000, 30_000, 120_000, 600_000, 3_600_000, 6 * 3_600_000],
        30_000,
    ))
}

fn short(dice: &mut Dice) -> Span {
    Span(dice.pick(&[1000, 10_000, 60_000, 300_000], 10_000))
}

fn cloud(dice: &mut Dice) -> Action {
    let which = dice.pick(Which::ALL, Which::Any);
    let how = dice.pick(How::ALL, How::Throttled);
    match dice.below(10) {
        0..=6 => Action::Call {
            which,
            how,
            times: dice.pick(&[1, 1, 1, 2, 5], 1),
        },
        7..=8 => Action::Outage {
            which,
            how,
            span: span(dice),
        },
        _ => Action::Lag {
            by: Span(dice.pick(&[2000, 10_000, 45_000], 2000)),
            span: span(dice),
        },
    }
}

fn lies(dice: &mut Dice) -> Action {
    if dice.chance(400) {
        // EC2's word is believed once it stays the same for a minute: a longer lie is a truth.
        let lie = dice.pick(
            &[Lie::OmitsEni, Lie::OmitsAddress, Lie::OmitsPrefix, Lie::OmitsAll],
            Lie::OmitsEni,
        );
        let span = Span(dice.pick(&[1000, 5000, 20_000, 50_000], 1000));
        Action::Describe { lie, span }
    } else {
        Action::Imds {
            lie: dice.pick(Lie::ALL, Lie::OmitsEni),
            span: Span(dice.pick(&[1000, 120_000, 3_600_000, 46 * 3_600_000], 1000)),
        }
    }
}

fn crowd(dice: &mut Dice) -> Action {
    let subnet = usize::from(dice.chance(200));
    if dice.chance(300) {
        Action::Fragmented {
            subnet,
            span: span(dice),
        }
    } else {
        Action::Taken {
            subnet,
            left: dice.pick(&[0, 1, 2, 5, 12], 0),
            span: span(dice),
        }
    }
}

fn kernel(dice: &mut Dice) -> Action {
    let nth = u32::try_from(dice.below(64)).unwrap_or(0);
    match dice.below(10) {
        0..=5 => Action::Kernel {
            trouble: dice.pick(Trouble::ALL, Trouble::LateLinks),
            span: span(dice),
        },
        6..=7 => Action::Rename { nth },
        _ => Action::Stray { nth },
    }
}

fn deaths(dice: &mut Dice) -> Action {
    match dice.below(21) {
        20 => Action::Crashes {
            times: u32::try_from(dice.between(5, 60)).unwrap_or(5),
            life: Span(dice.pick(&[50, 1000, 5000], 1000)),
        },
        0..=11 => Action::Kill {
            effect: u32::try_from(dice.below(16)).unwrap_or(0),
            down: Span(dice.pick(&[50, 500, 5000, 60_000, 900_000], 500)),
        },
        12..=13 => Action::Power {
            down: Span(dice.pick(&[20_000, 300_000], 20_000)),
        },
        14..=16 => Action::Disk {
            trouble: dice.pick(DiskTrouble::ALL, DiskTrouble::Fails),
            span: short(dice),
        },
        17 => Action::Damage {
            nth: u32::try_from(dice.below(200)).unwrap_or(0),
            lost: dice.chance(500),
        },
        _ => Action::Kill {
            effect: 0,
            down: Span(500),
        },
    }
}

fn config(dice: &mut Dice) -> Action {
    Action::Config {
        warm: settings(dice, Size::default()).warm,
        max_enis: dice.pick(&[0, 0, 1, 2, 4], 0),
    }
}

/// Most of them are old; some are still on their way to their instance.
fn left(dice: &mut Dice) -> Action {
    Action::Left {
        what: dice.pick(Left::ALL, Left::Terminated),
        age: Span(dice.pick(&[0, 200_000, 1_800_000, 7_200_000, DAY], DAY)),
    }
}

fn modes(dice: &mut Dice) -> Action {
    let subnet = usize::try_from(dice.below(3)).unwrap_or(0);
    match dice.below(20) {
        0..=9 => config(dice),
        10..=12 => Action::Networking {
            to: dice.pick(Networking::ALL, Networking::Own),
            group: dice.pick(&[0, 0, 1, 2], 0),
        },
        13..=15 => Action::Retag {
            subnet,
            role: dice.pick(Role::ALL, Role::None),
        },
        16..=17 => Action::Outside {
            hand: Hand::Groups,
            nth: u32::try_from(dice.below(4)).unwrap_or(0),
        },
        _ => crowd(dice),
    }
}

fn hands(dice: &mut Dice) -> Action {
    match dice.below(12) {
        0 => config(dice),
        1 => Action::Cidr {},
        2..=3 => left(dice),
        _ => Action::Outside {
            hand: dice.pick(Hand::ALL, Hand::UnassignIdle),
            nth: u32::try_from(dice.below(64)).unwrap_or(0),
        },
    }
}

/// Others share the instance: their ENIs take places, and public addresses lead to some of ours.
fn guests(dice: &mut Dice) -> Action {
    let hand = match dice.below(10) {
        0 => return config(dice),
        1 => return hands(dice),
        2 => return kill(dice),
        3..=5 => Hand::Public,
        _ => dice.pick(
            &[Hand::Trunk, Hand::EfaOnly, Hand::Efa, Hand::Bring, Hand::Attach],
            Hand::Trunk,
        ),
    };
    Action::Outside {
        hand,
        nth: u32::try_from(dice.below(64)).unwrap_or(0),
    }
}

fn kill(dice: &mut Dice) -> Action {
    Action::Kill {
        effect: u32::try_from(dice.below(16)).unwrap_or(0),
        down: Span(dice.pick(&[50, 500, 5000, 60_000, 900_000], 500)),
    }
}

/// What the node has is what others give it: nothing takes an address away of which IMDS alone would have to tell.
fn fixed(ec2: Asking, dice: &mut Dice) -> Action {
    match dice.below(12) {
        0..=2 if ec2 == Asking::All => Action::Asking {
            to: dice.pick(Asking::ALL, Asking::All),
        },
        0..=2 => Action::Outside {
            hand: dice.pick(&[Hand::Assign, Hand::Bring, Hand::Trunk], Hand::Assign),
            nth: u32::try_from(dice.below(64)).unwrap_or(0),
        },
        3..=4 => kill(dice),
        5 => deaths(dice),
        6 => config(dice),
        7..=8 => kernel(dice),
        9 if ec2 != Asking::Nothing => cloud(dice),
        _ => Action::Imds {
            lie: dice.pick(
                &[
                    Lie::OmitsEni,
                    Lie::OmitsAddress,
                    Lie::OmitsPrefix,
                    Lie::OmitsAll,
                    Lie::Fails,
                ],
                Lie::OmitsEni,
            ),
            span: Span(dice.pick(&[1000, 120_000, 3_600_000, 46 * 3_600_000], 1000)),
        },
    }
}

/// A node that gets nothing by itself has something to begin with.
fn provide(settings: &mut Settings, dice: &mut Dice) {
    let (enis, addresses) = dice.pick(&[(3, 6), (3, 10), (8, 30), (2, 50)], (3, 10));
    settings.enis = enis;
    settings.addresses = addresses;
    settings.ec2 = dice.pick(
        &[Asking::Nothing, Asking::Nothing, Asking::Looks, Asking::All],
        Asking::Nothing,
    );
    settings.launched = dice.pick(&[3, 5, 9, 20], 5).min(addresses - 1);
    settings.first = Role::None;
    settings.others = Role::None;
    settings.networking = Networking::Own;
    settings.cards = 0;
}

fn fault(profile: Profile, ec2: Asking, dice: &mut Dice) -> Option<Action> {
    Some(match profile {
        Profile::Calm => return None,
        Profile::Cloud => cloud(dice),
        Profile::Lies => lies(dice),
        Profile::Crowd => crowd(dice),
        Profile::Kernel => kernel(dice),
        Profile::Deaths => deaths(dice),
        Profile::Hands => hands(dice),
        Profile::Modes => modes(dice),
        Profile::Guests => guests(dice),
        Profile::Fixed => fixed(ec2, dice),
        Profile::Six => six::fault(ec2, dice),
        Profile::Storm => {
            let some = [
                Profile::Cloud,
                Profile::Cloud,
                Profile::Lies,
                Profile::Crowd,
                Profile::Kernel,
                Profile::Deaths,
                Profile::Deaths,
                Profile::Hands,
                Profile::Modes,
                Profile::Guests,
            ];
            let one = dice.pick(&some, Profile::Cloud);
            return fault(one, ec2, dice);
        }
    })
}

/// Few types have a second card. By dice of its own, so that whatever else a seed means stays.
fn second_card(seed: u64) -> u32 {
    let mut dice = Dice::new(seed, "second card");
    if dice.chance(150) {
        dice.pick(&[1, 2, 3], 1)
    } else {
        0
    }
}

/// The script of a seed.
pub fn script(profile: Profile, seed: u64, size: Size) -> Script {
    let mut dice = Dice::new(seed, &profile.to_string());
    let mut settings = settings(&mut dice, size);
    settings.cards = second_card(seed);
    match profile {
        Profile::Fixed => provide(&mut settings, &mut dice),
        Profile::Six => six::provide(&mut settings, &mut dice),
        Profile::Guests => settings.public = dice.chance(500),
        _ => {}
    }
    let mut items = Vec::new();
    let mut next = 0;
    let room = Room::of(&settings);
    if profile == Profile::Six {
        items.extend(six::first(&mut dice));
    }
    for day in 0..size.days {
        pods_of(day, size, room, &mut dice, &mut next, &mut items);
        if profile == Profile::Six {
            six::rush(day, &mut dice, &mut next, &mut items);
        }
    }
    // Faults come near pods: alone in the night they would meet nothing.
    let moments: Vec<u64> = items.iter().map(|(at, _)| at.0).collect();
    for _ in 0..size.days * 8 {
        let near = dice.pick(&moments, 0);
        let at = near.saturating_add(dice.below(4000)).saturating_sub(2000);
        if let Some(fault) = fault(profile, settings.ec2, &mut dice) {
            items.push((Span(at), fault));
        }
    }
    items.sort_by_key(|(at, _)| *at);
    Script { settings, items }
}

//! Nodes of an IPv6 cluster, and what goes wrong with them.

use super::{cloud, crowd, deaths, kernel, kill, lies};
use crate::dice::Dice;
use crate::script::{Action, Asking, DiskTrouble, Hand, How, Lie, Networking, Role, Settings, Span, Which};

/// IPv6 knows no custom networking and no other network card, and needs ENIs that carry prefixes. A node that may not ask
/// for its /80 has one from its launch on.
pub(super) fn provide(settings: &mut Settings, dice: &mut Dice) {
    settings.six = true;
    settings.nitro = true;
    settings.networking = Networking::Own;
    settings.cards = 0;
    settings.max_enis = 0;
    settings.ec2 = dice.pick(
        &[
            Asking::All,
            Asking::All,
            Asking::All,
            Asking::All,
            Asking::Looks,
            Asking::Nothing,
        ],
        Asking::All,
    );
    settings.delegated = settings.ec2 != Asking::All || dice.chance(300);
    if settings.ec2 != Asking::All {
        settings.first = Role::None;
        settings.others = Role::None;
    }
}

/// Before its first /80: the subnet has no IPv6 network yet, the answer to the very first call is lost, or the daemon dies
/// over it; and EC2's lists may be late to show what became of it.
pub(super) fn first(dice: &mut Dice) -> Vec<(Span, Action)> {
    let trouble = match dice.below(10) {
        0..=1 => Action::Plain {
            subnet: 0,
            span: super::span(dice),
        },
        2..=4 => Action::Call {
            which: Which::Assign,
            how: if dice.chance(800) {
                How::LostAfter
            } else {
                dice.pick(How::ALL, How::LostAfter)
            },
            times: dice.pick(&[1, 1, 3], 1),
        },
        5..=7 => Action::Kill {
            effect: u32::try_from(dice.between(4, 16)).unwrap_or(4),
            down: Span(500),
        },
        _ => return Vec::new(),
    };
    let late = Action::Lag {
        by: Span::secs(45),
        span: Span::secs(300),
    };
    let mut all = vec![(Span(0), trouble)];
    all.extend(dice.chance(500).then_some((Span(0), late)));
    all
}

/// Now and then more pods come at once than are reserved of a /80 at a time, while the disk is slow, and the daemon dies of
/// it.
pub(super) fn rush(day: u64, dice: &mut Dice, next: &mut u32, items: &mut Vec<(Span, Action)>) {
    if !dice.chance(120) {
        return;
    }
    let at = day * super::DAY + dice.below(super::DAY);
    let slow = Action::Disk {
        trouble: DiskTrouble::Slow,
        span: Span::secs(10),
    };
    items.push((Span(at), slow));
    for _ in 0..dice.between(130, 200) {
        items.push((Span(at + dice.below(2000)), super::pod(dice, 30, next)));
    }
    let down = Span(dice.pick(&[50, 500, 5000], 500));
    items.push((
        Span(at + dice.between(1000, 6000)),
        Action::Kill { effect: 0, down },
    ));
}

/// Who may not ask EC2 for a /80 keeps the one it has.
pub(super) fn fault(ec2: Asking, dice: &mut Dice) -> Action {
    match dice.below(20) {
        0..=6 => deaths(dice),
        7..=8 => kill(dice),
        9 => Action::Restore {
            age: Span(dice.pick(&[500, 3000, 10_000], 3000)),
        },
        10 => kernel(dice),
        11..=12 if ec2 != Asking::Nothing => cloud(dice),
        13 if ec2 != Asking::Nothing => Action::Call {
            which: Which::Assign,
            how: dice.pick(How::ALL, How::LostAfter),
            times: 1,
        },
        14..=15 if ec2 == Asking::All => lies(dice),
        16 if ec2 == Asking::All && dice.chance(300) => Action::Retag {
            subnet: usize::try_from(dice.below(2)).unwrap_or(0),
            role: dice.pick(Role::ALL, Role::None),
        },
        17 if ec2 == Asking::All => {
            if dice.chance(500) {
                crowd(dice)
            } else {
                Action::Plain {
                    subnet: usize::from(dice.chance(200)),
                    span: super::span(dice),
                }
            }
        }
        18..=19 if ec2 == Asking::All => Action::Outside {
            hand: dice.pick(
                &[
                    Hand::TakeBlock,
                    Hand::TakeBlock,
                    Hand::ReturnBlock,
                    Hand::GiveBlock,
                    Hand::Groups,
                    Hand::Attach,
                    Hand::DetachAny,
                    Hand::Leave,
                ],
                Hand::TakeBlock,
            ),
            nth: u32::try_from(dice.below(64)).unwrap_or(0),
        },
        _ => Action::Imds {
            lie: dice.pick(
                &[Lie::OmitsPrefix, Lie::OmitsPrefix, Lie::OmitsAll, Lie::Fails],
                Lie::OmitsPrefix,
            ),
            span: Span(dice.pick(&[1000, 120_000, 3_600_000, 46 * 3_600_000], 1000)),
        },
    }
}

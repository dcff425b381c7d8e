//! The chart of a fleet's runs: one panel for each figure and scenario, nodes to the right, both axes logarithmic.

use super::measure::Row;
use super::scenario::Scenario;
use super::setting::{Setting, Side};

const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 200.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 110.0;
const ACROSS: f64 = WIDTH + 90.0;
const DOWN: f64 = HEIGHT + 80.0;

type Figure = (&'static str, fn(&Row) -> f64);

#[allow(clippy::cast_precision_loss, reason = "for the eye")]
const fn real(number: u64) -> f64 {
    number as f64
}

const FIGURES: [Figure; 4] = [
    ("first pod on 99 % of nodes, s", |row| {
        real(row.first.tail) / 1000.0
    }),
    ("all pods on 99 % of nodes, s", |row| real(row.all.tail) / 1000.0),
    ("EC2 calls a pod", |row| real(row.calls) / real(row.pods.max(1))),
    ("addresses held a pod", |row| {
        real(row.held) / real(row.running.max(1))
    }),
];

const fn colour(setting: Setting) -> &'static str {
    match setting {
        Setting::Eni => "#0072b2",
        Setting::Ip => "#d55e00",
        Setting::Prefix => "#009e73",
        Setting::Adaptive => "#cc79a7",
        Setting::AdaptivePrefix => "#000000",
    }
}

const fn dashes(side: Side) -> &'static str {
    match side {
        Side::Ours => "",
        Side::Upstream => " stroke-dasharray=\"7 4\"",
    }
}

fn put(svg: &mut String, line: &str) {
    svg.push_str(line);
    svg.push('\n');
}

/// A panel's place and the ranges of its axes, as powers of ten.
struct Panel {
    x: f64,
    y: f64,
    low: f64,
    high: f64,
    most: f64,
}

impl Panel {
    fn at(&self, nodes: u32, value: f64) -> (f64, f64) {
        let right = f64::from(nodes).log10() / self.most.max(1.0);
        let up = (value.max(1e-9).log10() - self.low) / (self.high - self.low);
        (
            right.mul_add(WIDTH, self.x),
            up.clamp(0.0, 1.0).mul_add(-HEIGHT, self.y + HEIGHT),
        )
    }

    fn axes(&self, sizes: &[u32], title: &str, svg: &mut String) {
        let (x, y) = (self.x, self.y);
        put(
            svg,
            &format!(
                r##"<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#888"/><text x="{x}" y="{:.0}" font-weight="bold">{title}</text>"##,
                y - 8.0
            ),
        );
        for nodes in sizes {
            let (x, _) = self.at(*nodes, 1.0);
            put(
                svg,
                &format!(
                    r##"<line x1="{x:.1}" y1="{y}" x2="{x:.1}" y2="{}" stroke="#ddd"/><text x="{x:.1}" y="{}" text-anchor="middle">{nodes}</text>"##,
                    y + HEIGHT,
                    y + HEIGHT + 16.0
                ),
            );
        }
        put(
            svg,
            &format!(
                r#"<text x="{}" y="{}" text-anchor="middle">nodes</text>"#,
                x + WIDTH / 2.0,
                y + HEIGHT + 32.0
            ),
        );
        for power in 0..8 {
            let power = self.low + f64::from(power);
            for (factor, is_named) in [(1.0, true), (2.0, false), (5.0, false)] {
                let value = factor * 10_f64.powf(power);
                if value.log10() > self.high + 0.01 {
                    continue;
                }
                let (_, at) = self.at(1, value);
                let shade = if is_named { "#ccc" } else { "#eee" };
                put(
                    svg,
                    &format!(
                        r#"<line x1="{x}" y1="{at:.1}" x2="{}" y2="{at:.1}" stroke="{shade}"/><text x="{}" y="{:.1}" text-anchor="end" font-size="10">{value}</text>"#,
                        x + WIDTH,
                        x - 5.0,
                        at + 3.5
                    ),
                );
            }
        }
    }
}

fn legend(svg: &mut String) {
    for (n, setting) in (0_u32..).zip(Setting::ALL) {
        let x = f64::from(n).mul_add(190.0, LEFT);
        put(
            svg,
            &format!(
                r#"<line x1="{x}" y1="50" x2="{}" y2="50" stroke="{}" stroke-width="3"/><text x="{}" y="54">{setting}</text>"#,
                x + 30.0,
                colour(*setting),
                x + 36.0
            ),
        );
    }
    for (n, side) in (0_u32..).zip([Side::Ours, Side::Upstream]) {
        let x = f64::from(n).mul_add(190.0, LEFT);
        put(
            svg,
            &format!(
                r#"<line x1="{x}" y1="72" x2="{}" y2="72" stroke="black" stroke-width="2"{}/><text x="{}" y="76">{side}</text>"#,
                x + 30.0,
                dashes(side),
                x + 36.0
            ),
        );
    }
}

fn line(panel: &Panel, points: &[(u32, f64)], setting: Setting, side: Side, svg: &mut String) {
    let at: Vec<(f64, f64)> = points
        .iter()
        .map(|(nodes, value)| panel.at(*nodes, *value))
        .collect();
    let path: Vec<String> = at.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let (colour, dashes) = (colour(setting), dashes(side));
    put(
        svg,
        &format!(
            r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>"#,
            path.join(" ")
        ),
    );
    let fill = if side == Side::Ours { colour } else { "white" };
    for (x, y) in at {
        put(
            svg,
            &format!(r#"<circle cx="{x:.1}" cy="{y:.1}" r="3.5" fill="{fill}" stroke="{colour}"/>"#),
        );
    }
}

fn panel(rows: &[&Row], sizes: &[u32], place: (f64, f64), figure: Figure, svg: &mut String) {
    let values = || rows.iter().map(|row| figure.1(row).max(1e-3));
    let low = values().fold(f64::MAX, f64::min).log10().floor();
    let high = values().fold(f64::MIN, f64::max).log10().ceil().max(low + 1.0);
    let panel = Panel {
        x: place.0,
        y: place.1,
        low,
        high,
        most: sizes.last().map_or(1.0, |most| f64::from(*most).log10()),
    };
    let title = rows
        .first()
        .map_or(String::new(), |row| row.plan.scenario.to_string());
    panel.axes(sizes, &format!("{title}: {}", figure.0), svg);
    for setting in Setting::ALL {
        for side in [Side::Ours, Side::Upstream] {
            let of = rows
                .iter()
                .filter(|row| row.plan.setting == *setting && row.plan.side == side);
            let points: Vec<(u32, f64)> = of.map(|row| (row.plan.nodes, figure.1(row))).collect();
            if !points.is_empty() {
                line(&panel, &points, *setting, side, svg);
            }
        }
    }
}

/// The whole chart.
pub fn chart(rows: &[Row]) -> String {
    let mut svg = String::new();
    let (mut down, mut across) = (0.0, 0.0);
    for scenario in Scenario::ALL {
        let of: Vec<&Row> = rows.iter().filter(|row| row.plan.scenario == *scenario).collect();
        if of.is_empty() {
            continue;
        }
        let mut sizes: Vec<u32> = of.iter().map(|row| row.plan.nodes).collect();
        sizes.sort_unstable();
        sizes.dedup();
        across = 0.0;
        for figure in FIGURES {
            let place = (LEFT + across * ACROSS, TOP + down * DOWN);
            panel(&of, &sizes, place, figure, &mut svg);
            across += 1.0;
        }
        down += 1.0;
    }
    let (width, height) = (LEFT + across * ACROSS, TOP + down * DOWN);
    let mut whole = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/><text x="{LEFT}" y="28" font-size="18">A fleet under one account's EC2 limits</text>
"#
    );
    legend(&mut whole);
    whole.push_str(&svg);
    whole.push_str("</svg>\n");
    whole
}

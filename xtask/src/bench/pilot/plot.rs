//! What a push costs as the mesh grows, as a picture (SVG): one panel for each figure, a point for each size,
//! both axes by powers of ten, so that cost in step with the mesh is the grey diagonal.

#![expect(clippy::cast_precision_loss, reason = "coordinates are small")]

use std::fmt::Write as _;

use serde_json::Value;

use super::number;

const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 56.0;
const TOP: f64 = 84.0;
const GAP: f64 = 56.0;

/// A figure of each size: its name, where it is, and its colour.
type Series = (&'static str, &'static str, &'static str);

struct Panel {
    title: &'static str,
    unit: f64,
    series: [Series; 3],
}

const PANELS: [Panel; 3] = [
    Panel {
        title: "pilot's CPU per push, ms",
        unit: 1.0,
        series: [
            (
                "an endpoint",
                "/endpoint_change/pilot_cpu_ms_per_change",
                "#1f8f4f",
            ),
            (
                "a route",
                "/route_change/pilot_cpu_ms_per_change",
                "#7fb2d9",
            ),
            (
                "an endpoint that every node has",
                "/endpoint_change_to_all_nodes/pilot_cpu_ms_per_change",
                "#d98c7f",
            ),
        ],
    },
    Panel {
        title: "at every interested node, p99 ms",
        unit: 1.0,
        series: [
            (
                "an endpoint",
                "/endpoint_change/at_every_node/p99_ms",
                "#1f8f4f",
            ),
            ("a route", "/route_change/at_every_node/p99_ms", "#7fb2d9"),
            (
                "an endpoint that every node has",
                "/endpoint_change_to_all_nodes/at_every_node/p99_ms",
                "#d98c7f",
            ),
        ],
    },
    Panel {
        title: "memory of pilot, MB",
        unit: 1e6,
        series: [
            ("before nodes", "/read_rss_bytes", "#1f8f4f"),
            ("with all nodes", "/connected_rss_bytes", "#7fb2d9"),
            ("at its peak", "/peak_rss_bytes", "#d98c7f"),
        ],
    },
];

pub(super) fn draw(stages: &[Value]) -> String {
    let width = LEFT + PANELS.len() as f64 * (WIDTH + GAP);
    let height = TOP + HEIGHT + 84.0;
    let mut svg = String::new();
    // Writing to a String cannot fail.
    write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\">\n\
         <style>.title{{font-size:12px;font-weight:bold}}.label{{font-size:11px}}\
         .value{{font-size:10px;fill:#444}}.small{{font-size:10px;fill:#666}}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"8\" y=\"22\" font-size=\"16\" font-weight=\"bold\">Millrace: what a push costs as the mesh grows</text>\n\
         <text x=\"8\" y=\"40\" class=\"small\">services, endpoints and nodes in proportion; grey: ten times the cost for ten times the mesh</text>\n"
    )
    .ok();
    for (at, panel) in PANELS.iter().enumerate() {
        panel.draw(&mut svg, LEFT + at as f64 * (WIDTH + GAP), stages);
    }
    svg.push_str("</svg>\n");
    svg
}

impl Panel {
    fn draw(&self, svg: &mut String, left: f64, stages: &[Value]) {
        text(svg, left, TOP - 14.0, "title", self.title);
        let sizes = stages.iter().map(|stage| number(stage, "/services"));
        let x = Axis::over(sizes, left, left + WIDTH);
        let all = self.series.iter().flat_map(|(_, path, _)| {
            let values = stages.iter().map(|stage| number(stage, path) / self.unit);
            values.collect::<Vec<_>>()
        });
        let y = Axis::over(all, TOP + HEIGHT, TOP);
        frame(svg, left, (&x, &y));
        for (at, (name, path, color)) in self.series.iter().enumerate() {
            let point = |stage: &Value| {
                let value = number(stage, path) / self.unit;
                let size = number(stage, "/services");
                let known = value.is_finite() && value > 0.0 && size > 0.0;
                known.then(|| (x.at(size), y.at(value), value))
            };
            let points: Vec<_> = stages.iter().filter_map(point).collect();
            let line: Vec<String> = points
                .iter()
                .map(|(x, y, _)| format!("{x:.1},{y:.1}"))
                .collect();
            writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>",
                line.join(" ")
            )
            .ok();
            for (x, y, value) in points {
                writeln!(
                    svg,
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{color}\"/>"
                )
                .ok();
                text(svg, x + 5.0, y - 4.0, "value", &short(value));
            }
            let below = TOP + HEIGHT + 34.0 + at as f64 * 15.0;
            writeln!(
                svg,
                "<rect x=\"{left}\" y=\"{:.1}\" width=\"10\" height=\"10\" fill=\"{color}\"/>",
                below - 9.0
            )
            .ok();
            text(svg, left + 15.0, below, "label", name);
        }
    }
}

/// A panel without points.
fn frame(svg: &mut String, left: f64, (x, y): (&Axis, &Axis)) {
    writeln!(
        svg,
        "<rect x=\"{left}\" y=\"{TOP}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"none\" stroke=\"#999\"/>"
    )
    .ok();
    for power in y.powers() {
        let (at, end) = (y.at(power), left + WIDTH);
        writeln!(svg, "<path d=\"M{left} {at:.1} H{end}\" stroke=\"#eee\"/>").ok();
        text(svg, left - 40.0, at + 4.0, "small", &short(power));
    }
    for power in x.powers() {
        text(
            svg,
            x.at(power) - 12.0,
            TOP + HEIGHT + 14.0,
            "small",
            &short(power),
        );
    }
    // In step with the mesh.
    let decades = (x.most - x.least).min(y.most - y.least);
    let (from, to) = ((x.least, y.least), (x.least + decades, y.least + decades));
    writeln!(
        svg,
        "<path d=\"M{:.1} {:.1} L{:.1} {:.1}\" stroke=\"#bbb\" stroke-dasharray=\"4 4\"/>",
        x.at_power(from.0),
        y.at_power(from.1),
        x.at_power(to.0),
        y.at_power(to.1)
    )
    .ok();
}

/// Whole powers of ten onto a line of the picture.
struct Axis {
    least: f64,
    most: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let powers = values.filter(|value| value.is_finite() && *value > 0.0);
        let powers: Vec<f64> = powers.map(f64::log10).collect();
        let least = powers.iter().copied().fold(f64::INFINITY, f64::min).floor();
        let most = powers
            .iter()
            .copied()
            .fold(f64::NEG_INFINITY, f64::max)
            .ceil();
        let (least, most) = if least.is_finite() {
            (least, most)
        } else {
            (0.0, 1.0)
        };
        Self {
            least,
            most: most.max(least + 1.0),
            from,
            to,
        }
    }

    fn at(&self, value: f64) -> f64 {
        self.at_power(value.log10())
    }

    fn at_power(&self, power: f64) -> f64 {
        let part = (power - self.least) / (self.most - self.least);
        self.from + part * (self.to - self.from)
    }

    fn powers(&self) -> impl Iterator<Item = f64> {
        let steps = std::iter::successors(Some(self.least), |power| Some(power + 1.0));
        let most = self.most;
        steps
            .take_while(move |power| *power <= most)
            .map(|power| 10_f64.powf(power))
    }
}

fn text(svg: &mut String, x: f64, y: f64, class: &str, content: &str) {
    writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{content}</text>"
    )
    .ok();
}

fn short(value: f64) -> String {
    if value >= 10.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_size_is_a_point_and_what_was_not_measured_is_none() {
        let stage =
            |services: u64| json!({ "services": services, "peak_rss_bytes": services * 100_000 });
        let svg = draw(&[stage(1_000), stage(3_333), stage(10_000)]);
        assert_eq!(svg.matches("<circle").count(), 3, "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert!(svg.contains(">1000</text>"), "{svg}");
    }

    #[test]
    fn ten_times_the_cost_is_a_power_further() {
        let axis = Axis::over([3.0, 250.0].into_iter(), 0.0, 300.0);
        assert_eq!((axis.least, axis.most), (0.0, 3.0));
        assert!((axis.at(100.0) - axis.at(10.0) - 100.0).abs() < 1e-9);
    }
}

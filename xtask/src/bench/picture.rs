//! The results as a picture (SVG): for each workload, bars of requests per second, of median latency
//! and of the mesh's CPU per request.

#![expect(clippy::cast_precision_loss, reason = "coordinates are small")]

use std::fmt::Write as _;

use super::Path;
use super::report::{Figure, Row};
use super::setting::Setting;

const LABEL: usize = 190;
const BAR: usize = 200;
const VALUE: usize = 70;
const GAP: usize = 20;
const LINE: usize = 20;
const HEAD: usize = 84;

struct Column {
    title: &'static str,
    figure: fn(&Row) -> Figure,
}

const COLUMNS: [Column; 3] = [
    Column {
        title: "requests/s (more is better)",
        figure: Row::rps,
    },
    Column {
        title: "p50 latency, us (less is better)",
        figure: Row::p50,
    },
    Column {
        title: "mesh CPU per request, us (less is better)",
        figure: Row::cpu,
    },
];

pub(super) fn draw(rows: &[Row], setting: &Setting) -> String {
    let width = column(COLUMNS.len()) + GAP;
    let (body, height) = groups(rows);
    let mut svg = String::new();
    // Writing to a String cannot fail.
    write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\">\n\
         <style>.title{{font-size:12px;font-weight:bold}}.label{{font-size:11px}}\
         .value{{font-size:10px;fill:#444}}.small{{font-size:10px;fill:#666}}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"8\" y=\"22\" font-size=\"16\" font-weight=\"bold\">Millrace: what a request costs</text>\n\
         <text x=\"8\" y=\"40\" class=\"small\">{setting}; medians, whiskers from least to most</text>\n\
         {body}</svg>\n"
    )
    .ok();
    svg
}

/// Where a column begins.
fn column(index: usize) -> usize {
    LABEL + index * (BAR + VALUE + GAP)
}

/// All workloads below each other, and where they end.
fn groups(rows: &[Row]) -> (String, usize) {
    let mut workloads = Vec::new();
    for row in rows {
        if !workloads.contains(&row.workload) {
            workloads.push(row.workload);
        }
    }
    let mut body = String::new();
    for (index, heading) in COLUMNS.iter().enumerate() {
        text(&mut body, column(index), HEAD - 16, "title", heading.title);
    }
    let mut y = HEAD;
    for workload in workloads {
        let rows: Vec<&Row> = rows.iter().filter(|row| row.workload == workload).collect();
        let name = format!("{}, {} conn.", workload.kind.name(), workload.connections);
        text(&mut body, 8, y + 4, "title", &name);
        y += LINE;
        for row in &rows {
            text(&mut body, 16, y + 4, "label", row.path.name());
            for (index, shown) in COLUMNS.iter().enumerate() {
                let largest = rows
                    .iter()
                    .map(|row| (shown.figure)(row).max)
                    .fold(0.0, f64::max);
                let figure = (shown.figure)(row);
                bar(&mut body, column(index), y, figure, largest, row.path);
            }
            y += LINE;
        }
        y += LINE / 2;
    }
    (body, y)
}

fn text(body: &mut String, x: usize, y: usize, class: &str, content: &str) {
    writeln!(
        body,
        "<text x=\"{x}\" y=\"{y}\" class=\"{class}\">{content}</text>"
    )
    .ok();
}

fn bar(body: &mut String, x: usize, y: usize, figure: Figure, largest: f64, path: Path) {
    let at = |value: f64| {
        if largest > 0.0 {
            value / largest * BAR as f64
        } else {
            0.0
        }
    };
    let top = y as f64 - 7.0;
    let fill = color(path);
    writeln!(
        body,
        "<rect x=\"{x}\" y=\"{top}\" width=\"{:.1}\" height=\"13\" fill=\"{fill}\"/>",
        at(figure.median).max(0.5)
    )
    .ok();
    let (from, to) = (x as f64 + at(figure.min), x as f64 + at(figure.max));
    writeln!(
        body,
        "<path d=\"M{from:.1} {y} H{to:.1}\" stroke=\"#222\" stroke-width=\"1.2\"/>"
    )
    .ok();
    let value = if figure.median >= 100.0 {
        format!("{:.0}", figure.median)
    } else {
        format!("{:.1}", figure.median)
    };
    text(body, x + BAR + 6, y + 4, "value", &value);
}

fn color(path: Path) -> &'static str {
    match path {
        Path::Direct => "#b8b8b8",
        Path::SidecarIptables => "#7fb2d9",
        Path::EnvoySidecarIptables => "#d98c7f",
        Path::NodeIptables => "#6fbf8f",
        Path::NodeEbpfPlain => "#3fa76c",
        Path::NodeEbpf => "#1f8f4f",
        Path::NodeEbpfOn => "#136b39",
    }
}

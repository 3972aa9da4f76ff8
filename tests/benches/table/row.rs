//! Rows, what they show and how they are printed.

use std::fmt::Write;

/// Figures of one side: the median of some rounds, the least and the most.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Stat {
    /// Of figures that were all measured the same way; `None` without any.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.retain(|v| v.is_finite());
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        Some(Self { median: values[values.len() / 2], least, most })
    }
}

/// One line: what bpftime does, and what others do at the same.
#[derive(Clone)]
pub struct Row {
    pub group: &'static str,
    pub name: String,
    pub unit: &'static str,
    /// By side, bpftime first.
    pub cells: Vec<(&'static str, Stat)>,
}

impl Row {
    /// A row of what was measured; sides without figures are left out.
    pub fn new(
        group: &'static str,
        name: impl Into<String>,
        unit: &'static str,
        sides: impl IntoIterator<Item = (&'static str, Option<Stat>)>,
    ) -> Self {
        let cells = sides.into_iter().filter_map(|(side, stat)| Some((side, stat?))).collect();
        Self { group, name: name.into(), unit, cells }
    }

    /// How many times bpftime's figure the others' are.
    fn ratios(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let ours = self.cells.iter().find(|(side, _)| *side == "bpftime").map(|(_, s)| s.median);
        self.cells.iter().filter_map(move |(side, s)| {
            (*side != "bpftime").then_some((*side, s.median / ours.filter(|ns| *ns > 0.0)?))
        })
    }
}

/// Three digits, more before the point.
fn figure(x: f64) -> String {
    match x.abs() {
        x if x >= 100.0 => format!("{x:.0}"),
        x if x >= 10.0 => format!("{x:.1}"),
        x => format!("{x:.2}"),
    }
    .replace("inf", "-")
}

fn signed(x: f64) -> String {
    if x < 0.0 { format!("-{}", figure(-x)) } else { figure(x) }
}

fn cell(s: &Stat) -> String {
    format!("{} ({}..{})", signed(s.median), signed(s.least), signed(s.most))
}

/// All rows for people.
pub fn table(rows: &[Row]) -> String {
    let mut out = "median (least..most); x: how many times bpftime's\n".to_string();
    let mut group = "";
    for row in rows {
        if row.group != group {
            group = row.group;
            _ = writeln!(out, "\n{group}");
        }
        _ = write!(out, "  {:<34}{:<11}", row.name, row.unit);
        for (side, stat) in &row.cells {
            _ = write!(out, "{:<36}", format!("{side} {}", cell(stat)));
        }
        row.ratios().for_each(|(side, x)| _ = write!(out, "{side} x{}  ", signed(x)));
        out.truncate(out.trim_end().len());
        out.push('\n');
    }
    out
}

/// All rows for programs: one document.
pub fn json(rows: &[Row]) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let row = |row: &Row| {
        let cell = |(side, s): &(&str, Stat)| {
            format!("{}:{{\"median\":{},\"least\":{},\"most\":{}}}", quoted(side), s.median, s.least, s.most)
        };
        let ratio = |(side, x): (&str, f64)| format!("{}:{x}", quoted(side));
        format!(
            "{{\"group\":{},\"name\":{},\"unit\":{},\"figures\":{{{}}},\"times_bpftime\":{{{}}}}}",
            quoted(row.group),
            quoted(&row.name),
            quoted(row.unit),
            row.cells.iter().map(cell).collect::<Vec<_>>().join(","),
            row.ratios().map(ratio).collect::<Vec<_>>().join(",")
        )
    };
    format!("{{\"rows\":[\n{}\n]}}\n", rows.iter().map(row).collect::<Vec<_>>().join(",\n"))
}

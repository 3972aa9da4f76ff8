//! Medians, ratios and their geometric mean.

use super::engine::{ENGINES, Sample};
use std::collections::BTreeMap;
use std::fmt::Write;

/// One program.
pub struct Row {
    name: String,
    samples: BTreeMap<&'static str, Vec<Option<Sample>>>,
}

fn quantile(mut values: Vec<f64>, at: f64) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(((values.len().max(1) - 1) as f64 * at).round() as usize).copied()
}

impl Row {
    pub fn new(name: &str) -> Row {
        Row { name: name.to_string(), samples: BTreeMap::new() }
    }

    pub fn add(&mut self, engine: &'static str, sample: Option<Sample>) {
        self.samples.entry(engine).or_default().push(sample);
    }

    fn values(&self, engine: &str, of: fn(&Sample) -> f64) -> Vec<f64> {
        self.samples.get(engine).into_iter().flatten().flatten().map(of).collect()
    }

    fn exec(&self, engine: &str) -> Option<f64> {
        quantile(self.values(engine, |sample| sample.exec_ns), 0.5)
    }

    fn warm(&self, engine: &str) -> Option<f64> {
        quantile(self.values(engine, |sample| sample.warm_ns), 0.5)
    }

    fn cold(&self, engine: &str) -> Option<f64> {
        quantile(self.values(engine, |sample| sample.compile_ns), 0.5)
    }

    /// The faster of the native compilers.
    fn native(&self) -> Option<f64> {
        let times = ["gcc", "clang"].into_iter().filter_map(|engine| self.exec(engine));
        times.min_by(f64::total_cmp)
    }

    /// To native; only of right results.
    fn ratio(&self, engine: &str) -> Option<f64> {
        let ratio = self.exec(engine)? / self.native()?;
        (!self.is_wrong(engine)).then_some(ratio)
    }

    /// Whether some trial left another result or another memory than gcc's code.
    pub fn is_wrong(&self, engine: &str) -> bool {
        let answers = |engine: &str| -> Vec<(String, String)> {
            let samples = self.samples.get(engine).into_iter().flatten().flatten();
            samples.map(|sample| (sample.result.clone(), sample.memory.clone())).collect()
        };
        let right = answers("gcc");
        answers(engine).iter().any(|answer| Some(answer) != right.first())
    }

    /// The program's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The engine's runs in the order of the trials, as ratios to native's median; empty where they are wrong.
    pub fn ratios(&self, engine: &str) -> Vec<f64> {
        let native = self.native().unwrap_or(f64::NAN);
        if self.is_wrong(engine) {
            return Vec::new();
        }
        self.values(engine, |sample| sample.exec_ns).into_iter().map(|ns| ns / native).collect()
    }

    /// Microseconds that loading and compiling took each time.
    pub fn loads(&self, engine: &str) -> Vec<f64> {
        self.values(engine, |sample| sample.warm_ns).into_iter().map(|ns| ns / 1e3).collect()
    }

    /// The widest spread of the row's cells.
    fn spread(&self) -> f64 {
        let spread = |engine: &str| {
            let of = |at| quantile(self.values(engine, |sample| sample.exec_ns), at);
            Some((of(0.75)? - of(0.25)?) / of(0.5)?)
        };
        ENGINES.iter().filter_map(|engine| spread(engine.name)).fold(0.0, f64::max)
    }

    fn cell(&self, engine: &str) -> String {
        match (self.ratio(engine), self.is_wrong(engine)) {
            (_, true) => "!".to_string(),
            (Some(ratio), _) => format!("{ratio:.2}"),
            (None, _) => "-".to_string(),
        }
    }
}

pub fn geomean(values: &[f64]) -> f64 {
    (values.iter().map(|value| value.ln()).sum::<f64>() / values.len().max(1) as f64).exp()
}

/// Geometric mean of the ratios and how many there are.
fn mean(rows: &[Row], engine: &str) -> (f64, usize) {
    let ratios: Vec<f64> = rows.iter().filter_map(|row| row.ratio(engine)).collect();
    (geomean(&ratios), ratios.len())
}

fn median_warm(rows: &[Row], engine: &str) -> Option<f64> {
    quantile(rows.iter().filter_map(|row| row.warm(engine)).collect(), 0.5)
}

pub fn table(rows: &[Row]) -> String {
    let mut out = format!("{:<24}{:>12}", "ratio to native", "native ns");
    ENGINES.iter().for_each(|engine| _ = write!(out, "{:>9}", engine.name));
    out += "  spread   compile us\n";
    for row in rows {
        _ = write!(out, "{:<24}{:>12.1}", row.name, row.native().unwrap_or(f64::NAN));
        ENGINES.iter().for_each(|engine| _ = write!(out, "{:>9}", row.cell(engine.name)));
        let warm = row.warm("bpftime").unwrap_or(f64::NAN) / 1e3;
        _ = writeln!(out, "{:>7.0}%{warm:>13.0}", row.spread() * 100.0);
    }
    _ = write!(out, "{:<36}", "geometric mean");
    ENGINES.iter().for_each(|engine| _ = write!(out, "{:>9.2}", mean(rows, engine.name).0));
    _ = write!(out, "\n{:<36}", "programs");
    ENGINES.iter().for_each(|engine| _ = write!(out, "{:>9}", mean(rows, engine.name).1));
    _ = write!(out, "\n{:<36}", "load + compile, warm median, us");
    for engine in ENGINES {
        let us = median_warm(rows, engine.name).filter(|_| !["gcc", "clang"].contains(&engine.name));
        _ = write!(out, "{:>9}", us.map_or("-".to_string(), |ns| format!("{:.0}", ns / 1e3)));
    }
    out + "\n"
}

pub fn json(rows: &[Row]) -> String {
    let number = |value: Option<f64>| value.map_or("null".to_string(), |value| format!("{value:.4}"));
    let engines = |row: &Row| -> String {
        let of = |name: &str| {
            let (exec, ratio) = (number(row.exec(name)), number(row.ratio(name)));
            let (cold, warm) = (number(row.cold(name)), number(row.warm(name)));
            let wrong = row.is_wrong(name);
            format!(
                "\"{name}\":{{\"exec_ns\":{exec},\"ratio\":{ratio},\"compile_cold_ns\":{cold},\
                 \"compile_warm_ns\":{warm},\"wrong\":{wrong}}}"
            )
        };
        ENGINES.iter().map(|engine| of(engine.name)).collect::<Vec<_>>().join(",")
    };
    let programs: Vec<String> = rows
        .iter()
        .map(|row| {
            let (name, spread) = (&row.name, row.spread());
            format!("{{\"name\":\"{name}\",\"spread\":{spread:.4},\"engines\":{{{}}}}}", engines(row))
        })
        .collect();
    let means: Vec<String> = ENGINES
        .iter()
        .map(|engine| format!("\"{}\":{:.4}", engine.name, mean(rows, engine.name).0))
        .collect();
    format!("{{\"programs\":[{}],\"geomean\":{{{}}}}}\n", programs.join(","), means.join(","))
}

//! `cargo lab bench`: Parterre's numbers beside its peer's. The peer is the same box booted bare, with KVM and Debian's
//! QEMU, running the same guest programs. No test asserts a number; this reports.

mod devices;
mod exits;
mod guests;
mod memory;
mod parent;
mod peer;
mod ssh;
mod start;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::build;
use crate::cli::BenchArgs;
use crate::media::{Below, Wish};

/// One number beside its peer's.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// In what: instructions, ms, KiB.
    pub unit: &'static str,
    /// Parterre's; none if it could not be measured.
    pub ours: Option<f64>,
    /// The peer's.
    pub peer: Option<f64>,
    /// What is aimed at, for people.
    pub aim: &'static str,
}

impl Row {
    fn ratio(&self) -> Option<f64> {
        Some(self.ours? / self.peer.filter(|peer| *peer > 0.0)?)
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name, "unit": self.unit, "parterre": self.ours, "peer": self.peer, "ratio": self.ratio(),
            "aim": self.aim,
        })
    }
}

/// A part of the benchmark: its name, and what measures its rows.
type Part = (&'static str, fn(&Wish) -> Result<Vec<Row>>);

const PARTS: [Part; 8] = [
    ("image", |wish| Ok(vec![image_row(wish)?])),
    ("exits", exits::measure),
    ("start", start::measure),
    ("parent", parent::measure),
    ("memory", memory::measure),
    ("disks", devices::disks),
    ("network", devices::network),
    ("ssh", ssh::measure),
];

/// What is measured in Intel boxes: Bochs's time is instructions, so timing says nothing there.
const PARTS_ON_INTEL: [Part; 2] =
    [("image", |wish| Ok(vec![image_row(wish)?])), ("exits", exits::measure_on_intel)];

/// The parts that `devices` stands for.
const DEVICES: [&str; 3] = ["disks", "network", "ssh"];

/// Measures and prints.
///
/// # Errors
/// When a part is asked for that the vendor's boxes do not have. A part that fails is reported and leaves the others be, and the exit status is then 1.
pub fn run(args: &BenchArgs) -> Result<ExitCode> {
    let parts: &[Part] = if args.vendor == "intel" { &PARTS_ON_INTEL } else { &PARTS };
    for part in &args.parts {
        ensure!(
            parts.iter().any(|(name, _)| name == part || part == "devices" && DEVICES.contains(name)),
            "The part '{part}' is not measured in boxes of {}.",
            args.vendor
        );
    }
    let (rows, mut failed) = measure(parts, args);
    let mut intel = None;
    if args.vendor == "both" {
        let (more, failed_there) = measure(&PARTS_ON_INTEL, args);
        failed |= failed_there || more.iter().any(|row| row.ours.is_none());
        intel = Some(more);
    }
    if args.json {
        println!("{:#}", json(&rows, intel.as_deref()));
    } else {
        print!("{}", table(&rows, intel.as_deref()));
    }
    failed |= rows.iter().any(|row| row.ours.is_none());
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Measures those of `parts` that are asked for; says whether one failed, which leaves the others be.
fn measure(parts: &[Part], args: &BenchArgs) -> (Vec<Row>, bool) {
    let wish = Wish { efi: args.efi.clone(), ..Wish::default() };
    let asked = |name: &str| args.parts.iter().any(|part| part == name);
    let wanted =
        |name: &str| args.parts.is_empty() || asked(name) || asked("devices") && DEVICES.contains(&name);
    let (mut rows, mut failed) = (Vec::new(), false);
    for (name, measure) in parts.iter().filter(|(name, _)| wanted(name)) {
        match measure(&wish) {
            Ok(more) => rows.extend(more),
            Err(e) => {
                failed = true;
                eprintln!(
                    "lab: The part '{name}' could not be measured.\n  because: {}",
                    crate::tool::sentences(&e)
                );
            }
        }
    }
    (rows, failed)
}

/// All rows; with Intel's numbers in those that have such.
fn json(rows: &[Row], intel: Option<&[Row]>) -> Value {
    let one = |row: &Row| {
        let mut value = row.json();
        if let Some(other) = beside(row, intel) {
            value["intel"] = json!({ "parterre": other.ours, "peer": other.peer, "ratio": other.ratio(), "unit": other.unit });
        }
        value
    };
    Value::from_iter(rows.iter().map(one))
}

/// What was measured of the same on Intel's processors.
fn beside<'a>(row: &Row, intel: Option<&'a [Row]>) -> Option<&'a Row> {
    intel?.iter().find(|other| other.name == row.name)
}

/// One side of a comparison; when it cannot be measured that is said, and the other side goes on.
fn side<T: std::fmt::Debug>(who: &str, result: Result<T>) -> Option<T> {
    // The table comes at the end of all, which may be far.
    result
        .inspect(|measured| eprintln!("  {who}: {measured:?}"))
        .inspect_err(|e| {
            eprintln!("lab: {who} could not be measured.\n  because: {}", crate::tool::sentences(e))
        })
        .ok()
}

/// The middle one of some numbers.
fn median(mut numbers: Vec<f64>) -> Option<f64> {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied()
}

/// The same wish with nothing below the parent, and with the peer in it.
fn bare(wish: &Wish) -> Result<Wish> {
    let mut bare = wish.clone();
    bare.below = Below::Nothing;
    bare.with_stack = false;
    peer::add(&mut bare.extras)?;
    Ok(bare)
}

fn image_row(wish: &Wish) -> Result<Row> {
    let image = wish.efi.clone().map_or_else(|| build::hypervisor().map(|built| built.image), Ok)?;
    let bytes = std::fs::metadata(image)?.len();
    let kib = f64::from(u32::try_from(bytes / 1024).unwrap_or(u32::MAX));
    Ok(Row {
        name: "size of parterre.efi".into(),
        unit: "KiB",
        ours: Some(kib),
        peer: None,
        aim: "under 400",
    })
}

/// The numbers of a row as a table has them: Parterre's, its peer's, their ratio.
fn cells(row: Option<&Row>) -> [String; 3] {
    let number = |value: Option<f64>| match value {
        None => "-".to_owned(),
        Some(value) if value < 100.0 => format!("{value:.2}"),
        Some(value) => format!("{value:.0}"),
    };
    let ratio = row.and_then(Row::ratio).map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.3}"));
    [number(row.and_then(|row| row.ours)), number(row.and_then(|row| row.peer)), ratio]
}

/// The table; with Intel's numbers in columns of their own, if there are any.
fn table(rows: &[Row], intel: Option<&[Row]>) -> String {
    let numbers = ["Parterre", "KVM+QEMU", "ratio"].map(str::to_owned);
    let on_intel = ["Intel: Parterre", "KVM+QEMU", "ratio"].map(str::to_owned);
    let line = |name: &str, numbers: [String; 3], more: [String; 3], unit: &str, aim: &str| {
        let more = intel.map(|_| more).into_iter().flatten();
        let numbers = numbers.into_iter().chain(more);
        [name.to_owned()].into_iter().chain(numbers).chain([unit, aim].map(str::to_owned)).collect()
    };
    let mut lines: Vec<Vec<String>> = vec![line("", numbers, on_intel, "unit", "aim")];
    let of = |row: &Row| line(&row.name, cells(Some(row)), cells(beside(row, intel)), row.unit, row.aim);
    lines.extend(rows.iter().map(of));
    let columns = lines[0].len();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let is_word = |column: usize| column == 0 || column >= columns - 2;
        let padded = line.iter().enumerate().map(|(column, cell)| {
            let width = widths[column];
            if is_word(column) { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        text.push_str(padded.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_aligned() {
        let row = |name: &str, ours, peer| Row { name: name.into(), unit: "ticks", ours, peer, aim: "less" };
        let rows = [row("cpuid", Some(800.0), Some(3200.0)), row("a longer name", None, Some(1.5))];
        let text = table(&rows, None);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].contains("0.250") && lines[2].contains(" - "), "{text}");
        assert_eq!(lines[1].find("ticks"), lines[2].find("ticks"));
        assert!(!text.contains("Intel"));
    }

    #[test]
    fn intels_numbers_are_columns() {
        let row = |name: &str, ours, peer| Row { name: name.into(), unit: "ticks", ours, peer, aim: "less" };
        let rows = [row("cpuid", Some(800.0), Some(3200.0)), row("start", Some(1.0), None)];
        let intel = [row("cpuid", Some(487.0), Some(967.0))];
        let text = table(&rows, Some(&intel));
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            lines[0],
            ["Parterre", "KVM+QEMU", "ratio", "Intel:", "Parterre", "KVM+QEMU", "ratio", "unit", "aim"]
        );
        assert_eq!(lines[1], ["cpuid", "800", "3200", "0.250", "487", "967", "0.504", "ticks", "less"]);
        assert_eq!(lines[2], ["start", "1.00", "-", "-", "-", "-", "-", "ticks", "less"]);
        let value = json(&rows, Some(&intel));
        assert_eq!((&value[0]["intel"]["peer"], &value[1]["intel"]), (&json!(967.0), &Value::Null));
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(median(Vec::new()), None);
    }

    #[test]
    fn a_ratio_needs_both_numbers() {
        let row = |ours, peer| Row { name: String::new(), unit: "", ours, peer, aim: "" };
        assert_eq!(row(Some(1.0), Some(4.0)).ratio(), Some(0.25));
        assert_eq!(row(Some(1.0), Some(0.0)).ratio(), None);
        assert_eq!(row(None, Some(1.0)).ratio(), None);
    }
}

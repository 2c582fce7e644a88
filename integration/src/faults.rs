//! The table of faults: what broke, and what came of the pull that ran then.
//!
//! A scenario makes one [`Row`] of what was measured; [`record`] keeps it as a file under `.lab/faults`, so that the table of a
//! whole test run can be printed at its end, whichever tests ran in which order. [`stage`] is what scenarios play on, [`journal`]
//! remembers which were played, [`page`] is what operators read, and [`complete`] judges whether a row is missing.
use std::{fmt::Write as _, fs, path::PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::run::lab_dir;

pub mod complete;
pub mod journal;
pub mod page;
pub mod stage;

/// One row.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What broke: "parent killed in the middle of a blob".
    pub fault: String,
    /// Which containerd pulled.
    pub containerd: String,
    /// What containerd saw of us and of the registry, from its own log.
    pub saw: String,
    /// Who delivered the bytes, measured.
    pub delivered: String,
    /// Seconds beyond the undisturbed pull of the same sizes in the same run.
    pub lost_seconds: f64,
    /// The line that an operator finds in the log of a daemon; it was there.
    pub log: String,
    /// The metric that moved, and by how much.
    pub metric: String,
}

fn dir() -> PathBuf {
    lab_dir().join("faults")
}

/// Prints a row and keeps it; an older row of the same fault and containerd goes.
///
/// # Errors
/// When the file can't be written.
pub fn record(row: &Row) -> Result<()> {
    println!("{}", text(std::slice::from_ref(row)));
    let dir = dir().join(slug(&row.containerd));
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let file = dir.join(format!("{}.json", slug(&row.fault)));
    fs::write(&file, serde_json::to_vec_pretty(row)?).with_context(|| format!("write {}", file.display()))
}

/// Forgets every row, so that what is printed later is of this run.
///
/// # Errors
/// When the files can't be removed.
pub fn forget() -> Result<()> {
    match fs::remove_dir_all(dir()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("forget the table of faults"),
        _ => Ok(()),
    }
}

/// All rows, by fault and containerd.
///
/// # Errors
/// When a file can't be read.
pub fn recorded() -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let Ok(editions) = fs::read_dir(dir()) else { return Ok(rows) };
    for edition in editions {
        let edition = edition?.path();
        if !edition.is_dir() {
            continue;
        }
        for file in fs::read_dir(edition)? {
            let file = file?.path();
            let row = serde_json::from_slice(&fs::read(&file)?).with_context(|| format!("parse {}", file.display()))?;
            rows.push(row);
        }
    }
    rows.sort_by(|a: &Row, b: &Row| (&a.fault, &a.containerd).cmp(&(&b.fault, &b.containerd)));
    Ok(rows)
}

fn slug(text: &str) -> String {
    let kept = text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c.to_ascii_lowercase() } else { '-' });
    kept.collect()
}

/// Rows as blocks, for the columns are long.
pub fn text(rows: &[Row]) -> String {
    let mut out = String::new();
    for row in rows {
        let _ = writeln!(out, "{} (containerd {}): {:+.1} s", row.fault, row.containerd, row.lost_seconds);
        write_details(&mut out, row);
    }
    out
}

/// The table of a run: a block a fault with the seconds lost on each containerd, the rest from the one that lost most.
pub fn table(rows: &[Row]) -> String {
    let mut out = String::new();
    let mut faults: Vec<&str> = rows.iter().map(|row| row.fault.as_str()).collect();
    faults.dedup();
    for fault in faults {
        let of_fault: Vec<&Row> = rows.iter().filter(|row| row.fault == fault).collect();
        let lost = of_fault.iter().map(|row| format!("{} {:+.1} s", row.containerd, row.lost_seconds));
        let _ = writeln!(out, "{fault}\n    lost    {}", lost.collect::<Vec<_>>().join(", "));
        let Some(worst) = page::worst(&of_fault) else { continue };
        write_details(&mut out, worst);
    }
    out
}

fn write_details(out: &mut String, row: &Row) {
    for (what, value) in [("saw", &row.saw), ("bytes", &row.delivered), ("log", &row.log), ("metric", &row.metric)] {
        let _ = writeln!(out, "    {what:<7} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        Row {
            fault: "parent killed | at once".into(),
            containerd: "1.6".into(),
            saw: "us: 200 x 3".into(),
            delivered: "peers 1.0 MiB".into(),
            lost_seconds: 1.25,
            log: "parent lost".into(),
            metric: "shoal_x +1".into(),
        }
    }

    #[test]
    fn a_row_is_a_block_of_the_text() {
        assert!(
            text(&[row()]).starts_with("parent killed | at once (containerd 1.6): +1.2 s\n    saw     us: 200 x 3\n")
        );
        let mut other = row();
        (other.containerd, other.lost_seconds, other.saw) = ("2.3".into(), 0.5, "less".into());
        let table = table(&[row(), other]);
        let wanted = "parent killed | at once\n    lost    1.6 +1.2 s, 2.3 +0.5 s\n    saw     us: 200 x 3\n";
        assert!(table.starts_with(wanted), "{table}");
        assert_eq!(slug("parent killed | at once"), "parent-killed---at-once");
    }
}

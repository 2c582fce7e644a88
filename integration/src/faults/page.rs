//! The operator's page: one row a fault, its worst figure over all containerds, and under the table what to look for.
use std::{collections::BTreeMap, fmt::Write as _};

use super::{Row, journal::Played};
use crate::containerd::edition::Edition;

const ONLY_LONG: &str = "Played by `make test-all` only.";

/// A fault that a page names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The fault.
    pub fault: String,
    /// The containerds that it was green on.
    pub green_on: Vec<String>,
    /// Whether it is played only when long scenes are asked for.
    pub long: bool,
}

/// Writes the page. `versions`: a line for each containerd, `own: 1.6.20`.
pub fn page(rows: &[Row], played: &[Played], versions: &[String]) -> String {
    let mut by_fault: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        by_fault.entry(&row.fault).or_default().push(row);
    }
    let mut out = String::from(
        "# What happens when something breaks\n\n\
         Every row is a test of the lab on real containerd, registry and `crictl`, and this page is what a run of all of them\n\
         measured (`make faults-page`). In every row the pull came to the end that the row says, and every blob in every store had\n\
         the bytes of its name afterwards.\n\n\
         *Lost* are seconds beyond the undisturbed pull of the same sizes in the same run, the worst over all containerds; a\n\
         negative number is noise. The name of a fault leads to what containerd saw, who delivered the bytes, and what an operator\n\
         finds in log and metrics.\n\n\
         containerd 2.1 with `concurrent_layer_fetch_buffer` reads several parts of a layer at once. When a part of ours ends early\n\
         because the registry fails us alone, that try of the pull can end with `context canceled`; the next one goes through. 2.3\n\
         does not do that.\n\n",
    );
    if !versions.is_empty() {
        let _ = writeln!(
            out,
            "containerd: {}. `-local` is CRI's own pull instead of the transfer\nservice, `-buffer` is \
             `concurrent_layer_fetch_buffer`.\n",
            versions.join("; ")
        );
    }
    out.push_str("| fault | lost | green on |\n|---|---|---|\n");
    for (fault, rows) in &by_fault {
        let Some(worst) = worst(rows) else { continue };
        let long = if is_long(fault, played) { ", long" } else { "" };
        let _ = writeln!(
            out,
            "| [{}](#{}) | {:+.1} s | {}{long} |",
            cell(fault),
            anchor(fault),
            tenths(worst.lost_seconds),
            green_on(rows)
        );
    }
    out.push_str("\n## What to look for\n\nFigures are those of the containerd that lost most.\n");
    for (fault, rows) in &by_fault {
        let Some(worst) = worst(rows) else { continue };
        let _ = write!(
            out,
            "\n### {fault}\n\n- containerd ({}) saw: {}\n- bytes: {}\n- log: `{}`\n- metric: `{}`\n- green on: {}\n",
            worst.containerd,
            worst.saw,
            worst.delivered,
            worst.log,
            worst.metric,
            names(rows).join(", ")
        );
        if is_long(fault, played) {
            let _ = writeln!(out, "- {ONLY_LONG}");
        }
    }
    out
}

/// The faults that a page names.
pub fn listed(page: &str) -> Vec<Listed> {
    let mut found: Vec<Listed> = Vec::new();
    for line in page.lines() {
        if let Some(fault) = line.strip_prefix("### ") {
            found.push(Listed { fault: fault.to_owned(), green_on: Vec::new(), long: false });
        }
        let Some(last) = found.last_mut() else { continue };
        if let Some(names) = line.strip_prefix("- green on: ") {
            last.green_on = names.split(", ").map(str::to_owned).collect();
        }
        last.long |= line == format!("- {ONLY_LONG}");
    }
    found
}

/// The time that scenes took, by fault and containerd, the longest first.
pub fn times(played: &[Played]) -> String {
    let mut longest: Vec<&Played> = played.iter().collect();
    longest.sort_by(|one, two| two.seconds.total_cmp(&one.seconds));
    let mut out = String::new();
    for scene in longest {
        let _ = writeln!(out, "{:7.1} s  {} (containerd {})", scene.seconds, scene.fault, scene.containerd);
    }
    let _ =
        writeln!(out, "{:7.1} s  all {} scenes", played.iter().map(|scene| scene.seconds).sum::<f64>(), played.len());
    out
}

/// The row that lost most.
pub(super) fn worst<'a>(rows: &[&'a Row]) -> Option<&'a Row> {
    rows.iter().copied().max_by(|one, two| one.lost_seconds.total_cmp(&two.lost_seconds))
}

fn is_long(fault: &str, played: &[Played]) -> bool {
    played.iter().any(|scene| scene.long && scene.fault == fault)
}

fn names(rows: &[&Row]) -> Vec<String> {
    let mut names: Vec<&str> = rows.iter().map(|row| row.containerd.as_str()).collect();
    let order = |name: &str| name.parse::<Edition>().ok();
    names.sort_by_key(|name| order(name));
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// `all 10`, or the versions, with how many ways of pulling of each where it has several.
fn green_on(rows: &[&Row]) -> String {
    let names = names(rows);
    if Edition::all().iter().all(|edition| names.contains(&edition.to_string())) {
        return format!("all {}", names.len());
    }
    names.join(", ")
}

/// Rounded as it is shown, so that nothing is shown as -0.0.
fn tenths(seconds: f64) -> f64 {
    (seconds * 10.0).round() / 10.0 + 0.0
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

/// As hosts of Markdown name the anchor of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>();
    kept.replace(' ', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(fault: &str, containerd: &str, lost_seconds: f64) -> Row {
        Row { fault: fault.into(), containerd: containerd.into(), lost_seconds, ..Row::default() }
    }

    #[test]
    fn a_fault_is_one_row_with_its_worst_figure_and_where_it_was_green() {
        let rows = [row("parent killed, at once", "2.3", 0.5), row("parent killed, at once", "1.7", 1.2)];
        let text = page(&rows, &[], &[]);
        assert!(text.contains("| [parent killed, at once](#parent-killed-at-once) | +1.2 s | 1.7, 2.3 |\n"), "{text}");
        assert!(text.contains("### parent killed, at once\n\n- containerd (1.7) saw: "), "{text}");
        let everywhere: Vec<Row> = Edition::all().iter().map(|edition| row("a", &edition.to_string(), -0.04)).collect();
        assert!(page(&everywhere, &[], &[]).contains("| +0.0 s | all 10 |"));
    }

    #[test]
    fn what_a_page_lists_is_read_back() {
        let long = Played { fault: "b".into(), containerd: "2.3".into(), seconds: 70.0, long: true, green: true };
        let text = page(&[row("a", "2.3", 0.5), row("b", "2.3", 1.0), row("b", "own", 2.0)], &[long], &[]);
        let name = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let wanted = [
            Listed { fault: "a".into(), green_on: name(&["2.3"]), long: false },
            Listed { fault: "b".into(), green_on: name(&["own", "2.3"]), long: true },
        ];
        assert_eq!(listed(&text), wanted);
    }

    #[test]
    fn times_are_told_with_their_sum() {
        let played = |fault: &str, seconds| Played {
            fault: fault.into(),
            containerd: "2.3".into(),
            seconds,
            long: false,
            green: true,
        };
        let text = times(&[played("short", 2.0), played("long", 10.5)]);
        assert_eq!(
            text,
            "   10.5 s  long (containerd 2.3)\n    2.0 s  short (containerd 2.3)\n   12.5 s  all 2 scenes\n"
        );
    }
}

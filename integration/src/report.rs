//! The facts as a person reads them: tables and verdicts.
use std::{collections::BTreeMap, fmt::Write as _};

use crate::{
    check::{Verdict, ratio, short},
    facts::Facts,
    registry::Reads,
};

/// The whole report without the verdicts.
pub fn text(facts: &Facts) -> String {
    let mut out = String::new();
    let parts = [pulls(facts), origin(facts), crossings(facts), traces(facts)];
    for (title, rows) in parts {
        let _ = writeln!(out, "\n{title}");
        out.push_str(&table(&rows));
    }
    out
}

/// One line for each verdict.
pub fn verdicts(verdicts: &[Verdict]) -> String {
    verdicts.iter().fold(String::new(), |mut out, verdict| {
        let mark = if verdict.holds { "ok  " } else { "FAIL" };
        let _ = writeln!(out, "{mark}  {} ({})", verdict.what, verdict.figures);
        out
    })
}

type Part = (String, Vec<Vec<String>>);

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

fn pulls(facts: &Facts) -> Part {
    let mut rows = vec![row(["cluster", "node", "image", "seconds", "from origin", "from peers", "ratio"])];
    for cluster in &facts.clusters {
        for (index, pull) in cluster.pulls.iter().enumerate() {
            let times = ratio(cluster).filter(|_| index == 1).map_or(String::from("1"), |ratio| format!("{ratio:.1}"));
            rows.push(vec![
                cluster.name.clone(),
                pull.node.clone(),
                facts.image.reference.clone(),
                format!("{:.2}", pull.seconds()),
                bytes(pull.origin_bytes),
                bytes(pull.from("peer")),
                times,
            ]);
        }
    }
    let image = format!("{} layers, {}", facts.image.layers.len(), bytes(facts.image.size()));
    (format!("Pulls ({image}; from the first HEAD to the last blob's commit in containerd's store)"), rows)
}

fn origin(facts: &Facts) -> Part {
    let mut rows = vec![row(["blob", "bytes", "requests by node, and their bytes"])];
    let named = facts.image.layers.iter().map(|blob| ("layer", blob));
    let others = [("config", &facts.image.config), ("manifest", &facts.image.manifest)];
    for (kind, blob) in named.chain(others) {
        let none = BTreeMap::new();
        let reads = facts.origin_reads.get(&blob.digest).unwrap_or(&none);
        let said = |(node, reads): (&String, &Reads)| format!("{node}: {}, {}", reads.requests, reads.bytes);
        let reads: Vec<String> = reads.iter().map(said).collect();
        rows.push(vec![format!("{kind} {}", short(&blob.digest)), blob.size.to_string(), reads.join(", ")]);
    }
    ("What the origin's own log says".into(), rows)
}

fn crossings(facts: &Facts) -> Part {
    let mut rows = vec![row(["from", "to", "packets", "bytes"])];
    let clusters: Vec<(&str, Vec<&str>)> = facts
        .clusters
        .iter()
        .map(|cluster| (cluster.name.as_str(), cluster.pulls.iter().map(|pull| pull.node.as_str()).collect()))
        .collect();
    for (from, senders) in &clusters {
        for (to, receivers) in &clusters {
            let between = facts
                .pairs
                .iter()
                .filter(|pair| senders.contains(&pair.from.as_str()) && receivers.contains(&pair.to.as_str()));
            let (packets, sum) = between.fold((0, 0), |sum, pair| (sum.0 + pair.packets, sum.1 + pair.bytes));
            rows.push(vec![format!("cluster {from}"), format!("cluster {to}"), packets.to_string(), bytes(sum)]);
        }
    }
    ("What the kernel counted between nodes (all protocols)".into(), rows)
}

fn traces(facts: &Facts) -> Part {
    let mut rows = vec![row(["node", "layer", "seconds", "origin read by", "served by", "trace"])];
    let biggest = facts.image.layers.iter().max_by_key(|blob| blob.size);
    for trace in facts.traces.iter().filter(|trace| biggest.is_some_and(|blob| trace.url.contains(&blob.digest))) {
        let join = |names: &std::collections::BTreeSet<String>| {
            if names.is_empty() { "-".to_owned() } else { names.iter().cloned().collect::<Vec<_>>().join(", ") }
        };
        rows.push(vec![
            trace.node.clone(),
            biggest.map(|blob| short(&blob.digest).to_owned()).unwrap_or_default(),
            format!("{:.2}", trace.seconds),
            join(&trace.origin_readers),
            join(&trace.serving_peers),
            trace.trace.clone(),
        ]);
    }
    ("Traces of the largest layer, found by http.url".into(), rows)
}

fn bytes(count: u64) -> String {
    match count {
        0 => "0".into(),
        1..1024 => format!("{count} B"),
        1024..1_048_576 => format!("{:.1} KiB", count as f64 / 1024.0),
        _ => format!("{:.1} MiB", count as f64 / 1_048_576.0),
    }
}

/// Columns as wide as their widest cell; the first row is the head.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> =
        (0..columns).map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0)).collect();
    let mut out = String::new();
    for (index, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(out, "  {}", cells.join("  ").trim_end());
        if index == 0 {
            let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
            let _ = writeln!(out, "  {}", rule.join("  "));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_as_wide_as_its_widest_cells() {
        let rows = vec![row(["a", "long"]), row(["wide", "b"])];
        assert_eq!(table(&rows), "  a     long\n  ----  ----\n  wide  b\n");
    }

    #[test]
    fn sizes_are_told_in_the_unit_that_fits() {
        assert_eq!(bytes(0), "0");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(300 << 20), "300.0 MiB");
    }
}

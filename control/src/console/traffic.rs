//! Bytes by source over time, as a chart and as a table.

use askama::Template;
use serde_json::Value;

use super::view::{self, Cell};

/// Of the drawing, in its own units.
const LEFT: f64 = 80.0;
const RIGHT: f64 = 890.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 230.0;

const SOURCES: [(&str, &str, &str); 3] = [
    ("origin", "The origin", "bytes_from_origin"),
    ("peers", "Peers", "bytes_from_peers"),
    ("local", "Own disk", "bytes_local"),
];

#[derive(Template)]
#[template(path = "chart.html")]
struct Chart {
    said: String,
    marks: Vec<(u32, String)>,
    times: Vec<(u32, String)>,
    lines: Vec<(&'static str, String)>,
    legend: Vec<(&'static str, &'static str)>,
}

/// The next of 1, 2, 5, 10, 20 … times a power of 1024, so that the marks are round.
fn round_up(most: u64) -> u64 {
    let unit = (0..5).map(|power| 1024_u64.pow(power)).take_while(|unit| *unit <= most.max(1)).last().unwrap_or(1);
    let steps = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1024];
    steps.into_iter().map(|step| step * unit).find(|step| *step >= most).unwrap_or(most)
}

/// Hours and minutes of a time as the API gives it.
fn minute(at: &str) -> String {
    at.get(11..16).unwrap_or_default().to_owned()
}

fn of(step: &Value, key: &str) -> u64 {
    step[key].as_u64().unwrap_or(0)
}

/// The chart and the table of what `/api/v1/traffic` answered.
pub(super) fn parts(answer: &Value) -> Vec<String> {
    let empty = Vec::new();
    let steps = answer["steps"].as_array().unwrap_or(&empty);
    let seconds = answer["step_seconds"].as_u64().filter(|seconds| *seconds > 0).unwrap_or(10);
    let rate = |step: &Value, key: &str| of(step, key) / seconds;
    let most = steps.iter().flat_map(|step| SOURCES.map(|(_, _, key)| rate(step, key))).max().unwrap_or(0);
    let top = round_up(most);
    // Always an hour, whose end is now.
    let all = usize::try_from(3600 / seconds).unwrap_or(1).max(steps.len()).max(2);
    let x = |at: usize| RIGHT - (RIGHT - LEFT) * (steps.len() - 1 - at) as f64 / (all - 1) as f64;
    let y = |rate: u64| BOTTOM - (BOTTOM - TOP) * rate as f64 / top.max(1) as f64;
    let line = |(class, _, key): (&'static str, &str, &str)| {
        let points = steps.iter().enumerate().map(|(at, step)| format!("{:.1},{:.1}", x(at), y(rate(step, key))));
        (class, points.collect::<Vec<_>>().join(" "))
    };
    let marks = [0, top / 2, top].map(|rate| (y(rate) as u32, format!("{}/s", view::bytes(rate))));
    // Every ten minutes, counted from now.
    let times = (0..).map(|back| back * all / 6).map_while(|back| steps.len().checked_sub(1 + back));
    let times = times.map(|at| (x(at).min(RIGHT - 20.0) as u32, minute(steps[at]["at"].as_str().unwrap_or_default())));
    let times = times.collect();
    let sum = |steps: &[Value], key: &str| steps.iter().map(|step| of(step, key)).fold(0, u64::saturating_add);
    let said = SOURCES.map(|(_, label, key)| format!("{label} {}", view::bytes(sum(steps, key)))).join(", ");
    let chart = Chart {
        said,
        marks: marks.into(),
        times,
        lines: SOURCES.map(line).into(),
        legend: SOURCES.map(|(class, label, _)| (class, label)).into(),
    };
    // Five minutes a row.
    let rows = steps.chunks(usize::try_from(300 / seconds).unwrap_or(1).max(1)).map(|some| {
        let began = some.first().map_or("", |step| step["at"].as_str().unwrap_or_default());
        let mut row = vec![Cell::new(minute(began))];
        row.extend(SOURCES.map(|(_, _, key)| Cell::new(view::bytes(sum(some, key)))));
        row
    });
    let columns = ["From (UTC)", "The origin", "Peers", "Own disk"];
    let table = view::table("Bytes by source, five minutes a row", &columns, rows.rev().collect(), String::new());
    vec![view::heading("Bytes by source over time"), view::drawn(&chart), table]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn marks_are_round_and_nothing_is_beyond_the_uppermost() {
        for (most, top) in [(0, 1), (1, 1), (3, 5), (600, 1024), (1025, 2048), (3 << 20, 5 << 20), (900 << 20, 1 << 30)]
        {
            assert_eq!(round_up(most), top, "{most}");
        }
    }

    #[test]
    fn no_steps_one_step_and_many_make_a_chart() {
        for count in [0, 1, 2, 360] {
            let step =
                |at: u64| json!({"at": "2026-11-25T10:11:12.000Z", "bytes_from_origin": at << 20, "bytes_local": 7});
            let steps: Vec<Value> = (0..count).map(step).collect();
            let all = parts(&json!({"step_seconds": 10, "steps": steps})).concat();
            assert!(all.contains("<svg") && !all.contains("NaN") && !all.contains("inf"), "{all}");
            assert_eq!(all.contains("10:11"), count > 0);
        }
        assert!(parts(&Value::Null).concat().contains("<svg"));
    }
}

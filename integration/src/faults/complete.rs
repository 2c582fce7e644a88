//! Whether a run left every row that it must: compared with the operator's page, which is in the repository, and with what the
//! run itself played.
use std::{collections::BTreeSet, fs};

use anyhow::{Context, Result};

use super::{
    Row,
    journal::{self, Played},
    page::{self, Listed},
    stage::Stage,
};
use crate::{containerd::edition::Edition, run::checkout};

/// What was asked of a run.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// The containerds that `SHOAL_LAB_CONTAINERD` named; empty: nothing was asked, each scene chose.
    pub containerds: Vec<String>,
    /// Whether long scenes were played.
    pub long: bool,
}

/// Judges what this machine's last run recorded.
///
/// # Errors
/// When the page or the records can't be read.
pub fn of_this_run() -> Result<Vec<String>> {
    let page = checkout().join("docs/operate/faults.md");
    let page = fs::read_to_string(&page).with_context(|| format!("read {}", page.display()))?;
    let containerds = Edition::from_env(&[])?.iter().map(Edition::to_string).collect();
    let asked = Asked { containerds, long: Stage::long_scenes() };
    Ok(faults_of(&page::listed(&page), &journal::this_run()?, &super::recorded()?, &asked))
}

/// What is missing or too much; empty when the table is whole.
pub fn faults_of(listed: &[Listed], played: &[Played], rows: &[Row], asked: &Asked) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for scene in played {
        let name = (scene.fault.as_str(), scene.containerd.as_str());
        let of_scene = |row: &&Row| (row.fault.as_str(), row.containerd.as_str()) == name;
        if !seen.insert(name) {
            wrong.push(format!("played twice, so that one row hides the other: {} (containerd {})", name.0, name.1));
        }
        if !scene.green {
            wrong.push(format!("failed: {} (containerd {})", name.0, name.1));
        } else if !rows.iter().any(|row| of_scene(&row)) {
            wrong.push(format!("played, but left no row: {} (containerd {})", name.0, name.1));
        }
        if !listed.iter().any(|listed| listed.fault == scene.fault) {
            wrong.push(format!("not on the page of faults (make faults-page): {}", scene.fault));
        }
    }
    for wanted in listed.iter().filter(|listed| asked.long || !listed.long) {
        let on = |containerd: &String| seen.contains(&(wanted.fault.as_str(), containerd.as_str()));
        let missing: Vec<&str> = match asked.containerds.as_slice() {
            [] if played.iter().any(|scene| scene.fault == wanted.fault) => Vec::new(),
            [] => vec!["any"],
            asked => {
                let missing = asked.iter().filter(|asked| wanted.green_on.contains(asked) && !on(asked));
                missing.map(String::as_str).collect()
            }
        };
        if !missing.is_empty() {
            wrong.push(format!("not played: {} (containerd {})", wanted.fault, missing.join(", ")));
        }
    }
    wrong.dedup();
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(fault: &str, long: bool) -> Listed {
        Listed { fault: fault.into(), green_on: vec!["1.7".into(), "2.3".into()], long }
    }

    fn played(fault: &str, containerd: &str) -> Played {
        Played { fault: fault.into(), containerd: containerd.into(), seconds: 1.0, long: false, green: true }
    }

    fn row(fault: &str, containerd: &str) -> Row {
        Row { fault: fault.into(), containerd: containerd.into(), ..Row::default() }
    }

    #[test]
    fn a_whole_table_has_nothing_wrong() {
        let (played, rows) = ([played("a", "2.3")], [row("a", "2.3")]);
        let wrong = faults_of(&[listed("a", false), listed("b", true)], &played, &rows, &Asked::default());
        assert_eq!(wrong, [""; 0]);
    }

    #[test]
    fn a_lost_row_is_named() {
        let wrong = faults_of(&[listed("a", false)], &[played("a", "2.3")], &[row("a", "1.7")], &Asked::default());
        assert_eq!(wrong, ["played, but left no row: a (containerd 2.3)"]);
        let wrong = faults_of(&[listed("a", false)], &[], &[], &Asked::default());
        assert_eq!(wrong, ["not played: a (containerd any)"]);
        let mut failed = played("a", "2.3");
        failed.green = false;
        let wrong = faults_of(&[listed("a", false)], &[failed], &[], &Asked::default());
        assert_eq!(wrong, ["failed: a (containerd 2.3)"]);
    }

    #[test]
    fn long_rows_and_every_containerd_count_when_they_were_asked_for() {
        let asked = |long| Asked { containerds: vec!["1.7".into(), "2.3".into(), "own".into()], long };
        let (page, rows) = ([listed("a", false), listed("b", true)], [row("a", "2.3")]);
        let wrong = faults_of(&page, &[played("a", "2.3")], &rows, &asked(false));
        assert_eq!(wrong, ["not played: a (containerd 1.7)"]);
        let wrong = faults_of(&page, &[played("a", "2.3")], &rows, &asked(true));
        assert_eq!(wrong, ["not played: a (containerd 1.7)", "not played: b (containerd 1.7, 2.3)"]);
    }

    #[test]
    fn two_scenes_of_one_name_and_a_scene_that_the_page_lacks_are_named() {
        let (twice, rows) = ([played("a", "2.3"), played("a", "2.3")], [row("a", "2.3")]);
        let wrong = faults_of(&[listed("a", false)], &twice, &rows, &Asked::default());
        assert_eq!(wrong, ["played twice, so that one row hides the other: a (containerd 2.3)"]);
        let wrong = faults_of(&[], &[played("a", "2.3")], &rows, &Asked::default());
        assert_eq!(wrong, ["not on the page of faults (make faults-page): a"]);
    }
}

//! Tables for people: columns aligned by spaces, no lines.

/// Rows under a header. Every row has as many cells as the header.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|name| name.to_uppercase()).collect()] }
    }

    /// Adds a row; an empty cell is printed as a dash. What would break the line or drive a terminal is escaped: names
    /// come from nodes.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let clean = |cell: String| {
            let cell = if cell.is_empty() { "-".to_owned() } else { cell };
            if cell.chars().any(char::is_control) { cell.escape_debug().collect() } else { cell }
        };
        self.rows.push(cells.into_iter().map(clean).collect());
    }

    pub(super) fn print(&self) -> String {
        let columns = self.rows[0].len();
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            cells.join("  ").trim_end().to_owned()
        };
        self.rows.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// A size with three digits or so: `0 B`, `1.5 MiB`.
#[allow(clippy::cast_precision_loss)]
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        // 1023.95 would be printed as 1024.0.
        if value < 1023.95 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_lines_have_no_trailing_space() {
        let mut table = Table::new(&["name", "idc"]);
        table.row(["größer".to_owned(), String::new()]);
        table.row(["b".to_owned(), "x|y".to_owned()]);
        assert_eq!(table.print(), "NAME    IDC\ngrößer  -\nb       x|y");
    }

    #[test]
    fn a_name_can_not_drive_the_terminal() {
        let mut table = Table::new(&["name"]);
        table.row(["\u{1b}[31mred\nnext".to_owned()]);
        assert_eq!(table.print(), "NAME\n\\u{1b}[31mred\\nnext");
    }

    #[test]
    fn sizes_have_binary_units() {
        for (size, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_572_864, "1.5 MiB"),
            ((1 << 30) - 1, "1.0 GiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(bytes(size), text);
        }
    }
}

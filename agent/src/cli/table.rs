//! Plain tables: a header, aligned columns, no borders, so that `grep`, `awk` and eyes can all use them.

use std::fmt::Write as _;

/// Rows of text under a header.
#[derive(Clone, Debug)]
pub struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub fn new(header: &[&'static str]) -> Self {
        Self { header: header.to_vec(), rows: Vec::new() }
    }

    /// A table of rows made of items.
    pub fn of<T>(header: &[&'static str], items: &[T], row: impl Fn(&T) -> Vec<String>) -> Self {
        let mut table = Self::new(header);
        for item in items {
            table.push(row(item));
        }
        table
    }

    /// Adds a row; an empty cell is shown as `-`, so that columns can be counted.
    pub fn push(&mut self, row: Vec<String>) {
        self.rows
            .push(row.into_iter().map(|cell| if cell.is_empty() { "-".to_owned() } else { cell }).collect());
    }

    /// The table as text. Columns of numbers only are aligned to the right.
    pub fn render(&self) -> String {
        let columns = self.header.len();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.chain([self.header[column].len()]).max().unwrap_or(0)
        };
        let number = |cell: &String| cell == "-" || cell.bytes().all(|b| b.is_ascii_digit());
        let shape: Vec<(usize, bool)> = (0..columns)
            .map(|c| {
                (width(c), !self.rows.is_empty() && self.rows.iter().filter_map(|row| row.get(c)).all(number))
            })
            .collect();
        let mut text = String::new();
        let mut line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut line = String::new();
            for (cell, (width, right)) in cells.zip(&shape) {
                let gap = if line.is_empty() { "" } else { "  " };
                let _ = if *right {
                    write!(line, "{gap}{cell:>width$}")
                } else {
                    write!(line, "{gap}{cell:<width$}")
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        };
        line(&mut self.header.iter().copied());
        for row in &self.rows {
            line(&mut row.iter().map(String::as_str));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_numbers_stand_to_the_right() {
        let mut table = Table::new(&["NAME", "PACKETS", "NOTE"]);
        table.push(vec!["shop/api".into(), "7".into(), "ü".into()]);
        table.push(vec!["x".into(), "1234567890".into(), String::new()]);
        let wanted = "\
NAME         PACKETS  NOTE
shop/api           7  ü
x         1234567890  -
";
        assert_eq!(table.render(), wanted);
    }

    #[test]
    fn an_empty_table_is_its_header() {
        assert_eq!(Table::new(&["A", "B"]).render(), "A  B\n");
    }
}

//! Tables for people: columns as wide as their widest cell.

/// Rows under a header.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    columns: usize,
}

impl Table {
    /// A table with these columns.
    pub(crate) fn new(header: &[&str]) -> Self {
        Self {
            columns: header.len(),
            rows: vec![header.iter().map(|h| (*h).to_owned()).collect()],
        }
    }

    /// Adds a row; missing cells are empty.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        let mut cells: Vec<String> = cells.into_iter().map(Into::into).collect();
        cells.resize(self.columns, String::new());
        self.rows.push(cells);
    }

    /// Keeps the rows in which `part` occurs.
    pub(crate) fn filter(&mut self, part: Option<&str>) {
        if let Some(part) = part {
            let header = self.rows.remove(0);
            self.rows.retain(|row| row.iter().any(|c| c.contains(part)));
            self.rows.insert(0, header);
        }
    }

    /// The rows without the header.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.len() <= 1
    }

    /// The text; `none` where there are no rows.
    pub(crate) fn render(&self, none: &str) -> String {
        if self.is_empty() {
            return format!("{none}\n");
        }
        let widths: Vec<usize> = (0..self.columns)
            .map(|i| self.rows.iter().map(|r| r[i].chars().count()).max())
            .map(Option::unwrap_or_default)
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                let gap = width - cell.chars().count() + 3;
                line.extend(std::iter::repeat_n(' ', gap));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["NAME", "X"]);
        table.row(["a-long-name", "1"]);
        table.row(["ü", "22"]);
        table.row(["short"]);
        let text = table.render("nothing");
        assert_eq!(
            text,
            "NAME          X\na-long-name   1\nü             22\nshort\n"
        );
        table.filter(Some("22"));
        assert_eq!(table.render("nothing"), "NAME   X\nü      22\n");
        table.filter(Some("no"));
        assert_eq!(table.render("nothing"), "nothing\n");
    }
}

//! Plain tables for people: columns as wide as they need to be.

use crate::tame;

/// Prints a table with a header. Nothing is cut: a terminal wraps, a pipe wants everything. A cell is one line, whatever is in it.
pub fn print(header: &[&str], rows: &[Vec<String>]) {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| tame::line(cell)).collect()).collect();
    for line in lines(header, &rows) {
        println!("{line}");
    }
}

fn lines(header: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let head = line(header.to_vec());
    std::iter::once(head).chain(rows.iter().map(|row| line(row.iter().map(String::as_str).collect()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["zlib".to_owned(), "running".to_owned()], vec!["a-long-name".to_owned(), "ready".to_owned()]];
        assert_eq!(lines(&["JOB", "STATE"], &rows), ["JOB          STATE", "zlib         running", "a-long-name  ready"]);
    }
}

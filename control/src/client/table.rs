//! Aligned columns for people.

use std::io::{self, Write};

/// Which side of its column a cell stands at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Writes `rows` under `head`, two spaces between columns and none at the ends of lines.
///
/// # Errors
/// Where `out` cannot be written.
pub fn write(out: &mut impl Write, head: &[(&str, Align)], rows: &[Vec<String>]) -> io::Result<()> {
    let titles: Vec<String> = head.iter().map(|(t, _)| (*t).to_owned()).collect();
    let mut widths = vec![0; head.len()];
    for row in rows.iter().chain([&titles]) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in [&titles].into_iter().chain(rows) {
        let mut line = String::new();
        for ((cell, width), (_, align)) in row.iter().zip(&widths).zip(head) {
            let pad = " ".repeat(width - cell.chars().count());
            match align {
                Align::Left => line.extend([cell.as_str(), &pad]),
                Align::Right => line.extend([pad.as_str(), cell]),
            }
            line.push_str("  ");
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut out = Vec::new();
        let rows = [vec!["lan".to_owned(), "7".to_owned()], vec!["management".to_owned(), "12345".to_owned()]];
        write(&mut out, &[("NAME", Align::Left), ("RX", Align::Right)], &rows).expect("memory");
        let text = String::from_utf8(out).expect("text");
        assert_eq!(text, "NAME           RX\nlan             7\nmanagement  12345\n");
    }
}

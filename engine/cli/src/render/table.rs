//! Tables of text, columns as wide as their content.

/// Draws rows under a heading. Trailing blanks are left out.
pub fn draw(heading: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = heading.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let draw_row = |cells: Vec<&str>| {
        let padded: Vec<String> = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell}{}", " ".repeat(width.saturating_sub(cell.chars().count()))))
            .collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![draw_row(heading.to_vec())];
    lines.extend(rows.iter().map(|row| draw_row(row.iter().map(String::as_str).collect())));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_line_up() {
        let rows = vec![
            vec!["a".into(), "long cell".into(), String::new()],
            vec!["bcd".into(), "x".into(), "y".into()],
        ];
        assert_eq!(
            super::draw(&["ID", "NAME", "Z"], &rows),
            "ID   NAME       Z\na    long cell\nbcd  x          y"
        );
    }
}

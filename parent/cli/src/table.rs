//! Output: tables for people, JSON for programs.

use std::io::{self, ErrorKind, Write};

use comfy_table::{Cell, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::error::Error;

/// Prints bytes. A reader that closes the pipe early is no error.
pub fn print_bytes(bytes: &[u8]) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Prints a value as JSON.
pub fn print_json(value: &impl Serialize) -> Result<(), Error> {
    let mut text = serde_json::to_string_pretty(value).map_err(|e| Error::Protocol(e.to_string()))?;
    text.push('\n');
    print_bytes(text.as_bytes())
}

/// Prints rows under a header.
pub fn print_table<const N: usize>(header: [&str; N], rows: Vec<[String; N]>) -> Result<(), Error> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.map(|title| Cell::new(title.to_uppercase())));
    table.add_rows(rows.into_iter().map(|row| row.map(|text| printable(&text))));
    print_lines(&table)
}

/// Prints names with their values, one pair per line.
pub fn print_pairs(pairs: Vec<(&str, String)>) -> Result<(), Error> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.add_rows(pairs.into_iter().map(|(name, value)| [format!("{name}:"), printable(&value)]));
    print_lines(&table)
}

fn print_lines(table: &Table) -> Result<(), Error> {
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim());
        text.push('\n');
    }
    print_bytes(text.as_bytes())
}

/// A text in one line without anything that a terminal would obey: some of what is shown comes from guests.
pub fn printable(text: &str) -> String {
    text.replace(char::is_control, "\u{FFFD}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_obey_no_guest() {
        assert_eq!(printable("Debian 13 é"), "Debian 13 é");
        assert_eq!(printable("a\x1b[2Jb\r\n\u{9b}c\x7f"), "a\u{FFFD}[2Jb\u{FFFD}\u{FFFD}\u{FFFD}c\u{FFFD}");
    }
}

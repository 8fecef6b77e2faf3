//! Output on stdout: aligned tables and JSON. A reader that has gone away (`| head`) ends the
//! output quietly. Called by the subcommands that list something.

use std::io::Write;
use std::process::ExitCode;
use std::sync::OnceLock;

use haypile_service::error::Error;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why output could not be written, the first time.
static FAILURE: OnceLock<std::io::Error> = OnceLock::new();

/// Prints one line.
pub fn say(line: &str) {
    write(format!("{line}\n").as_bytes());
}

/// Prints bytes. False: nobody reads them, or they have no room.
pub fn write(bytes: &[u8]) -> bool {
    let mut output = std::io::stdout().lock();
    let written = output.write_all(bytes).and_then(|()| output.flush());
    written.map_err(note).is_ok()
}

fn note(error: std::io::Error) {
    // A closed pipe is the reader's choice and no failure of ours.
    if error.kind() != std::io::ErrorKind::BrokenPipe {
        let _: Result<(), std::io::Error> = FAILURE.set(error);
    }
}

/// The exit status of a command that has come to its end: failure, with a line that says so, if not all
/// of its output could be written.
pub fn end(code: ExitCode) -> ExitCode {
    let Some(error) = FAILURE.get() else { return code };
    eprintln!("haypile: write the output: {error}; what was written is not all");
    ExitCode::FAILURE
}

/// Prints one JSON object on one line.
pub fn print(value: &impl Serialize) {
    if let Ok(text) = serde_json::to_string(value) {
        say(&text);
    }
}

/// Reads the service's answer.
///
/// # Errors
/// When it is not of the expected shape.
pub fn parse<T: DeserializeOwned>(answer: serde_json::Value) -> Result<T, Error> {
    serde_json::from_value(answer).map_err(|error| {
        let remedy = "use the haypile command of the service's own version";
        Error::new("read the service's answer", error, remedy)
    })
}

/// Columns as wide as their widest cell; the columns named in `right` are right-aligned.
pub fn format(header: &[&str], rows: &[Vec<String>], right: &[usize]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let header: Vec<String> = header.iter().map(|cell| (*cell).to_string()).collect();
    for row in std::iter::once(&header).chain(rows) {
        let mut line = String::new();
        for (index, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let padded = if right.contains(&index) {
                format!("{cell:>width$}  ")
            } else {
                format!("{cell:<width$}  ")
            };
            line.push_str(&padded);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Prints a table.
pub fn show(header: &[&str], rows: &[Vec<String>], right: &[usize]) {
    say(format(header, rows, right).trim_end());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = vec![vec!["a".to_string(), "1".into()], vec!["long".into(), "12345".into()]];
        let text = format(&["name", "n"], &rows, &[1]);
        assert_eq!(text, "name      n\na         1\nlong  12345\n");
    }
}

//! The style ratchet: rules of STYLE.md that a tool can keep. A file or function that is already over a limit is listed
//! in `xtask/ratchet.txt` with its size and may shrink, never grow; nothing new may join the list.

use crate::steps::root;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const LINE_COLUMNS_MAX: usize = 120;
const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 70;
const UNSAFE_ALLOWED: &[&str] = &["crates/shm/", "crates/link/", "crates/shim/"];
/// Words that must not be in the sources, split so that this table does not name them itself.
const BANNED: &[(&str, &str)] = &[
    (concat!("to", "do!("), "finish it"),
    (concat!("unimpl", "emented!("), "finish it"),
    (concat!("db", "g!("), "remove it"),
    (concat!("FIX", "ME"), "fix it"),
    (concat!("#[ig", "nore"), "a test that never runs tests nothing"),
];

/// Compares the tree with the ratchet.
///
/// # Errors
/// Every breach, one a line.
pub fn run() -> Result<(), String> {
    let found = survey()?;
    let allowed = read_ratchet();
    let mut wrong = found.breaches;
    for (what, size) in &found.oversized {
        match allowed.get(what) {
            Some(limit) if size <= limit => {}
            Some(limit) => {
                wrong.push(format!("{what}: {size} lines, the ratchet holds it at {limit}"))
            }
            None => wrong.push(format!("{what}: {size} lines, over the limit: split it")),
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

/// Writes the ratchet anew; it can only lose entries or lower them.
///
/// # Errors
/// Breaches that no ratchet may hold, or a failure to write.
pub fn update() -> Result<(), String> {
    let found = survey()?;
    if !found.breaches.is_empty() {
        return Err(found.breaches.join("\n"));
    }
    let before = read_ratchet();
    let first = before.is_empty();
    let text: String = found
        .oversized
        .iter()
        .filter_map(|(what, size)| {
            let limit = before.get(what).map(|old| *old.min(size)).or(first.then_some(*size))?;
            Some(format!("{limit} {what}\n"))
        })
        .collect();
    fs::write(ratchet_path(), text).map_err(|error| format!("cannot write the ratchet: {error}"))
}

#[derive(Default)]
struct Survey {
    breaches: Vec<String>,
    oversized: BTreeMap<String, usize>,
}

fn ratchet_path() -> std::path::PathBuf {
    root().join("xtask/ratchet.txt")
}

fn read_ratchet() -> BTreeMap<String, usize> {
    let text = fs::read_to_string(ratchet_path()).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let (size, what) = line.split_once(' ')?;
            Some((what.to_string(), size.parse().ok()?))
        })
        .collect()
}

fn survey() -> Result<Survey, String> {
    let mut survey = Survey::default();
    for folder in ["crates", "xtask", "fuzz"] {
        walk(&root().join(folder), &mut survey)?;
    }
    Ok(survey)
}

fn walk(folder: &Path, survey: &mut Survey) -> Result<(), String> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                walk(&path, survey)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path)
                .map_err(|error| format!("{}: {error}", path.display()))?;
            let name = path.strip_prefix(root()).unwrap_or(&path).display().to_string();
            survey_file(&name, &text, survey);
        }
    }
    Ok(())
}

fn is_test_file(name: &str) -> bool {
    name.ends_with("tests.rs")
        || ["/tests/", "/benches/", "/examples/"].iter().any(|part| name.contains(part))
}

fn survey_file(name: &str, text: &str, survey: &mut Survey) {
    for (number, line) in text.lines().enumerate() {
        let place = format!("{name}:{}", number + 1);
        if line.chars().count() > LINE_COLUMNS_MAX {
            survey.breaches.push(format!("{place}: longer than {LINE_COLUMNS_MAX} columns"));
        }
        for (word, advice) in BANNED {
            if line.contains(word) {
                survey.breaches.push(format!("{place}: {word}: {advice}"));
            }
        }
    }
    if !text.starts_with("//!") && !text.starts_with("#!") {
        survey.breaches.push(format!("{name}: opens without saying what it owns and who calls it"));
    }
    let root_file = name.ends_with("src/lib.rs") || name.ends_with("src/main.rs");
    if root_file
        && !UNSAFE_ALLOWED.iter().any(|allowed| name.starts_with(allowed))
        && !text.contains("#![forbid(unsafe_code)]")
    {
        survey.breaches.push(format!("{name}: must forbid unsafe code"));
    }
    if is_test_file(name) {
        return;
    }
    let code_lines = text.lines().take_while(|line| *line != "mod tests {").count();
    if code_lines > FILE_LINES_MAX {
        survey.oversized.insert(name.to_string(), code_lines);
    }
    survey_functions(name, text, survey);
}

/// Measures functions by the indentation rustfmt gives: a body ends at the closing brace in the column of its `fn`.
fn survey_functions(name: &str, text: &str, survey: &mut Survey) {
    let lines: Vec<&str> = text.lines().take_while(|line| *line != "mod tests {").collect();
    for (start, line) in lines.iter().enumerate() {
        let Some(function) = function_name(line) else { continue };
        let indent = line.len() - line.trim_start().len();
        let end = lines[start..].iter().position(|candidate| {
            candidate.len() == indent + 1 && candidate.ends_with('}') && candidate.trim() == "}"
        });
        if let Some(length) = end.filter(|length| *length + 1 > FUNCTION_LINES_MAX) {
            survey.oversized.insert(format!("{name} fn {function}"), length + 1);
        }
    }
}

fn function_name(line: &str) -> Option<&str> {
    let mut words = line.trim_start().trim_end_matches(';').split_whitespace();
    if line.trim_end().ends_with(';') || line.trim_end().ends_with('}') {
        return None;
    }
    let modifiers = [
        "pub",
        "pub(crate)",
        "pub(super)",
        "const",
        "unsafe",
        "extern",
        "\"C\"",
        "\"C-unwind\"",
        "async",
    ];
    let mut word = words.next()?;
    while modifiers.contains(&word) {
        word = words.next()?;
    }
    if word != "fn" {
        return None;
    }
    words.next()?.split(['(', '<']).next()
}

#[cfg(test)]
mod tests {
    use super::{Survey, function_name, survey_file};

    #[test]
    fn finds_function_names() {
        assert_eq!(function_name("    pub fn handle_frame<T>("), Some("handle_frame"));
        assert_eq!(function_name("pub unsafe extern \"C\" fn read(fd: i32) {"), Some("read"));
        assert_eq!(function_name("    fn declared(&self);"), None);
        assert_eq!(function_name("let fn_pointer = 3;"), None);
    }

    #[test]
    fn a_long_function_and_a_long_line_are_found() {
        let body = "    let a = 1;\n".repeat(80);
        let wide = "x".repeat(130);
        let text = format!("//! Owns.\n/// Long.\nfn long() {{\n{body}}}\n// {wide}\n");
        let mut survey = Survey::default();
        survey_file("crates/engine/src/a.rs", &text, &mut survey);
        assert_eq!(survey.oversized.get("crates/engine/src/a.rs fn long"), Some(&82));
        assert_eq!(survey.breaches.len(), 1);
    }
}

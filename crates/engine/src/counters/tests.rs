//! Checks of the lists: texts are distinct, and every name is counted somewhere in the crate.

use super::*;
use std::collections::HashSet;
use std::path::Path;

/// All sources of the crate but tests and the two lists themselves.
fn sources(folder: &Path, out: &mut String) {
    for entry in std::fs::read_dir(folder).expect("source folder") {
        let path = entry.expect("folder entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            sources(&path, out);
        } else if name.ends_with(".rs")
            && !["tests.rs", "drop_reason.rs", "counters.rs"].contains(&name.as_str())
            && !path.components().any(|part| part.as_os_str() == "tests")
        {
            let text = std::fs::read_to_string(&path).expect("source file");
            out.push_str(text.split("mod tests {").next().unwrap_or_default());
        }
    }
}

fn mentions(text: &str, name: &str) -> bool {
    text.match_indices(name).any(|(at, _)| {
        !text[at + name.len()..].starts_with(|next: char| next.is_ascii_alphanumeric())
    })
}

#[test]
fn every_reason_and_counter_is_counted_somewhere() {
    let mut text = String::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut text);
    let reasons = DropReason::ALL.iter().map(|r| format!("DropReason::{}", r.name()));
    let counters = Counter::ALL.iter().map(|c| format!("Counter::{}", c.name()));
    let idle: Vec<String> = reasons.chain(counters).filter(|n| !mentions(&text, n)).collect();
    assert!(idle.is_empty(), "nothing counts {idle:?}");
}

#[test]
fn texts_are_distinct() {
    let mut seen = HashSet::new();
    for text in
        DropReason::ALL.iter().map(|r| r.text()).chain(Counter::ALL.iter().map(|c| c.text()))
    {
        assert!(seen.insert(text), "{text} twice");
    }
}

#[test]
fn totals_add_up() {
    let mut counters = Counters::new();
    counters.drop_frame(DropReason::TcpMalformed);
    counters.drop_frame(DropReason::TcpMalformed);
    counters.drop_frame(DropReason::ArpMalformed);
    counters.add(Counter::BytesSent, 7);
    assert_eq!(counters.dropped(DropReason::TcpMalformed), 2);
    assert_eq!(counters.dropped_total(), counters.drops().map(|(_, n)| n).sum::<u64>());
    assert_eq!(counters.iter().map(|(_, n)| n).sum::<u64>(), 7);
}

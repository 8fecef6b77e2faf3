//! The house's arrows: which crate may use which. Anything else is refused, so that data keeps flowing one way.
//! The table is the one of ARCHITECTURE.md, "The house".

use crate::metadata;

/// User crate, and the crates of ours that it may use. Development dependencies count too, except on `haypile-sim`.
const ALLOWED: &[(&str, &[&str])] = &[
    ("haypile-engine", &[]),
    ("haypile-shm", &[]),
    ("haypile-link", &["haypile-engine", "haypile-shm"]),
    ("haypile-service", &["haypile-engine", "haypile-shm", "haypile-link"]),
    ("haypile-client", &["haypile-shm"]),
    ("haypile-shim", &["haypile-client", "haypile-shm"]),
    ("haypile-sim", &["haypile-engine"]),
    ("haypile-bench", &["haypile-engine", "haypile-link", "haypile-shm"]),
    ("haypile-cost", &["haypile-engine", "haypile-link", "haypile-service", "haypile-shm"]),
    ("haypile", &["haypile-service", "haypile-link", "haypile-shm", "haypile-bench"]),
    ("xtask", &[]),
];

/// Fails on any arrow that `ALLOWED` does not have.
///
/// # Errors
/// Every forbidden arrow, one a line.
pub fn run() -> Result<(), String> {
    let metadata = metadata::load()?;
    let mut wrong = Vec::new();
    for package in metadata::packages(&metadata).filter(|package| metadata::is_ours(package)) {
        let user = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == user) else {
            wrong.push(format!("{user} is not in xtask/src/arrows.rs: say what it may use"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let used = dependency["name"].as_str().unwrap_or_default();
            let ours = ALLOWED.iter().any(|(name, _)| *name == used);
            if ours && !allowed.contains(&used) {
                wrong.push(format!("{user} -> {used} is not an arrow of the house"));
            }
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

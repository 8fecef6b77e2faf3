//! Licences of everything that is linked: each must be usable under MIT OR Apache-2.0.

use crate::metadata;

/// Licence identifiers that may appear; an expression passes when one of its OR branches has only these.
const ACCEPTED: &[&str] = &[
    "MIT",
    "Apache-2.0",
    "0BSD",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "Unlicense",
    "Unicode-3.0",
    "CC0-1.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSL-1.0",
];

/// Fails on a package whose licence is missing or not accepted.
///
/// # Errors
/// Every such package with its licence, one a line.
pub fn run() -> Result<(), String> {
    let metadata = metadata::load()?;
    let wrong: Vec<String> = metadata::packages(&metadata)
        .filter_map(|package| {
            let licence = package["license"].as_str().unwrap_or("none");
            (!accepted(licence)).then(|| format!("{}: licence '{licence}'", package["name"]))
        })
        .collect();
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

/// True when one alternative of the expression consists of accepted licences alone.
fn accepted(expression: &str) -> bool {
    let flat = expression.replace(['(', ')'], "").replace('/', " OR ");
    flat.split(" OR ")
        .any(|branch| branch.split(" AND ").all(|licence| ACCEPTED.contains(&licence.trim())))
}

#[cfg(test)]
mod tests {
    use super::accepted;

    #[test]
    fn alternatives_and_conjunctions() {
        assert!(accepted("MIT OR Apache-2.0"));
        assert!(accepted("MIT/Apache-2.0"));
        assert!(accepted("GPL-3.0 OR MIT"));
        assert!(accepted("(MIT OR Apache-2.0) AND Unicode-3.0"));
        assert!(!accepted("GPL-3.0"));
        assert!(!accepted("MIT AND GPL-2.0"));
        assert!(!accepted("none"));
    }
}

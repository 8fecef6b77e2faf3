//! What `cargo metadata` says of the workspace. Used by `arrows` and `licences`.

use crate::steps::root;
use serde_json::Value;
use std::process::Command;

/// The parsed answer of `cargo metadata`.
///
/// # Errors
/// What cargo said when it could not answer.
pub fn load() -> Result<Value, String> {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--all-features"])
        .current_dir(root())
        .output()
        .map_err(|error| format!("cannot start cargo metadata: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr)));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("cargo metadata: {error}"))
}

/// The packages of the answer.
pub fn packages(metadata: &Value) -> impl Iterator<Item = &Value> {
    metadata["packages"].as_array().into_iter().flatten()
}

/// True for a package of this workspace (those have no source).
pub fn is_ours(package: &Value) -> bool {
    package["source"].is_null()
}

//! Builds the preload library with a target folder of its own, so that the binary can embed it and
//! one file is the whole product (see docs/decisions/0003-one-file-product.md).

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

const LIBRARY: &str = "libhaypile_shim.so";
/// Names a preload library that was built apart, for packagers who build every crate themselves.
const PREBUILT: &str = "HAYPILE_PREBUILT_SHIM";

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let workspace = manifest.join("../..");
    for part in ["shim", "client", "shm"] {
        for file in ["src", "Cargo.toml"] {
            println!(
                "cargo::rerun-if-changed={}",
                manifest.join("..").join(part).join(file).display()
            );
        }
    }
    println!("cargo::rerun-if-changed={}", workspace.join("Cargo.lock").display());
    println!("cargo::rerun-if-changed={}", manifest.join("build.rs").display());
    println!("cargo::rerun-if-env-changed={PREBUILT}");
    if let Some(library) = env::var_os(PREBUILT) {
        std::fs::copy(&library, out.join(LIBRARY)).expect("copy the prebuilt preload library");
        return;
    }
    // Offline first: a build must not need a network when everything is there.
    let built = build(&workspace, &out, &["--locked", "--offline"])
        .or_else(|_| build(&workspace, &out, &["--locked"]));
    match built {
        Ok(library) => {
            std::fs::copy(&library, out.join(LIBRARY)).expect("copy the preload library");
        }
        Err(log) => panic!("cannot build haypile-shim, the preload library:\n{log}"),
    }
}

/// Runs cargo for the shim; the library's path, or what cargo said.
fn build(workspace: &Path, out: &Path, flags: &[&str]) -> Result<PathBuf, String> {
    let target_folder = out.join("shim");
    let mut command = Command::new(env::var_os("CARGO").expect("set by cargo"));
    for (name, _) in env::vars_os() {
        if belongs_to_outer_build(&name) {
            command.env_remove(name);
        }
    }
    command.current_dir(workspace).args(["build", "--release", "--package", "haypile-shim"]);
    command.args(flags).arg("--target-dir").arg(&target_folder);
    let (target, host) = (env::var("TARGET").ok(), env::var("HOST").ok());
    let mut library = target_folder;
    if let Some(target) = target.filter(|target| Some(target) != host.as_ref()) {
        command.args(["--target", &target]);
        library.push(target);
    }
    let output = command.output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(library.join("release").join(LIBRARY));
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Variables that cargo, clippy or coverage tools set for this build and that would change, or
/// pointlessly rebuild, the inner one. Settings of the user's environment (CARGO_HOME, proxies,
/// registries) stay.
fn belongs_to_outer_build(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let prefixes = [
        "CARGO_BUILD_",
        "CARGO_CFG_",
        "CARGO_ENCODED_",
        "CARGO_FEATURE_",
        "CARGO_LLVM_COV",
        "CARGO_MANIFEST_",
        "CARGO_PKG_",
        "CARGO_PROFILE_",
        "CLIPPY_",
        "DEP_",
        "LLVM_PROFILE",
        "RUSTC",
        "RUSTDOC",
    ];
    let names = [
        "CARGO_INCREMENTAL",
        "CARGO_MAKEFLAGS",
        "CARGO_PRIMARY_PACKAGE",
        "CARGO_TARGET_DIR",
        "DEBUG",
        "HOST",
        "MAKEFLAGS",
        "MFLAGS",
        "NUM_JOBS",
        "OPT_LEVEL",
        "OUT_DIR",
        "PROFILE",
        "RUSTFLAGS",
        "TARGET",
    ];
    prefixes.iter().any(|prefix| name.starts_with(prefix)) || names.contains(&name.as_ref())
}

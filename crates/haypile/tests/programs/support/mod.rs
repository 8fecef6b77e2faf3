//! What the tests share: the stage (a namespace and its clean-up), processes, files with a pattern, HTTP
//! clients and the questions that tests ask of the service.

pub mod content;
pub mod held;
pub mod http;
pub mod inspect;
pub mod nginx;
pub mod process;
pub mod random;
pub mod stage;

use std::env;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// The longest that anything without a limit of its own may take on a slow and busy machine. What
/// happens is waited for, so that a long limit costs time only when a test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Looks every few milliseconds until `look` finds something; the test fails when `limit` has passed.
#[track_caller]
pub fn wait_until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < limit, "waited {limit:?} in vain until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Prints a line that `cargo test` shows for tests that pass too.
pub fn say(test: &str, text: &str) {
    // A closed standard error is no reason to fail.
    drop(writeln!(io::stderr(), "    {test}: {text}"));
}

/// A number from the environment, for acceptance runs that are larger than those of every day.
pub fn setting(name: &str, default: u64) -> u64 {
    match env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is not a number: '{text}'")),
        Err(_) => default,
    }
}

/// Where a program is, looked for in PATH and in the system folders that users' paths leave out.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(system)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// The python that `python3` stands for, without the shell scripts that version managers put in front of
/// it: tests send signals to python itself.
pub fn python() -> &'static str {
    static PYTHON: OnceLock<String> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let question = ["-c", "import sys; print(sys.executable)"];
        let output = std::process::Command::new("python3").args(question).output();
        let path = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_string());
        path.ok().filter(|path| !path.is_empty()).unwrap_or_else(|| "python3".to_string())
    })
}

/// The path of one of the python programs that lie beside these tests.
pub fn script(name: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/scripts/");
    format!("{folder}{name}")
}

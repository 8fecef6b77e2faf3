//! Cache misses of a short connection by size of private caches, all components of a server on one
//! core and each on a core of its own (PIKA, figure 12), over the fixed trace behind docs/cost.md.
//! Needs valgrind and `haypile-cost`. Called by `run`.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use super::{draw, publish};
use crate::cache::elf;
use crate::cache::trace::{Entries, Follower, SIZES};
use crate::options::Options;
use crate::plot::{Plot, Scale};
use crate::report::{Report, Table, show};
use crate::stage::find_program;

const SCENARIO: &str = "short-connection";
/// Connections of the trace.
const CONNECTIONS: usize = 640;
/// When it has to be quick.
const CONNECTIONS_QUICK: usize = 64;
/// Where Lackey's lines come out.
const TRACE_NAME: &str = "trace";

/// Runs the trace and counts.
///
/// # Errors
/// Without valgrind or `haypile-cost`.
pub fn run(options: &Options, report: &mut Report) -> Result<(), String> {
    let valgrind = find_program("valgrind")
        .ok_or("valgrind is not installed; install Debian's package valgrind")?;
    let program = beside_us("haypile-cost")?;
    let connections = if options.quick { CONNECTIONS_QUICK } else { CONNECTIONS };
    let image =
        std::fs::read(&program).map_err(|error| format!("{}: {error}", program.display()))?;
    let turn = where_a_turn_begins(&valgrind, &program)?;
    let mut follower = Follower::new(Entries::find(&elf::functions(&image), turn)?);
    eprintln!("tracing {connections} short connections under valgrind, some minutes ...");
    let done = follow(&valgrind, &program, connections, &mut follower)?;
    let (misses, share) = follower.second_half().ok_or("the trace has no turns")?;
    let each = 1.0 / (done as f64 * share);
    let mut rows = Vec::new();
    let mut figures = Vec::new();
    let mut lines: [Vec<(f64, f64)>; 4] = Default::default();
    for (size, misses) in SIZES.iter().zip(&misses) {
        let figure =
            [misses.instructions[0], misses.instructions[1], misses.data[0], misses.data[1]]
                .map(|count| count as f64 * each);
        let kib = (size >> 10) as f64;
        lines.iter_mut().zip(figure).for_each(|(line, value)| line.push((kib, value)));
        let mut row = vec![format!("{kib} KiB")];
        row.extend(figure.map(show));
        rows.push(row);
        figures.push(json!({ "bytes": size, "misses_each": figure }));
    }
    let names = ["instructions, combined", "instructions, split", "data, combined", "data, split"];
    let mut plots = Plot::lines(
        "Misses for each short connection by size of cache (paper: figure 12)",
        "counted over a fixed trace; 8-way, lines of 64 bytes, instructions and data apart",
        ["size of each cache, KiB", "misses for each connection"],
        [Scale::Log, Scale::Linear],
    );
    for (name, line) in names.iter().zip(lines) {
        plots.add(name, line);
    }
    let mut header = vec!["cache".to_string()];
    header.extend(names.map(str::to_string));
    let of = follower.instructions.map(|count| show(count as f64 / done as f64));
    report.notes.push(format!(
        "instructions of a connection: link server {}, transport server {}, connection manager {}; split: \
         caches of their own for each of the three, without the messages that a split plan sends",
        of[0], of[1], of[2]
    ));
    publish(
        report,
        Table {
            title: format!(
                "counted: cache misses for each of {} short connections, combined (TS1LS1CM1) and split \
             (TS1+LS1+CM1) (paper: figure 12)",
                (done as f64 * share).round()
            ),
            header,
            rows,
            figures: json!(figures),
        },
    );
    draw(options, report, "figure-12-cache", &plots)
}

/// A program of the same build, in the folder of this one.
fn beside_us(name: &str) -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| format!("cannot find myself: {error}"))?;
    let path = own.with_file_name(name);
    match path.is_file() {
        true => Ok(path),
        false => Err(format!(
            "{} is not there; build it: cargo build --release -p {name}",
            path.display()
        )),
    }
}

/// The address of the function that is a turn, as the program is loaded under valgrind.
fn where_a_turn_begins(valgrind: &Path, program: &Path) -> Result<u64, String> {
    let output = Command::new(valgrind)
        .args(["--tool=lackey", "-q"])
        .arg(program)
        .arg("where")
        .stderr(Stdio::null())
        .output()
        .map_err(|error| format!("cannot run valgrind: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim()
        .parse()
        .map_err(|_| "haypile-cost does not say where a turn begins; build it anew".into())
}

/// Runs the trace through the follower; how many connections there were.
fn follow(
    valgrind: &Path,
    program: &Path,
    connections: usize,
    follower: &mut Follower,
) -> Result<u64, String> {
    let fail = |error: std::io::Error| format!("cannot trace: {error}");
    let folder = std::env::temp_dir().join(format!("haypile-cache-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(fail)?;
    let counts = folder.join(TRACE_NAME);
    let result = (|| {
        // Lackey's lines come by standard error; what the program says goes to a file.
        let mut child = Command::new(valgrind)
            .args(["--tool=lackey", "--trace-mem=yes"])
            .arg(program)
            .args(["count", SCENARIO, &connections.to_string()])
            .stdout(File::create(&counts).map_err(fail)?)
            .stderr(Stdio::piped())
            .spawn()
            .map_err(fail)?;
        let lines = child.stderr.take().ok_or("valgrind has no output")?;
        let followed = follower.follow(BufReader::with_capacity(1 << 20, lines)).map_err(fail);
        let status = child.wait().map_err(fail)?;
        followed?;
        let text = std::fs::read_to_string(&counts).map_err(fail)?;
        let said: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        said["operations"]
            .as_u64()
            .filter(|count| *count > 0 && status.success())
            .ok_or_else(|| format!("haypile-cost under valgrind failed: {status}"))
    })();
    drop(std::fs::remove_dir_all(&folder));
    result
}

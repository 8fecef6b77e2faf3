//! The load generator measured: against a responder on the loopback interface that is busy for a known time with each
//! request, and against one that is not busy at all, for its own ceiling. Called by `run`.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;

use super::{place, say};
use crate::cores::Core;
use crate::load::generator;
use crate::load::kernel::Sockets;
use crate::load::{Outcome, Pace, Spec, Work};
use crate::options::Options;
use crate::parts::Part;
use crate::process::{Launcher, Place, Process};
use crate::report::{NamedCores, Report, Table, format_table, show};
use crate::statistics;

/// Service times, microseconds; 0: as fast as it can.
const SERVICE_US: &[u64] = &[0, 100, 1000];
const CONNECTIONS: &[usize] = &[1, 16];
const BODY_BYTES: usize = 128;

/// Measures all combinations.
///
/// # Errors
/// What does not work, in one line.
pub fn run(options: &Options, topology: &[Core], report: &mut Report) -> Result<(), String> {
    let cores = place(options, topology, options.placement)?;
    let mut launcher = Launcher::new()?;
    let mut rows = Vec::new();
    let mut figures = Vec::new();
    for service_us in SERVICE_US {
        let place = Place { namespace: None, cores: cores.program.clone() };
        let (address, responder) = start(&mut launcher, &place, *service_us)?;
        for connections in CONNECTIONS {
            let outcomes = measure(options, address, *connections, &cores.client)?;
            let (row, figure) = describe(*service_us, *connections, &outcomes);
            rows.push(row);
            figures.push(figure);
        }
        drop(responder);
    }
    let header =
        ["service time", "connections", "requests/s", "at most", "p50, us", "at least", "p99, us"];
    let table = Table {
        title: "the load generator against a responder of known service time, kept connections, loopback".into(),
        header: header.map(str::to_string).to_vec(),
        rows,
        figures: json!(figures),
    };
    say(&format!("\n{}\n{}", table.title, format_table(&table.header, &table.rows)));
    report.tables.push(table);
    report.cores.push(NamedCores { name: "generator".into(), cores });
    Ok(())
}

/// Starts a responder on a free port.
fn start(
    launcher: &mut Launcher,
    place: &Place,
    service_us: u64,
) -> Result<(SocketAddr, Process), String> {
    let free =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let address = free.map_err(|error| format!("cannot listen on loopback: {error}"))?;
    let part = Part::Respond { address, workers: 1, service_us, polling: false };
    let words = part.words(launcher.program());
    let mut responder = launcher.start("responder", place, &words, false)?;
    let started = std::time::Instant::now();
    while std::net::TcpStream::connect(address).is_err() {
        responder.assert_alive()?;
        if started.elapsed() > Duration::from_secs(10) {
            return Err("the responder does not answer".into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok((address, responder))
}

/// The rounds of one combination, on a thread of the client's core.
fn measure(
    options: &Options,
    target: SocketAddr,
    connections: usize,
    cores: &[usize],
) -> Result<Vec<Outcome>, String> {
    let spec = Spec {
        target,
        work: Work::KeepAlive,
        pace: Pace::Closed,
        connections,
        warmup_s: options.warmup_s,
        duration_s: options.duration_s,
        polling: false,
        body_bytes: BODY_BYTES,
    };
    let round = || -> Result<Outcome, String> {
        haypile_shm::sys::set_affinity(cores)
            .map_err(|errno| format!("cannot run on {cores:?}: {errno}"))?;
        let mut sockets =
            Sockets::new(target, connections, false).map_err(|error| error.to_string())?;
        generator::run(&spec, &mut sockets, &mut ()).map_err(|error| error.to_string())
    };
    let on_its_core = |_| {
        std::thread::scope(|scope| {
            scope.spawn(round).join().map_err(|_| "the generator broke".to_string())?
        })
    };
    eprintln!("generator: {connections} connections");
    (0..options.repeat.max(1)).map(on_its_core).collect()
}

fn describe(
    service_us: u64,
    connections: usize,
    outcomes: &[Outcome],
) -> (Vec<String>, serde_json::Value) {
    let median = |value: &dyn Fn(&Outcome) -> f64| {
        statistics::median(&outcomes.iter().map(value).collect::<Vec<_>>()).unwrap_or(f64::NAN)
    };
    let rate = median(&Outcome::rate);
    let quantile =
        |share: f64| median(&|outcome| outcome.histogram().quantile_ns(share) as f64 / 1000.0);
    let (p50_us, p99_us) = (quantile(0.5), quantile(0.99));
    // One server: its capacity is the inverse of its service time, and by Little's law the rest waits.
    let (most, least) = match service_us {
        0 => ("-".to_string(), "-".to_string()),
        us => (show(1e6 / us as f64), show((us * connections as u64) as f64)),
    };
    let name = if service_us == 0 { "none".to_string() } else { format!("{service_us} us") };
    let row =
        vec![name, connections.to_string(), show(rate), most, show(p50_us), least, show(p99_us)];
    let figure = json!({
        "service_us": service_us,
        "connections": connections,
        "rate": rate,
        "p50_us": p50_us,
        "p99_us": p99_us,
    });
    (row, figure)
}

//! `haypile balance`: how connections are shared among applications, and by which rules; changes the
//! rules of a running service. Called by `main`; the service makes the rows.

use std::process::ExitCode;
use std::time::Duration;

use haypile_service::balance::{AcceptorRow, BalanceReport, ManagerRow, QueueRow};
use haypile_service::config::BalanceChange;
use haypile_service::control::Request;
use haypile_service::error::Error;
use haypile_service::times::TimesRow;

use crate::asking::ask;
use crate::cli::BalanceArgs;
use crate::{place, table};

/// Time between two looks of `--watch`.
const INTERVAL: Duration = Duration::from_secs(1);

/// Changes what is given, and prints how things are.
///
/// # Errors
/// When a word or number is wrong, or no service answers.
pub fn run(arguments: &BalanceArgs) -> Result<ExitCode, Error> {
    let directory = place::directory_of(&arguments.control)?;
    let mut change = BalanceChange {
        scheme: arguments.scheme.clone(),
        tariff: arguments.tariff,
        estimator: arguments.estimator.clone(),
        high_watermark: arguments.high_watermark,
        low_watermark: arguments.low_watermark,
    };
    loop {
        let answer = ask(&directory, &Request::Balance { change: change.clone() })?;
        let report: BalanceReport = table::parse(answer)?;
        if arguments.json {
            table::print(&report)
        } else {
            show(&report)
        }
        if !arguments.watch {
            return Ok(ExitCode::SUCCESS);
        }
        change = BalanceChange::default();
        std::thread::sleep(INTERVAL);
    }
}

fn show(report: &BalanceReport) {
    for manager in &report.managers {
        table::say(&heading(manager));
        table::say(&format!(
            "  assigned {} local, {} remote; offers {} sent, {} received; {} not claimed in time",
            manager.local,
            manager.remote,
            manager.offers_sent,
            manager.offers_received,
            manager.timed_out
        ));
        table::say(&format!("  {}", times(&manager.times)));
    }
    let rows: Vec<Vec<String>> = report
        .managers
        .iter()
        .flat_map(|manager| manager.queues.iter().flat_map(|queue| rows(manager.manager, queue)))
        .collect();
    table::say("");
    let header = [
        "Manager",
        "Queue",
        "Waiting",
        "From",
        "Process",
        "Program",
        "Estimate us",
        "Unclaimed",
        "Open",
        "Assigned",
        "Share %",
        "State",
    ];
    table::show(&header, &rows, &[0, 2, 6, 7, 8, 9, 10]);
}

fn heading(manager: &ManagerRow) -> String {
    let word = |word: &Option<String>| word.clone().unwrap_or_default();
    let number = |number: Option<f64>| number.unwrap_or_default();
    let BalanceChange { scheme, tariff, estimator, high_watermark, low_watermark } =
        &manager.balance;
    format!(
        "manager {}: {}, tariff {}, watermarks {} and {}, estimator {}",
        manager.manager,
        word(scheme),
        number(*tariff),
        number(*high_watermark),
        number(*low_watermark),
        word(estimator)
    )
}

/// Shares of the time since the start, as the paper's table 3 has them.
fn times(times: &TimesRow) -> String {
    let share = |us: f64| 100.0 * us / times.uptime_us.max(1) as f64;
    let waited_us = times.assigning_us / times.assigned.max(1) as f64;
    format!(
        "of its server's time {:.2} % busy, {:.4} % connection manager, {:.4} % messages between servers, \
         {:.4} % offers; from handshake to offer {waited_us:.1} us",
        share(times.busy_us as f64),
        share(times.manager_us),
        share(times.messages_us),
        share(times.offers_us),
    )
}

fn rows(manager: u16, queue: &QueueRow) -> Vec<Vec<String>> {
    let row = |acceptor: &AcceptorRow| {
        vec![
            manager.to_string(),
            queue.queue.clone(),
            queue.waiting.to_string(),
            acceptor.offered_by.map_or("here".into(), |from| format!("manager {from}")),
            acceptor.pid.map_or_else(|| acceptor.name.clone(), |pid| pid.to_string()),
            acceptor.program.clone().unwrap_or_default(),
            acceptor.estimate_us.map_or("-".into(), |cost| cost.to_string()),
            acceptor.unclaimed.to_string(),
            acceptor.open.to_string(),
            acceptor.assigned.to_string(),
            format!("{:.1}", acceptor.share * 100.0),
            if acceptor.ready { "ready" } else { "away" }.to_string(),
        ]
    };
    queue.acceptors.iter().map(row).collect()
}

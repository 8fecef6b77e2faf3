//! The shape of reports, from made-up runs.

use super::*;
use crate::cores::{Placement, choose};
use crate::load::{Outcome, Spec};
use crate::options::{ClientKind, Experiment, LinkKind};
use crate::processor_time::{CoreTime, Use, Used};

fn options() -> Options {
    Options {
        experiment: Experiment::Http,
        against_linux: true,
        link: LinkKind::Tap,
        client: ClientKind::Sockets,
        wires: None,
        repeat: 3,
        duration_s: 1.0,
        warmup_s: 0.5,
        tuned: false,
        server: None,
        connections: vec![16],
        rate: None,
        size: None,
        congestion: "cubic".into(),
        placement: Placement::Shared,
        cores: None,
        retries: 1,
        json: None,
        plots: None,
        quick: false,
        only: None,
        costs: None,
        seed: None,
        plans: Vec::new(),
    }
}

fn run(completed: u64, latency_us: u64, failed: u64) -> Run {
    let mut latencies = Latencies::new();
    (0..completed).for_each(|_| latencies.record(latency_us * 1000));
    let core = CoreTime { user_s: 0.5, system_s: 0.25, ..CoreTime::default() };
    Run {
        outcome: Outcome {
            seconds: 1.0,
            completed,
            failed,
            errors: if failed > 0 { vec!["reset".into()] } else { Vec::new() },
            latencies: latencies.pack(),
            ..Outcome::default()
        },
        used: Use {
            cores: [(0, core), (1, core), (2, core)].into(),
            parts: vec![Used { user_s: 0.2, system_s: 0.1 }, Used { user_s: 0.1, system_s: 0.2 }],
            others_s: 0.0,
            steal_s: 0.0,
        },
        parts: vec!["client".into(), "program".into()],
        disturbed: None,
        servers: None,
    }
}

fn case(failed: u64) -> Case {
    let spec = Spec {
        target: "198.18.0.2:8080".parse().expect("an address"),
        work: Work::Short,
        pace: Pace::Closed,
        connections: 16,
        warmup_s: 0.5,
        duration_s: 1.0,
        polling: false,
        body_bytes: 100,
    };
    Case {
        title: "short connections".into(),
        spec,
        sides: vec!["haypile", "linux"],
        runs: vec![
            vec![run(2000, 50, 0), run(3000, 60, failed), run(4000, 70, 0)],
            vec![run(1000, 100, 0), run(1000, 100, 0), run(1000, 100, 0)],
        ],
        rejected: 1,
    }
}

#[test]
fn a_case_has_medians_and_paired_ratios() {
    let report = CaseReport::new(&case(0), &[0, 1]);
    let haypile = &report.sides[0];
    assert_eq!(haypile.summary["rate"].median, 3000.0);
    assert_eq!((report.ratios["rate"].low, report.ratios["rate"].high), (2.0, 4.0));
    assert!((report.ratios["p50_us"].median - 0.6).abs() < 0.01);
    // 0.6 s of parts for 3000 connections, 1.5 s of two cores.
    assert!((haypile.summary["parts_cpu_us"].median - 200.0).abs() < 1e-6);
    assert!((haypile.summary["cores_cpu_us"].median - 500.0).abs() < 1e-6);
    assert!((haypile.parts_cpu_us["client"] - 100.0).abs() < 1e-6);
    assert_eq!(haypile.latency.count, 9000);
}

#[test]
fn tables_name_units_and_failures() {
    let table = CaseReport::new(&case(7), &[0, 1]).table();
    for word in [
        "connections/s",
        "latency p99, us",
        "3,000 [2,000 .. 4,000]",
        "! 7 requests failed",
        "reset",
        "1 disturbed",
    ] {
        assert!(table.contains(word), "no '{word}' in\n{table}");
    }
}

#[test]
fn the_report_is_one_json_object_with_everything() {
    let topology = crate::cores::read().expect("sysfs");
    let mut report = Report::new(&options(), topology.clone(), Noise::default());
    report.cores.push(NamedCores {
        name: "http".into(),
        cores: choose(&topology, Placement::Shared, false),
    });
    report.cases.push(CaseReport::new(&case(0), &[0, 1]));
    let folder = std::env::temp_dir().join(format!("haypile-bench-report-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let path = folder.join("report.json");
    report.write(&path).expect("written");
    let text = std::fs::read_to_string(&path).expect("read");
    std::fs::remove_dir_all(&folder).expect("removed");
    let value: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(value["format"], FORMAT);
    assert_eq!(value["options"]["congestion"], "cubic");
    assert_eq!(value["cases"][0]["sides"][1]["name"], "linux");
    assert_eq!(value["cases"][0]["sides"][0]["runs"][0]["completed"], 2000);
    assert_eq!(value["cases"][0]["ratios"]["rate"]["median"], 3.0);
    for key in ["machine", "noise", "topology", "cores", "version", "interval_method"] {
        assert!(!value[key].is_null(), "{key}");
    }
    assert!(!value["machine"]["kernel"].as_str().expect("a text").is_empty());
    // Histograms stay out.
    assert!(text.len() < 60_000, "{}", text.len());
}

#[test]
fn numbers_have_about_three_digits() {
    let shown = [1234567.8, 999.4, 123.4, 12.34, 1.234, 0.1234, 0.0].map(show);
    assert_eq!(shown, ["1,234,568", "999", "123", "12.3", "1.23", "0.123", "0.00"]);
}

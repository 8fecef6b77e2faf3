//! Nonsense from the wire: the service counts it, drops it, and goes on serving.

use crate::support::random::Random;
use crate::support::stage::{INTERFACE, on_stage, service};
use crate::support::{content, http, inspect, nginx, python, script};
use std::time::Duration;

#[test]
fn nonsense_from_the_wire_is_counted_and_dropped() {
    let needs = ["nginx", "python3", "curl"];
    on_stage("nonsense_from_the_wire_is_counted_and_dropped", &needs, |stage| {
        content::write(&stage.served("page"), 100_000);
        let mut service_process = stage.serve();
        let _server = nginx::start(stage, 8080);
        let url = http::url(service(8080), "page");
        http::fetch(stage, &url, &stage.path("fetched"), 60);
        let mut random = Random::for_test(14);
        let mut last = inspect::drops(stage);
        let first = last;
        for _ in 0..3 {
            let seed = random.below(1 << 31).to_string();
            let program = script("hostile_frames.py");
            let words =
                [python(), &program, INTERFACE, "198.18.0.2", "198.18.0.1", "8080", &seed, "500"];
            let sent = stage.output(&words, Duration::from_secs(60));
            sent.expect_success(&format!("hostile frames with seed {seed}"));
            service_process.assert_alive();
            http::fetch(stage, &url, &stage.path("fetched"), 60);
            content::assert_same(&stage.served("page"), &stage.path("fetched"));
            let now = inspect::drops(stage);
            assert!(now > last, "nothing was counted (seed {seed})");
            last = now;
        }
        stage.say(&format!("{} frames counted as dropped", last - first));
    });
}

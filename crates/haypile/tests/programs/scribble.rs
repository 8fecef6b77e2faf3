//! A hostile application that writes over all the memory it shares with the service: the service lives, and nobody else
//! loses anything.

use crate::support::random::Random;
use crate::support::stage::{on_stage, service};
use crate::support::{content, http, inspect, nginx, python, script};
use std::thread;
use std::time::{Duration, Instant};

const ROUNDS: &str = "20000";
const SCRIBBLERS: usize = 5;
/// How long each may go on: its own calls may well wait for ever on what it wrote.
const SCRIBBLING: Duration = Duration::from_secs(2);

#[test]
fn a_scribbler_hurts_itself_alone() {
    let needs = ["nginx", "python3", "curl"];
    let name = "a_scribbler_hurts_itself_alone";
    on_stage(name, &needs, |stage| {
        content::write(&stage.served("page"), 100_000);
        let mut service_process = stage.serve();
        let _server = nginx::start(stage, 8080);
        let load = http::Load::start(2, service(8080), "page", 100_000);
        let mut random = Random::for_test(16);
        for _ in 0..SCRIBBLERS {
            let seed = random.below(1 << 31).to_string();
            let program = script("scribbler.py");
            let words = [python(), &program, &seed, ROUNDS, "198.18.0.2", "8080"];
            let mut hostile = stage.run(&words);
            hostile.wait_for_output("scribbling");
            // However it ends, by itself or by a signal, is its own affair; that it hangs too.
            let pid = hostile.pid();
            let started = Instant::now();
            let mut ended = hostile.ended();
            while ended.is_none() && started.elapsed() < SCRIBBLING {
                thread::sleep(Duration::from_millis(5));
                ended = hostile.ended();
            }
            hostile.kill_group();
            inspect::wait_until_disowned(stage, pid);
            service_process.assert_alive();
            stage.say(&format!("scribbler with seed {seed}: {ended:?}"));
        }
        let outcome = load.stop();
        let harm = outcome.broken + outcome.silent + outcome.unconnected + outcome.wrong;
        assert_eq!(harm, 0, "others were hurt: {outcome:?}");
        stage.say(&format!("{} requests of others meanwhile, all right", outcome.right));
    });
}

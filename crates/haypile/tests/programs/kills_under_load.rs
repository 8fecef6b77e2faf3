//! Random kills under load: clients, workers, servers of datagrams, server processes and supervisors die by -9, some
//! processes are stopped for a moment, and listeners are opened and closed all the while. Whoever was not killed
//! lives on or hears a clear error, requests are answered again, and nothing leaks: interfaces, processes,
//! descriptors, mappings, memory, sockets, files. Under plans of one server and of several.
//!
//! Connections move from server to server all the while, where there are several, and now and then the plan of combined
//! servers grows or shrinks by one.
//!
//! `HAYPILE_E2E_KILLS=100 HAYPILE_E2E_SEED=7` chooses how many and which, `HAYPILE_E2E_MINUTES=60` ends earlier. The
//! load is in `kills_under_load/load.rs`, the programs are `scripts/under_fire.py`, who dies and what that explains is
//! in `kills_under_load/victims.rs`, how the plan changes in `kills_under_load/changes.rs`, what is counted when all is
//! quiet in `kills_under_load/census.rs`.

mod census;
mod changes;
pub mod load;
mod victims;

use crate::moves::traffic::{Moved, Restless};
use crate::support::process::{Process, send_signal};
use crate::support::random::Random;
use crate::support::stage::{HOST, SERVICE, Stage, on_stage, service};
use crate::support::{content, inspect, nginx, python, script, setting, wait_until};
use crate::without_root::Nobody;
use census::Census;
use haypile_service::plan::{Component, Plan};
use load::{EchoServers, Kind, Load, PAGE_BYTES, Targets, now_us};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::{Duration, Instant};
use victims::{Victim, deck, ends_connections, is_explained, is_explained_inside, servers_for};

/// Everything is as before a kill within this time, on the slowest machine.
const RECOVERY: Duration = Duration::from_secs(60);
/// Lost packets are sent again within this time; what takes longer is shown.
const SLOW: Duration = Duration::from_secs(4);
/// On Linux.
const SIGUSR1: u32 = 10;
/// Programs have heard of the death of their supervisor, and nothing of it is left.
const OBITUARY: Duration = Duration::from_secs(60);
/// Children of the prefork server.
const CHILDREN: usize = 6;
/// Children of the program with doors, and its first port.
const DOOR_CHILDREN: usize = 2;
const FIRST_DOOR: u16 = 8100;
/// One in so many kills is followed by a change of the plan.
const CHANGE_EVERY: u64 = 4;
/// A census after so many kills.
const CENSUS_EVERY: usize = 6;
/// Between two rounds of moves.
const MOVES_PAUSE: Duration = Duration::from_millis(100);
/// A plan does not grow beyond this, nor shrink below one server.
const SERVERS_MAX: u16 = 4;
/// For the whole test in a user namespace.
const INSIDE_TIME: Duration = Duration::from_secs(1800);

/// What a client on Haypile does.
#[derive(Clone, Debug)]
enum Errand {
    /// Asks the servers at this address, for streams and for datagrams.
    Ask(String, u16, u16),
    /// Opens and closes listeners and UDP sockets at these ports.
    Doors(u16),
}

/// A client on Haypile and what it said.
struct Client {
    process: Process,
    errand: Errand,
    /// Its errors that have been looked at.
    explained: usize,
}

impl Client {
    fn start(stage: &Stage, errand: &Errand) -> Client {
        let words = match errand {
            Errand::Ask(address, port, udp) => {
                ["client", address, &port.to_string(), &udp.to_string()].map(str::to_string)
            }
            Errand::Doors(port) => {
                let (port, count) = (port.to_string(), load::DOORS.to_string());
                ["doors".to_string(), SERVICE.to_string(), port, count]
            }
        };
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let script = script("under_fire.py");
        let process = stage.run(&[&[python(), &script], &words[..]].concat());
        Client { process, errand: errand.clone(), explained: 0 }
    }

    /// No byte was wrong, and no call was left without an answer or an error.
    fn check(&self) {
        let said = [self.lines("wrong"), self.lines("error")].concat();
        let bad = |line: &&String| line.starts_with("wrong") || line.ends_with("TIMEOUT");
        let bad: Vec<&String> = said.iter().filter(bad).collect();
        assert!(bad.is_empty(), "the client for {:?}: {bad:?}", self.errand);
    }

    /// Fails unless the victim's death explains the errors that are new.
    fn explain(&mut self, victim: Victim, what: &str) -> Vec<String> {
        let said = self.lines("error").split_off(self.explained);
        self.explained += said.len();
        let inside =
            !matches!(&self.errand, Errand::Ask(address, ..) if *address == HOST.to_string());
        for line in &said {
            let mut words = line.split_whitespace().skip(1);
            let (place, why) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let explained = is_explained_inside(victim, inside, place, why);
            assert!(explained, "{what}: the client for {:?}: {line}", self.errand);
        }
        said
    }

    fn end(self) {
        self.check();
        self.process.signal("TERM");
        drop(self.process.finish(OBITUARY));
    }

    /// Lines that start so.
    fn lines(&self, start: &str) -> Vec<String> {
        let said = self.process.out();
        said.lines().filter(|line| line.starts_with(start)).map(str::to_string).collect()
    }
}

/// A service with everything that runs on it.
struct Life<'a> {
    stage: &'a Stage,
    plan: Plan,
    supervisor: Process,
    nginx: Process,
    nginx_master: u32,
    prefork: Process,
    datagrams: Process,
    /// One for each errand, in this order.
    clients: Vec<Client>,
    errands: Vec<Errand>,
    /// What there is when all is quiet.
    quiet: Option<Census>,
}

impl<'a> Life<'a> {
    fn start(stage: &'a Stage, plan: &Plan, echo_port: u16) -> Life<'a> {
        let supervisor = stage.serve_with(&["--plan", &plan.to_string()]);
        let nginx = nginx::start(stage, 8080);
        let nginx_master = nginx::master(stage, "nginx-8080");
        let address = SERVICE.to_string();
        let words = [python(), &script("under_fire.py"), "prefork", &address, "8083"];
        let mut prefork = stage.run(&words);
        prefork.wait_for_output("ready");
        let datagrams = start_datagrams(stage);
        let errands = vec![
            Errand::Ask(HOST.to_string(), echo_port, echo_port),
            Errand::Ask(address, 8083, 8084),
            Errand::Doors(FIRST_DOOR),
        ];
        let mut life = Life {
            stage,
            plan: plan.clone(),
            supervisor,
            nginx,
            nginx_master,
            prefork,
            datagrams,
            clients: Vec::new(),
            errands,
            quiet: None,
        };
        life.start_clients();
        life
    }

    fn start_clients(&mut self) {
        let stage = self.stage;
        self.clients = self.errands.iter().map(|errand| Client::start(stage, errand)).collect();
    }

    /// The process of a server of the plan.
    fn server(&self, number: u16) -> u32 {
        let name = format!("haypile-srv{number}");
        wait_until(&format!("server {number} runs"), RECOVERY, || {
            let is_it = |pid: &u32| inspect::program_of(*pid) == name && inspect::is_alive(*pid);
            inspect::children_of(self.supervisor.pid()).into_iter().find(is_it)
        })
    }

    fn servers(&self) -> Vec<u32> {
        self.plan.servers().iter().map(|spec| self.server(spec.number)).collect()
    }

    /// One of the servers that may be killed as `victim`.
    fn some_server(&self, victim: Victim, random: &mut Random) -> u32 {
        let servers = servers_for(victim, &self.plan);
        self.server(servers[random.below(servers.len() as u64) as usize].number)
    }

    fn door_children(&self) -> Vec<u32> {
        let doors = self.clients.last().expect("clients").process.pid();
        wait_until("all children that open and close doors are there", RECOVERY, || {
            let mut children = inspect::children_of(doors);
            children.retain(|pid| inspect::is_alive(*pid));
            (children.len() == DOOR_CHILDREN).then_some(children)
        })
    }

    fn prefork_children(&self) -> Vec<u32> {
        wait_until("all children of the prefork server are there", RECOVERY, || {
            let mut children = inspect::children_of(self.prefork.pid());
            children.retain(|pid| inspect::is_alive(*pid));
            (children.len() == CHILDREN).then_some(children)
        })
    }

    fn assert_alive(&mut self) {
        self.supervisor.assert_alive();
        self.nginx.assert_alive();
        self.prefork.assert_alive();
        self.datagrams.assert_alive();
        self.clients.iter_mut().for_each(|client| client.process.assert_alive());
    }

    /// Who is stopped for a moment.
    fn stop_for_a_moment(&self, random: &mut Random) -> String {
        let (who, pid) = match random.below(4) {
            0 => ("a server process", self.some_server(Victim::TwoServers, random)),
            1 => ("the supervisor", self.supervisor.pid()),
            2 => ("a worker of nginx", nginx::workers(self.nginx_master)[0]),
            _ => ("a child of the prefork server", self.prefork_children()[0]),
        };
        send_signal("STOP", &pid.to_string());
        thread::sleep(Duration::from_millis(20 + random.below(150)));
        send_signal("CONT", &pid.to_string());
        who.to_string()
    }
}

fn start_datagrams(stage: &Stage) -> Process {
    let address = SERVICE.to_string();
    let words = [python(), &script("under_fire.py"), "udp", &address, "8084"];
    let mut server = stage.run(&words);
    server.wait_for_output("ready");
    server
}

/// What was seen of the kills of one kind.
#[derive(Default)]
struct Tally {
    recoveries_ms: Vec<u64>,
    failures: BTreeMap<String, u64>,
}

/// A kill.
struct Struck {
    /// When the signal was sent.
    at_us: u64,
    /// When the victim was seen to be dead: what is asked later is not answered by it.
    dead_us: u64,
}

impl Struck {
    fn down(victim: u32) -> Struck {
        let at_us = now_us();
        send_signal("KILL", &victim.to_string());
        wait_until("the victim is dead", RECOVERY, || (!inspect::is_alive(victim)).then_some(()));
        Struck { at_us, dead_us: now_us() }
    }
}

struct Run<'a> {
    stage: &'a Stage,
    /// As every supervisor starts.
    plan: Plan,
    life: Life<'a>,
    echo: EchoServers,
    load: Load,
    random: Random,
    tally: BTreeMap<Victim, Tally>,
    /// When nothing was left of a killed supervisor, and when the programs had all heard of it.
    gone_ms: Vec<u64>,
    heard_ms: Vec<u64>,
    censuses: usize,
    /// Who moves connections from server to server, and what that came to.
    restless: Option<Restless>,
    moved: Vec<Moved>,
    /// The plan changed so often.
    changes: usize,
    /// Everything was asked for, and answers of megabytes leave their mark in the memory of who gave them.
    shown: Cell<bool>,
}

impl<'a> Run<'a> {
    fn new(stage: &'a Stage, plan: &Plan, seed: u64) -> Run<'a> {
        let echo = EchoServers::start();
        let life = Life::start(stage, plan, echo.port);
        let targets = Targets {
            http: service(8080),
            echo: service(8083),
            datagrams: service(8084),
            doors: service(FIRST_DOOR),
        };
        let load = Load::start(targets, seed);
        let random = Random::for_test(4242);
        let (tally, gone_ms, heard_ms) = (BTreeMap::new(), Vec::new(), Vec::new());
        let (restless, moved, censuses, shown) = (None, Vec::new(), 0, Cell::new(false));
        let changes = 0;
        let plan = plan.clone();
        let mut run = Run {
            stage,
            plan,
            life,
            echo,
            load,
            random,
            tally,
            gone_ms,
            heard_ms,
            censuses,
            restless,
            moved,
            changes,
            shown,
        };
        run.move_on();
        run
    }

    /// Connections move from server to server from now on, where there are several.
    fn move_on(&mut self) {
        if self.life.plan.count(Component::Transport) > 1 {
            let seed = self.random.next();
            self.restless = Some(Restless::start(self.stage.control(), MOVES_PAUSE, seed));
        }
    }

    /// They stay where they are.
    fn stay(&mut self) {
        self.moved.extend(self.restless.take().map(Restless::stop));
    }

    /// Kills somebody and waits until all is as it was. `what` is for messages.
    fn kill(&mut self, victim: Victim, what: &str) {
        // The moment is the point of the test, nothing is waited for.
        thread::sleep(Duration::from_millis(10 + self.random.below(100)));
        self.explain(Victim::Nobody, what);
        let struck = match victim {
            Victim::Client => self.kill_client(),
            Victim::NginxWorker => {
                let workers = nginx::workers(self.life.nginx_master);
                let worker = workers[self.random.below(2) as usize];
                let struck = Struck::down(worker);
                inspect::wait_until_disowned(self.stage, worker);
                nginx::workers(self.life.nginx_master);
                struck
            }
            Victim::PreforkChild => {
                let child = self.life.prefork_children()[self.random.below(6) as usize];
                let struck = Struck::down(child);
                inspect::wait_until_disowned(self.stage, child);
                self.life.prefork_children();
                struck
            }
            Victim::DatagramServer => self.kill_datagrams(),
            Victim::DoorChild => {
                let children = self.life.door_children();
                let child = children[self.random.below(children.len() as u64) as usize];
                let struck = Struck::down(child);
                inspect::wait_until_disowned(self.stage, child);
                self.life.door_children();
                struck
            }
            Victim::Server | Victim::Helper | Victim::TwoServers => self.kill_servers(victim),
            Victim::Supervisor => self.kill_supervisor(),
            Victim::Nobody => {
                let who = self.life.stop_for_a_moment(&mut self.random);
                self.wait_for_answers(now_us(), &format!("{what}: {who} stopped"));
                return self.explain(Victim::Nobody, &format!("{what}: {who} stopped"));
            }
        };
        let recovered_us = self.wait_for_answers(struck.dead_us, what);
        self.life.assert_alive();
        let tally = self.tally.entry(victim).or_default();
        tally.recoveries_ms.push(recovered_us.saturating_sub(struck.at_us) / 1000);
        self.explain(victim, what);
    }

    /// The server of datagrams dies, and another takes its place.
    fn kill_datagrams(&mut self) -> Struck {
        let server = self.life.datagrams.pid();
        let struck = Struck::down(server);
        inspect::wait_until_disowned(self.stage, server);
        self.life.datagrams = start_datagrams(self.stage);
        struck
    }

    /// Kills a server, or two, and half the time has somebody come while nobody is there.
    fn kill_servers(&mut self, victim: Victim) -> Struck {
        let server = self.life.some_server(victim, &mut self.random);
        self.note_death(victim);
        let mut struck = Struck::down(server);
        if victim == Victim::TwoServers {
            thread::sleep(Duration::from_millis(self.random.below(150)));
            let second = self.life.some_server(victim, &mut self.random);
            struck.dead_us = Struck::down(second).dead_us;
        }
        // What was asked before is cut off, too.
        self.note_death(victim);
        if self.random.below(2) == 0 {
            let place = self.random.below(self.life.clients.len() as u64) as usize;
            let errand = self.life.errands[place].clone();
            let newcomer = Client::start(self.stage, &errand);
            std::mem::replace(&mut self.life.clients[place], newcomer).end();
        }
        struck
    }

    fn note_death(&self, victim: Victim) {
        match ends_connections(victim) {
            true => self.load.note_death(),
            false => self.load.note_loss(),
        }
    }

    fn kill_client(&mut self) -> Struck {
        let place = self.random.below(2) as usize;
        let victim = self.life.clients[place].process.pid();
        let struck = Struck::down(victim);
        self.life.clients[place].check();
        let errand = self.life.errands[place].clone();
        self.life.clients[place] = Client::start(self.stage, &errand);
        inspect::wait_until_disowned(self.stage, victim);
        struck
    }

    /// Waits until every thread and every client was answered anew; when the last of them was.
    fn wait_for_answers(&mut self, since_us: u64, what: &str) -> u64 {
        let turns: Vec<usize> =
            self.life.clients.iter().map(|client| client.lines("turn").len()).collect();
        let mut last_us = 0;
        let started = Instant::now();
        let mut shown = false;
        for strand in &self.load.strands {
            last_us = last_us.max(loop {
                if let Some(answered_us) = strand.answered_since(since_us) {
                    break answered_us;
                }
                if started.elapsed() > SLOW && !shown {
                    // Who has ended tells why.
                    self.life.assert_alive();
                    shown = true;
                    self.stage.say(&format!("{what}: {:?} is not answered yet", strand.kind));
                    self.show();
                }
                if started.elapsed() > RECOVERY {
                    self.show();
                    panic!(
                        "{what}: {:?} is not answered: {:?}",
                        strand.kind,
                        strand.take_failures()
                    );
                }
                thread::sleep(Duration::from_millis(1));
            });
        }
        for (place, before) in turns.into_iter().enumerate() {
            let started = Instant::now();
            // The first may have begun before.
            while self.life.clients[place].lines("turn").len() < before + 2 {
                let client = &mut self.life.clients[place];
                client.process.assert_alive();
                if started.elapsed() > RECOVERY {
                    let errand = client.errand.clone();
                    self.show();
                    panic!("{what}: the client for {errand:?} does not go on");
                }
                thread::sleep(Duration::from_millis(2));
            }
        }
        last_us
    }

    /// What a failure needs to be understood.
    fn show(&self) {
        self.shown.set(true);
        // They tell where they are.
        let programs = [self.life.prefork.pid(), self.life.datagrams.pid()].into_iter();
        let programs = programs.chain(self.life.clients.iter().map(|one| one.process.pid()));
        for pid in programs.chain(inspect::children_of(self.life.prefork.pid())) {
            if inspect::catches(pid, SIGUSR1) {
                self.stage.say(&format!("asking {}", inspect::describe(pid)));
                send_signal("USR1", &pid.to_string());
            }
        }
        thread::sleep(Duration::from_millis(500));
        self.stage.say(&format!("sockets: {:?}", self.stage.ask("ss", &["--all"])));
        let kernels = self.stage.output(&["ss", "-tanoi"], RECOVERY);
        self.stage.say(&format!("the kernel's: {}", kernels.out));
        self.stage.say(&format!("status: {:?}", self.stage.ask("status", &[])));
    }

    /// Takes what went wrong and fails if the victim's death does not explain it.
    fn explain(&mut self, victim: Victim, what: &str) {
        let tally = self.tally.entry(victim).or_default();
        for strand in &self.load.strands {
            for (failure, count) in strand.take_failures() {
                let explained = is_explained(victim, strand.kind, &failure);
                assert!(explained, "{what}: {:?}: {failure} ({count} times)", strand.kind);
                *tally.failures.entry(format!("{:?} {failure}", strand.kind)).or_default() += count;
            }
        }
        for client in &mut self.life.clients {
            for line in client.explain(victim, what) {
                *tally.failures.entry(line).or_default() += 1;
            }
        }
    }

    /// The supervisor dies: its programs hear of it and end when asked, nothing of it is left, and a new one
    /// with new programs takes its place.
    fn kill_supervisor(&mut self) -> Struck {
        let supervisor = self.life.supervisor.pid();
        let before: Vec<usize> =
            self.life.clients.iter().map(|client| client.lines("error").len()).collect();
        let service_processes = inspect::children_of(supervisor);
        self.load.note_death();
        let struck = Struck::down(supervisor);
        let died = Instant::now();
        wait_until("nothing of the killed supervisor is left", OBITUARY, || {
            let mut left = service_processes.iter().filter(|pid| inspect::is_alive(**pid));
            let clean = self.stage.interfaces().is_empty() && !self.stage.control().exists();
            (left.next().is_none() && clean && self.life.supervisor.ended().is_some()).then_some(())
        });
        self.gone_ms.push(died.elapsed().as_millis() as u64);
        self.wait_for_obituaries(&before);
        self.heard_ms.push(died.elapsed().as_millis() as u64);
        self.end_programs();
        wait_until("no process of the programs is left", OBITUARY, || {
            self.stage.processes().into_iter().all(|pid| !inspect::is_alive(pid)).then_some(())
        });
        let plan = self.plan.clone();
        self.life = Life::start(self.stage, &plan, self.echo.port);
        // Who was cut off by the interface's end.
        self.load.note_death();
        struck
    }

    /// Waits until every program on Haypile has been told that its service is gone.
    fn wait_for_obituaries(&mut self, before: &[usize]) {
        let clear = ["ECONNRESET", "EPIPE"];
        let is_clear = |line: &String| clear.iter().any(|name| line.ends_with(name));
        for (client, before) in self.life.clients.iter().zip(before) {
            let why = wait_until("a client hears of the death of its service", OBITUARY, || {
                client.lines("error").get(*before).cloned()
            });
            assert!(is_clear(&why), "the client for {:?}: {why}", client.errand);
        }
        for (what, server) in [("prefork", &self.life.prefork), ("udp", &self.life.datagrams)] {
            let why = wait_until(&format!("{what} hears of the death"), OBITUARY, || {
                let said = server.out();
                said.lines().find(|line| line.starts_with("over")).map(str::to_string)
            });
            assert!(is_clear(&why), "{what}: {why}");
        }
        wait_until("nginx hears of the death", OBITUARY, || {
            self.life.nginx.err().contains("Connection reset by peer").then_some(())
        });
    }

    /// All programs end when they are asked to.
    fn end_programs(&mut self) {
        for client in self.life.clients.drain(..) {
            client.end();
        }
        for program in [&mut self.life.nginx, &mut self.life.prefork, &mut self.life.datagrams] {
            program.signal("TERM");
            wait_until("a program ends when it is told to", OBITUARY, || program.ended());
        }
    }

    /// Halts the load and the clients, counts what there is, compares it with the first time of this service, and
    /// goes on.
    fn take_census(&mut self, what: &str) {
        if self.shown.take() {
            self.renew_programs(what);
            self.life.quiet = None;
        }
        self.load.halt();
        self.stay();
        for client in self.life.clients.drain(..) {
            client.end();
        }
        let people = census::People {
            supervisor: self.life.supervisor.pid(),
            servers: self.life.servers(),
            lasting: vec![self.life.nginx_master, self.life.prefork.pid()],
            // Listeners of nginx and of prefork, and the datagram server's.
            sockets: 3,
        };
        // Supervisor, guardian, servers; nginx and its workers; prefork and its children; the datagram server.
        let processes = 2 + people.servers.len() + 3 + 1 + CHILDREN + 1;
        let before = self.life.quiet.as_ref();
        let census = census::take(self.stage, &people, processes, before, what);
        match &self.life.quiet {
            None => self.life.quiet = Some(census),
            Some(before) => {
                self.stage.say(&format!("{what}: {}", before.beside(&census)));
            }
        }
        self.censuses += 1;
        self.life.start_clients();
        self.load.go_on();
        self.move_on();
        self.wait_for_answers(now_us(), what);
    }

    fn report(&self) {
        for (victim, tally) in &self.tally {
            let mut times = tally.recoveries_ms.clone();
            times.sort_unstable();
            let middle = times.get(times.len() / 2).copied().unwrap_or(0);
            let (least, most) = (times.first().unwrap_or(&0), times.last().unwrap_or(&0));
            let failures: Vec<String> =
                tally.failures.iter().map(|(what, count)| format!("{what} {count}")).collect();
            self.stage.say(&format!(
                "{:<15} {:>3} kills, all answered again after {least} / {middle} / {most} ms; {}",
                format!("{victim:?}"),
                times.len(),
                failures.join(", ")
            ));
        }
        let right: BTreeMap<Kind, u64> =
            self.load.strands.iter().fold(BTreeMap::new(), |mut sums, strand| {
                *sums.entry(strand.kind).or_default() +=
                    strand.right.load(std::sync::atomic::Ordering::Relaxed);
                sums
            });
        self.stage.say(&format!("right answers: {right:?}; {} censuses", self.censuses));
        let sum = |of: fn(&Moved) -> u64| self.moved.iter().map(of).sum::<u64>();
        self.stage.say(&format!(
            "moved: {} buckets with {} connections and {} TIME-WAIT records; the plan changed {} times",
            sum(|moved| moved.buckets),
            sum(|moved| moved.connections),
            sum(|moved| moved.time_wait),
            self.changes
        ));
        self.stage.say(&format!(
            "supervisors: nothing left after {:?} ms, programs told after {:?} ms",
            self.gone_ms, self.heard_ms
        ));
    }

    fn end(mut self) {
        let stage = self.stage;
        self.stay();
        self.load.stop();
        self.life.assert_alive();
        self.end_programs();
        self.echo.end();
        self.life.supervisor.signal("TERM");
        let status = self.life.supervisor.finish(RECOVERY).status;
        assert_eq!(status.code(), Some(0), "the service ends cleanly");
        let left = census::ours(&stage.path(""));
        assert!(left.is_empty(), "processes are left: {left:?}");
    }
}

/// Says that the test is the one inside a user namespace.
const INSIDE: &str = "HAYPILE_E2E_INSIDE";

/// Whether the plan changes between kills.
#[derive(Copy, Clone, PartialEq, Eq)]
enum Changes {
    Never,
    NowAndThen,
}

/// Kills under a plan.
fn kills(test: &'static str, plan: &'static str, kills: u64, changes: Changes) {
    let needs = ["nginx", "python3"];
    on_stage(test, &needs, move |stage| {
        content::write(&stage.served("page"), PAGE_BYTES as u64);
        let plan: Plan = plan.parse().expect("a plan");
        let seed = setting("HAYPILE_E2E_SEED", 1);
        let kills = setting("HAYPILE_E2E_KILLS", kills) as usize;
        stage.say(&format!("{plan} HAYPILE_E2E_SEED={seed} HAYPILE_E2E_KILLS={kills}"));
        let started = Instant::now();
        let mut run = Run::new(stage, &plan, seed);
        run.wait_for_answers(now_us(), "the start");
        run.take_census("the first census");
        let deck = deck(&plan, kills, &mut run.random);
        let limit = Duration::from_secs(60 * setting("HAYPILE_E2E_MINUTES", 24 * 60));
        let mut struck = 0;
        for (number, victim) in deck.into_iter().enumerate() {
            if started.elapsed() > limit {
                break;
            }
            struck += 1;
            let what = format!("{plan}, seed {seed}, kill {number} of {victim:?}");
            if run.life.quiet.is_none() {
                run.take_census(&format!("{what}, before"));
            }
            run.kill(victim, &what);
            if run.random.below(5) == 0 {
                run.kill(Victim::Nobody, &format!("{what}, then a stop"));
            }
            // A short run has a change, too.
            let due = run.random.below(CHANGE_EVERY) == 0 || number == 0;
            if changes == Changes::NowAndThen && due {
                run.change_plan(&what);
            }
            if number % CENSUS_EVERY == CENSUS_EVERY - 1 && run.life.quiet.is_some() {
                run.take_census(&what);
            }
        }
        run.take_census("the last census");
        run.report();
        stage.say(&format!("{struck} kills in {:.1} s", started.elapsed().as_secs_f64()));
        run.end();
        drop(fs::remove_dir_all(stage.path("nginx-8080")));
    });
}

#[test]
fn whoever_is_killed_under_load_the_others_live() {
    kills("whoever_is_killed_under_load_the_others_live", "TS1LS1CM1", 7, Changes::Never);
}

#[test]
fn kills_under_load_with_two_combined_servers() {
    kills("kills_under_load_with_two_combined_servers", "TS2LS2CM2", 3, Changes::NowAndThen);
}

#[test]
fn kills_under_load_with_a_manager_apart() {
    kills("kills_under_load_with_a_manager_apart", "TS2LS2+CM1", 2, Changes::Never);
}

#[test]
fn kills_under_load_with_all_servers_apart() {
    kills("kills_under_load_with_all_servers_apart", "TS2+LS1+CM1", 3, Changes::Never);
}

/// The same by a user without rights but for those in a namespace of its own, in which this test is started again.
#[test]
fn kills_without_root() {
    if std::env::var_os(INSIDE).is_some() {
        return kills("inside", "TS2LS2CM2", 2, Changes::Never);
    }
    let needs = ["nginx", "python3", "setpriv", "unshare"];
    on_stage("kills_without_root", &needs, |stage| {
        let Some(nobody) = Nobody::with_tap(stage) else { return };
        fs::set_permissions(stage.path(""), Permissions::from_mode(0o711)).expect("passable");
        let test = std::env::current_exe().expect("this program");
        let test = test.display().to_string();
        let readable = nobody.command(&["head", "-c1", &script("under_fire.py"), &test]).output();
        if !readable.is_ok_and(|output| output.status.success()) {
            return stage.say("skipped: another user may not read the programs of this test");
        }
        let namespace = ["unshare", "--user", "--map-current-user", "--keep-caps", "--net"];
        let name = ["--exact", "kills_under_load::kills_without_root", "--nocapture"];
        let mut command = nobody.command(&[&namespace[..], &[test.as_str()], &name].concat());
        // A short name: those of sockets must be.
        command.env(INSIDE, "1").env("TMPDIR", stage.path("r"));
        let finished = stage.start_command("inside", command).finish(INSIDE_TIME);
        stage.say(&finished.err);
        finished.expect_success("the test in a user namespace");
    });
}

//! The supervisor's answers on the control socket: asks the servers that know and makes one answer
//! of theirs. The third part of `Supervisor`; read `control` for what can be asked, [`questions`]
//! for how servers are asked, [`merge`] for how answers become one.
//!
//! [`questions`]: super::questions
//! [`merge`]: super::merge

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use haypile_shm::sys::{self, Errno};
use serde_json::{Value, json};

use super::Supervisor;
use super::merge::{merge, merge_listings};
use super::orders::{self, Order};
use super::questions::Outcome;
use super::seat::Seat;
use crate::config::BalanceChange;
use crate::control::{self, ClientId, Request};
use crate::event_loop::now;
use crate::poller::Token;
use crate::report::{Memory, ServerRow, Status};
use crate::roles::ProcessNumber;

/// Answers of more bytes, all together, leave memory behind that is worth giving back.
const LONG_ANSWER: usize = 1 << 20;

impl Supervisor {
    pub(super) fn serve_client(&mut self, id: ClientId) {
        let fd = self.parts.control.client_fd(id);
        let mut unsent = self.parts.control.flush(id);
        for request in self.parts.control.read(id) {
            if let Some(answer) = self.answer(id, request) {
                unsent = self.parts.control.answer(id, &answer);
            }
        }
        match fd.filter(|_| self.parts.control.client_fd(id).is_some()) {
            Some(fd) => self.poller.set_writable(fd, Token::Client(id), unsent),
            None => self.forget_answers(),
        }
    }

    /// A client is gone. What long answers were made of would stay in the heap, a multiple of their length.
    fn forget_answers(&mut self) {
        if self.answered_bytes > LONG_ANSWER {
            self.answered_bytes = 0;
            sys::give_back_memory();
        }
    }

    /// The answer, unless servers have to give it.
    fn answer(&mut self, id: ClientId, request: Request) -> Option<Value> {
        let servers = self.who_knows(&request);
        match &request {
            Request::Version {} if servers.is_empty() => Some(self.version()),
            Request::Shutdown {} => {
                self.end(self.parts.config.limits.shutdown_timeout_us);
                Some(control::acceptance(json!({})))
            }
            Request::PlanSet { plan } => Some(self.set_plan(plan)),
            Request::PlanState {} => Some(control::acceptance(self.plan_state())),
            Request::Status {} if servers.is_empty() => Some(self.complete_status(None)),
            Request::CaptureStart { path, .. } => {
                let path = path.clone();
                let handed_over = self.hand_over_files(&path, &servers);
                handed_over.and_then(|()| self.hand_on(id, request, &servers)).err()
            }
            Request::Balance { change } if !change.is_empty() => {
                let change = change.clone();
                self.change_balance(id, change, &servers).err()
            }
            _ => self.hand_on(id, request, &servers).err(),
        }
    }

    /// What is changed holds for servers that are started from now on, too.
    fn change_balance(
        &mut self,
        id: ClientId,
        change: BalanceChange,
        servers: &[ProcessNumber],
    ) -> Result<(), Value> {
        let balance = change.apply(self.parts.config.balance);
        let balance = balance.map_err(|error| control::refusal(&error.to_string()))?;
        // One that has been told its configuration, and takes no questions yet, would miss it.
        let is_born = |seat: &Seat| seat.life.is_some() && !seat.has_begun();
        if self.seats.iter().any(|seat| seat.spec.manager.is_some() && is_born(seat)) {
            return Err(away());
        }
        self.hand_on(id, Request::Balance { change }, servers)?;
        self.parts.config.balance = balance;
        Ok(())
    }

    /// The servers that are asked, as far as they run.
    fn who_knows(&self, request: &Request) -> Vec<ProcessNumber> {
        let wanted = |seat: &&Seat| {
            let spec = &seat.spec;
            seat.has_begun()
                && match request {
                    Request::Version {} | Request::Resolve { .. } => spec.transport == Some(0),
                    Request::Trace { server, .. } => spec.transport == Some(*server),
                    Request::Fail { server, .. } => spec.number == *server,
                    Request::Balance { .. } => spec.manager.is_some(),
                    Request::Ss { .. } | Request::Steer {} | Request::SteerMove { .. } => {
                        spec.transport.is_some()
                    }
                    Request::CaptureStart { .. } | Request::CaptureStop {} => spec.link.is_some(),
                    _ => true,
                }
        };
        self.seats.iter().filter(wanted).map(Seat::number).collect()
    }

    /// While the first server does not run: without addresses that it found by itself.
    fn version(&self) -> Value {
        let addresses: Vec<String> =
            self.parts.config.addresses.iter().map(ToString::to_string).collect();
        control::acceptance(json!({
            "version": env!("CARGO_PKG_VERSION"),
            "protocol": haypile_shm::PROTOCOL_VERSION,
            "pid": std::process::id(),
            "addresses": addresses,
        }))
    }

    /// Opens the files of a capture, for which the servers have no right: one for each link server.
    fn hand_over_files(&mut self, path: &Path, servers: &[ProcessNumber]) -> Result<(), Value> {
        for (place, server) in servers.iter().enumerate() {
            let path = capture_file(path, place);
            // A file that exists is somebody's; the service may be more privileged than who asks.
            let file = OpenOptions::new().write(true).create_new(true).open(&path);
            let refused = |error: std::io::Error| {
                control::refusal(&format!("cannot capture to {}: {error}", path.display()))
            };
            let file = file.map_err(refused)?;
            self.give(*server, &Order::File {}, file.as_raw_fd())?;
        }
        Ok(())
    }

    fn hand_on(
        &mut self,
        id: ClientId,
        request: Request,
        servers: &[ProcessNumber],
    ) -> Result<(), Value> {
        if servers.is_empty() {
            return Err(self.why_nobody(&request));
        }
        let theirs = self.questions.ask(id, request, servers);
        let theirs = theirs.map_err(|error| control::refusal(&error.to_string()))?;
        for (server, end) in theirs {
            if let Err(refusal) = self.give(server, &Order::Client {}, end.as_raw_fd()) {
                self.questions.forget(id);
                return Err(refusal);
            }
        }
        for fd in self.questions.descriptors(id) {
            let added = self.poller.add(fd, Token::Answer(id));
            added.map_err(|errno| control::refusal(&std::io::Error::from(errno).to_string()))?;
        }
        Ok(())
    }

    /// No server that is asked runs: there is none in the plan, or it is dead for the moment.
    fn why_nobody(&self, request: &Request) -> Value {
        let plan = &self.parts.config.plan;
        let (number, kind, there) = match request {
            Request::Trace { server, .. } => {
                (*server, "transport server", plan.count(crate::plan::Component::Transport))
            }
            Request::Fail { server, .. } => (*server, "server", self.seats.len() as u16),
            _ => return away(),
        };
        match number < there {
            true => away(),
            false => control::refusal(&format!("there is no {kind} {number}: the plan is {plan}")),
        }
    }

    /// Gives a server a descriptor.
    pub(super) fn give(&self, server: ProcessNumber, order: &Order, fd: i32) -> Result<(), Value> {
        let seat = self.seats.get(usize::from(server)).filter(|seat| seat.has_begun());
        let life = seat.and_then(|seat| seat.life.as_ref()).ok_or_else(away)?;
        orders::send(life.channel.raw(), order, &[fd]).map_err(|_: Errno| away())
    }

    pub(super) fn pass_answer(&mut self, id: ClientId) {
        let line = |answer: Value| format!("{answer}\n").into_bytes();
        let text = match self.questions.read(id) {
            Outcome::Waiting => return,
            Outcome::Answered(Request::Ss { .. }, answers) => merge_listings(answers),
            Outcome::Answered(Request::Status {}, answers) => {
                line(self.complete_status(Some(merge(&Request::Status {}, answers))))
            }
            Outcome::Answered(request, answers) => {
                let mut answer = merge(&request, answers);
                match request {
                    Request::Version {} => answer["pid"] = json!(std::process::id()),
                    Request::Trace { .. } => {
                        let plan = &self.parts.config.plan;
                        answer["servers"] = json!(plan.count(crate::plan::Component::Transport));
                    }
                    _ => {}
                }
                line(answer)
            }
            Outcome::Failed => line(control::refusal("the server has ended; ask once more")),
        };
        self.answered_bytes += text.len();
        let unsent = self.parts.control.answer_text(id, &text);
        if let Some(fd) = self.parts.control.client_fd(id) {
            self.poller.set_writable(fd, Token::Client(id), unsent);
        }
    }

    /// What servers do not know of themselves and of the service; rows for those that do not run.
    fn complete_status(&self, answer: Option<Value>) -> Value {
        let mut answer = answer.unwrap_or_else(|| control::acceptance(self.empty_status()));
        answer["pid"] = json!(std::process::id());
        answer["uptime_s"] = json!(now().since(self.started) / 1_000_000);
        let Some(rows) = answer["servers"].as_array_mut() else { return answer };
        for seat in &self.seats {
            let number = json!(seat.number());
            match rows.iter_mut().find(|row| row["server"] == number) {
                Some(row) => row["restarts"] = json!(seat.restarts),
                None => rows.push(json!(ServerRow {
                    server: u32::from(seat.number()),
                    sandbox: "being started again".into(),
                    restarts: seat.restarts,
                    components: seat.spec.components(),
                    ..ServerRow::default()
                })),
            }
        }
        rows.sort_by_key(|row| row["server"].as_u64());
        answer
    }

    /// While no server runs.
    fn empty_status(&self) -> Status {
        let texts = |list: &[haypile_engine::Cidr]| list.iter().map(ToString::to_string).collect();
        let config = &self.parts.config;
        Status {
            version: env!("CARGO_PKG_VERSION").to_string(),
            pid: std::process::id(),
            uptime_s: 0,
            plan: config.plan.to_string(),
            link: String::new(),
            addresses: texts(&config.addresses),
            host_addresses: texts(&config.host_addresses),
            servers: Vec::new(),
            network: Default::default(),
            drops: Vec::new(),
            counters: Vec::new(),
            memory: Memory::default(),
            processes: Vec::new(),
        }
    }
}

fn away() -> Value {
    control::refusal("the server is being started again; ask once more")
}

/// The file of a link server's capture: the path itself, then with a number behind it.
fn capture_file(path: &Path, place: usize) -> PathBuf {
    match place {
        0 => path.to_path_buf(),
        place => {
            let mut name = path.as_os_str().to_os_string();
            name.push(format!(".{place}"));
            name.into()
        }
    }
}

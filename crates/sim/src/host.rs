//! One simulated host: a real engine shard, the memory of its streams and the programs on its connections.
//! Driven by [`crate::world`].

use crate::application::{Application, Script, stream_key};
use crate::memory::Memory;
use crate::offload;
use haypile_engine::random::Random;
use haypile_engine::{Event, Instant, Progress, RxMeta, Shard, SocketId};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// A host of the world.
pub struct Host {
    /// Its stack.
    pub shard: Shard,
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// Where its bytes live.
    pub memory: Memory,
    /// The programs that run, by the connection's index; ordered so that a run repeats.
    pub(crate) programs: BTreeMap<(u32, u32), Application>,
    /// Programs that are over.
    finished: Vec<Application>,
    /// What a program on an accepted connection does; the listener's connections take one each from the front.
    accept_scripts: Vec<Script>,
    /// The same by the peer's address, for listeners that several servers have.
    pub(crate) scripts_of_peers: BTreeMap<SocketAddr, Script>,
    /// Accepted connections wait so long before they are claimed, in microseconds.
    pub(crate) claim_after_us: u64,
    /// How far those are that wait.
    pub(crate) progress: BTreeMap<(u32, u32), Progress>,
    /// Those that wait, and until when.
    pub(crate) unclaimed: BTreeMap<(u32, u32), Unclaimed>,
    frame: Vec<u8>,
    /// Its link merges segments that arrive together.
    pub merges: bool,
    /// Superframes received and sent.
    pub merged: u64,
    /// See `merged`.
    pub cut: u64,
}

/// A connection that waits to be claimed.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Unclaimed {
    pub id: SocketId,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub at_us: u64,
}

pub(crate) fn key(id: SocketId) -> (u32, u32) {
    (id.index(), id.generation())
}

impl Host {
    /// A host around `shard`.
    pub fn new(shard: Shard, mac: [u8; 6], frame_len: usize) -> Host {
        Host {
            shard,
            mac,
            memory: Memory::default(),
            programs: BTreeMap::new(),
            finished: Vec::new(),
            accept_scripts: Vec::new(),
            scripts_of_peers: BTreeMap::new(),
            claim_after_us: 0,
            unclaimed: BTreeMap::new(),
            progress: BTreeMap::new(),
            frame: vec![0; frame_len],
            merges: false,
            merged: 0,
            cut: 0,
        }
    }

    /// Adds a script that the next accepted connection without one follows.
    pub fn on_accept(&mut self, script: Script) {
        self.accept_scripts.insert(0, script);
    }

    /// Starts a program on connection `id`.
    pub fn start(&mut self, id: SocketId, local: SocketAddr, remote: SocketAddr, script: Script) {
        self.memory.set_send_key(id, stream_key(local, remote));
        self.programs.insert(key(id), Application::new(id, local, remote, script));
    }

    /// Programs that still run.
    pub fn running(&self) -> usize {
        self.programs.len()
    }

    /// The programs that still run.
    pub fn programs(&self) -> impl Iterator<Item = &Application> {
        self.programs.values()
    }

    /// Programs that are over.
    pub fn finished(&self) -> &[Application] {
        &self.finished
    }

    /// Frames arrive at the same time.
    pub fn handle_frames(&mut self, now: Instant, frames: Vec<Vec<u8>>) {
        let frames = match self.merges {
            true => offload::merge(frames),
            false => frames.into_iter().map(|frame| (frame, 0)).collect(),
        };
        for (frame, segment_size) in frames {
            self.merged += u64::from(segment_size != 0);
            let meta = RxMeta { checksum_valid: segment_size != 0, segment_size };
            self.shard.handle_frame(now, &frame, meta, &mut self.memory);
        }
    }

    /// Timers, events and programs of this moment, then every frame the stack wants to send, into `out`.
    ///
    /// # Errors
    /// What a program found wrong.
    pub fn turn(
        &mut self,
        now: Instant,
        random: &mut Random,
        out: &mut Vec<Vec<u8>>,
    ) -> Result<(), String> {
        if self.shard.poll_timeout().is_some_and(|at| at <= now) {
            self.shard.handle_timers(now, &mut self.memory);
        }
        self.handle_events(now)?;
        self.claim(now)?;
        self.run_programs(now, random)?;
        self.transmit(now, out);
        self.handle_events(now)
    }

    /// When this host next has something to do of itself.
    pub fn wakes_at(&self) -> Option<u64> {
        let programs = self.programs.values().filter_map(Application::wakes_at).min();
        let timer = self.shard.poll_timeout().map(Instant::us);
        let claim = self.unclaimed.values().map(|one| one.at_us).min();
        [programs, timer, claim].into_iter().flatten().min()
    }

    /// Claims connections whose time has come.
    fn claim(&mut self, now: Instant) -> Result<(), String> {
        let due: Vec<Unclaimed> =
            self.unclaimed.values().filter(|one| one.at_us <= now.us()).copied().collect();
        for Unclaimed { id, local, remote, .. } in due {
            self.unclaimed.remove(&key(id));
            self.shard.claimed(id);
            let script =
                self.scripts_of_peers.remove(&remote).or_else(|| self.accept_scripts.pop());
            self.start(id, local, remote, script.ok_or("a connection too many was accepted")?);
            if let Some(program) = self.programs.get_mut(&key(id))
                && let Some(progress) = self.progress.remove(&key(id))
            {
                program.observe(progress);
            }
        }
        Ok(())
    }

    fn handle_events(&mut self, now: Instant) -> Result<(), String> {
        while let Some(event) = self.shard.poll_event() {
            match event {
                Event::Accepted { id, local, remote, .. } => {
                    let at_us = now.us() + self.claim_after_us;
                    self.unclaimed.insert(key(id), Unclaimed { id, local, remote, at_us });
                    if self.claim_after_us == 0 {
                        self.claim(now)?;
                    }
                }
                Event::Progress { id, progress } => {
                    if let Some(program) = self.programs.get_mut(&key(id)) {
                        program.observe(progress);
                    } else if self.unclaimed.contains_key(&key(id)) {
                        self.progress.insert(key(id), progress);
                    }
                }
                Event::DatagramError { .. } | Event::NetworkChanged | Event::Resolved { .. } => {}
                Event::Released { id } => {
                    self.memory.forget(id);
                    self.unclaimed.remove(&key(id));
                    if self.programs.contains_key(&key(id)) {
                        return Err(format!("{id:?} was released under its program"));
                    }
                }
            }
        }
        Ok(())
    }

    fn run_programs(&mut self, now: Instant, random: &mut Random) -> Result<(), String> {
        let Host { shard, memory, programs, finished, .. } = self;
        for program in programs.values_mut() {
            program.run(now, shard, memory, random)?;
        }
        let over: Vec<_> =
            programs.iter().filter(|(_, p)| p.verdict().is_some()).map(|(k, _)| *k).collect();
        finished.extend(over.into_iter().filter_map(|key| programs.remove(&key)));
        Ok(())
    }

    fn transmit(&mut self, now: Instant, out: &mut Vec<Vec<u8>>) {
        while let Some(meta) = self.shard.poll_transmit(now, &mut self.frame, &mut self.memory) {
            self.cut += u64::from(meta.segment_size != 0);
            out.extend(offload::to_wire(&self.frame[..meta.len], &meta));
        }
    }
}

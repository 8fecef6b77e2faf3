//! The simulated program on one end of one connection: writes so many bytes of a pattern, reads what comes at its
//! own pace, and ends by half close, full close or abort. It checks every byte it reads. Driven by [`crate::host`].

use crate::memory::Memory;
use haypile_engine::random::Random;
use haypile_engine::{Close, Instant, Progress, Shard, SocketError, SocketId};
use std::net::SocketAddr;

/// What one end of a connection is to do.
#[derive(Clone, Debug)]
pub struct Script {
    /// Bytes to send.
    pub send_bytes: u64,
    /// The longest pause between two writes or two reads, in microseconds.
    pub pause_us: u64,
    /// The most that is written or read in one go.
    pub gulp_bytes: u64,
    /// Abort (RST) once this many bytes were read.
    pub abort_after: Option<u64>,
    /// Write nothing before this many bytes were read, as a server that answers.
    pub answer_after: u64,
    /// Close only after the peer's end, as a client that reads to the end.
    pub close_last: bool,
    /// Close both directions as soon as everything is written, without waiting for the peer's end.
    pub close_early: bool,
}

/// How an end of a connection came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything written was acknowledged and the peer's end of stream was read.
    Complete,
    /// The connection reported an error.
    Failed,
    /// This end aborted or closed early, as its script says.
    Left,
}

/// The program at one end.
#[derive(Debug)]
pub struct Application {
    /// The engine's name of the connection.
    pub id: SocketId,
    script: Script,
    local: SocketAddr,
    remote: SocketAddr,
    progress: Progress,
    written: u64,
    read: u64,
    next_us: u64,
    half_closed: bool,
    verdict: Option<Verdict>,
}

/// The pattern of the bytes that flow from `from` to `to`.
pub fn stream_key(from: SocketAddr, to: SocketAddr) -> u64 {
    (u64::from(from.port()) << 40) ^ (u64::from(to.port()) << 8) ^ 0x5EED
}

impl Application {
    /// A program that follows `script` on connection `id`.
    pub fn new(id: SocketId, local: SocketAddr, remote: SocketAddr, script: Script) -> Application {
        Application {
            id,
            script,
            local,
            remote,
            progress: Progress::default(),
            written: 0,
            read: 0,
            next_us: 0,
            half_closed: false,
            verdict: None,
        }
    }

    /// What the engine reported of the connection.
    pub fn observe(&mut self, progress: Progress) {
        self.progress = progress;
    }

    /// The connection has another name now. It may have written more meanwhile, of which nobody was told: how far
    /// it has written and read.
    pub fn follow(&mut self, id: SocketId, random: &mut Random) -> (u64, u64) {
        self.id = id;
        if self.may_write() && !self.half_closed {
            let limit = self.script.send_bytes.min(self.progress.tx_acked + SEND_BUFFER);
            let more = self.written + random.between(0, self.script.gulp_bytes);
            self.written = more.min(limit).max(self.written);
        }
        (self.written, self.read)
    }

    /// Does nothing before then.
    pub fn pause_until(&mut self, us: u64) {
        self.next_us = self.next_us.max(us);
    }

    /// What ended the connection, if something did.
    pub fn error(&self) -> Option<SocketError> {
        self.progress.error
    }

    /// How it came out, once it is over.
    pub fn verdict(&self) -> Option<Verdict> {
        self.verdict
    }

    /// Bytes read so far.
    pub fn bytes_read(&self) -> u64 {
        self.read
    }

    /// Bytes written so far.
    pub fn bytes_written(&self) -> u64 {
        self.written
    }

    /// This end's address.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// The other end's address.
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// True when the peer's whole stream was read to its end.
    pub fn saw_end(&self) -> bool {
        self.progress.rx_fin && self.read == self.progress.rx_end
    }

    /// When the program wants to run again; `None` when only the network can move it.
    pub fn wakes_at(&self) -> Option<u64> {
        let can_write = self.may_write()
            && self.written < self.script.send_bytes.min(self.progress.tx_acked + SEND_BUFFER);
        let can_read = self.read < self.progress.rx_end;
        let can_end = self.verdict.is_none() && self.is_over();
        let must_close = self.must_half_close();
        (self.verdict.is_none() && (can_write || can_read || can_end || must_close))
            .then_some(self.next_us)
    }

    fn must_half_close(&self) -> bool {
        let waits = self.script.close_last && !self.saw_end();
        self.may_write() && self.written == self.script.send_bytes && !self.half_closed && !waits
    }

    fn may_write(&self) -> bool {
        self.progress.connected && self.read >= self.script.answer_after
    }

    fn is_over(&self) -> bool {
        let acked = self.progress.tx_acked >= self.script.send_bytes;
        self.progress.error.is_some() || (self.half_closed && acked && self.saw_end())
    }

    /// One turn of the program.
    ///
    /// # Errors
    /// What was wrong with the bytes read.
    pub fn run(
        &mut self,
        now: Instant,
        shard: &mut Shard,
        memory: &mut Memory,
        random: &mut Random,
    ) -> Result<(), String> {
        if self.verdict.is_some() || now.us() < self.next_us {
            return Ok(());
        }
        self.next_us = now.us() + random.between(0, self.script.pause_us);
        self.read_some(now, shard, memory, random)?;
        self.write_some(now, shard, random);
        if self.must_half_close() {
            self.half_closed = true;
            shard.shutdown_send(now, self.id);
        }
        self.end(now, shard);
        Ok(())
    }

    fn read_some(
        &mut self,
        now: Instant,
        shard: &mut Shard,
        memory: &mut Memory,
        random: &mut Random,
    ) -> Result<(), String> {
        let wanted = random.between(1, self.script.gulp_bytes);
        let end = self.progress.rx_end.min(self.read + wanted);
        if end > self.read {
            let key = stream_key(self.remote, self.local);
            memory
                .check(self.id, key, self.read, end)
                .map_err(|error| format!("{} <- {}: {error}", self.local, self.remote))?;
            self.read = end;
            shard.receive_consumed(now, self.id, end);
        }
        Ok(())
    }

    fn write_some(&mut self, now: Instant, shard: &mut Shard, random: &mut Random) {
        if !self.may_write() || self.half_closed {
            return;
        }
        let wanted = self.written + random.between(1, self.script.gulp_bytes);
        let limit = self.script.send_bytes.min(self.progress.tx_acked + SEND_BUFFER);
        let tail = wanted.min(limit);
        if tail > self.written {
            self.written = tail;
            shard.send_ready(now, self.id, tail);
        }
    }

    fn end(&mut self, now: Instant, shard: &mut Shard) {
        let aborts = self.script.abort_after.is_some_and(|after| self.read >= after);
        let leaves = self.script.close_early && self.half_closed;
        let (verdict, how) = if self.progress.error.is_some() {
            (Verdict::Failed, Close::Abort)
        } else if aborts && self.progress.connected {
            (Verdict::Left, Close::Abort)
        } else if leaves {
            (Verdict::Left, Close::Graceful)
        } else if self.is_over() {
            (Verdict::Complete, Close::Graceful)
        } else {
            return;
        };
        self.verdict = Some(verdict);
        shard.close(now, self.id, how);
    }
}

/// Bytes a simulated program keeps unacknowledged at most.
pub const SEND_BUFFER: u64 = 128 * 1024;

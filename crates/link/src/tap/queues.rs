//! Owns several queues of one TAP as one port, for a server that has them all: receives from each in
//! turn and sends the frames of a flow on its own. Called by the service while it has fewer servers than queues.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use haypile_shm::pool::FramePool;

use super::{Tap, send_each};
use crate::error::LinkError;
use crate::port::{Features, Port, PortCounters, RxFrame, TxFrame};
use crate::steering::{Rule, Steering};
use crate::sys;

/// Queues of one interface as one port.
#[derive(Debug)]
pub struct TapQueues {
    queues: Vec<Tap>,
    /// Readable when one of the queues is.
    epoll: OwnedFd,
    /// The queue that has its turn.
    next: usize,
    /// Where there are several.
    steering: Option<Steering>,
}

impl TapQueues {
    /// Joins the queues, at least one.
    ///
    /// # Errors
    /// EINVAL without a queue; when the process may open no more descriptors.
    pub fn new(queues: Vec<Tap>) -> Result<TapQueues, LinkError> {
        let attempt = || "join the queues of a TAP".to_owned();
        if queues.is_empty() {
            return Err(LinkError::from_errno(attempt(), libc::EINVAL));
        }
        let descriptors: Vec<BorrowedFd<'_>> = queues.iter().map(Port::wait_fd).collect();
        let epoll =
            sys::epoll_over(&descriptors).map_err(|error| LinkError::new(attempt(), error))?;
        let count = u16::try_from(queues.len()).ok().filter(|count| *count > 1);
        let known = queues[0].facts().steering.clone();
        let steering = count.map(|count| {
            let fits = known.filter(|known| known.servers() == count);
            fits.unwrap_or_else(|| Steering::new(0, Rule::Hash, count))
        });
        Ok(TapQueues { queues, epoll, next: 0, steering })
    }

    /// The queues, in the order of their numbers.
    pub fn queues(&self) -> &[Tap] {
        &self.queues
    }

    /// Which queue a frame leaves by. Without a program the kernel follows us, so that any rule is
    /// right that keeps to one queue for a flow.
    #[cfg(test)]
    pub(super) fn steering(&self) -> Option<&Steering> {
        self.steering.as_ref()
    }

    fn first(&self) -> &Tap {
        &self.queues[0]
    }
}

impl Port for TapQueues {
    fn rx_burst(
        &mut self,
        pool: &mut FramePool,
        out: &mut Vec<RxFrame>,
        max: usize,
    ) -> io::Result<usize> {
        let mut received = 0;
        for _ in 0..self.queues.len() {
            let count = self.queues[self.next].rx_burst(pool, out, max - received)?;
            received += count;
            self.next = (self.next + 1) % self.queues.len();
            if received == max {
                break;
            }
        }
        Ok(received)
    }

    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut Vec<TxFrame>) -> io::Result<usize> {
        let TapQueues { queues, steering, .. } = self;
        let Some(steering) = steering else { return queues[0].tx_burst(pool, frames) };
        send_each(pool, frames, |pool, frame| {
            let queue = usize::from(steering.queue(frame.bytes(pool)));
            match queues.get_mut(queue) {
                Some(queue) => queue.send(pool, frame),
                None => queues[0].send(pool, frame),
            }
        })
    }

    fn features(&self) -> Features {
        self.first().features()
    }

    fn mtu(&self) -> u16 {
        self.first().mtu()
    }

    fn mac(&self) -> [u8; 6] {
        self.first().mac()
    }

    fn wait_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    fn counters(&self) -> PortCounters {
        self.queues.iter().fold(PortCounters::default(), |sum, queue| sum.plus(&queue.counters()))
    }

    fn describe(&self) -> String {
        self.first().describe()
    }
}

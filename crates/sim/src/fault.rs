//! What a path does to frames: a fault plan turns one frame sent into zero, one or two frames that arrive later,
//! perhaps in another order and with a bit flipped. Used by [`crate::world`] for every port of the switch.

use haypile_engine::random::Random;
use haypile_engine::steering::frames::ETHERNET_HEADER_LEN;

/// How badly a path treats frames. Chances are in parts per million, times in microseconds.
#[derive(Clone, Debug, Default)]
pub struct FaultPlan {
    /// A frame is lost.
    pub loss_ppm: u32,
    /// A frame arrives twice.
    pub duplicate_ppm: u32,
    /// A frame is held back by up to `reorder_us` more.
    pub reorder_ppm: u32,
    /// The longest extra delay of a frame that is held back.
    pub reorder_us: u64,
    /// One bit behind the Ethernet header is flipped. (Ethernet's own check would catch a flip in ARP
    /// or in the Ethernet header, so these are spared.)
    pub corrupt_ppm: u32,
    /// Delay of every frame.
    pub delay_us: u64,
    /// Delay added at random, up to this.
    pub jitter_us: u64,
    /// Bytes a second that the path carries; 0 is unlimited.
    pub rate_bytes_per_s: u64,
    /// Frames that wait for a rate-limited path before more are lost; 0 is unlimited.
    pub queue_frames: u64,
}

/// The state of one direction of a path.
#[derive(Clone, Debug, Default)]
pub struct Path {
    plan: FaultPlan,
    /// When the rate limiter is free again.
    free_at_us: u64,
}

/// One arrival that a frame causes.
#[derive(Debug, PartialEq, Eq)]
pub struct Arrival {
    /// When the frame arrives.
    pub at_us: u64,
    /// The bit to flip, counted from the start of the frame.
    pub flip_bit: Option<usize>,
}

impl Path {
    /// A path that follows `plan`.
    pub fn new(plan: FaultPlan) -> Path {
        Path { plan, free_at_us: 0 }
    }

    /// Decides what becomes of `frame` sent at `now_us`: at most two arrivals.
    pub fn send(&mut self, now_us: u64, frame: &[u8], random: &mut Random) -> [Option<Arrival>; 2] {
        if random.chance(self.plan.loss_ppm) {
            return [None, None];
        }
        let Some(sent_us) = self.pass_rate(now_us, frame.len()) else { return [None, None] };
        let first = self.arrival(sent_us, frame, random);
        let second =
            random.chance(self.plan.duplicate_ppm).then(|| self.arrival(sent_us, frame, random));
        [Some(first), second]
    }

    /// The time the last byte has left, or `None` when the queue before the rate limiter is full.
    fn pass_rate(&mut self, now_us: u64, len: usize) -> Option<u64> {
        if self.plan.rate_bytes_per_s == 0 {
            return Some(now_us);
        }
        let takes_us = (len as u64 * 1_000_000).div_ceil(self.plan.rate_bytes_per_s).max(1);
        let start_us = self.free_at_us.max(now_us);
        let waiting = (start_us - now_us) / takes_us;
        if self.plan.queue_frames != 0 && waiting >= self.plan.queue_frames {
            return None;
        }
        self.free_at_us = start_us + takes_us;
        Some(self.free_at_us)
    }

    fn arrival(&self, sent_us: u64, frame: &[u8], random: &mut Random) -> Arrival {
        let mut at_us = sent_us + self.plan.delay_us + random.between(0, self.plan.jitter_us);
        if random.chance(self.plan.reorder_ppm) {
            at_us += random.between(1, self.plan.reorder_us.max(1));
        }
        let flip = is_ip(frame) && random.chance(self.plan.corrupt_ppm);
        let flip_bit = flip.then(|| {
            random.between(ETHERNET_HEADER_LEN as u64 * 8, frame.len() as u64 * 8 - 1) as usize
        });
        Arrival { at_us, flip_bit }
    }
}

fn is_ip(frame: &[u8]) -> bool {
    frame.len() > ETHERNET_HEADER_LEN && matches!(frame[12..14], [0x08, 0x00] | [0x86, 0xDD])
}

#[cfg(test)]
mod tests {
    use super::{FaultPlan, Path};
    use haypile_engine::random::Random;

    #[test]
    fn a_clean_path_only_delays() {
        let mut path = Path::new(FaultPlan { delay_us: 7, ..FaultPlan::default() });
        let [first, second] = path.send(100, &[0; 60], &mut Random::new(1));
        assert_eq!(first.map(|arrival| (arrival.at_us, arrival.flip_bit)), Some((107, None)));
        assert_eq!(second, None);
    }

    #[test]
    fn a_rate_limited_path_queues_then_loses() {
        let plan =
            FaultPlan { rate_bytes_per_s: 1_000_000, queue_frames: 2, ..FaultPlan::default() };
        let mut path = Path::new(plan);
        let mut random = Random::new(1);
        let mut times = Vec::new();
        for _ in 0..4 {
            times.push(path.send(0, &[0; 1000], &mut random)[0].as_ref().map(|a| a.at_us));
        }
        assert_eq!(times, [Some(1000), Some(2000), None, None]);
    }

    #[test]
    fn flips_spare_the_ethernet_header_and_arp() {
        let plan = FaultPlan { corrupt_ppm: 1_000_000, ..FaultPlan::default() };
        let mut path = Path::new(plan);
        let mut random = Random::new(3);
        let mut ip = [0; 60];
        ip[12] = 0x08;
        for _ in 0..100 {
            let bit = path.send(0, &ip, &mut random)[0].as_ref().and_then(|a| a.flip_bit);
            assert!(bit.is_some_and(|bit| (14 * 8..60 * 8).contains(&bit)));
        }
        assert_eq!(path.send(0, &[0; 60], &mut random)[0].as_ref().and_then(|a| a.flip_bit), None);
    }
}

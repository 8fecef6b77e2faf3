//! What a bad path is to do, as text and as numbers: `loss=1%,delay=10ms,rate=100mbit`, or a text
//! for each direction: `rx:loss=1%;tx:delay=10ms`. Pure; called by the command line.

use std::fmt;
use std::str::FromStr;

/// Faults of both directions.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct FaultSpec {
    /// Of frames that the port receives.
    pub incoming: PathSpec,
    /// Of frames that the port sends.
    pub outgoing: PathSpec,
}

/// Faults of one direction. Chances are in parts per million, of each frame by itself.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct PathSpec {
    /// A frame is lost.
    pub loss_ppm: u32,
    /// A frame arrives twice, one directly behind the other.
    pub duplicate_ppm: u32,
    /// A frame is overtaken by the three that follow it, or by none if none follow within 5 ms.
    pub reorder_ppm: u32,
    /// One bit of an IP packet is flipped. (Ethernet's own check would catch other flips.)
    pub corrupt_ppm: u32,
    /// Every frame takes this long, in nanoseconds.
    pub delay_ns: u64,
    /// And up to this much longer, evenly spread; frames keep their order.
    pub jitter_ns: u64,
    /// Bits a second that leave; 0 = as many as come.
    pub rate_bits: u64,
    /// Frames that may wait to leave before more are dropped; 0 = 1000. Only with a rate.
    pub queue_frames: u32,
}

/// The longest delay, in nanoseconds: a minute.
const DELAY_MAX_NS: u64 = 60_000_000_000;
const RATE_MAX: u64 = 1_000_000_000_000;
const QUEUE_MAX: u64 = 1_000_000;

impl FromStr for FaultSpec {
    type Err = String;

    /// # Errors
    /// What is wrong, and what is right.
    fn from_str(text: &str) -> Result<FaultSpec, String> {
        let mut spec = FaultSpec::default();
        for part in text.split(';') {
            match part.trim().split_once(':') {
                Some(("rx", rest)) => spec.incoming = rest.parse()?,
                Some(("tx", rest)) => spec.outgoing = rest.parse()?,
                Some((other, _)) => {
                    return Err(format!("\"{other}\" is no direction: use rx or tx"));
                }
                None => {
                    let both = part.parse()?;
                    spec = FaultSpec { incoming: both, outgoing: both };
                }
            }
        }
        Ok(spec)
    }
}

impl FromStr for PathSpec {
    type Err = String;

    /// # Errors
    /// What is wrong, and what is right.
    fn from_str(text: &str) -> Result<PathSpec, String> {
        let mut spec = PathSpec::default();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let Some((key, value)) = item.split_once('=') else {
                return Err(format!("\"{item}\" has no value: write it like loss=1%"));
            };
            match key.trim() {
                "loss" => spec.loss_ppm = chance(value)?,
                "dup" => spec.duplicate_ppm = chance(value)?,
                "reorder" => spec.reorder_ppm = chance(value)?,
                "corrupt" => spec.corrupt_ppm = chance(value)?,
                "delay" => spec.delay_ns = time(value)?,
                "jitter" => spec.jitter_ns = time(value)?,
                "rate" => spec.rate_bits = rate(value)?,
                "queue" => spec.queue_frames = queue(value)?,
                other => {
                    return Err(format!(
                        "\"{other}\" is no fault: use loss, dup, reorder, corrupt, delay, jitter, \
                         rate or queue"
                    ));
                }
            }
        }
        if spec.queue_frames > 0 && spec.rate_bits == 0 {
            return Err("a queue without a rate never fills: give rate too".to_owned());
        }
        Ok(spec)
    }
}

/// A number with one of these units, in multiples of the unit's factor; `None` for anything else.
fn number(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let text = text.trim();
    // The longest unit first: "ms" ends with "s" too.
    let (unit, factor) = units.iter().find(|(unit, _)| text.ends_with(unit))?;
    let digits = text[..text.len() - unit.len()].trim();
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let value = digits.parse::<f64>().ok().filter(|_| plain)?;
    Some(value * factor)
}

fn chance(text: &str) -> Result<u32, String> {
    let ppm = number(text, &[("%", 10_000.0)]).filter(|ppm| *ppm <= 1_000_000.0);
    ppm.map(|ppm| ppm.round() as u32)
        .ok_or_else(|| format!("\"{text}\" is no chance: write 0% to 100%, like 0.1%"))
}

fn time(text: &str) -> Result<u64, String> {
    let ns = number(text, &[("ns", 1.0), ("us", 1e3), ("ms", 1e6), ("s", 1e9)]);
    ns.map(|ns| ns.round() as u64)
        .filter(|ns| *ns <= DELAY_MAX_NS)
        .ok_or_else(|| format!("\"{text}\" is no time up to a minute: write it like 10ms"))
}

fn rate(text: &str) -> Result<u64, String> {
    let bits = number(text, &[("kbit", 1e3), ("mbit", 1e6), ("gbit", 1e9), ("bit", 1.0)]);
    bits.map(|bits| bits.round() as u64)
        .filter(|bits| (1000..=RATE_MAX).contains(bits))
        .ok_or_else(|| format!("\"{text}\" is no rate of 1kbit to 1000gbit: write 100mbit"))
}

fn queue(text: &str) -> Result<u32, String> {
    let frames = text.trim().parse::<u64>().ok().filter(|frames| (1..=QUEUE_MAX).contains(frames));
    frames
        .map(|frames| frames as u32)
        .ok_or_else(|| format!("\"{text}\" is no number of frames: write 1 to {QUEUE_MAX}"))
}

impl fmt::Display for FaultSpec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.incoming == self.outgoing {
            true => write!(formatter, "{}", self.incoming),
            false => write!(formatter, "rx:{};tx:{}", self.incoming, self.outgoing),
        }
    }
}

impl fmt::Display for PathSpec {
    /// As it can be parsed again.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |ppm: u32| format!("{}%", f64::from(ppm) / 10_000.0);
        let micros = |ns: u64| format!("{}us", ns as f64 / 1e3);
        let items = [
            ("loss", self.loss_ppm > 0, percent(self.loss_ppm)),
            ("dup", self.duplicate_ppm > 0, percent(self.duplicate_ppm)),
            ("reorder", self.reorder_ppm > 0, percent(self.reorder_ppm)),
            ("corrupt", self.corrupt_ppm > 0, percent(self.corrupt_ppm)),
            ("delay", self.delay_ns > 0, micros(self.delay_ns)),
            ("jitter", self.jitter_ns > 0, micros(self.jitter_ns)),
            ("rate", self.rate_bits > 0, format!("{}kbit", self.rate_bits as f64 / 1e3)),
            ("queue", self.queue_frames > 0, self.queue_frames.to_string()),
        ];
        let said = items.iter().filter(|(_, said, _)| *said);
        let texts: Vec<String> = said.map(|(key, _, value)| format!("{key}={value}")).collect();
        formatter.write_str(&texts.join(","))
    }
}

//! The seam between whoever makes a link and whoever moves frames over it: the supervisor makes
//! the link ([`make`]) and keeps its descriptors, which outlive every server; a server opens a port
//! on them ([`open`]). A new kind of link adds a variant to [`LinkFacts`], a way to make it, and a
//! way to open it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use haypile_link::LinkError;
use haypile_link::fault::Fault;
use haypile_link::host_cores;
use haypile_link::packet::{Attachment, Packet, PacketConfig, PacketFacts};
use haypile_link::port::{Port, local_mac};
use haypile_link::steering::{Steering, SteeringMap};
use haypile_link::tap::{Offload, Tap, TapConfig, TapFacts, TapQueues};
use haypile_link::wire::{Rendezvous, Wire, WireConfig};
use haypile_shm::sys::Fd;
use serde::{Deserialize, Serialize};

use crate::config::{Config, LinkChoice, text};
use crate::error::Error;
use crate::plan::Component;
use crate::roster::Roster;
use crate::switch;

/// A link that was made: what a server needs to open a port on it.
#[derive(Debug)]
pub struct LinkHandle {
    /// The queues and whatever else belongs to it, in the order that `open` wants.
    pub descriptors: Vec<OwnedFd>,
    /// The link server of each.
    pub owners: Vec<u16>,
    /// What they are.
    pub facts: LinkFacts,
    /// By what the kernel chooses a queue, where it takes a program.
    pub steering: Option<SteeringMap>,
    /// Where the ends of a wire meet.
    pub rendezvous: Option<Rendezvous>,
}

/// What the descriptors of a link are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum LinkFacts {
    /// Queues of a TAP interface: a descriptor each.
    Tap(#[serde(with = "TapFactsText")] TapFacts),
    /// A packet socket, on a pair of its own or on an interface: one descriptor.
    Packet(#[serde(with = "PacketFactsText")] PacketFacts),
    /// A wire without another end: no descriptors.
    Alone {
        /// Largest IP packet, in bytes.
        mtu: u16,
        /// Ethernet address of our end.
        mac: [u8; 6],
        /// Superframes cross.
        superframes: bool,
    },
    /// A wire: one descriptor, the channel to its rendezvous.
    Wire {
        /// Its name.
        name: String,
        /// Largest IP packet, in bytes.
        mtu: u16,
        /// Ethernet address of our end.
        mac: [u8; 6],
        /// Superframes cross.
        superframes: bool,
    },
}

/// How [`TapFacts`] travel. Of the way that frames are spread, what says to which queue one is sent: which
/// server each bucket has is the concern of the kernel's map.
#[derive(Serialize, Deserialize)]
#[serde(remote = "TapFacts", rename_all = "kebab-case", deny_unknown_fields)]
struct TapFactsText {
    name: String,
    index: u32,
    mtu: u16,
    mac: [u8; 6],
    #[serde(with = "text::offload")]
    offload: Offload,
    multi_queue: bool,
    queues: u16,
    #[serde(with = "text::steering")]
    steering: Option<Steering>,
    udp_batches_known: bool,
}

/// How [`PacketFacts`] travel.
#[derive(Serialize, Deserialize)]
#[serde(remote = "PacketFacts", rename_all = "kebab-case", deny_unknown_fields)]
struct PacketFactsText {
    name: String,
    index: u32,
    bound_to: u32,
    is_pair: bool,
    mtu: u16,
    mac: [u8; 6],
    #[serde(with = "text::offload")]
    offload: Offload,
}

impl LinkFacts {
    /// What a server without a part of the link has in its place: a port that nothing comes from,
    /// with the link's address and size.
    pub fn absent(&self) -> LinkFacts {
        let (mtu, mac, superframes) = match *self {
            LinkFacts::Tap(TapFacts { mtu, mac, offload, .. })
            | LinkFacts::Packet(PacketFacts { mtu, mac, offload, .. }) => {
                (mtu, mac, offload == Offload::Segmentation)
            }
            LinkFacts::Alone { mtu, mac, superframes }
            | LinkFacts::Wire { mtu, mac, superframes, .. } => (mtu, mac, superframes),
        };
        LinkFacts::Alone { mtu, mac, superframes }
    }
}

impl LinkHandle {
    /// A link that one link server has.
    fn of_one(
        descriptors: Vec<OwnedFd>,
        facts: LinkFacts,
        rendezvous: Option<Rendezvous>,
    ) -> LinkHandle {
        let owners = vec![0; descriptors.len()];
        LinkHandle { descriptors, owners, facts, steering: None, rendezvous }
    }

    /// Makes of the link anew what does not outlive a server: a wire's other end is another's to
    /// lose, so the ends meet again.
    ///
    /// # Errors
    /// As [`make`].
    pub fn renew(&mut self, config: &Config, secret: &[u8; 32]) -> Result<(), Error> {
        if self.leave() {
            *self = make(config, secret)?;
        }
        Ok(())
    }

    /// Leaves the wire, whose files go if they are ours; whether there was one.
    fn leave(&mut self) -> bool {
        let Some(rendezvous) = self.rendezvous.take() else { return false };
        // Ends with the last copy of its channel, and the server is dead.
        self.descriptors.clear();
        rendezvous.wait();
        true
    }

    /// The numbers of the descriptors that belong to one link server; none for a server without a part of
    /// the link.
    pub fn share(&self, link: Option<u16>) -> Vec<RawFd> {
        let own = self.descriptors.iter().zip(&self.owners);
        own.filter(|(_, owner)| Some(**owner) == link).map(|(queue, _)| queue.as_raw_fd()).collect()
    }

    /// Opens a queue for each link server that has none, up to `links` of them. What comes goes on
    /// coming on the queues that there were.
    ///
    /// # Errors
    /// When the link has one queue for good, or the system does not let us.
    pub fn add_queues(
        &mut self,
        config: &Config,
        secret: &[u8; 32],
        links: u16,
    ) -> Result<(), Error> {
        let first = self.owners.iter().max().map_or(0, |most| most + 1);
        if first >= links {
            return Ok(());
        }
        let LinkFacts::Tap(facts) = &mut self.facts else {
            return Err(Error::new(
                format_args!("open queues for {links} link servers"),
                "the link has one queue",
                "name a plan with LS1, or start the service with a TAP",
            ));
        };
        if self.descriptors.len() == 1
            && let Some(only) = self.descriptors.first()
        {
            let steering = steering_of_queues(config, secret);
            // Without a program the kernel takes the queue that last sent a frame of the flow.
            self.steering = Tap::steer_by(only.as_fd(), &steering).ok();
            facts.steering = self.steering.is_some().then_some(steering);
        }
        let opened: Result<Vec<OwnedFd>, LinkError> =
            (first..links).map(|_| Tap::open_queue_of(facts)).collect();
        self.descriptors.extend(opened.map_err(link_error)?);
        self.owners.extend(first..links);
        facts.queues = self.descriptors.len() as u16;
        set_host_cores(config, &facts.name)
    }
}

impl LinkHandle {
    /// Frames for these buckets come on the first queue of a link server from now on, where the kernel is
    /// told by a map.
    pub fn steer(&mut self, buckets: &[u16], link: u16) {
        let queue = self.owners.iter().position(|owner| *owner == link);
        let (LinkFacts::Tap(facts), Some(queue)) = (&mut self.facts, queue) else { return };
        let (Some(map), Some(steering)) = (&self.steering, &mut facts.steering) else { return };
        for bucket in buckets {
            steering.move_bucket(*bucket, queue as u16);
        }
        // Without it they come on the old queue, whose server hands them on.
        let _: std::io::Result<()> = map.update(steering);
    }
}

impl LinkHandle {
    /// No frame comes on the queues of link servers from `links` (1 at least) on any more, but on those of the
    /// others, which hand it on: theirs run empty.
    pub fn withdraw(&mut self, links: u16) {
        let stays = |queue: &u16| self.owners[usize::from(*queue)] < links;
        let others: Vec<u16> = (0..self.owners.len() as u16).filter(stays).collect();
        let LinkFacts::Tap(facts) = &mut self.facts else { return };
        let (Some(map), Some(steering)) = (&self.steering, &mut facts.steering) else { return };
        if others.is_empty() {
            return;
        }
        let owners = &self.owners;
        *steering = steering.renumbered(|bucket, queue| {
            match owners.get(usize::from(queue)).is_some_and(|owner| *owner < links) {
                true => queue,
                false => others[usize::from(bucket) % others.len()],
            }
        });
        // Without it their servers go on to hand frames on until the queues go.
        let _: std::io::Result<()> = map.update(steering);
    }

    /// The link servers from `links` (1 at least) on leave, with their queues.
    pub fn drop_queues(&mut self, links: u16) {
        self.withdraw(links);
        let leaves = |queue: &usize| self.owners[*queue] >= links;
        let leaving: Vec<usize> = (0..self.owners.len()).rev().filter(leaves).collect();
        for queue in leaving {
            // The kernel gives the number to the last one, and so do we.
            if let Some(queue) = self.descriptors.get(queue) {
                // One that cannot be taken away goes with its last descriptor.
                let _: std::io::Result<()> = Tap::detach_queue(queue.as_fd());
            }
            self.descriptors.swap_remove(queue);
            self.owners.swap_remove(queue);
            self.renumber(self.owners.len() as u16, queue as u16);
        }
        if let LinkFacts::Tap(facts) = &mut self.facts {
            facts.queues = self.descriptors.len() as u16;
            if let (Some(map), Some(steering)) = (&self.steering, &facts.steering) {
                let _: std::io::Result<()> = map.update(steering);
            }
        }
    }

    fn renumber(&mut self, before: u16, now: u16) {
        if let LinkFacts::Tap(facts) = &mut self.facts
            && let Some(steering) = &mut facts.steering
        {
            *steering = steering.renumbered(|_, queue| if queue == before { now } else { queue });
        }
    }
}

impl Drop for LinkHandle {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Makes the link that a configuration names, with all privileges that takes.
///
/// # Errors
/// When the system does not let us.
pub fn make(config: &Config, secret: &[u8; 32]) -> Result<LinkHandle, Error> {
    let mut seed: Vec<String> =
        config.addresses.iter().map(|address| address.addr.to_string()).collect();
    if config.automatic.any() {
        // Servers tell clients apart by this address: one for each service of each machine.
        let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
        seed.push(format!("{} {}", config.control_dir.display(), machine.trim()));
    }
    let mac = local_mac(&seed.join(" "));
    match &config.link {
        LinkChoice::Tap(name) => make_tap(config, secret, name.clone(), mac),
        LinkChoice::Packet(interface) => make_packet(config, interface.clone(), mac),
        LinkChoice::Alone => {
            let superframes = config.offload == Offload::Segmentation;
            let facts = LinkFacts::Alone { mtu: config.mtu, mac, superframes };
            Ok(LinkHandle::of_one(Vec::new(), facts, None))
        }
        LinkChoice::Wire { directory, name } => {
            let mtu = config.mtu;
            let superframes = config.offload == Offload::Segmentation;
            let (rendezvous, channel) =
                Rendezvous::start(directory, name, mtu).map_err(link_error)?;
            let facts = LinkFacts::Wire { name: name.clone(), mtu, mac, superframes };
            let descriptors = vec![OwnedFd::from(channel)];
            Ok(LinkHandle::of_one(descriptors, facts, Some(rendezvous)))
        }
    }
}

/// Opens a port on the descriptors of a link, behind the bad path that the configuration may name.
/// Needs no privilege.
///
/// # Errors
/// When the descriptors are not what the facts say.
pub fn open(
    config: &Config,
    facts: LinkFacts,
    descriptors: Vec<Fd>,
) -> Result<Box<dyn Port>, Error> {
    let port = open_bare(facts, descriptors)?;
    match &config.fault {
        None => Ok(port),
        Some((spec, seed)) => Ok(Box::new(Fault::new(port, spec, *seed).map_err(link_error)?)),
    }
}

fn open_bare(facts: LinkFacts, descriptors: Vec<Fd>) -> Result<Box<dyn Port>, Error> {
    match facts {
        LinkFacts::Tap(facts) => {
            let queue = |fd| Tap::from_queue(OwnedFd::from(fd), facts.clone());
            let taps: Result<Vec<Tap>, LinkError> = descriptors.into_iter().map(queue).collect();
            let mut taps = taps.map_err(link_error)?;
            match taps.pop() {
                Some(only) if taps.is_empty() => Ok(Box::new(only)),
                last => {
                    taps.extend(last);
                    Ok(Box::new(TapQueues::new(taps).map_err(link_error)?))
                }
            }
        }
        LinkFacts::Packet(facts) => {
            let socket = descriptors.into_iter().next();
            let missing = || Error::new("open the link", "its socket is missing", "report this");
            let socket = OwnedFd::from(socket.ok_or_else(missing)?);
            Ok(Box::new(Packet::from_socket(socket, facts).map_err(link_error)?))
        }
        LinkFacts::Alone { mtu, mac, superframes } => {
            let config = WireConfig { mtu, mac, superframes };
            Ok(Box::new(Wire::alone(&config).map_err(link_error)?))
        }
        LinkFacts::Wire { name, mtu, mac, superframes } => {
            let config = WireConfig { mtu, mac, superframes };
            let channel = descriptors.into_iter().next();
            let missing = || Error::new("open the wire", "its channel is missing", "report this");
            let channel = channel.ok_or_else(missing)?;
            Ok(Box::new(Wire::from_channel(channel, &name, &config).map_err(link_error)?))
        }
    }
}

/// The servers of a service that was killed a moment ago may still have its interface.
fn open_patiently(open: impl Fn() -> Result<Vec<Tap>, LinkError>) -> Result<Vec<Tap>, LinkError> {
    const PATIENCE: Duration = Duration::from_secs(5);
    const PAUSE: Duration = Duration::from_millis(5);
    let started = Instant::now();
    loop {
        match open() {
            Err(error) if error.errno() == Some(libc::EBUSY) && started.elapsed() < PATIENCE => {
                std::thread::sleep(PAUSE);
            }
            other => return other,
        }
    }
}

/// Which queue each bucket comes on: one of the link server's of the transport server that has the
/// bucket. Link servers have every so many-th queue, as they are dealt out at the start.
fn steering_of_queues(config: &Config, secret: &[u8; 32]) -> Steering {
    let plan = &config.plan;
    let links = plan.count(Component::Link).max(1);
    let link_of: Vec<u16> =
        (0..plan.count(Component::Transport)).map(|server| plan.link_of(server)).collect();
    switch::steering_of(&Roster::of(plan), config.steer, secret).renumbered(|bucket, server| {
        let link = link_of[usize::from(server)];
        let own = config.queues.saturating_sub(link).div_ceil(links).max(1);
        (link + links * (bucket % own)).min(config.queues - 1)
    })
}

fn make_tap(
    config: &Config,
    secret: &[u8; 32],
    name: Option<String>,
    mac: [u8; 6],
) -> Result<LinkHandle, Error> {
    let mut tap = TapConfig::new(config.mtu, mac);
    tap.name = name;
    tap.host_addresses =
        config.host_addresses.iter().map(|cidr| (cidr.addr, cidr.prefix_len)).collect();
    tap.offload = config.offload;
    tap.steering = Some(steering_of_queues(config, secret));
    // More queues may be opened when there are more servers.
    tap.multi_queue = true;
    let open = || match config.queues {
        1 => Tap::open(&tap).map(|tap| vec![tap]),
        queues => Tap::open_queues(&tap, queues),
    };
    let mut taps = open_patiently(open).map_err(link_error)?;
    set_host_cores(config, taps[0].name())?;
    let descriptors: Result<Vec<OwnedFd>, std::io::Error> = taps.iter().map(Tap::queue).collect();
    let descriptors = descriptors
        .map_err(|error| Error::new("keep the queues of the link", error, "raise the limits"))?;
    let facts = LinkFacts::Tap(taps[0].facts().clone());
    let links = config.plan.count(Component::Link).max(1);
    let owners = (0..config.queues).map(|queue| queue % links).collect();
    let steering = taps[0].take_steering_map();
    Ok(LinkHandle { descriptors, owners, facts, steering, rendezvous: None })
}

fn set_host_cores(config: &Config, interface: &str) -> Result<(), Error> {
    if config.host_cores.is_empty() {
        return Ok(());
    }
    host_cores::set(interface, &config.host_cores).map_err(|error| {
        let remedy = "run as root, choose cores that there are, or leave --host-core out";
        Error::new("choose the host's cores", error, remedy)
    })
}

fn make_packet(
    config: &Config,
    interface: Option<String>,
    mac: [u8; 6],
) -> Result<LinkHandle, Error> {
    let addresses = &config.host_addresses;
    let attachment = match interface {
        Some(name) => Attachment::Interface(name),
        None => {
            Attachment::Pair(addresses.iter().map(|cidr| (cidr.addr, cidr.prefix_len)).collect())
        }
    };
    let packet = PacketConfig { attachment, mtu: config.mtu, mac, offload: config.offload };
    let packet = Packet::open(&packet).map_err(link_error)?;
    let keep = |error| Error::new("keep the socket of the link", error, "raise the limits");
    let socket = packet.socket().map_err(keep)?;
    let facts = LinkFacts::Packet(packet.facts().clone());
    Ok(LinkHandle::of_one(vec![socket], facts, None))
}

/// An error of the link crate as one of ours.
pub fn link_error(error: LinkError) -> Error {
    let what = format!("cannot {}", error.attempt());
    let whole = error.to_string();
    // The error prints as "WHAT: WHY; ADVICE"; the parts are wanted here.
    let why = whole.strip_prefix(&what).unwrap_or(&whole).trim_start_matches([':', ' ']);
    let why = why.strip_suffix(error.advice()).unwrap_or(why).trim_end_matches([';', ' ']);
    Error::new(what, why, error.advice())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;
    use crate::config::Flags;

    #[test]
    fn frames_come_on_a_queue_of_the_link_server_that_sends_for_their_server() {
        for (plan, queues) in
            [("TS2LS2CM2", 2), ("TS4LS2CM1", 4), ("TS2+LS1+CM1", 3), ("TS3LS3CM1", 5)]
        {
            let flags = Flags { plan: Some(plan.into()), queues: Some(queues), ..Flags::default() };
            let config = Config::from_text("", &flags, Path::new("/x")).unwrap();
            let secret = [9; 32];
            let (of_queues, of_servers) = (
                steering_of_queues(&config, &secret),
                switch::steering_of(&Roster::of(&config.plan), config.steer, &secret),
            );
            let links = config.plan.count(Component::Link);
            let mut shares: BTreeMap<u16, u32> = BTreeMap::new();
            for bucket in 0..4096 {
                let (queue, server) = (of_queues.owner_of(bucket), of_servers.owner_of(bucket));
                assert_eq!(queue % links, config.plan.link_of(server), "{plan}: {bucket}");
                *shares.entry(queue).or_default() += 1;
            }
            assert_eq!(shares.len(), usize::from(queues), "{plan}: {shares:?}");
        }
    }
}

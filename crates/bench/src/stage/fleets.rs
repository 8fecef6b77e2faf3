//! Sides whose servers are several worker processes: services of different settings, and the kernel
//! with one listener or one for each worker. Called by the experiment `balance`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::PathBuf;

use haypile_link::netns::{self, Namespace};

use super::{LINUX, PORT, PREFIX, Side, Stage, route, run_words, text};
use crate::cores::Cores;
use crate::fleet::{Clock, Fleet};
use crate::parts::{Over, Part};
use crate::process::{Launcher, Place, namespace_path};
use crate::simulation::workload::Delays;

/// What serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A service with these flags.
    Haypile(Vec<String>),
    /// The kernel, workers share a listener.
    LinuxShared,
    /// The kernel, a listener each.
    LinuxReusePort,
}

/// Which program the workers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Ours, that sleep for so many microseconds where nobody is slow.
    Sleepers(u64),
    /// Those of nginx.
    Nginx,
}

/// What to build.
#[derive(Clone, Debug)]
pub struct Fleets {
    /// The sides with their names, in the order in which they are measured.
    pub sides: Vec<(&'static str, Kind)>,
    /// Worker processes of each.
    pub workers: usize,
    /// What they are.
    pub program: Program,
    /// Bytes of an answer's body.
    pub body_bytes: usize,
    /// Congestion control of the kernel's sides.
    pub congestion: String,
    /// Who runs where.
    pub cores: Cores,
}

impl Stage {
    /// Builds all sides and waits until they answer.
    ///
    /// # Errors
    /// What the environment does not allow, in one line; nothing is left behind.
    pub fn build_fleets(wanted: &Fleets) -> Result<Stage, String> {
        let near = Namespace::create().map_err(text)?;
        netns::run_in(near.as_fd(), netns::loopback_up).and_then(|result| result).map_err(text)?;
        let launcher = Launcher::new()?;
        let mut stage = Stage { sides: Vec::new(), near, far: None, launcher, delays: None };
        for (index, (name, kind)) in wanted.sides.iter().enumerate() {
            match kind {
                Kind::Haypile(flags) => stage.add_haypile_fleet(wanted, index, name, flags)?,
                Kind::LinuxShared => stage.add_linux_fleet(wanted, index, name, false)?,
                Kind::LinuxReusePort => stage.add_linux_fleet(wanted, index, name, true)?,
            }
            stage.wait_until_it_answers(index, wanted.body_bytes)?;
        }
        Ok(stage)
    }

    /// Workers are slow by these delays from the beginning of each window on.
    pub fn set_delays(&mut self, delays: Delays) {
        self.delays = Some(delays);
    }

    /// A counted window begins.
    ///
    /// # Errors
    /// When workers cannot be told.
    pub(crate) fn start_delays(&self) -> Result<(), String> {
        match &self.delays {
            Some(delays) => Clock::starting_now(delays.clone()).write(&self.clock()),
            None => Ok(()),
        }
    }

    fn clock(&self) -> PathBuf {
        self.launcher.folder().join("clock.json")
    }

    fn fleet_words(
        &self,
        wanted: &Fleets,
        index: usize,
        address: SocketAddr,
        reuse_port: bool,
    ) -> Result<Vec<String>, String> {
        let Fleets { workers, program, body_bytes, .. } = *wanted;
        match program {
            Program::Sleepers(base_us) => {
                let clock = self.clock();
                let fleet = Fleet { address, workers, reuse_port, base_us, clock };
                Ok(Part::Fleet(fleet).words(self.launcher.program()))
            }
            Program::Nginx => self.nginx_words(&index.to_string(), address, workers, body_bytes),
        }
    }

    /// A service on a network of its own in the client's namespace, and its workers.
    fn add_haypile_fleet(
        &mut self,
        wanted: &Fleets,
        index: usize,
        name: &'static str,
        flags: &[String],
    ) -> Result<(), String> {
        let control = self.launcher.folder().join(format!("control-{index}"));
        let network = index as u8;
        let (ours, hosts) =
            (Ipv4Addr::new(198, 18, network, 2), Ipv4Addr::new(198, 18, network, 1));
        let interface = format!("haypile{index}");
        let (link, ours_text, hosts_text) =
            (format!("tap:{interface}"), format!("{ours}/{PREFIX}"), format!("{hosts}/{PREFIX}"));
        let mut all = vec!["--link", &link, "--addr", &ours_text, "--host-addr", &hosts_text];
        all.extend(flags.iter().map(String::as_str));
        let service = self.start_service("service", &wanted.cores.service, &control, &all)?;
        netns::run_in(self.near.as_fd(), || route(&interface, ours.into(), &wanted.congestion))
            .and_then(|result| result)
            .map_err(text)?;
        let target = SocketAddr::new(IpAddr::V4(ours), PORT);
        let words = self.fleet_words(wanted, index, target, false)?;
        let words = run_words(self.launcher.program(), &control, words);
        let near = Some(namespace_path(&self.near));
        let place = Place { namespace: near.clone(), cores: wanted.cores.program.clone() };
        let program = self.launcher.start("workers", &place, &words, false)?;
        let parts = vec![("workers", program), ("service", service)];
        let client = Place { namespace: near, cores: wanted.cores.client.clone() };
        let over = Over::Sockets;
        let control = Some(control);
        self.sides.push(Side { name, target, client, over, client_control: None, control, parts });
        Ok(())
    }

    /// Workers in the namespace behind the veth pair, at a port of their own.
    fn add_linux_fleet(
        &mut self,
        wanted: &Fleets,
        index: usize,
        name: &'static str,
        reuse_port: bool,
    ) -> Result<(), String> {
        let far = match self.far.take() {
            Some(far) => far,
            None => {
                let far = Namespace::create().map_err(text)?;
                netns::run_in(far.as_fd(), netns::loopback_up)
                    .and_then(|result| result)
                    .map_err(text)?;
                self.join_by_veth(&far, &wanted.congestion).map_err(text)?;
                far
            }
        };
        let target = SocketAddr::new(LINUX.into(), PORT + index as u16);
        let words = self.fleet_words(wanted, index, target, reuse_port)?;
        let cores = wanted.cores.kernel_program();
        let place = Place { namespace: Some(namespace_path(&far)), cores };
        let program = self.launcher.start("workers-linux", &place, &words, false)?;
        self.far = Some(far);
        let client = Place {
            namespace: Some(namespace_path(&self.near)),
            cores: wanted.cores.kernel_client(),
        };
        let parts = vec![("workers", program)];
        let over = Over::Sockets;
        let (client_control, control) = (None, None);
        self.sides.push(Side { name, target, client, over, client_control, control, parts });
        Ok(())
    }
}

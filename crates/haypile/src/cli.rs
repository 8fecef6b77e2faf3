//! The command line: every subcommand, flag and help text. Parsed by `main`; each subcommand's
//! work is in the file of its name.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

mod steer;

pub use steer::{SteerAction, SteerArgs, SteerMoveArgs};

use crate::bench::{BenchArgs, BenchPartArgs};

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "haypile",
    version,
    about = "A TCP/IP network service outside the kernel that unmodified programs use",
    after_help = "Examples:
  haypile demo                                  see it work, beside the kernel's stack
  haypile run -- python3 -m http.server 8000    serve files over a private Haypile
  haypile serve --addr 198.18.0.1/24            one service for many programs
  haypile run -- nginx                          joins that service
  haypile ss -l                                 who listens

Exit status: 0 success, 1 failure, 2 wrong usage; run: that of the program, 127 if there is no such
program, 126 if it cannot be executed."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve and load an unmodified server on Haypile and on the kernel's stack, check every byte
    #[command(after_help = "Examples:
  haypile demo
  haypile demo --requests 50000 --rounds 5
  haypile demo --json

Needs root. Everything happens in network namespaces of its own, so that your network stays as it
is. The server is nginx if installed, else python3's, else a built-in one. The exit status is 0
only if every answer was right.")]
    Demo(DemoArgs),
    /// The example server of the demo
    #[command(hide = true)]
    DemoServer(DemoServerArgs),
    /// The guardian of a service's files: started by `serve`
    #[command(hide = true)]
    Guard(GuardArgs),
    /// What a namespace of its own allows: started by `doctor`
    #[command(hide = true)]
    TryNamespace,
    /// Run a program on the service; with none running, a private one lives and dies with it.
    #[command(after_help = "Examples:
  haypile run -- python3 -m http.server 8000
  haypile run --addr 198.18.7.1/24 -- redis-server --protected-mode no
  haypile run --control-dir /run/pile2 -- nginx -g 'daemon off;'

Without a service at the control directory (or, for other users, at that of root) a private one is
started. Without the right to make interfaces it lives in a user and network namespace of its own,
together with the program, which keeps its user there and reaches the host's network no more. It
takes a TAP interface, else a packet socket on a veth pair; else a wire without another end, by
which programs reach each other alone: the line at the start says which, and why none better.

  haypile run --link packet: -- nginx         the second best, wanted
  haypile run --link wire: -- make check      needs nothing, no namespace either

Unless told otherwise it takes free addresses of 198.18.0.0/15 and 2001:2::/48. It ends after the
last program that uses it; nothing is left behind, not even when it is killed. The exit status is
the program's; 127: there is none of that name, 126: it cannot be executed. A program that the
preload library cannot reach (statically linked, in Go, set-user-id) is named in a line; it has the
kernel's sockets. HAYPILE_SHIM names another preload library than the built-in one.")]
    Run(RunArgs),
    /// Run the service in the foreground, for any number of programs.
    #[command(after_help = "Examples:
  haypile serve --addr 198.18.0.1/24
  haypile serve --link tap:pile0 --addr 10.9.0.2/24 --addr fd00:9::2/64 --gateway 10.9.0.1
  haypile serve --addr 10.9.0.2/24 --queues 4
  haypile serve --link tap:pile0 --addr dhcp --addr auto
  haypile serve --config /etc/haypile.toml
  haypile serve --addr 10.9.0.2/24 --group web
  haypile serve --addr 198.18.0.1/24 --fault loss=1%,delay=5ms,rate=50mbit
  haypile serve --link packet:eth1 --addr 10.9.0.2/24 --gateway 10.9.0.1
  haypile serve --name a --link wire:x --addr 10.9.0.1/24
  haypile serve --name b --link wire:x --addr 10.9.0.2/24

A wire joins two services by shared memory, without an interface and without root; either end may
come first, leave and come again. packet:INTERFACE shares an interface with the kernel, which sees
every frame too: the service has an Ethernet address and IP addresses of its own there.

Root is not needed for all of it: tap takes CAP_NET_ADMIN and a device /dev/net/tun that may be opened,
packet:INTERFACE CAP_NET_RAW, packet: both and CAP_SYS_ADMIN, wire nothing.

A supervisor holds the link and the sockets; each server is a process of its own, tied to a
processor, without privileges and with few system calls. One that dies is started again at once:
its connections are reset, listeners and programs go on.

SIGTERM and SIGINT end the service: connections are closed, files and the interface removed. If
the supervisor is killed, its servers end, the kernel removes the interface and a guardian process
the files.")]
    Serve(ServeArgs),
    /// A server: started by the supervisor, which commands it over its standard input
    #[command(hide = true)]
    Server,
    /// List TCP sockets with their states, queues and owners.
    #[command(after_help = "Examples:
  haypile ss            connections
  haypile ss -l         listeners, and UDP sockets without a peer
  haypile ss -ua        all UDP sockets (-t: TCP)
  haypile ss -a --json  everything, TIME-WAIT too, for scripts")]
    Ss(SsArgs),
    /// Show servers, load, drops, memory and processes.
    #[command(after_help = "Examples:
  haypile status
  haypile status --json | jq .drops

A service that does not answer is said so, with exit status 1: after 1 or 2 s if a process of it is
stopped (which one, and how to let it go on or end it), else after 10 s. haypile run and all other
commands that ask a service do the same.")]
    Status(StatusArgs),
    /// Show how connections are shared among applications, and change the rules while they come.
    #[command(after_help = "Examples:
  haypile balance
  haypile balance --watch
  haypile balance --scheme filtered --tariff 4
  haypile balance --estimator peak-ewma --json

A connection manager gives a new connection to one of its own applications or to one that another
manager offers. Weights are 1/estimate, and 1/(tariff * estimate) for offers. Schemes: naive (own
ones only), unfiltered (all), filtered (only offers that beat its own in spite of the tariff) and
tournament (filtered, in three rounds, with two watermarks). Estimators: median (of the last 128
service times, from offer to close), outstanding (connections) and peak-ewma. Changes hold until the
service ends, also for servers that die and are started again.")]
    Balance(BalanceArgs),
    /// Show which transport server has which TCP flows, and move flows to another while they live.
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "Examples:
  haypile steer                                 who has how many, and what has moved
  haypile steer move 1234 1                     bucket 1234 to transport server 1
  haypile steer move --all-of 1 0               everything of server 1 to server 0
  haypile steer move --connection 198.18.0.1:80-198.18.0.9:40000 1

Addresses and ports of a TCP connection name one of 4096 buckets, and each bucket belongs to one
transport server. A bucket moves as a whole: its connections with all that is in their buffers, and
its TIME-WAIT records. They stand still for a moment, their programs and peers see nothing. UDP
sockets stay where they are."
    )]
    Steer(SteerArgs),
    /// Look up a name, or the names of an address, with the service's own resolver.
    #[command(after_help = "Examples:
  haypile resolve www.example.org
  haypile resolve 192.0.2.1 --json

Asks the name servers given with --nameserver, then those learned from DHCP and routers.")]
    Resolve(ResolveArgs),
    /// Show what a plan means and whether it runs here.
    #[command(after_help = "Examples:
  haypile plan TS2LS2CM2                     two servers, each all three
  haypile plan TS8LS8+CM2 --json             eight, and two connection managers apart
  haypile plan TS2+LS1+CM1 --link wire:x     on a link with one queue
  haypile plan set TS4LS4CM4                 more servers for the service that runs, or fewer

TS is a transport server (owns connections and sockets), LS a link server (owns queues of the link), CM a
connection manager (brings connections and accepting processes together). What is written together
without a + runs in the same servers.")]
    Plan(PlanArgs),
    /// Show what happened to connections: segments, states, windows, timers, drops.
    #[command(after_help = "Examples:
  haypile trace                              what is kept
  haypile trace --follow port=8080           live, of one port
  haypile trace event=again                  what was sent again, and why
  haypile trace host=198.18.0.1 --json       one object an event, for scripts

Filters, all of which must fit: port=N and host=ADDRESS (either end), event=KIND (received, sent,
again, timer, ended, dropped, or state: events that changed the state), connection=NAME. The service
keeps the last 16384 events (limits.trace_records in the configuration, 0 = off) at the cost of a few
nanoseconds each. Windows are as on the wire; cwnd, ssthresh, rtt and rto are those after the event.")]
    Trace(TraceArgs),
    /// Join two links over a path with faults, like one bad cable.
    #[command(after_help = "Examples:
  haypile join tap:one tap:two --netns-b 4711 --addr-a 10.9.0.1/24 --addr-b 10.9.0.2/24 \\
      --fault loss=1%,delay=5ms
  haypile join tap:bad wire:x --addr-a 10.9.0.1/24 --fault 'tx:rate=10mbit,queue=50;rx:loss=2%'

The first gives two kernels (network namespaces) a bad path to each other, the second a kernel and a
Haypile service on the wire's other end. In --fault, tx is the way from the first link to the second,
rx the way back. What is sent to a MAC address crosses as it is, so that both ends resolve each
other's. SIGTERM and SIGINT end it; the interfaces go with it, also when it is killed.

Faults, each at most once: loss, dup, reorder, corrupt (chances such as 0.1%), delay, jitter (times
such as 10ms; frames keep their order), rate (such as 100mbit) and queue (frames that may wait for
the rate, 1000 by default). Superframes are cut, and checksums finished, before anything happens.")]
    Join(JoinArgs),
    /// Write every frame the service sends and receives to a pcapng file.
    #[command(after_help = "Examples:
  haypile capture -w /tmp/pile.pcapng    start
  haypile capture --stop                 end; then open the file with wireshark or tcpdump -r")]
    Capture(CaptureArgs),
    /// Tell what this machine allows, what is in the way, and what to do.
    #[command(after_help = "Examples:
  haypile doctor
  haypile doctor --json | jq '.checks[] | select(.verdict != \"good\")'

Tries what it speaks of, in a network namespace of its own where it would change anything; takes
half a second. The exit status is 0 if Haypile runs here.")]
    Doctor(DoctorArgs),
    /// Print a completion script for a shell.
    #[command(after_help = "Examples:
  haypile completions bash > /etc/bash_completion.d/haypile
  haypile completions zsh > ~/.zfunc/_haypile
  haypile completions fish > ~/.config/fish/completions/haypile.fish")]
    Completions(CompletionsArgs),
    /// Print the manual page, or write one page for each command.
    #[command(after_help = "Examples:
  haypile man | man -l -
  haypile man --dir /usr/local/share/man/man1")]
    Man(ManArgs),
    /// Measure Haypile beside the kernel's stack, in turn, in one run.
    #[command(after_help = "Examples:
  haypile bench http                                    short connections and keep-alive requests
  haypile bench http --connections 1,16,64,256 --repeat 9
  haypile bench http --rate 20000                       open loop: latency from the time a request was due
  haypile bench latency --tuned                         with idle states off for both sides
  haypile bench goodput --json /tmp/goodput.json
  haypile bench http --link wire                        Haypile on both ends, against the kernel on both ends
  haypile bench http --link wire --client engine        the generator on a stack of its own, against either
  haypile bench messages                                cycles a message between two cores
  haypile bench echo --against none --cores client=1,program=2,service=3
  haypile bench balance --plots /tmp/figures            slow workers: simulated eight by eight, four for real
  haypile bench schemes --plots /tmp/figures            balancing schemes: simulated, two servers for real
  haypile bench accept --plans TS1LS1CM1,TS2LS2CM2      rates by number of servers, and beyond in simulation
  haypile bench configs --only simulated                plans: combined, split, subset
  haypile bench cache                                   cache misses by size of cache (needs valgrind)

Needs root. Everything happens in network namespaces of its own and is removed at the end, also after
Ctrl-C. Progress goes to stderr, tables to stdout. docs/benchmarks.md says how to read them.")]
    Bench(BenchArgs),
    /// A process of an experiment: started by `bench`
    #[command(hide = true)]
    BenchPart(BenchPartArgs),
}

/// Where a service is.
#[derive(Clone, Debug, Default, Args)]
pub struct ControlArgs {
    /// Control directory of the service [default: /run/haypile as root, else
    /// $XDG_RUNTIME_DIR/haypile]
    #[arg(long, value_name = "DIR")]
    pub control_dir: Option<PathBuf>,
    /// Name of the service, where there are several: short for --control-dir with the directory of
    /// this name inside the default one
    #[arg(long, value_name = "NAME", conflicts_with = "control_dir")]
    pub name: Option<String>,
}

/// What a service is made of; common to `run` and `serve`.
#[derive(Clone, Debug, Default, PartialEq, Args)]
pub struct ServiceArgs {
    /// Configuration file (TOML); flags win over it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The link: tap:NAME, tap: for a free name; packet:INTERFACE, beside the kernel on an interface
    /// that is there, packet: on a veth pair made for it; wire:NAME to the service that has the
    /// wire's other end, wire: to nobody
    #[arg(long, value_name = "KIND:NAME")]
    pub link: Option<String>,
    /// An address of the service with its prefix; may be repeated. dhcp asks a DHCP server for an
    /// IPv4 address, auto takes IPv6 addresses from router advertisements
    #[arg(long = "addr", value_name = "CIDR")]
    pub addresses: Vec<String>,
    /// An address for the host's end of the link; may be repeated [default: another address of
    /// each network of the service]
    #[arg(long = "host-addr", value_name = "CIDR")]
    pub host_addresses: Vec<String>,
    /// A default gateway, one for each family
    #[arg(long = "gateway", value_name = "IP")]
    pub gateways: Vec<String>,
    /// A name server for `haypile resolve`, before those learned from DHCP and routers; may be repeated
    #[arg(long = "nameserver", value_name = "IP")]
    pub name_servers: Vec<String>,
    /// Largest IP packet of the link, in bytes
    #[arg(long, value_name = "BYTES")]
    pub mtu: Option<u16>,
    /// What the link and its peer leave to each other: none, checksum, or segmentation (checksums
    /// and TCP superframes) [default: segmentation]
    #[arg(long, value_name = "WHAT")]
    pub offload: Option<String>,
    /// Queues of a TAP, over which flows are spread by a hash; one server polls them all
    /// [default: 1]
    #[arg(long, value_name = "N")]
    pub queues: Option<u16>,
    /// A core on which the host does its half of the work for a TAP (receive packet steering); may
    /// be repeated [default: inside the service's writes]
    #[arg(long = "host-core", value_name = "N")]
    pub host_cores: Vec<usize>,
    /// Which servers run which components, for example TS1LS1CM1
    #[arg(long, value_name = "PLAN")]
    pub plan: Option<String>,
    /// What decides which transport server has a TCP connection, if there are several: hash (of
    /// addresses and ports, by a secret key) or low12 (the low 12 bits of the peer's port, for
    /// experiments); UDP goes by our port [default: hash]
    #[arg(long, value_name = "RULE")]
    pub steer: Option<String>,
    /// How connection managers share new connections: naive (each keeps its own), unfiltered, filtered
    /// or tournament [default: tournament]
    #[arg(long = "balance", value_name = "SCHEME")]
    pub scheme: Option<String>,
    /// By how much another manager's application counts as slower than it is [default: 2]
    #[arg(long, value_name = "N")]
    pub tariff: Option<f64>,
    /// How the speed of an application is estimated: median (of service times), outstanding
    /// (connections) or peak-ewma [default: median]
    #[arg(long, value_name = "KIND")]
    pub estimator: Option<String>,
    /// A bad path behind the link: loss=1%,dup=0.1%,reorder=2%,corrupt=0.01%,delay=10ms,jitter=2ms,
    /// rate=100mbit,queue=100, or rx:...;tx:... for each direction
    #[arg(long, value_name = "SPEC")]
    pub fault: Option<String>,
    /// What makes the faults happen the same way again [default: 1]
    #[arg(long, value_name = "N", requires = "fault")]
    pub fault_seed: Option<u64>,
    /// The user that servers become when started by root: a name or a number [default: nobody]
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// The processor of the server; may be repeated, one for each server [default: chosen]
    #[arg(long = "core", value_name = "N")]
    pub cores: Vec<u32>,
    /// Let servers make every system call, for debugging with tools that need it
    #[arg(long)]
    pub no_sandbox: bool,
}

impl ServiceArgs {
    /// Whether the user asked for anything particular.
    pub fn is_default(&self) -> bool {
        *self == ServiceArgs::default()
    }

    /// The same settings as words of a command line.
    pub fn words(&self) -> Vec<OsString> {
        let ServiceArgs {
            config,
            link,
            addresses,
            host_addresses,
            gateways,
            name_servers,
            mtu,
            offload,
            queues,
            host_cores,
            plan,
            steer,
            scheme,
            tariff,
            estimator,
            fault,
            fault_seed,
            user,
            cores,
            no_sandbox,
        } = self;
        let mut words: Vec<OsString> = Vec::new();
        let mut flag = |name: &str, value: OsString| words.extend([name.into(), value]);
        config.iter().for_each(|path| flag("--config", path.into()));
        let single = [
            ("--link", link),
            ("--offload", offload),
            ("--plan", plan),
            ("--steer", steer),
            ("--balance", scheme),
            ("--estimator", estimator),
            ("--fault", fault),
        ];
        for (name, word) in single {
            word.iter().for_each(|word| flag(name, word.into()));
        }
        let numbers = [
            ("--mtu", mtu.map(|number| number.to_string())),
            ("--queues", queues.map(|number| number.to_string())),
            ("--tariff", tariff.map(|number| number.to_string())),
            ("--fault-seed", fault_seed.map(|number| number.to_string())),
        ];
        for (name, number) in numbers {
            number.iter().for_each(|number| flag(name, number.into()));
        }
        let lists = [
            ("--addr", addresses),
            ("--host-addr", host_addresses),
            ("--gateway", gateways),
            ("--nameserver", name_servers),
        ];
        for (name, values) in lists {
            values.iter().for_each(|value| flag(name, value.into()));
        }
        for core in host_cores {
            flag("--host-core", core.to_string().into());
        }
        if let Some(user) = user {
            flag("--user", user.into());
        }
        for core in cores {
            flag("--core", core.to_string().into());
        }
        if *no_sandbox {
            words.push("--no-sandbox".into());
        }
        words
    }
}

/// `haypile demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Requests of one run
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub requests: usize,
    /// How often both sides are measured, in turn
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub rounds: usize,
    /// Clients at the same time
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub clients: usize,
    /// One JSON object instead of the table
    #[arg(long)]
    pub json: bool,
}

/// The demo's example server.
#[derive(Debug, Args)]
pub struct DemoServerArgs {
    /// Folder of the files
    pub root: PathBuf,
    /// Addresses to listen on
    #[arg(required = true)]
    pub addresses: Vec<std::net::SocketAddr>,
}

/// The guardian of a service's files.
#[derive(Debug, Args)]
pub struct GuardArgs {
    /// Process id of the service, which starts it
    pub service: i32,
    /// Control directory of the service
    pub directory: PathBuf,
    /// Directory and name of the service's wire
    #[arg(long)]
    pub wire: Option<PathBuf>,
}

/// `haypile run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Settings of a private service.
    #[command(flatten)]
    pub service: ServiceArgs,
    /// The service to join.
    #[command(flatten)]
    pub control: ControlArgs,
    /// Do not say what was taken
    #[arg(long, short)]
    pub quiet: bool,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// `haypile serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Settings of the service.
    #[command(flatten)]
    pub service: ServiceArgs,
    /// Where it puts its sockets.
    #[command(flatten)]
    pub control: ControlArgs,
    /// Let the members of this group alone attach programs and give commands, and no others [default:
    /// everybody may attach, the owner commands]. Programs that change their user must be members
    #[arg(long, value_name = "GROUP", conflicts_with = "private_for")]
    pub group: Option<String>,
    /// Start as the private service of this process: used by `run`
    #[arg(long, value_name = "PID", hide = true)]
    pub private_for: Option<i32>,
}

/// `haypile trace`.
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// The service to ask.
    #[command(flatten)]
    pub control: ControlArgs,
    /// What to show: port=N, host=ADDRESS, event=KIND, connection=NAME [default: everything]
    #[arg(value_name = "FILTER")]
    pub filters: Vec<String>,
    /// Go on with what happens, until interrupted
    #[arg(long, short)]
    pub follow: bool,
    /// One JSON object an event
    #[arg(long)]
    pub json: bool,
}

/// `haypile join`.
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// The first link: tap:NAME or wire:NAME
    pub one: String,
    /// The second link
    pub other: String,
    /// Faults of the path, for both directions or as rx:...;tx:...
    #[arg(long, value_name = "SPEC", default_value = "", hide_default_value = true)]
    pub fault: String,
    /// What makes the faults happen the same way again
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Network namespace of the first TAP: a process id, a name under /run/netns, or a path
    #[arg(long, value_name = "NETNS")]
    pub netns_a: Option<String>,
    /// Network namespace of the second TAP
    #[arg(long, value_name = "NETNS")]
    pub netns_b: Option<String>,
    /// An address for the kernel on the first TAP; may be repeated
    #[arg(long = "addr-a", value_name = "CIDR")]
    pub addresses_a: Vec<String>,
    /// An address for the kernel on the second TAP; may be repeated
    #[arg(long = "addr-b", value_name = "CIDR")]
    pub addresses_b: Vec<String>,
    /// Largest IP packet, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 1500)]
    pub mtu: u16,
    /// At the end, one JSON object instead of lines
    #[arg(long)]
    pub json: bool,
}

/// `haypile ss`.
#[derive(Debug, Args)]
pub struct SsArgs {
    /// The service to ask.
    #[command(flatten)]
    pub control: ControlArgs,
    /// Listeners, and UDP sockets without a peer, instead of the others
    #[arg(long, short)]
    pub listening: bool,
    /// TCP sockets only
    #[arg(long, short)]
    pub tcp: bool,
    /// UDP sockets only
    #[arg(long, short)]
    pub udp: bool,
    /// Everything: listeners, connections, UDP sockets, TIME-WAIT
    #[arg(long, short)]
    pub all: bool,
    /// One JSON object instead of the table
    #[arg(long)]
    pub json: bool,
}

/// `haypile balance`.
#[derive(Debug, Args)]
pub struct BalanceArgs {
    /// The service to ask.
    #[command(flatten)]
    pub control: ControlArgs,
    /// From now on: naive, unfiltered, filtered or tournament
    #[arg(long, value_name = "SCHEME")]
    pub scheme: Option<String>,
    /// From now on: by how much another manager's application counts as slower than it is, 1 to 1000
    #[arg(long, value_name = "N")]
    pub tariff: Option<f64>,
    /// From now on: median, outstanding or peak-ewma
    #[arg(long, value_name = "KIND")]
    pub estimator: Option<String>,
    /// From now on: the tournament lets an offer in that is better by this factor, tariff included
    #[arg(long, value_name = "FACTOR")]
    pub high_watermark: Option<f64>,
    /// From now on: and sends it away when it is no more better by this one
    #[arg(long, value_name = "FACTOR")]
    pub low_watermark: Option<f64>,
    /// Again every second, until interrupted
    #[arg(long)]
    pub watch: bool,
    /// One JSON object a look instead of the tables
    #[arg(long)]
    pub json: bool,
}

/// `haypile status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The service to ask.
    #[command(flatten)]
    pub control: ControlArgs,
    /// One JSON object instead of the tables
    #[arg(long)]
    pub json: bool,
}

/// `haypile resolve`.
#[derive(Debug, Args)]
pub struct ResolveArgs {
    /// The service to ask.
    #[command(flatten)]
    pub control: ControlArgs,
    /// A name, or an address whose names are wanted
    #[arg(value_name = "NAME")]
    pub wanted: String,
    /// One JSON object instead of lines
    #[arg(long)]
    pub json: bool,
}

/// `haypile plan`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct PlanArgs {
    /// Changes a running service.
    #[command(subcommand)]
    pub change: Option<PlanChange>,
    /// The plan, in the notation TS1LS1CM1
    #[arg(default_value = "TS1LS1CM1")]
    pub plan: String,
    /// The processor of a server; may be repeated, one for each server [default: chosen]
    #[arg(long = "core", value_name = "N")]
    pub cores: Vec<u32>,
    /// The link, as for `haypile serve` [default: tap:]
    #[arg(long, value_name = "LINK", default_value = "tap:", hide_default_value = true)]
    pub link: String,
    /// One JSON object instead of the table
    #[arg(long)]
    pub json: bool,
}

/// `haypile plan set`.
#[derive(Debug, Subcommand)]
pub enum PlanChange {
    /// Add servers to a running service or take some away, and return when that is done.
    #[command(after_help = "Examples:
  haypile plan set TS4LS4CM4                 a service of one or two servers now has four
  haypile plan set TS1LS1CM1                 and now one again
  haypile plan set TS3+LS1+CM1 --json        one more transport server, apart from the others

Connections go on: programs open their listeners at the new servers by themselves, and then each server
that ran hands over its share of the buckets of TCP flows, with the connections in them. A server that is
to leave hands over all that it has, waits until programs have followed their connections (30 s at most)
and ends. What is waited for longer than two seconds is said. Servers that stay keep their numbers and
components; only the last ones can leave.

UDP sockets stay with the servers that the service started with. When one of those leaves they are opened
at another: what waits in them is lost, and for a moment their ports may be answered as closed.")]
    Set(PlanSetArgs),
}

/// `haypile plan set`.
#[derive(Debug, Args)]
pub struct PlanSetArgs {
    /// The service to change.
    #[command(flatten)]
    pub control: ControlArgs,
    /// The new plan: the servers of the present one and more, or without the last ones
    #[arg(value_name = "PLAN")]
    pub plan: String,
    /// One JSON object instead of a line
    #[arg(long)]
    pub json: bool,
}

/// `haypile capture`.
#[derive(Debug, Args)]
pub struct CaptureArgs {
    /// The service to ask.
    #[command(flatten)]
    pub control: ControlArgs,
    /// Start, writing to this file, which must not exist
    #[arg(long, short, value_name = "FILE", required_unless_present = "stop")]
    pub write: Option<PathBuf>,
    /// Stop by itself after this many bytes
    #[arg(long, value_name = "BYTES", default_value_t = 0, hide_default_value = true)]
    pub max_bytes: u64,
    /// End the capture that runs
    #[arg(long, conflicts_with = "write")]
    pub stop: bool,
    /// One JSON object instead of a line
    #[arg(long)]
    pub json: bool,
}

/// `haypile doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Where a service is looked for.
    #[command(flatten)]
    pub control: ControlArgs,
    /// One JSON object instead of the table
    #[arg(long)]
    pub json: bool,
}

/// `haypile completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// `haypile man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write haypile.1 and haypile-COMMAND.1 into this directory, which is made if it is missing
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    const README: &str = include_str!("../../../README.md");

    /// Words that follow `haypile` in the README where it is a command.
    fn commands_told() -> Vec<&'static str> {
        let uses = README.split("haypile ").skip(1);
        let words = uses.filter_map(|rest| rest.split([' ', '`', '\n']).next());
        words.filter(|word| !word.is_empty() && word.chars().all(char::is_lowercase)).collect()
    }

    #[test]
    fn the_readme_tells_every_command() {
        let (told, command) = (commands_told(), Cli::command());
        let shown = command.get_subcommands().filter(|command| !command.is_hide_set());
        for command in shown {
            let name = command.get_name();
            assert!(name == "demo" || told.contains(&name), "README.md lacks haypile {name}");
        }
    }

    #[test]
    fn every_command_of_the_readme_exists() {
        let command = Cli::command();
        for line in README.lines().filter(|line| line.starts_with("haypile ")) {
            let name = line.split(' ').nth(1).unwrap_or_default();
            let found = command.find_subcommand(name);
            let found = found.unwrap_or_else(|| panic!("no command for: {line}"));
            let words = line.split(" # ").next().unwrap_or_default().split(" -- ").next();
            for option in words.into_iter().flat_map(|words| words.split([' ', '|'])) {
                let Some(option) = option.strip_prefix("--").filter(|name| !name.is_empty()) else {
                    continue;
                };
                let known = |one: &clap::Arg| one.get_long() == Some(option);
                let nested = found.get_subcommands().any(|one| one.get_arguments().any(known));
                assert!(nested || found.get_arguments().any(known), "no --{option} for: {line}");
            }
        }
    }
}

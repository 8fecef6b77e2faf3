//! The sans-IO heart of Haypile: one [`Shard`] is one core's Ethernet, ARP, NDP, IPv4, IPv6, ICMP
//! and TCP, with its flows, listeners, neighbours and timers.
//!
//! Nothing here does input or output, reads a clock or draws randomness: time, frames and seeds are
//! arguments. `handle_*` says that something arrived, `poll_*` asks what to do next, everything
//! else is a command of an application. Read [`shard`] first, then `shard/receive.rs` for the way
//! of a packet in, `shard/transmit.rs` for the way out, and [`tcp`] for what a connection does.
#![forbid(unsafe_code)]

pub mod carry;
pub mod config;
pub mod control;
pub mod counters;
pub mod datagram;
pub mod dhcp;
pub mod drop_reason;
pub mod error;
pub mod event;
pub mod limits;
pub mod migration;
pub mod options;
pub mod random;
pub mod resolver;
pub mod shard;
pub mod socket_id;
pub mod steering;
pub mod streams;
pub mod tcp;
pub mod time;
pub mod trace;

mod datagram_table;
mod flow_table;
mod groups;
mod keys;
mod listeners;
mod lists;
mod neighbours;
pub mod network;
mod packets;
mod path_mtu;
mod ports;
mod rate_limit;
mod reassembly;
mod routing;
mod slab;
mod syn_cookies;
mod time_wait_table;
mod timer_wheel;

pub use config::{Cidr, Offloads, Route, ShardConfig};
pub use counters::{Counter, Counters};
pub use datagram::{Datagram, DatagramOption, DatagramOptions, PathMtu, SendTo};
pub use drop_reason::DropReason;
pub use error::{
    ConfigError, ConnectError, GroupError, ListenError, ParseCidrError, SendError, SocketError,
};
pub use event::{DatagramReport, Event, Progress, QUOTED_MAX};
pub use limits::Limits;
pub use migration::{Exported, Freight, Imported, NotExported, Positions};
pub use network::{AddressState, AddressSummary, NetworkUpdate, Origin};
pub use options::{Close, ListenOptions, SocketOption, SocketOptions};
pub use shard::knock::Knocked;
pub use shard::{Forward, ForwardKind, Shard, SocketState, SocketSummary, Steered};
pub use socket_id::SocketId;
pub use streams::{PartialChecksum, RxMeta, Streams, TxMeta};
pub use tcp::{State, TcpCounters, TcpInfo, TcpLimits, Vitals};
pub use time::Instant;
pub use trace::{Reason, TraceKind, TraceRecord, TracedSegment};

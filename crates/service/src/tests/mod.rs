//! Tests of a whole server without a kernel network: a server under test, a plain shard as its peer
//! on the other end of an in-memory link, and applications made of the application-side objects of
//! `haypile-shm`. Time is virtual; the processes of applications are real, but only sleep.

mod accepting;
mod datagrams;
mod elsewhere;
mod farewell;
mod freight;
mod growth;
mod homes;
mod hostile;
mod inherited;
mod life;
mod sockets;
mod streams;
mod welcome;

use crate::harness;

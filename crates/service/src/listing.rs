//! The answer to `haypile ss`, in slices. A server may have hundreds of thousands of sockets, and whoever asks for all
//! of them must not stop its traffic: what they are is noted at once, which is short, and put into words a few at a
//! time, between turns, as fast as somebody reads.
//!
//! Called by `event_loop`; the supervisor puts the answers of servers together and in order (`supervisor::merge`).

use haypile_engine::shard::SocketSummary;

use crate::report::SocketChoice;
use crate::server::Core;

/// Sockets put into words at a time: some 50 us.
const SLICE: usize = 32;

/// Sockets that are still to be told of.
#[derive(Debug)]
pub struct Listing {
    left: std::vec::IntoIter<SocketSummary>,
    begun: bool,
}

impl Listing {
    /// The sockets of a server that are asked for.
    pub fn new(core: &Core, choice: &SocketChoice) -> Listing {
        Listing { left: core.sockets_chosen(choice).into_iter(), begun: false }
    }

    /// The next piece of the answer, a line of JSON in the end; true: that was the last one.
    pub fn write_some(&mut self, core: &Core, out: &mut Vec<u8>) -> bool {
        let mut between = if self.begun { "," } else { "{\"ok\":true,\"sockets\":[" };
        for summary in self.left.by_ref().take(SLICE) {
            out.extend_from_slice(between.as_bytes());
            // Neither the row nor a vector can fail.
            let _: serde_json::Result<()> =
                serde_json::to_writer(&mut *out, &core.socket_row(&summary));
            (between, self.begun) = (",", true);
        }
        if self.left.len() > 0 {
            return false;
        }
        if !self.begun {
            out.extend_from_slice(between.as_bytes());
        }
        out.extend_from_slice(b"]}\n");
        true
    }
}

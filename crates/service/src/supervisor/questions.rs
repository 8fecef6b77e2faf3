//! Questions of the control socket that a server answers: handed over on a connection of its own,
//! the answer taken when it comes. Nobody waits meanwhile. Called by `supervisor`.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use serde_json::Value;

use crate::control::{ClientId, Request};

/// Longest answer.
const ANSWER_MAX: usize = 256 << 20;

/// Questions under way, by the client that asked. A client's next question takes the place of its
/// last.
#[derive(Debug, Default)]
pub struct Questions {
    open: HashMap<ClientId, Question>,
}

#[derive(Debug)]
struct Question {
    stream: UnixStream,
    input: Vec<u8>,
    request: Request,
}

/// What has become of a question.
#[derive(Debug)]
pub enum Outcome {
    /// The answer is still coming.
    Waiting,
    /// Here it is, with what was asked.
    Answered(Request, Value),
    /// The server is gone.
    Failed,
}

impl Questions {
    /// Asks; the end of the connection that the server is to be given.
    ///
    /// # Errors
    /// The system's.
    pub fn ask(&mut self, client: ClientId, request: Request) -> std::io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        let mut line = serde_json::to_vec(&request)?;
        line.push(b'\n');
        // A request is far shorter than what a fresh connection takes.
        (&ours).write_all(&line)?;
        self.open.insert(client, Question { stream: ours, input: Vec::new(), request });
        Ok(theirs)
    }

    /// The descriptor on which the answer for a client comes.
    pub fn descriptor(&self, client: ClientId) -> Option<RawFd> {
        self.open.get(&client).map(|question| question.stream.as_raw_fd())
    }

    /// Takes what has come for a client.
    pub fn read(&mut self, client: ClientId) -> Outcome {
        let Some(question) = self.open.get_mut(&client) else { return Outcome::Failed };
        let mut bytes = [0; 65_536];
        let whole = loop {
            match question.stream.read(&mut bytes) {
                Ok(0) => break false,
                Ok(len) => question.input.extend_from_slice(&bytes[..len]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break true,
                Err(_) => break false,
            }
            if question.input.len() > ANSWER_MAX {
                break false;
            }
        };
        let end = question.input.iter().position(|byte| *byte == b'\n');
        if end.is_none() && whole {
            return Outcome::Waiting;
        }
        let Some(question) = self.open.remove(&client) else { return Outcome::Failed };
        let answer = end.and_then(|end| serde_json::from_slice(&question.input[..end]).ok());
        answer.map_or(Outcome::Failed, |answer| Outcome::Answered(question.request, answer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_in_pieces_or_not_at_all() {
        let mut questions = Questions::default();
        let mut server = questions.ask(5, Request::CaptureStop {}).unwrap();
        let mut asked = [0; 64];
        let len = server.read(&mut asked).unwrap();
        // Whoever is confined cannot change that.
        assert_eq!(&asked[..len], b"{\"command\":\"capture-stop\"}\n");
        assert!(matches!(questions.read(5), Outcome::Waiting));
        server.write_all(b"{\"ok\":").unwrap();
        assert!(matches!(questions.read(5), Outcome::Waiting));
        server.write_all(b"true}\n").unwrap();
        let Outcome::Answered(request, answer) = questions.read(5) else { panic!("an answer") };
        assert_eq!((request, answer["ok"].as_bool()), (Request::CaptureStop {}, Some(true)));
        assert!(matches!(questions.read(5), Outcome::Failed));
        let server = questions.ask(6, Request::CaptureStop {}).unwrap();
        drop(server);
        assert!(matches!(questions.read(6), Outcome::Failed));
        assert!(questions.descriptor(6).is_none());
    }
}

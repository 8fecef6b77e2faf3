//! Questions of the control socket that servers answer: handed over on connections of their own,
//! the answers taken when they come. Nobody waits meanwhile. Called by `supervisor`; `merge` makes
//! one answer of several.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use crate::control::{ClientId, Request};
use crate::roles::ProcessNumber;

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
    request: Request,
    parts: Vec<Part>,
}

/// What one server is asked.
#[derive(Debug)]
struct Part {
    server: ProcessNumber,
    /// Gone when it has answered, or will never.
    stream: Option<UnixStream>,
    input: Vec<u8>,
    answer: Option<Vec<u8>>,
}

/// What has become of a question.
#[derive(Debug)]
pub enum Outcome {
    /// Answers are still coming.
    Waiting,
    /// Here they are, lines of JSON, one of each server that gave one and one at least, with what was asked.
    Answered(Request, Vec<(ProcessNumber, Vec<u8>)>),
    /// All that were asked are gone.
    Failed,
}

impl Questions {
    /// Asks; the ends of the connections that the servers are to be given.
    ///
    /// # Errors
    /// The system's.
    pub fn ask(
        &mut self,
        client: ClientId,
        request: Request,
        servers: &[ProcessNumber],
    ) -> std::io::Result<Vec<(ProcessNumber, UnixStream)>> {
        let mut line = serde_json::to_vec(&request)?;
        line.push(b'\n');
        let (mut parts, mut ends) = (Vec::new(), Vec::new());
        for server in servers.iter().copied() {
            let (ours, theirs) = UnixStream::pair()?;
            ours.set_nonblocking(true)?;
            theirs.set_nonblocking(true)?;
            // A request is far shorter than what a fresh connection takes.
            (&ours).write_all(&line)?;
            parts.push(Part { server, stream: Some(ours), input: Vec::new(), answer: None });
            ends.push((server, theirs));
        }
        self.open.insert(client, Question { request, parts });
        Ok(ends)
    }

    /// Forgets what a client asked.
    pub fn forget(&mut self, client: ClientId) {
        self.open.remove(&client);
    }

    /// The descriptors on which the answers for a client come.
    pub fn descriptors(&self, client: ClientId) -> Vec<RawFd> {
        let parts = self.open.get(&client).into_iter().flat_map(|question| &question.parts);
        parts.filter_map(|part| Some(part.stream.as_ref()?.as_raw_fd())).collect()
    }

    /// Takes what has come for a client.
    pub fn read(&mut self, client: ClientId) -> Outcome {
        let Some(question) = self.open.get_mut(&client) else { return Outcome::Failed };
        for part in &mut question.parts {
            part.read();
        }
        if question.parts.iter().any(|part| part.stream.is_some()) {
            return Outcome::Waiting;
        }
        let Some(Question { request, parts }) = self.open.remove(&client) else {
            return Outcome::Failed;
        };
        let answers: Vec<(ProcessNumber, Vec<u8>)> =
            parts.into_iter().filter_map(|part| Some((part.server, part.answer?))).collect();
        if answers.is_empty() { Outcome::Failed } else { Outcome::Answered(request, answers) }
    }
}

impl Part {
    /// Takes what has come; the connection is closed when there will be no more.
    fn read(&mut self) {
        let Some(stream) = &mut self.stream else { return };
        let mut bytes = [0; 65_536];
        let heard = self.input.len();
        let whole = loop {
            match stream.read(&mut bytes) {
                Ok(0) => break false,
                Ok(len) => self.input.extend_from_slice(&bytes[..len]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break true,
                Err(_) => break false,
            }
            if self.input.len() > ANSWER_MAX {
                break false;
            }
        };
        let end = self.input[heard..].iter().position(|byte| *byte == b'\n');
        if end.is_none() && whole {
            return;
        }
        let mut line = std::mem::take(&mut self.input);
        line.truncate(heard + end.unwrap_or(0));
        self.answer = end.is_some().then_some(line);
        self.stream = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask_one(questions: &mut Questions, client: ClientId) -> UnixStream {
        let mut ends = questions.ask(client, Request::CaptureStop {}, &[0]).unwrap();
        ends.pop().unwrap().1
    }

    #[test]
    fn answers_come_in_pieces_or_not_at_all() {
        let mut questions = Questions::default();
        let mut server = ask_one(&mut questions, 5);
        let mut asked = [0; 64];
        let len = server.read(&mut asked).unwrap();
        // Whoever is confined cannot change that.
        assert_eq!(&asked[..len], b"{\"command\":\"capture-stop\"}\n");
        assert!(matches!(questions.read(5), Outcome::Waiting));
        server.write_all(b"{\"ok\":").unwrap();
        assert!(matches!(questions.read(5), Outcome::Waiting));
        server.write_all(b"true}\n").unwrap();
        let Outcome::Answered(request, answers) = questions.read(5) else { panic!("an answer") };
        assert_eq!(request, Request::CaptureStop {});
        assert_eq!(answers, [(0, br#"{"ok":true}"#.to_vec())]);
        assert!(matches!(questions.read(5), Outcome::Failed));
        let server = ask_one(&mut questions, 6);
        drop(server);
        assert!(matches!(questions.read(6), Outcome::Failed));
        assert!(questions.descriptors(6).is_empty());
    }

    #[test]
    fn the_answer_of_several_is_whole_when_each_has_answered_or_is_gone() {
        let mut questions = Questions::default();
        let ends = questions.ask(1, Request::Status {}, &[0, 1, 2]).unwrap();
        assert_eq!(questions.descriptors(1).len(), 3);
        let mut ends: Vec<Option<UnixStream>> = ends.into_iter().map(|end| Some(end.1)).collect();
        ends[2].as_mut().unwrap().write_all(b"{\"ok\":true}\n").unwrap();
        assert!(matches!(questions.read(1), Outcome::Waiting));
        assert_eq!(questions.descriptors(1).len(), 2);
        ends[0] = None;
        assert!(matches!(questions.read(1), Outcome::Waiting));
        ends[1].as_mut().unwrap().write_all(b"no whole line").unwrap();
        ends[1] = None;
        let Outcome::Answered(_, answers) = questions.read(1) else { panic!("an answer") };
        assert_eq!(answers.iter().map(|answer| answer.0).collect::<Vec<_>>(), [2]);
    }
}

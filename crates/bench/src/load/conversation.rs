//! What one session says and expects: the requests of each kind of work and the check of every answer. Pure; called by
//! `generator`. The responder's side is `crate::responder`.

use super::Work;

/// First line that asks the built-in responder to send back what it gets.
pub const ECHO: &[u8] = b"ECHO\n";
/// First line that asks it to swallow what it gets.
pub const SINK: &[u8] = b"SINK\n";
/// First line that asks it to send without end.
pub const SOURCE: &[u8] = b"SOURCE\n";
/// Bytes of one write or read of bulk work.
pub const BULK_BYTES: usize = 128 * 1024;
/// Answers with longer heads are failures.
const HEAD_MAX: usize = 4096;

/// The byte at a position of bodies and messages.
pub fn pattern(position: usize) -> u8 {
    b'a' + (position % 23) as u8
}

/// The first `len` bytes of the pattern.
pub fn patterned(len: usize) -> Vec<u8> {
    (0..len).map(pattern).collect()
}

/// What all sessions of a load say.
#[derive(Clone, Debug)]
pub struct Script {
    /// Sent once on a new connection, before the first request.
    pub opening: Vec<u8>,
    /// Sent for each request; of uploads, again and again.
    pub request: Vec<u8>,
    /// Each request has a connection of its own, which the server closes.
    pub short: bool,
    answer: Answer,
}

#[derive(Clone, Debug)]
enum Answer {
    Http { body: Vec<u8> },
    Echo { message: Vec<u8> },
    Endless,
    Never,
}

impl Script {
    /// The script of a kind of work; HTTP answers have `body_bytes` of the pattern.
    pub fn new(work: &Work, body_bytes: usize) -> Script {
        let http = |connection: &str| {
            format!(
                "GET /{body_bytes} HTTP/1.1\r\nHost: haypile\r\nConnection: {connection}\r\n\r\n"
            )
            .into_bytes()
        };
        let body = || Answer::Http { body: patterned(body_bytes) };
        let (opening, request, answer) = match work {
            Work::Short => (&b""[..], http("close"), body()),
            Work::KeepAlive => (&b""[..], http("keep-alive"), body()),
            Work::Echo(bytes) => {
                let message = patterned((*bytes).max(1));
                (ECHO, message.clone(), Answer::Echo { message })
            }
            Work::Upload => (SINK, patterned(BULK_BYTES), Answer::Never),
            Work::Download => (SOURCE, Vec::new(), Answer::Endless),
        };
        Script { opening: opening.to_vec(), request, short: *work == Work::Short, answer }
    }

    /// Whether requests have answers, so that there are latencies.
    pub fn has_answers(&self) -> bool {
        matches!(self.answer, Answer::Http { .. } | Answer::Echo { .. })
    }
}

/// How far an answer has come.
#[derive(Clone, Debug, Default)]
pub struct Reader {
    /// The head, while it is not complete.
    head: Vec<u8>,
    /// Bytes of body or message that have come.
    received: usize,
    in_body: bool,
}

/// What the bytes so far mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More must come.
    Incomplete,
    /// Everything has come.
    Complete,
    /// It is wrong.
    Wrong(String),
}

impl Reader {
    /// Ready for the next answer.
    pub fn reset(&mut self) {
        self.head.clear();
        self.received = 0;
        self.in_body = false;
    }

    /// Takes bytes of the answer and checks them.
    pub fn take(&mut self, script: &Script, bytes: &[u8]) -> Progress {
        match &script.answer {
            Answer::Http { body } => self.take_http(body, bytes),
            Answer::Echo { message } => self.compare(message, bytes),
            Answer::Endless => Progress::Incomplete,
            Answer::Never => Progress::Wrong("bytes from a server that was to keep silent".into()),
        }
    }

    fn take_http(&mut self, body: &[u8], bytes: &[u8]) -> Progress {
        if self.in_body {
            return self.compare(body, bytes);
        }
        // The usual answer comes in one piece: nothing is copied then.
        if self.head.is_empty()
            && let Some(end) = head_end(bytes)
        {
            return self.take_head(body, &bytes[..end], &bytes[end..]);
        }
        self.head.extend_from_slice(bytes);
        let head = std::mem::take(&mut self.head);
        match head_end(&head) {
            Some(end) => self.take_head(body, &head[..end], &head[end..]),
            None if head.len() > HEAD_MAX => {
                Progress::Wrong("the head of an answer does not end".into())
            }
            None => {
                self.head = head;
                Progress::Incomplete
            }
        }
    }

    fn take_head(&mut self, body: &[u8], head: &[u8], rest: &[u8]) -> Progress {
        if let Some(wrong) = wrong_head(head, body.len()) {
            return Progress::Wrong(wrong);
        }
        self.in_body = true;
        self.compare(body, rest)
    }

    fn compare(&mut self, wanted: &[u8], bytes: &[u8]) -> Progress {
        let end = self.received + bytes.len();
        match wanted.get(self.received..end) {
            None => Progress::Wrong(format!("{} bytes too many", end - wanted.len())),
            Some(part) if part != bytes => Progress::Wrong("a byte of an answer is wrong".into()),
            Some(_) => {
                self.received = end;
                if end == wanted.len() { Progress::Complete } else { Progress::Incomplete }
            }
        }
    }
}

/// Where the body starts.
fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

/// What is wrong with the head of an answer whose body has `len` bytes.
fn wrong_head(head: &[u8], len: usize) -> Option<String> {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        return Some(format!("the server answered '{status}'"));
    }
    let told = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    (told != Some(len)).then(|| format!("Content-Length is {told:?}, not {len}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(body: usize) -> Vec<u8> {
        let mut bytes = format!("HTTP/1.1 200 OK\r\ncontent-length: {body}\r\n\r\n").into_bytes();
        bytes.extend(patterned(body));
        bytes
    }

    #[test]
    fn answers_may_come_in_any_pieces() {
        let script = Script::new(&Work::Short, 100);
        let bytes = answer(100);
        for cut in 1..bytes.len() {
            let mut reader = Reader::default();
            assert_eq!(reader.take(&script, &bytes[..cut]), Progress::Incomplete, "{cut}");
            assert_eq!(reader.take(&script, &bytes[cut..]), Progress::Complete, "{cut}");
        }
        let mut reader = Reader::default();
        let single: Vec<Progress> =
            bytes.iter().map(|byte| reader.take(&script, &[*byte])).collect();
        assert_eq!(single.last(), Some(&Progress::Complete));
        reader.reset();
        assert_eq!(reader.take(&script, &bytes), Progress::Complete);
    }

    #[test]
    fn wrong_answers_are_noticed() {
        let script = Script::new(&Work::KeepAlive, 10);
        let wrong =
            |bytes: &[u8]| matches!(Reader::default().take(&script, bytes), Progress::Wrong(_));
        assert!(wrong(b"HTTP/1.1 404 Not Found\r\nContent-Length: 10\r\n\r\n"));
        assert!(wrong(&answer(11)));
        let mut damaged = answer(10);
        *damaged.last_mut().expect("bytes") ^= 1;
        assert!(wrong(&damaged));
        let mut long = answer(10);
        long.push(0);
        assert!(wrong(&long));
        assert!(wrong(&[b'x'; 5000]));
    }

    #[test]
    fn echoes_are_compared() {
        let script = Script::new(&Work::Echo(5), 0);
        let mut reader = Reader::default();
        assert_eq!(reader.take(&script, &patterned(5)), Progress::Complete);
        reader.reset();
        assert!(matches!(reader.take(&script, b"abcdX"), Progress::Wrong(_)));
    }
}

//! Owns the byte layout of netlink (netlink(7), rtnetlink(7)): building requests and a total parser
//! of what the kernel sends. No input, however malformed, panics, loops or reads outside it. Called
//! by `netlink.rs` and `list.rs`; does no I/O.

/// The bytes are not a netlink message or attribute list.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Malformed;

pub(crate) const HEADER_LEN: usize = 16;
const ATTRIBUTE_HEADER_LEN: usize = 4;
const ALIGNMENT: usize = 4;
/// The two high bits of an attribute's type are flags (NLA_F_NESTED, NLA_F_NET_BYTEORDER).
const ATTRIBUTE_TYPE_MASK: u16 = 0x3fff;

fn aligned(len: usize) -> usize {
    len.next_multiple_of(ALIGNMENT)
}

/// A request being built: header, one fixed structure, attributes.
pub(crate) struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// Starts a message of this type and these `NLM_F_*` flags with its fixed structure.
    pub(crate) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Request {
        let mut bytes = vec![0; HEADER_LEN];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(fixed);
        let mut request = Request { bytes };
        request.pad();
        request
    }

    fn pad(&mut self) {
        self.bytes.resize(aligned(self.bytes.len()), 0);
    }

    /// Appends an attribute.
    pub(crate) fn attribute(mut self, kind: u16, value: &[u8]) -> Request {
        let len = (ATTRIBUTE_HEADER_LEN + value.len()) as u16;
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    /// Appends a 32-bit attribute in the machine's byte order.
    pub(crate) fn attribute_u32(self, kind: u16, value: u32) -> Request {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// Appends a string attribute with its final zero byte.
    pub(crate) fn attribute_text(self, kind: u16, value: &str) -> Request {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes)
    }

    /// Appends an attribute that contains what `fill` appends (a fixed structure may come first).
    pub(crate) fn nested(
        mut self,
        kind: u16,
        fixed: &[u8],
        fill: impl FnOnce(Request) -> Request,
    ) -> Request {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(fixed);
        self.pad();
        let mut filled = fill(self);
        let len = (filled.bytes.len() - start) as u16;
        filled.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        filled
    }

    /// The finished message: length and sequence number filled in.
    pub(crate) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let len = self.bytes.len() as u32;
        self.bytes[0..4].copy_from_slice(&len.to_ne_bytes());
        set_sequence(&mut self.bytes, sequence);
        self.bytes
    }
}

/// Changes the sequence number of a finished message.
pub(crate) fn set_sequence(message: &mut [u8], sequence: u32) {
    message[8..12].copy_from_slice(&sequence.to_ne_bytes());
}

/// One message of a received datagram.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) payload: &'a [u8],
}

/// The messages of one datagram, in order; ends after the first malformed one.
pub(crate) struct Messages<'a> {
    rest: &'a [u8],
}

pub(crate) fn messages(datagram: &[u8]) -> Messages<'_> {
    Messages { rest: datagram }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let parsed = take_message(self.rest);
        self.rest = match parsed {
            Ok((_, rest)) => rest,
            Err(Malformed) => &[],
        };
        Some(parsed.map(|(message, _)| message))
    }
}

fn take_message(bytes: &[u8]) -> Result<(Message<'_>, &[u8]), Malformed> {
    let len = u32_at(bytes, 0).ok_or(Malformed)? as usize;
    if len < HEADER_LEN {
        return Err(Malformed);
    }
    let message = Message {
        kind: u16_at(bytes, 4).ok_or(Malformed)?,
        flags: u16_at(bytes, 6).ok_or(Malformed)?,
        sequence: u32_at(bytes, 8).ok_or(Malformed)?,
        payload: bytes.get(HEADER_LEN..len).ok_or(Malformed)?,
    };
    Ok((message, bytes.get(aligned(len)..).unwrap_or(&[])))
}

/// The attributes in `bytes`, in order; a malformed tail ends the list (what came before it holds).
pub(crate) struct Attributes<'a> {
    rest: &'a [u8],
}

pub(crate) fn attributes(bytes: &[u8]) -> Attributes<'_> {
    Attributes { rest: bytes }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let len = usize::from(u16_at(self.rest, 0)?);
        let kind = u16_at(self.rest, 2)? & ATTRIBUTE_TYPE_MASK;
        let Some(value) = self.rest.get(ATTRIBUTE_HEADER_LEN..len) else {
            self.rest = &[];
            return None;
        };
        self.rest = self.rest.get(aligned(len)..).unwrap_or(&[]);
        Some((kind, value))
    }
}

/// The 16-bit number at `offset`, in the machine's byte order.
pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(offset..offset + 2)?.try_into().ok()?))
}

/// The 32-bit number at `offset`, in the machine's byte order.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
}

/// A string attribute's text, without its final zero byte.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

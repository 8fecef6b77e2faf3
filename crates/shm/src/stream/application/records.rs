//! Datagrams over the stream record: whole records, read and written under the same locks as
//! bytes, so that processes that share a socket never see half of one. Read `datagram` first.

use core::sync::atomic::Ordering;
use std::io::{IoSlice, IoSliceMut};

use super::{AppStream, Chunks, ReadSpan, StreamError, WriteOutcome};
use crate::datagram::{DatagramHeader, RECORD_HEADER, RECORD_MAX};
use crate::limits::FIFO_BYTES;

/// A record that was read or looked at.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct RecordRead {
    /// What it says.
    pub header: DatagramHeader,
    /// Bytes of its payload that were copied; the others, if any, are lost.
    pub copied: usize,
    /// KICK_RX must be sent.
    pub kick: bool,
}

impl AppStream {
    /// Takes the oldest datagram, and copies as much of its payload as there is room for.
    /// `Ok(None)`: there is none.
    pub fn read_record(
        &self,
        out: &mut [IoSliceMut<'_>],
        chunks: &impl Chunks,
    ) -> Result<Option<RecordRead>, StreamError> {
        let _held = self.hold_rx()?;
        let span = self.rx_span()?;
        let head = span.head;
        let Some((header, copied)) = self.copy_record(span, out, chunks)? else { return Ok(None) };
        let next = ReadSpan { head: head + header.record_bytes() as u64, tail: 0, fin: false };
        let kick = self.finish_read(head, &next).kick;
        Ok(Some(RecordRead { header, copied, kick }))
    }

    /// As [`AppStream::read_record`], without taking it.
    pub fn peek_record(
        &self,
        out: &mut [IoSliceMut<'_>],
        chunks: &impl Chunks,
    ) -> Result<Option<RecordRead>, StreamError> {
        let _held = self.hold_rx()?;
        let span = self.rx_span()?;
        let found = self.copy_record(span, out, chunks)?;
        Ok(found.map(|(header, copied)| RecordRead { header, copied, kick: false }))
    }

    fn copy_record(
        &self,
        mut span: ReadSpan,
        out: &mut [IoSliceMut<'_>],
        chunks: &impl Chunks,
    ) -> Result<Option<(DatagramHeader, usize)>, StreamError> {
        let waiting = span.tail - span.head;
        if waiting == 0 {
            return Ok(None);
        }
        if waiting < RECORD_HEADER as u64 {
            return Err(StreamError::Corrupt);
        }
        let mut bytes = [0; RECORD_HEADER];
        self.copy_rx(&mut span, &mut bytes, chunks)?;
        let header = DatagramHeader::decode(&bytes).map_err(|_| StreamError::Corrupt)?;
        if header.record_bytes() as u64 > waiting {
            return Err(StreamError::Corrupt);
        }
        // The copies end with the payload, not with the filling after it.
        let start = span.head;
        span.tail = start + u64::from(header.len);
        for buffer in out {
            if span.head == span.tail {
                break;
            }
            self.copy_rx(&mut span, buffer, chunks)?;
        }
        Ok(Some((header, (span.head - start) as usize)))
    }

    /// Writes a datagram, whole or not at all: `bytes` of the outcome is the whole record or 0.
    /// The payload is all of `data`; `header.len` must say how much that is.
    pub fn write_record(
        &self,
        header: &DatagramHeader,
        data: &[IoSlice<'_>],
        chunks: &impl Chunks,
    ) -> Result<WriteOutcome, StreamError> {
        debug_assert_eq!(data.iter().map(|part| part.len()).sum::<usize>(), header.len.into());
        let _held = self.hold_tx()?;
        if !self.is_current() {
            return Err(StreamError::Stale);
        }
        let block = self.block();
        let start = block.application.tx_tail.load(Ordering::Relaxed);
        let limit = block.service.tx_limit.load(Ordering::Acquire);
        if limit.saturating_sub(start) > FIFO_BYTES as u64 {
            return Err(StreamError::Corrupt);
        }
        let end = start + header.record_bytes() as u64;
        if end > limit {
            let mut outcome = self.finish_write(start, start, false);
            let room = block.service.tx_room.load(Ordering::Acquire);
            outcome.room_beyond = end <= room;
            return Ok(outcome);
        }
        let (mut tail, mut fitted) = (start, true);
        self.copy_tx(&mut tail, limit, &header.encode(), &mut fitted, chunks)?;
        for part in data {
            self.copy_tx(&mut tail, end, part, &mut fitted, chunks)?;
        }
        Ok(self.finish_write(start, end, true))
    }

    /// Whether a record of any size can be written now or after asking for memory: what readiness
    /// for writing means to poll.
    pub fn has_record_room(&self) -> bool {
        self.tx_room() >= RECORD_MAX as u64
    }
}

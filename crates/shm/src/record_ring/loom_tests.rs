//! Loom models of the ring of records: publish and consume around the end of the ring with a gap,
//! and the two sleepers. The lines are loom cells, so that any access that is not ordered by the
//! positions fails the model.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};

use super::{LINE, Push, RECORD_HEADER, Record, RecordConsumer, RecordMemory, RecordProducer};

const LINES: u32 = 4;
/// The longest record of one line, and a length of two.
const ONE: usize = LINE - RECORD_HEADER;
const TWO: usize = LINE;

#[derive(Default)]
struct Memory {
    producer: AtomicU32,
    room: AtomicU32,
    consumer: AtomicU32,
    sleeping: AtomicU32,
    lines: [UnsafeCell<(Record, u8)>; LINES as usize],
}

#[derive(Clone)]
struct Model(Arc<Memory>);

// SAFETY: loom's cells check every access of the model.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

impl Model {
    fn ends() -> (RecordProducer<Model>, RecordConsumer<Model>) {
        let ring = Model(Arc::new(Memory::default()));
        (RecordProducer::new(ring.clone()), RecordConsumer::new(ring))
    }

    fn cells(len: usize) -> u32 {
        (RECORD_HEADER + len).div_ceil(LINE) as u32
    }

    fn cell(&self, line: u32) -> &UnsafeCell<(Record, u8)> {
        &self.0.lines[(line % LINES) as usize]
    }
}

impl RecordMemory for Model {
    type Word = AtomicU32;

    fn lines(&self) -> u32 {
        LINES
    }
    fn producer_position(&self) -> &AtomicU32 {
        &self.0.producer
    }
    fn room_flag(&self) -> &AtomicU32 {
        &self.0.room
    }
    fn consumer_position(&self) -> &AtomicU32 {
        &self.0.consumer
    }
    fn sleep_flag(&self) -> &AtomicU32 {
        &self.0.sleeping
    }
    fn consumer_core(&self) -> Option<&AtomicU32> {
        None
    }
    fn write(&self, line: u32, header: Record, content: &[u8], _past_caches: bool) {
        let mark = content.first().copied().unwrap_or(0);
        for index in 0..Model::cells(content.len()) {
            // SAFETY: loom checks that nobody else is in the line.
            self.cell(line + index).with_mut(|cell| unsafe { *cell = (header, mark) });
        }
    }
    fn read_header(&self, line: u32) -> Record {
        // SAFETY: loom checks that nobody writes the line.
        self.cell(line).with(|cell| unsafe { (*cell).0 })
    }
    fn read_content(&self, line: u32, out: &mut [u8]) {
        for index in 0..Model::cells(out.len()) {
            // SAFETY: loom checks that nobody writes the line.
            let mark = self.cell(line + index).with(|cell| unsafe { (*cell).1 });
            out.fill(mark);
        }
    }
}

fn take(consumer: &mut RecordConsumer<Model>) -> Option<u8> {
    let record = consumer.front()?;
    let mut bytes = vec![0; record.len as usize];
    consumer.take(record, &mut bytes);
    let _: bool = consumer.release();
    assert_eq!(u64::from(bytes[0]), record.tag);
    Some(bytes[0])
}

fn push(producer: &mut RecordProducer<Model>, mark: u8, len: usize) -> bool {
    let pushed = producer.push(u64::from(mark), &vec![mark; len]) == Push::Written;
    let _: bool = producer.publish();
    pushed
}

#[test]
fn loom_records_are_published_around_the_end() {
    loom::model(|| {
        let (mut producer, mut consumer) = Model::ends();
        // The ring is half used: the third record does not fit before its end.
        assert!(push(&mut producer, 1, ONE) && push(&mut producer, 2, TWO));
        assert_eq!(take(&mut consumer), Some(1));
        let sender = loom::thread::spawn(move || push(&mut producer, 3, TWO));
        let second = take(&mut consumer);
        assert_eq!(second, Some(2));
        let third = take(&mut consumer);
        let sent = sender.join().unwrap();
        let third = third.or_else(|| take(&mut consumer));
        assert_eq!(third, sent.then_some(3));
        assert!(!consumer.is_corrupt());
    });
}

#[test]
fn loom_a_sleeping_consumer_is_rung() {
    loom::model(|| {
        let (mut producer, mut consumer) = Model::ends();
        let sender = loom::thread::spawn(move || {
            assert_eq!(producer.push(1, &[1]), Push::Written);
            producer.publish()
        });
        let sleeps = consumer.prepare_sleep();
        if !sleeps {
            consumer.awake();
        }
        let rung = sender.join().unwrap();
        assert!(!sleeps || rung, "asleep with a record and nobody rang");
    });
}

#[test]
fn loom_a_producer_that_waits_for_room_is_rung() {
    loom::model(|| {
        let (mut producer, mut consumer) = Model::ends();
        assert!(push(&mut producer, 1, TWO) && push(&mut producer, 2, TWO));
        assert!(!push(&mut producer, 3, ONE));
        let receiver = loom::thread::spawn(move || {
            let record = consumer.front().expect("sent before");
            consumer.take(record, &mut []);
            consumer.release()
        });
        let sleeps = producer.prepare_sleep(ONE);
        if !sleeps {
            producer.awake();
        }
        let rung = receiver.join().unwrap();
        assert!(!sleeps || rung, "asleep with room and nobody rang");
        assert!(push(&mut producer, 3, ONE));
    });
}

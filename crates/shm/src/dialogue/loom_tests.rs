//! Loom models of a dialogue: slots that are used again at once, and sleep. The memory is that of the
//! models of `ring`, where any access that is not ordered by stamps and positions fails.

use crate::dialogue::Dialogue;
use crate::ring::loom_tests::{ModelRing, message};
use crate::sleep::SleepFlag;

fn ends() -> (Dialogue<ModelRing>, Dialogue<ModelRing>, [ModelRing; 2]) {
    let (there, back) = (ModelRing::new(), ModelRing::new());
    let one = Dialogue::new(there.clone(), back.clone());
    (one, Dialogue::new(back.clone(), there.clone()), [there, back])
}

/// Both have spoken and heard once: the next message of the first stays in its slot.
fn acquainted() -> (Dialogue<ModelRing>, Dialogue<ModelRing>, [ModelRing; 2]) {
    let (mut one, mut other, rings) = ends();
    assert!(one.push(&message(1)) && other.pop().is_some());
    assert!(other.push(&message(1)) && one.pop().is_some());
    (one, other, rings)
}

#[test]
fn loom_dialogue_uses_slots_again_only_when_read() {
    loom::model(|| {
        let (mut one, mut other, _) = acquainted();
        let answerer = loom::thread::spawn(move || {
            let mut next = 2;
            for _ in 0..2 {
                if let Some(got) = other.pop() {
                    assert_eq!(got[0], next);
                    assert!(other.push(&message(next)));
                    next += 1;
                }
            }
            (other, next)
        });
        let (mut sent, mut answered) = (1, 1);
        for _ in 0..3 {
            if one.push(&message(sent + 1)) {
                sent += 1;
            }
            if let Some(got) = one.pop() {
                answered += 1;
                assert_eq!(got[0], answered);
            }
        }
        let (mut other, mut next) = answerer.join().unwrap();
        let answers = next;
        while let Some(got) = other.pop() {
            assert_eq!(got[0], next);
            next += 1;
        }
        assert_eq!(next, sent + 1);
        while let Some(got) = one.pop() {
            answered += 1;
            assert_eq!(got[0], answered);
        }
        assert_eq!(answered + 1, answers);
        assert!(!one.is_corrupt() && !other.is_corrupt());
    });
}

#[test]
fn loom_dialogue_in_bursts() {
    loom::model(|| {
        let (mut one, mut other, _) = acquainted();
        let sender = loom::thread::spawn(move || {
            // The first stays, the second moves on, the third finds room when the first is taken.
            one.push_burst(&[message(2), message(3)]) + one.push_burst(&[message(4)])
        });
        let mut out = [[0; 8]; 3];
        let mut next = 2;
        for _ in 0..2 {
            let count = other.pop_burst(&mut out);
            for got in &out[..count] {
                assert_eq!(got[0], next);
                next += 1;
            }
        }
        let sent = sender.join().unwrap();
        while let Some(got) = other.pop() {
            assert_eq!(got[0], next);
            next += 1;
        }
        assert_eq!(next, 2 + sent as u64);
        assert!(!other.is_corrupt());
    });
}

#[test]
fn loom_sleeper_in_a_dialogue_is_rung() {
    loom::model(|| {
        let (mut one, mut other, [there, _back]) = acquainted();
        let to_other = there.clone();
        let sender = loom::thread::spawn(move || {
            assert_eq!(one.push_burst(&[message(2), message(3)]), 2);
            SleepFlag::new(to_other.sleeping()).must_wake()
        });
        SleepFlag::new(there.sleeping()).prepare_sleep();
        let sleeps = other.is_empty();
        let rung = sender.join().unwrap();
        // The last look found a message, or the sender saw the announcement.
        assert!(rung || !sleeps);
        assert!(other.pop().is_some() && other.pop().is_some() && !other.is_corrupt());
    });
}

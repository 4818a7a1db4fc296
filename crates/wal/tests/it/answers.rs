//! The answer table of protocol section 5, row by row, for every kind of writer.

use fencepost_sim::{Fault, Op};
use fencepost_wal::{Error, Outcome, Position, Result, WalAppender, WalConfig, WalWriter};

use crate::support::{Bucket, Process, append, batch, bucket};

/// Past this many appends no dead predecessor's straggler can land on the next position.
const SERIAL_ZONE: i64 = 33;

#[derive(Debug, Clone, Copy)]
enum Kind {
    Appender,
    Writer { max_in_flight: usize },
}

const KINDS: [Kind; 3] = [Kind::Appender, Kind::Writer { max_in_flight: 1 }, Kind::Writer { max_in_flight: 4 }];

enum Handle {
    Appender(WalAppender),
    Writer(WalWriter),
}

impl Handle {
    async fn open(process: &Process, kind: Kind) -> Self {
        match kind {
            Kind::Appender => Handle::Appender(process.appender().await),
            Kind::Writer { max_in_flight } => {
                Handle::Writer(process.writer(WalConfig { max_in_flight, ..WalConfig::default() }).await)
            }
        }
    }

    async fn append(&mut self, id: i64) -> Result<Position> {
        match self {
            Handle::Appender(appender) => append(appender, [id]).await,
            Handle::Writer(writer) => writer.append(batch([id])).await,
        }
    }

    fn next(&self) -> u64 {
        match self {
            Handle::Appender(appender) => appender.next_position().get(),
            Handle::Writer(writer) => writer.stats().next_position.get(),
        }
    }

    /// Appends until the serial zone lies behind.
    async fn leave_serial_zone(&mut self) {
        for id in 0..SERIAL_ZONE {
            self.append(-id).await.unwrap();
        }
    }
}

/// An entry of epoch `epoch` by a claim of some other shard: the identity is all that counts.
async fn foreign_entry(epoch: u64) -> bytes::Bytes {
    let elsewhere = bucket().await;
    for _ in 1..epoch {
        elsewhere.process().appender().await;
    }
    let mut appender = elsewhere.process().appender().await;
    let position = append(&mut appender, [-1]).await.unwrap();
    assert_eq!(appender.epoch().get(), epoch);
    elsewhere.read(&elsewhere.entry_path(position.get())).await.unwrap()
}

/// The append failed, everything after it fails, and nothing more is sent.
async fn assert_stopped(process: &Process, handle: &mut Handle, error: &Error) {
    process.faults.clear_rules();
    process.faults.clear_log();
    let later = handle.append(99).await.unwrap_err();
    assert_eq!(std::mem::discriminant(&later), std::mem::discriminant(error), "{later}");
    assert_eq!(later.outcome(), Outcome::NotWritten);
    assert!(process.faults.log().is_empty(), "a stopped writer sent {:?}", process.faults.log());
}

async fn start(kind: Kind) -> (Bucket, Process, Handle) {
    let bucket = bucket().await;
    let process = bucket.process();
    let handle = Handle::open(&process, kind).await;
    (bucket, process, handle)
}

#[tokio::test(start_paused = true)]
async fn ok_costs_one_put_and_nothing_else() {
    for kind in KINDS {
        let (bucket, process, mut handle) = start(kind).await;
        crate::support::settle().await; // the version hint, which is written beside the way
        process.faults.clear_log();
        for id in 1..=3 {
            handle.append(id).await.unwrap();
        }
        let ops: Vec<Op> = process.faults.log().iter().map(|r| r.op).collect();
        assert_eq!(ops, [Op::Create; 3], "{kind:?}");
        assert_eq!(bucket.rows().await, [1, 2, 3], "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn exists_but_absent_is_a_409_and_the_same_put_again() {
    for kind in KINDS {
        let (bucket, process, mut handle) = start(kind).await;
        let rule = process.faults.on(Op::Create).path_contains("/wal/").times(3).then(Fault::Conflict409);
        let next = handle.next();
        assert_eq!(handle.append(1).await.unwrap().get(), next, "{kind:?}");
        handle.append(2).await.unwrap();
        assert_eq!(rule.fired(), 3);
        assert_eq!(bucket.rows().await, [1, 2], "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn exists_with_our_bytes_is_our_own_lost_ack() {
    for kind in KINDS {
        for fault in [Fault::LostAckAsExists, Fault::LostAck] {
            let (bucket, process, mut handle) = start(kind).await;
            let rule = process.faults.on(Op::Create).path_contains("/wal/").then(fault);
            let next = handle.next();
            assert_eq!(handle.append(1).await.unwrap().get(), next, "{kind:?}");
            handle.append(2).await.unwrap();
            assert_eq!(rule.fired(), 1);
            assert_eq!(bucket.rows().await, [1, 2], "{kind:?} {fault:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_higher_epoch_at_our_position_fences() {
    for kind in KINDS {
        for beyond_zone in [false, true] {
            let (bucket, process, mut handle) = start(kind).await;
            if beyond_zone {
                handle.leave_serial_zone().await;
            }
            let next = handle.next();
            bucket.write(&bucket.entry_path(next), foreign_entry(2).await).await;
            let error = handle.append(1).await.unwrap_err();
            assert!(matches!(error, Error::Fenced { by, .. } if by.get() == 2), "{kind:?}: {error}");
            assert_eq!(error.outcome(), Outcome::NotWritten);
            assert_stopped(&process, &mut handle, &error).await;
            assert!(!bucket.rows().await.contains(&1));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn our_epoch_by_another_claim_fences() {
    for kind in KINDS {
        let (bucket, process, mut handle) = start(kind).await;
        bucket.write(&bucket.entry_path(handle.next()), foreign_entry(1).await).await;
        let error = handle.append(1).await.unwrap_err();
        assert!(matches!(error, Error::Fenced { .. }), "{kind:?}: {error}");
        assert_eq!(error.outcome(), Outcome::NotWritten);
        assert_stopped(&process, &mut handle, &error).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_lower_epoch_in_the_serial_zone_is_passed_over() {
    for kind in KINDS {
        // To the very last position of the zone: behind it PUTs run side by side, and the entry that moves must not
        // change places with one that is under way.
        for before in [0, 1, 30, 31] {
            let bucket = bucket().await;
            let straggler = {
                let mut old = bucket.process().appender().await;
                let position = append(&mut old, [-1]).await.unwrap();
                bucket.read(&bucket.entry_path(position.get())).await.unwrap()
            };
            let process = bucket.process();
            let mut handle = Handle::open(&process, kind).await;
            for id in 0..before {
                handle.append(id).await.unwrap();
            }
            let next = handle.next();
            bucket.write(&bucket.entry_path(next), straggler).await;
            assert_eq!(handle.append(100).await.unwrap().get(), next + 1, "{kind:?}");
            handle.append(101).await.unwrap();
            let expected: Vec<i64> = [-1].into_iter().chain(0..before).chain([100, 101]).collect();
            assert_eq!(bucket.rows().await, expected, "{kind:?} after {before}");
            if let Handle::Writer(writer) = &handle {
                assert_eq!(writer.stats().dead_positions, 1);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lower_epoch_elsewhere_is_a_broken_invariant() {
    for kind in KINDS {
        let bucket = bucket().await;
        let straggler = {
            let mut old = bucket.process().appender().await;
            let position = append(&mut old, [-1]).await.unwrap();
            bucket.read(&bucket.entry_path(position.get())).await.unwrap()
        };
        let process = bucket.process();
        let mut handle = Handle::open(&process, kind).await;
        handle.leave_serial_zone().await;
        bucket.write(&bucket.entry_path(handle.next()), straggler).await;
        let error = handle.append(1).await.unwrap_err();
        assert!(matches!(error, Error::Poisoned { .. }), "{kind:?}: {error}");
        assert_eq!(error.outcome(), Outcome::NotWritten);
        assert_stopped(&process, &mut handle, &error).await;
    }
}

#[tokio::test(start_paused = true)]
async fn our_identity_with_other_bytes_is_a_broken_invariant() {
    for kind in KINDS {
        let (bucket, process, mut handle) = start(kind).await;
        let first = handle.append(0).await.unwrap().get();
        bucket.copy_entry(first, handle.next()).await;
        let error = handle.append(1).await.unwrap_err();
        assert!(matches!(error, Error::Poisoned { .. }), "{kind:?}: {error}");
        assert_eq!(error.outcome(), Outcome::NotWritten);
        assert_stopped(&process, &mut handle, &error).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_timeout_is_sent_again_with_the_same_bytes() {
    for kind in KINDS {
        for fault in [Fault::Fail, Fault::LateLanding, Fault::LostAck] {
            let (bucket, process, mut handle) = start(kind).await;
            let rule = process.faults.on(Op::Create).path_contains("/wal/").times(4).then(fault);
            handle.append(1).await.unwrap();
            // What was under way meets the same bytes.
            let landed = process.faults.land_late().await;
            assert!(landed.iter().all(|put| put.outcome == fencepost_sim::Outcome::AlreadyExists));
            handle.append(2).await.unwrap();
            assert!(rule.fired() > 0);
            assert_eq!(bucket.rows().await, [1, 2], "{kind:?} {fault:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_put_that_never_answers_is_given_up_after_its_attempts_and_unknown() {
    for kind in KINDS {
        for fault in [Fault::Fail, Fault::LateLanding] {
            let bucket = bucket().await;
            let process = bucket.attempts(3);
            let mut handle = Handle::open(&process, kind).await;
            let rule = process.faults.on(Op::Create).path_contains("/wal/").always().then(fault);
            let error = handle.append(1).await.unwrap_err();
            assert!(matches!(error, Error::Poisoned { .. }), "{kind:?}: {error}");
            assert_eq!(error.outcome(), Outcome::Unknown);
            assert_eq!(rule.fired(), 3);
            assert_stopped(&process, &mut handle, &error).await;
            process.faults.land_late().await;
            let rows = bucket.rows().await;
            assert_eq!(rows, if fault == Fault::LateLanding { vec![1] } else { vec![] });
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stalled_request_counts_as_lost_after_its_timeout() {
    for kind in KINDS {
        let (bucket, process, mut handle) = start(kind).await;
        let gate = process.faults.on(Op::Create).path_contains("/wal/").stall();
        handle.append(1).await.unwrap();
        assert_eq!(gate.arrivals(), 1);
        gate.release();
        assert_eq!(bucket.rows().await, [1], "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn endless_409s_leave_it_unknown() {
    // A client library that sends again by itself may have met its own first request, still under way.
    for kind in KINDS {
        let bucket = bucket().await;
        let process = bucket.attempts(3);
        let mut handle = Handle::open(&process, kind).await;
        process.faults.on(Op::Create).path_contains("/wal/").always().then(Fault::Conflict409);
        let error = handle.append(1).await.unwrap_err();
        assert!(matches!(error, Error::Poisoned { .. }), "{kind:?}: {error}");
        assert_eq!(error.outcome(), Outcome::Unknown);
        assert_stopped(&process, &mut handle, &error).await;
    }
}

#[tokio::test(start_paused = true)]
async fn exists_and_then_unreadable_is_unknown() {
    for kind in KINDS {
        let bucket = bucket().await;
        let process = bucket.attempts(3);
        let mut handle = Handle::open(&process, kind).await;
        process.faults.on(Op::Create).path_contains("/wal/").then(Fault::LostAckAsExists);
        process.faults.on(Op::Get).path_contains("/wal/").always().then(Fault::Fail);
        let error = handle.append(1).await.unwrap_err();
        assert!(matches!(error, Error::Poisoned { .. }), "{kind:?}: {error}");
        assert_eq!(error.outcome(), Outcome::Unknown);
        assert_stopped(&process, &mut handle, &error).await;
        assert_eq!(bucket.rows().await, [1], "it was there: {kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_object_at_our_position_is_unknown_and_named() {
    for kind in KINDS {
        let (bucket, process, mut handle) = start(kind).await;
        handle.append(1).await.unwrap();
        bucket.write(&bucket.entry_path(handle.next()), "not an entry".into()).await;
        let error = handle.append(2).await.unwrap_err();
        assert!(matches!(error, Error::Poisoned { .. }), "{kind:?}: {error}");
        assert!(error.to_string().contains("damaged"), "{error}");
        assert_eq!(error.outcome(), Outcome::Unknown, "whose bytes those were cannot be told");
        assert_stopped(&process, &mut handle, &error).await;
    }
}

//! A long look at a store: many races for one key, whether what was written is read and listed, which status the losers
//! get, and what the condition of a conditional PUT costs in time.

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use futures::{StreamExt, stream};
use object_store::path::Path;
use tokio::time::Instant;

use super::scratch::{Refused, Scratch};
use super::{NOT_THE_WINNERS, NOT_THERE, REPLACED, REPLACED_ALL_THE_SAME, winners_of_one_key};
use crate::error::{Error, Result};
use crate::store::Store;

/// Rounds whose objects are listed together.
const ROUNDS_PER_FOLDER: usize = 50;
/// PUTs that run at once in the second half of the measurement.
const AT_ONCE: usize = 16;
/// PUTs of one kind before the other kind has its turn, with many at once.
const PUTS_PER_TURN: usize = 4 * AT_ONCE;
/// PUTs of one kind and one width, at most: they are objects that must be deleted again.
const MAX_PUTS: usize = 2_000;
/// How often a create is sent again that was answered 409.
const MAX_CONFLICTS: usize = 16;

/// Limits of a [`Survey`].
#[derive(Debug, Clone)]
pub struct SurveyOptions {
    /// Races for one key. Default 200.
    pub rounds: usize,
    /// Concurrent creates in a race. Default 32.
    pub racers: usize,
    /// Bytes of the objects whose PUTs are timed. Default 4,096.
    pub object_bytes: usize,
    /// How long PUTs are timed, in all. Default 5 s.
    pub measure_for: Duration,
}

impl Default for SurveyOptions {
    fn default() -> Self {
        Self { rounds: 200, racers: 32, object_bytes: 4096, measure_for: Duration::from_secs(5) }
    }
}

impl SurveyOptions {
    fn validate(&self) -> Result<()> {
        let invalid = |what: String| Err(Error::InvalidArgument(what));
        if !(1..=100_000).contains(&self.rounds) {
            return invalid(format!("rounds is {}; use 1 to 100,000", self.rounds));
        }
        if !(2..=1_000).contains(&self.racers) {
            return invalid(format!("racers is {}; use 2 to 1,000", self.racers));
        }
        if !(1..=64 << 20).contains(&self.object_bytes) {
            return invalid(format!("object_bytes is {}; use 1 byte to 64 MiB", self.object_bytes));
        }
        if self.measure_for.is_zero() || self.measure_for > Duration::from_secs(3600) {
            return invalid(format!("measure_for is {:?}; use up to an hour", self.measure_for));
        }
        Ok(())
    }
}

/// How far a [`Survey`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SurveyStep {
    /// Races that are over, of so many.
    Races(usize, usize),
    /// PUTs that were timed so far, of nobody knows how many.
    Puts(usize),
}

/// What a [`Survey`] found on a store that keeps its promises.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SurveyReport {
    /// Races for one key; each had one winner, whose object was there for GET and LIST at once.
    pub rounds: usize,
    /// Concurrent creates in a race.
    pub racers: usize,
    /// What the creates were answered.
    pub answers: Answers,
    /// Bytes of the objects whose PUTs were timed.
    pub object_bytes: usize,
    /// Times of PUTs: conditional and plain, one and many at once.
    pub puts: Vec<PutFigures>,
}

impl SurveyReport {
    /// The figures of one kind of PUT.
    pub fn figures(&self, conditional: bool, at_once: usize) -> Option<&PutFigures> {
        self.puts.iter().find(|p| p.conditional == conditional && p.at_once == at_once)
    }

    /// How much longer the median conditional PUT takes than the plain one, as a part of the plain one: 0.1 is 10 %.
    pub fn cost_of_condition(&self, at_once: usize) -> Option<f64> {
        let (with, without) = (self.figures(true, at_once)?, self.figures(false, at_once)?);
        Some(with.p50.as_secs_f64() / without.p50.as_secs_f64().max(1e-9) - 1.0)
    }
}

/// What creates were answered: every one that was sent, the timed ones included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answers {
    /// The object was created.
    pub created: usize,
    /// 412: an object is there.
    pub status_412: usize,
    /// 409: another create of the same key is under way, whether or not an object is there.
    pub status_409: usize,
    /// "Already exists" with another status, or of a store that has none.
    pub exists: usize,
    /// "Already exists" about a name that only this one create had: its first answer was lost.
    pub lost: usize,
}

impl Answers {
    fn count(&mut self, answer: &Result<(), Refused>) {
        let counter = match answer {
            Ok(()) => &mut self.created,
            Err(Refused { status: Some(412) }) => &mut self.status_412,
            Err(Refused { status: Some(409) }) => &mut self.status_409,
            Err(Refused { .. }) => &mut self.exists,
        };
        *counter += 1;
    }
}

/// Times of one kind of PUT.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct PutFigures {
    /// Whether the PUTs had the condition that nothing is there.
    pub conditional: bool,
    /// How many ran at once.
    pub at_once: usize,
    /// How many were timed.
    pub puts: usize,
    /// Median time.
    pub p50: Duration,
    /// The time that 99 % of them needed at most.
    pub p99: Duration,
    /// How many were answered per second.
    pub per_second: f64,
}

/// A long look at a store, in a fresh folder below the table's path. Whatever came of it, call
/// [`clean_up`](Self::clean_up).
#[derive(Debug)]
pub struct Survey {
    scratch: Scratch,
    options: SurveyOptions,
}

impl Survey {
    /// A survey of a store. Nothing is written yet.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an option out of its limits.
    pub fn new(store: &Store, options: SurveyOptions) -> Result<Self> {
        options.validate()?;
        Ok(Self { scratch: Scratch::new(store), options })
    }

    /// Races, reads, lists and measures. May be dropped half way; right after a call of `progress` no PUT is under way
    /// that could land behind a clean-up's back.
    ///
    /// # Errors
    /// [`Error::StoreUnfit`], naming the promise that was broken; [`Error::Store`] if the store does not answer.
    pub async fn run(&self, mut progress: impl FnMut(SurveyStep)) -> Result<SurveyReport> {
        let mut answers = Answers::default();
        for round in 0..self.options.rounds {
            self.race(round, &mut answers).await?;
            progress(SurveyStep::Races(round + 1, self.options.rounds));
            a_place_to_stop().await;
        }
        let mut timer = Timer::new(&self.scratch, &self.options);
        timer.warm_up(&mut answers).await?;
        let half = self.options.measure_for / 2;
        let alone = timer.one_at_a_time(half, &mut answers, &mut progress).await?;
        let many = timer.many_at_once(half, &mut answers, &mut progress).await?;
        Ok(SurveyReport {
            rounds: self.options.rounds,
            racers: self.options.racers,
            answers,
            object_bytes: self.options.object_bytes,
            puts: [alone, many].concat(),
        })
    }

    /// Deletes everything that was written.
    ///
    /// # Errors
    /// [`Error::Store`] if the store does not answer.
    pub async fn clean_up(&self) -> Result<()> {
        self.scratch.remove().await
    }

    /// One race: nobody there, many creates at once, one winner, and from then on its object and no other.
    async fn race(&self, round: usize, answers: &mut Answers) -> Result<()> {
        let (scratch, racers) = (&self.scratch, self.options.racers);
        let folder = format!("races_{}", round / ROUNDS_PER_FOLDER);
        let path = scratch.fresh(&folder);
        // A store that remembers "not found" for a while would answer it again below.
        if scratch.store().get(&path).await?.is_some() {
            return Err(scratch.unfit("an object is there that nobody wrote"));
        }
        let bodies: Vec<Bytes> = (0..racers).map(|n| Bytes::from(format!("racer {n}"))).collect();
        let creates = bodies.iter().map(|body| scratch.create(&path, body.clone()));
        let raced = join_all(creates).await.into_iter().collect::<Result<Vec<_>>>()?;
        raced.iter().for_each(|answer| answers.count(answer));
        let winners: Vec<&Bytes> =
            raced.iter().zip(&bodies).filter_map(|(a, body)| a.is_ok().then_some(body)).collect();
        let mut found = scratch.store().get(&path).await?;
        if winners.is_empty() && found.is_none() {
            // All of them met another: 409 with nothing there. Sent again alone, one must win.
            found = Some(self.create_alone(&path, bodies.first().cloned().unwrap_or_default(), answers).await?);
        }
        match (winners.as_slice(), &found) {
            (_, None) => return Err(scratch.unfit(NOT_THERE)),
            ([], Some(_)) => {} // The winner's answer was lost; nothing was promised to anybody.
            ([winner], Some(found)) if *winner == found => {}
            ([_], Some(_)) => return Err(scratch.unfit(NOT_THE_WINNERS)),
            (many, _) => return Err(scratch.unfit(winners_of_one_key(many.len(), racers))),
        }
        let late = scratch.create(&path, Bytes::from_static(b"late")).await?;
        answers.count(&late);
        if late.is_ok() {
            return Err(scratch.unfit(REPLACED));
        }
        if scratch.store().get(&path).await? != found {
            return Err(scratch.unfit(REPLACED_ALL_THE_SAME));
        }
        let listed = scratch.store().list(&scratch.folder(&folder)).await?;
        let written = round % ROUNDS_PER_FOLDER + 1;
        if listed.len() != written || !listed.iter().any(|object| object.location == path) {
            let shown = listed.len();
            return Err(scratch.unfit(format!("a LIST shows {shown} of {written} objects that were just written")));
        }
        Ok(())
    }

    /// A create that nothing else runs beside, sent again after a 409; what is there then.
    async fn create_alone(&self, path: &Path, body: Bytes, answers: &mut Answers) -> Result<Bytes> {
        for _ in 0..MAX_CONFLICTS {
            let answer = self.scratch.create(path, body.clone()).await?;
            answers.count(&answer);
            if let Some(found) = self.scratch.store().get(path).await? {
                return Ok(found);
            }
            if answer.is_ok() {
                return Err(self.scratch.unfit(NOT_THERE));
            }
        }
        Err(self.scratch.unfit(format!("it answered {MAX_CONFLICTS} creates of a free key that it is taken")))
    }
}

/// Times PUTs, conditional ones and plain ones in turns, so that whatever slows the store slows both.
struct Timer<'a> {
    scratch: &'a Scratch,
    body: Bytes,
    timed: usize,
}

/// Times of PUTs of one kind.
#[derive(Default)]
struct Times {
    each: Vec<Duration>,
    in_all: Duration,
}

impl<'a> Timer<'a> {
    fn new(scratch: &'a Scratch, options: &SurveyOptions) -> Self {
        // Nothing that a store could make smaller.
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let noise = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        });
        Self { scratch, body: noise.take(options.object_bytes).collect(), timed: 0 }
    }

    /// One PUT of a fresh key. No time: it was answered that the key is taken.
    async fn put(&self, conditional: bool) -> Result<(Option<Duration>, Option<Refused>)> {
        let path = self.scratch.fresh(if conditional { "conditional" } else { "plain" });
        let started = Instant::now();
        let answer = match conditional {
            true => self.scratch.create(&path, self.body.clone()).await?,
            false => {
                self.scratch.put(&path, self.body.clone()).await?;
                Ok(())
            }
        };
        Ok((answer.is_ok().then(|| started.elapsed()), answer.err()))
    }

    fn count(answers: &mut Answers, conditional: bool, refused: Option<Refused>) {
        match refused {
            None if conditional => answers.created += 1,
            None => {}
            Some(Refused { status: Some(409) }) => answers.status_409 += 1,
            Some(_) => answers.lost += 1,
        }
    }

    /// Opens the connections that the timed PUTs will use.
    async fn warm_up(&self, answers: &mut Answers) -> Result<()> {
        for conditional in [true, false] {
            let puts = (0..AT_ONCE).map(|_| self.put(conditional));
            for put in join_all(puts).await {
                Self::count(answers, conditional, put?.1);
            }
        }
        Ok(())
    }

    async fn one_at_a_time(
        &mut self,
        limit: Duration,
        answers: &mut Answers,
        progress: &mut impl FnMut(SurveyStep),
    ) -> Result<Vec<PutFigures>> {
        let mut times = [Times::default(), Times::default()];
        let started = Instant::now();
        let mut turn = 0;
        while turn == 0 || (started.elapsed() < limit && turn < MAX_PUTS) {
            for kind in order(turn) {
                let (time, refused) = self.put(kind == CONDITIONAL).await?;
                Self::count(answers, kind == CONDITIONAL, refused);
                if let (Some(times), Some(time)) = (times.get_mut(kind), time) {
                    times.each.push(time);
                    times.in_all += time;
                }
                self.timed += 1;
            }
            turn += 1;
            progress(SurveyStep::Puts(self.timed));
            a_place_to_stop().await;
        }
        Ok(figures(times, 1))
    }

    async fn many_at_once(
        &mut self,
        limit: Duration,
        answers: &mut Answers,
        progress: &mut impl FnMut(SurveyStep),
    ) -> Result<Vec<PutFigures>> {
        let mut times = [Times::default(), Times::default()];
        let started = Instant::now();
        let mut turn = 0;
        while turn == 0 || (started.elapsed() < limit && turn < MAX_PUTS / PUTS_PER_TURN) {
            for kind in order(turn) {
                let began = Instant::now();
                let puts = stream::iter((0..PUTS_PER_TURN).map(|_| self.put(kind == CONDITIONAL)));
                let done: Vec<_> = puts.buffer_unordered(AT_ONCE).collect().await;
                let took = began.elapsed();
                self.timed += done.len();
                for put in done {
                    let (time, refused) = put?;
                    Self::count(answers, kind == CONDITIONAL, refused);
                    if let Some(times) = times.get_mut(kind) {
                        times.each.extend(time);
                    }
                }
                if let Some(times) = times.get_mut(kind) {
                    times.in_all += took;
                }
                progress(SurveyStep::Puts(self.timed));
                a_place_to_stop().await;
            }
            turn += 1;
        }
        Ok(figures(times, AT_ONCE))
    }
}

/// Lets a caller that waits for a step have its turn before the next request is sent.
async fn a_place_to_stop() {
    tokio::task::yield_now().await;
}

const CONDITIONAL: usize = 0;
const PLAIN: usize = 1;

/// Neither kind always has the first turn.
fn order(turn: usize) -> [usize; 2] {
    match turn % 2 {
        0 => [CONDITIONAL, PLAIN],
        _ => [PLAIN, CONDITIONAL],
    }
}

fn figures(times: [Times; 2], at_once: usize) -> Vec<PutFigures> {
    let of = |(kind, mut times): (usize, Times)| {
        times.each.sort_unstable();
        let puts = times.each.len();
        // The smallest time that this part of all PUTs did not exceed.
        let at = |part: f64| {
            let rank = ((puts as f64 * part).ceil() as usize).max(1);
            times.each.get(rank - 1).copied().unwrap_or_default()
        };
        let per_second = puts as f64 / times.in_all.as_secs_f64().max(1e-9);
        PutFigures { conditional: kind == CONDITIONAL, at_once, puts, p50: at(0.5), p99: at(0.99), per_second }
    };
    times.into_iter().enumerate().map(of).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;

    #[test]
    fn percentiles_are_those_of_the_sorted_times() {
        let times = |ms: std::ops::RangeInclusive<u64>| Times {
            each: ms.rev().map(Duration::from_millis).collect(),
            in_all: Duration::from_secs(10),
        };
        let found = figures([times(1..=100), times(1..=1)], 16);
        assert_eq!((found[0].p50.as_millis(), found[0].p99.as_millis(), found[0].puts), (50, 99, 100));
        assert_eq!((found[1].p50.as_millis(), found[1].p99.as_millis()), (1, 1));
        assert!((found[0].per_second - 10.0).abs() < 1e-9);
        assert!(found[0].conditional && !found[1].conditional);
    }
}

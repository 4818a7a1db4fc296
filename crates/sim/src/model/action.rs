//! What can happen next: every request that some process may send, every answer that the store may give, and what
//! the outside world may do. One action is one atomic operation of the store and what its sender makes of the answer,
//! so that stalls of any length are simply other actions in between.

use super::LogModel;
use super::mutant::Mutant;
use super::state::{Change, Phase, Progress, State, Step};
use super::types::{POSITIONS, Position, ROWS};

/// How the store answers a create.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The truth: created, or "already exists".
    Truth,
    /// It is created, and the answer is lost.
    LostAck,
    /// 409 although nothing landed.
    Conflict,
    /// A timeout; it may land at any later time.
    Late,
}

const ANSWERS: [Answer; 4] = [Answer::Truth, Answer::LostAck, Answer::Conflict, Answer::Late];

/// One step of the world. Writers, positions and checkpoints go by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A writer commits its claim, or begins to.
    Claim(u8),
    /// A claimant reads the log.
    Read(u8),
    /// A claimant creates the sentinel at this position.
    PutSentinel(u8, u8, Answer),
    /// It was told that something is there, and reads it.
    GetSentinel(u8, u8),
    /// It records its takeover.
    Record(u8, bool),
    /// A writer sends the entry of its n-th row.
    Send(u8, u8, Answer),
    /// It was told that something is there, and reads it.
    Get(u8, u8),
    /// A writer publishes what is up to this position.
    Flush(u8, u8, bool),
    /// A writer closes cleanly.
    Close(u8),
    /// A writer moves the log to its store.
    Move(u8),
    /// A committer without an epoch begins.
    Touch(u8, bool),
    /// The next step of a commit; what the answer is matters for its PUT.
    Commit(u8, Answer),
    /// A late PUT of a WAL object lands.
    Land(u8),
    /// The late PUT of a manifest lands.
    LandManifest,
    /// A collector that is sure of the newest manifest deletes an entry.
    Delete(u8, u8),
    /// The oldest manifest goes (a mutant: any).
    Prune(u8),
    /// A collector lists manifests, reads one, looks again.
    Collect,
    /// That collector deletes an entry.
    CollectOne(u8, u8),
    /// The operator wipes the WAL store.
    Wipe,
    /// The follower reads on.
    Follow,
    /// The follower looks at the manifest before it starts, or believes a position without live rows; or a step of that.
    Look,
    /// A checkpoint's object is written.
    Pin(u8),
    /// Its commit.
    List(u8),
    /// Time passes.
    Tick,
    /// Somebody wants to refresh the first checkpoint and sees it alive.
    SeeAlive,
    /// The refreshing commit.
    Refresh,
    /// The collector sees an expired checkpoint.
    SeeExpired(u8),
    /// The collector's commit that takes it off the list.
    Unlist(u8),
    /// The collector deletes a checkpoint object.
    DeletePin(u8),
}

impl LogModel {
    pub(super) fn enumerate(&self, s: &State, actions: &mut Vec<Action>) {
        if s.broken != 0 {
            return;
        }
        for w in 0..self.config.rows.len() as u8 {
            self.enumerate_writer(s, w, actions);
        }
        for other in 0..2 {
            let it = &s.others[other as usize];
            match it.commit.step {
                Step::Idle if it.commits_left > 0 => {
                    actions.push(Action::Touch(other, false));
                    if it.commit.base.version > 0 {
                        actions.push(Action::Touch(other, true));
                    }
                }
                Step::Idle => {}
                step => self.enumerate_commit(s, super::OTHERS + other, step, actions),
            }
        }
        for (n, late) in s.late.iter().enumerate() {
            if !late.entry.is_absent() {
                actions.push(Action::Land(n as u8));
            }
        }
        if s.late_manifest.version > 0 {
            actions.push(Action::LandManifest);
        }
        self.enumerate_collection(s, actions);
        if self.config.follows {
            let looks = s.follower.doubts || s.follower.step != Step::Idle;
            actions.push(if looks { Action::Look } else { Action::Follow });
        }
        self.enumerate_checkpoints(s, actions);
    }

    fn enumerate_writer(&self, s: &State, w: u8, actions: &mut Vec<Action>) {
        let me = &s.writers[w as usize];
        match me.phase {
            // Claimants are alike until they claim, so they come in order.
            Phase::Unborn if w == 0 || s.writers[w as usize - 1].phase != Phase::Unborn => {
                actions.push(Action::Claim(w));
            }
            Phase::Unborn => {}
            Phase::Reading => actions.push(Action::Read(w)),
            Phase::Fencing => {
                if self.is(Mutant::StoreChangedWithoutSentinel) && self.may_move(s, w) {
                    actions.push(Action::Move(w));
                }
                for k in me.next..me.next + me.width {
                    if k as usize >= POSITIONS {
                        self.out_of_room();
                        break;
                    }
                    if me.must_get.has(k) {
                        actions.push(Action::GetSentinel(w, k));
                    } else if !me.settled.has(k) {
                        let absent = s.at(me.store, k).is_absent();
                        self.answers(s, absent).for_each(|answer| actions.push(Action::PutSentinel(w, k, answer)));
                    }
                }
            }
            Phase::Recording if me.commit.step == Step::Idle => {
                actions.push(Action::Record(w, true));
                if self.config.steps {
                    actions.push(Action::Record(w, false));
                }
            }
            Phase::Open | Phase::Closed | Phase::Stopped => self.enumerate_tenure(s, w, actions),
            Phase::Claiming | Phase::Recording => {}
        }
        let claiming = matches!(me.phase, Phase::Reading | Phase::Fencing | Phase::Recording);
        if claiming && self.is(Mutant::CloseUnrecorded) {
            actions.push(Action::Close(w));
        }
        if me.commit.step != Step::Idle && me.phase != Phase::Stopped {
            self.enumerate_commit(s, w, me.commit.step, actions);
        }
    }

    fn enumerate_tenure(&self, s: &State, w: u8, actions: &mut Vec<Action>) {
        let me = &s.writers[w as usize];
        let open = me.phase == Phase::Open;
        let moving = self.config.stores[w as usize] != me.store;
        for n in 0..self.config.rows[w as usize] {
            let append = &me.appends[n as usize];
            match append.progress {
                // A stopped writer looks at no answer any more, but what it sent may still arrive.
                Progress::MustGet if me.phase != Phase::Stopped => actions.push(Action::Get(w, n)),
                Progress::Sent => self.enumerate_send(s, w, n, append.position, actions),
                Progress::New if open && !moving => {
                    if let Some(position) = self.place_of_new(me, n) {
                        self.enumerate_send(s, w, n, position, actions);
                    }
                }
                _ => {}
            }
        }
        if !open || me.commit.step != Step::Idle {
            return;
        }
        if me.flushes_left > 0 {
            for p in me.replay_after + 1..=self.flush_limit(me) {
                // With commits in one step, the manifest that is held is always the newest.
                actions.push(Action::Flush(w, p, true));
                if self.config.steps {
                    actions.push(Action::Flush(w, p, false));
                }
            }
        }
        if moving && self.may_move(s, w) {
            actions.push(Action::Move(w));
        }
        let idle = me.appends.iter().all(|a| matches!(a.progress, Progress::New | Progress::Acknowledged));
        if self.config.closes && (idle || self.is(Mutant::CloseWithPutsInFlight)) {
            actions.push(Action::Close(w));
        }
    }

    fn enumerate_send(&self, s: &State, w: u8, n: u8, position: Position, actions: &mut Vec<Action>) {
        if position as usize >= POSITIONS {
            self.out_of_room();
            return;
        }
        let me = &s.writers[w as usize];
        let absent = s.at(me.store, position).is_absent();
        if me.phase == Phase::Stopped {
            if absent {
                actions.push(Action::Send(w, n, Answer::Truth));
            }
            return;
        }
        self.answers(s, absent).for_each(|answer| actions.push(Action::Send(w, n, answer)));
    }

    /// Which answers a create can get now. Where something stands, all but a late landing are the truth.
    pub(super) fn answers(&self, s: &State, absent: bool) -> impl Iterator<Item = Answer> + use<> {
        let faults = s.faults;
        ANSWERS.into_iter().filter(move |answer| match answer {
            Answer::Truth => true,
            Answer::LostAck => absent && faults.lost_ack > 0,
            Answer::Conflict => absent && faults.conflict > 0,
            Answer::Late => faults.late > 0,
        })
    }

    fn enumerate_commit(&self, s: &State, actor: u8, step: Step, actions: &mut Vec<Action>) {
        match step {
            Step::Put => {
                let commit = super::commit::commit_of(s, actor);
                let absent = s.manifest(commit.next.version).version == 0;
                let late_is_free = s.late_manifest.version == 0;
                for answer in self.answers(s, absent) {
                    if answer != Answer::Late || late_is_free {
                        actions.push(Action::Commit(actor, answer));
                    }
                }
            }
            _ => actions.push(Action::Commit(actor, Answer::Truth)),
        }
    }

    fn enumerate_collection(&self, s: &State, actions: &mut Vec<Action>) {
        if self.config.collects {
            for store in 0..2 {
                for p in self.collectable(s, s.newest(), store).iter() {
                    actions.push(Action::Delete(store, p));
                }
            }
        }
        if self.config.keep > 0 {
            let limit = s.newest().version.saturating_sub(self.config.keep);
            let mut old = s.manifests.iter().map(|m| m.version).filter(|&v| v > 0 && v <= limit);
            match self.is(Mutant::PruneInAnyOrder) {
                true => old.for_each(|v| actions.push(Action::Prune(v))),
                false => old.next().into_iter().for_each(|v| actions.push(Action::Prune(v))),
            }
        }
        let collector = &s.collector;
        match collector.step {
            Step::Idle if collector.runs_left > 0 => actions.push(Action::Collect),
            Step::List | Step::Read(_) => actions.push(Action::Collect),
            Step::Put => {
                for p in self.collectable(s, &collector.manifest, collector.manifest.store).iter() {
                    actions.push(Action::CollectOne(collector.manifest.store, p));
                }
                if collector.runs_left > 0 {
                    actions.push(Action::Collect);
                }
            }
            _ => {}
        }
        let wiping = s.wiping > 0 && s.wiping == s.newest().epoch;
        if self.config.wipes && (wiping || (s.wiping == 0 && self.may_wipe(s))) {
            actions.push(Action::Wipe);
        }
    }

    fn enumerate_checkpoints(&self, s: &State, actions: &mut Vec<Action>) {
        if self.config.checkpoints == 0 {
            return;
        }
        let keeper = &s.keeper;
        if keeper.made < self.config.checkpoints {
            actions.push(Action::Pin(keeper.made));
        }
        if self.config.lifetimes && s.clock < 3 && s.pins[0].listed {
            actions.push(Action::Tick);
        }
        for id in 0..keeper.made {
            let pin = &s.pins[id as usize];
            if pin.version > 0 && !pin.listed {
                actions.push(Action::List(id));
            }
            if pin.exists && self.may_delete_pin(s, id) {
                actions.push(Action::DeletePin(id));
            }
            if keeper.expiring.has(id) {
                actions.push(Action::Unlist(id));
            } else if self.config.lifetimes && self.is_listed(s, id) && self.seems_expired(s, id) {
                actions.push(Action::SeeExpired(id));
            }
        }
        if keeper.refreshing {
            actions.push(Action::Refresh);
        } else if self.config.lifetimes && !keeper.refreshed && self.is_listed(s, 0) && !self.has_expired(s, 0) {
            actions.push(Action::SeeAlive);
        }
    }

    /// How many appends there are in all.
    pub(super) fn rows(&self) -> impl Iterator<Item = (u8, u8)> {
        (0..self.config.rows.len() as u8).flat_map(|w| (0..ROWS as u8).map(move |n| (w, n)))
    }

    pub(super) fn change_is_owned(change: Change) -> bool {
        !matches!(change, Change::Claim | Change::Touch | Change::Nothing)
    }
}

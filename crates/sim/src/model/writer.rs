//! What a writer does: taking over (section 4), appending (section 5), and what it wants to publish (section 7).

use super::action::Answer;
use super::judge::Invariant;
use super::mutant::Mutant;
use super::state::{LatePut, Phase, Progress, State, Writer};
use super::types::{Entry, POSITIONS, Position, ROWS, Set, row_name, row_number};
use super::{LogModel, Notes, Turn};

impl LogModel {
    /// Whether one PUT at a time is the rule at this position.
    pub(super) fn in_serial_zone(&self, me: &Writer, position: Position) -> bool {
        // Nobody was there before the first claim.
        if me.epoch == 1 {
            return false;
        }
        let waived = self.is(Mutant::NoSerialZone) || (self.is(Mutant::CloseWaivesZone) && me.after_clean_close);
        let from = match self.is(Mutant::ZoneFromFirstSentinel) {
            true => me.sentinel.saturating_sub(me.width.saturating_sub(1)),
            false => me.sentinel,
        };
        !waived && position.saturating_sub(from) <= self.config.window
    }

    /// Where an append that was not sent yet would go; `None` while it has to wait. Appends are waiting from the
    /// start: one that is not sent for long is the same as one that is made late.
    pub(super) fn place_of_new(&self, me: &Writer, nth: u8) -> Option<Position> {
        let mut last = me.sentinel;
        let (mut unlanded, mut waits) = (0, false);
        for append in &me.appends[..nth as usize] {
            last = if append.progress == Progress::New { last + 1 } else { append.position };
            waits |= append.progress != Progress::Acknowledged && self.in_serial_zone(me, last);
            unlanded += u8::from(!matches!(append.progress, Progress::Landed | Progress::Acknowledged));
        }
        let position = last + 1;
        let open = match self.is(Mutant::WindowByCount) {
            true => unlanded < self.config.window,
            false => position - me.acknowledged <= self.config.window,
        };
        (open && !waits).then_some(position)
    }

    /// Up to where it may publish.
    pub(super) fn flush_limit(&self, me: &Writer) -> Position {
        match self.is(Mutant::ReplayAfterAheadOfLog) || self.is(Mutant::SstableAheadOfLog) {
            true => me.appends.iter().map(|a| a.position).fold(me.acknowledged, Position::max),
            false => me.acknowledged,
        }
    }

    /// The live rows up to a position, in order, and the highest epoch among them.
    pub(super) fn live_up_to(&self, me: &Writer, w: u8, limit: Position) -> (Vec<u8>, u8) {
        let (mut rows, mut epoch) = (Vec::new(), 0);
        for p in me.replay_after + 1..=limit {
            let entry = me.log[p as usize];
            epoch = epoch.max(entry.epoch());
            rows.extend(entry.rows());
            let unlanded = me.appends.iter().position(|a| a.position == p && a.progress != Progress::New);
            if let Some(n) = unlanded
                && entry.is_absent()
                && self.is(Mutant::SstableAheadOfLog)
            {
                rows.push(row_number(w, n as u8));
            }
        }
        (rows, epoch)
    }

    /// Section 10: the log may go on in another store when nothing above R has live rows here, and the sentinel is
    /// recorded here; the other store may hold nothing beyond, except dead entries in the serial zone.
    pub(super) fn may_move(&self, s: &State, w: u8) -> bool {
        let me = &s.writers[w as usize];
        let target = self.config.stores[w as usize];
        let live = me.log[me.replay_after as usize + 1..].iter().any(|e| !e.is_absent() && !e.is_sentinel());
        let beyond = (me.sentinel + 1..POSITIONS as u8).map(|p| (p, s.at(target, p)));
        let blocked = beyond
            .filter(|(_, e)| !e.is_absent())
            .any(|(p, e)| p - me.sentinel > self.config.window || e.epoch() >= me.epoch);
        let live = live && !self.is(Mutant::StoreChangedWithLiveRows);
        target != me.store && !live && !blocked && me.appends.iter().all(|a| a.progress == Progress::New)
    }
}

impl<N: Notes> Turn<'_, N> {
    pub(super) fn writer(&self, w: u8) -> &Writer {
        &self.s.writers[w as usize]
    }

    pub(super) fn writer_mut(&mut self, w: u8) -> &mut Writer {
        &mut self.s.writers[w as usize]
    }

    /// It was told that somebody replaced it.
    pub(super) fn fenced(&mut self, w: u8, why: impl FnOnce() -> String) {
        self.notes.say(|| format!("W{}: {}, it is fenced", w + 1, why()));
        let (epoch, phase) = (self.writer(w).epoch, self.writer(w).phase);
        if self.s.newest().is_owned_by(epoch, w) && phase != Phase::Unborn {
            self.broke(Invariant::Fenced);
        }
        self.stop(w);
    }

    pub(super) fn stop(&mut self, w: u8) {
        self.writer_mut(w).phase = Phase::Stopped;
    }

    /// Section 4, step 2.
    pub(super) fn read(&mut self, w: u8) {
        let first = self.writer(w).next;
        loop {
            let me = self.writer(w);
            let (p, store) = (me.next, me.store);
            if p as usize >= POSITIONS - 1 {
                self.model.out_of_room();
                return self.stop(w);
            }
            let entry = self.s.at(store, p);
            if entry.is_absent() {
                self.notes.say(|| format!("W{} GET wal/{first}..{p}: position {p} is absent", w + 1));
                let me = &mut self.s.writers[w as usize];
                (me.phase, me.settled, me.must_get) = (Phase::Fencing, Set::default(), Set::default());
                me.width = me.width.max(1);
                if self.model.is(Mutant::NoSentinel) {
                    (me.sentinel, me.phase) = (p - 1, Phase::Recording);
                }
                return;
            }
            if !self.take(w, p, entry) {
                return self.fenced(w, || format!("GET wal/{p}: {entry:?}"));
            }
            self.writer_mut(w).next += 1;
            if self.model.config.reads_singly {
                self.notes.say(|| format!("W{} GET wal/{p}: {entry:?}", w + 1));
                return;
            }
        }
    }

    /// Takes in what a claimant has read. False: a newer claim has been here.
    fn take(&mut self, w: u8, p: Position, entry: Entry) -> bool {
        let model = self.model;
        let me = self.writer_mut(w);
        let ours = entry.is_by(me.epoch, w);
        if entry.epoch() > me.epoch || (entry.epoch() == me.epoch && !ours) {
            return false;
        }
        let dead = entry.epoch() < me.top && !model.is(Mutant::NoDeadEntryRule);
        me.top = me.top.max(entry.epoch());
        me.log[p as usize] = if dead { Entry::ABSENT } else { entry };
        let recorded = match () {
            () if ours && me.after_clean_close => false,
            () if model.is(Mutant::OnlyOwnSentinelRecorded) => ours,
            () if model.is(Mutant::OnlySentinelsRecorded) => entry.is_sentinel(),
            () => dead || entry.is_sentinel(),
        };
        if recorded {
            me.fences.add(p);
        }
        true
    }

    /// Section 4, step 3: one of the sentinels that are put side by side.
    pub(super) fn put_sentinel(&mut self, w: u8, p: Position, answer: Answer) -> bool {
        let me = self.writer(w);
        let (store, entry) = (me.store, Entry::sentinel(me.epoch, w));
        let Some(said) = self.create(store, p, entry, answer) else {
            return false;
        };
        self.notes.say(|| format!("W{} PUT wal/{p} (sentinel, epoch {}): {}", w + 1, entry.epoch(), said.text));
        if said.created || (said.exists && self.model.is(Mutant::SentinelNotRead)) {
            self.settle(w, p, entry);
        } else if said.exists {
            self.writer_mut(w).must_get.add(p);
        }
        true
    }

    pub(super) fn get_sentinel(&mut self, w: u8, p: Position) {
        let me = self.writer(w);
        let found = self.s.at(me.store, p);
        let (epoch, ours) = (me.epoch, found.is_by(me.epoch, w));
        self.writer_mut(w).must_get = self.writer(w).must_get.minus(Set::one(p));
        if found.epoch() > epoch || (found.epoch() == epoch && !ours) {
            return self.fenced(w, || format!("GET wal/{p}: {found:?}"));
        }
        self.notes.say(|| format!("W{} GET wal/{p}: {found:?}", w + 1));
        if !found.is_absent() {
            self.settle(w, p, found);
        }
    }

    /// A position of the range holds `entry`. Once all are known, the claimant goes on.
    fn settle(&mut self, w: u8, p: Position, entry: Entry) {
        let model = self.model;
        let me = self.writer_mut(w);
        me.settled.add(p);
        me.log[p as usize] = entry;
        let range = me.next..me.next + me.width;
        if !range.clone().all(|p| me.settled.has(p)) {
            return;
        }
        let mut ours = false;
        for p in range.clone() {
            let entry = self.writer(w).log[p as usize];
            ours |= entry.is_by(self.writer(w).epoch, w);
            self.take(w, p, entry);
        }
        let me = self.writer_mut(w);
        (me.settled, me.next) = (Set::default(), range.end);
        if ours {
            (me.phase, me.sentinel) = (Phase::Recording, range.end - 1);
            if model.is(Mutant::OnlyLastOfRangeRecorded) {
                let last = Set::one(me.sentinel);
                me.fences = Set(range.fold(me.fences, |f, p| f.minus(Set::one(p))).0 | last.0);
            }
            if model.is(Mutant::NoRecordStep) {
                self.notes.say(|| format!("W{} does without a record", w + 1));
                self.recorded(w);
            }
        } else {
            me.phase = Phase::Reading;
            // The next round is wider: whoever won this position may win the next one too.
            me.width = model.config.sentinels;
        }
    }

    /// The takeover is valid.
    pub(super) fn recorded(&mut self, w: u8) {
        let me = &mut self.s.writers[w as usize];
        (me.phase, me.acknowledged, me.fences) = (Phase::Open, me.sentinel, Set::default());
        self.s.recorded_epoch = self.s.recorded_epoch.max(me.epoch);
    }

    /// Section 5: sends an entry, for the first time or again.
    pub(super) fn send(&mut self, w: u8, n: u8, answer: Answer) -> bool {
        let me = self.writer(w);
        let mut append = me.appends[n as usize];
        if append.progress == Progress::New {
            let Some(position) = self.model.place_of_new(me, n) else {
                return false;
            };
            append.position = position;
            append.rows = 1 << n;
            append.after = self.s.acknowledged;
        } else if self.model.is(Mutant::RetryWithOtherBytes) && n + 1 < self.model.config.rows[w as usize] {
            append.rows |= 1 << (n + 1);
        }
        append.progress = Progress::Sent;
        let (store, stopped) = (me.store, me.phase == Phase::Stopped);
        let (p, entry) = (append.position, Entry::new(me.epoch, w, append.rows));
        self.writer_mut(w).appends[n as usize] = append;
        let Some(said) = self.create(store, p, entry, answer) else {
            return false;
        };
        self.notes.say(|| match stopped {
            true => format!("a PUT wal/{p} ({entry:?}) that was on its way lands"),
            false => format!("W{} PUT wal/{p} ({entry:?}): {}", w + 1, said.text),
        });
        let model = self.model;
        let progress = &mut self.writer_mut(w).appends[n as usize].progress;
        match (said.created, said.exists) {
            _ if stopped => *progress = Progress::MustGet,
            (true, _) => self.landed(w, n),
            (_, true) if model.is(Mutant::ConflictIsFenced) => {
                self.fenced(w, || format!("\"already exists\" at wal/{p}"));
            }
            (_, true) if model.is(Mutant::AdvanceWithoutReading) => {
                let next = p + 1;
                self.writer_mut(w).appends[n as usize].position = next;
                self.notes.say(|| format!("W{} takes wal/{next} instead, without reading", w + 1));
            }
            (_, true) => *progress = Progress::MustGet,
            (false, false) => {}
        }
        true
    }

    /// Section 5: the table of answers after "already exists".
    pub(super) fn get(&mut self, w: u8, n: u8) {
        let me = self.writer(w);
        let append = me.appends[n as usize];
        let p = append.position;
        let found = self.s.at(me.store, p);
        let ours = match self.model.is(Mutant::RetryWithOtherBytes) {
            true => found.is_by(me.epoch, w),
            false => found == Entry::new(me.epoch, w, append.rows),
        };
        if found.is_absent() {
            self.notes.say(|| format!("W{} GET wal/{p}: absent, a 409; once more", w + 1));
            self.writer_mut(w).appends[n as usize].progress = Progress::Sent;
        } else if ours {
            self.notes.say(|| format!("W{} GET wal/{p}: its own bytes, landed", w + 1));
            self.landed(w, n);
        } else if found.epoch() >= me.epoch {
            self.fenced(w, || format!("GET wal/{p}: {found:?}"));
        } else if self.model.in_serial_zone(me, p) && (p as usize) < POSITIONS - 1 {
            self.notes.say(|| format!("W{} GET wal/{p}: {found:?}: dead, takes wal/{}", w + 1, p + 1));
            let keep = !self.model.is(Mutant::PassedDeadNotRecorded);
            let me = self.writer_mut(w);
            me.appends[n as usize] = super::state::Append { progress: Progress::Sent, position: p + 1, ..append };
            if keep {
                me.fences.add(p);
            }
        } else {
            self.notes.say(|| format!("W{} GET wal/{p}: {found:?}: cannot be, it is poisoned", w + 1));
            self.stop(w);
        }
    }

    /// An entry is durable: acknowledge it, and what waited for it.
    fn landed(&mut self, w: u8, n: u8) {
        let at_once = self.model.is(Mutant::AcknowledgeOutOfOrder);
        let me = &mut self.s.writers[w as usize];
        let append = me.appends[n as usize];
        me.appends[n as usize].progress = Progress::Landed;
        me.log[append.position as usize] = Entry::new(me.epoch, w, append.rows);
        for k in 0..ROWS {
            let it = me.appends[k];
            match it.progress {
                Progress::Acknowledged => {}
                Progress::Landed => {
                    me.appends[k].progress = Progress::Acknowledged;
                    me.acknowledged = me.acknowledged.max(it.position);
                    for row in (0..ROWS as u8).filter(|row| it.rows & (1 << row) != 0) {
                        me.appends[row as usize].progress = Progress::Acknowledged;
                        me.appends[row as usize].position = it.position;
                        self.s.acknowledged.add(row_number(w, row));
                        self.notes.say(|| format!("   {} is acknowledged", row_name(row_number(w, row))));
                    }
                }
                _ if at_once => {}
                _ => break,
            }
        }
    }

    /// One create of a WAL object. `None` if the model has no room for a late one.
    fn create(&mut self, store: u8, position: Position, entry: Entry, answer: Answer) -> Option<Said> {
        let absent = self.s.at(store, position).is_absent();
        let faults = &mut self.s.faults;
        Some(match answer {
            Answer::Truth if absent => {
                self.s.put(store, position, entry);
                Said { created: true, exists: false, text: "ok" }
            }
            Answer::Truth => Said { created: false, exists: true, text: "already exists" },
            Answer::LostAck => {
                faults.lost_ack -= 1;
                self.s.put(store, position, entry);
                Said { created: false, exists: false, text: "lost ack (it landed)" }
            }
            Answer::Conflict => {
                faults.conflict -= 1;
                Said { created: false, exists: true, text: "409 (nothing landed)" }
            }
            Answer::Late => {
                faults.late -= 1;
                if !self.s.send_late(LatePut { entry, store, position }) {
                    self.model.out_of_room();
                    return None;
                }
                Said { created: false, exists: false, text: "timeout (it may land later)" }
            }
        })
    }
}

/// What a create was answered.
struct Said {
    created: bool,
    exists: bool,
    text: &'static str,
}

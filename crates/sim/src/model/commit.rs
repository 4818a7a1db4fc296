//! Committing a manifest (section 3), in one step or in the steps that the store sees.

use super::action::Answer;
use super::judge::Invariant;
use super::mutant::Mutant;
use super::state::{Change, Commit, State, Step};
use super::types::{CommitId, Manifest};
use super::{Notes, OTHERS, Turn};

/// The commit that an actor has under way.
pub(super) fn commit_of(s: &State, actor: u8) -> &Commit {
    match actor {
        OTHERS.. => &s.others[(actor - OTHERS) as usize].commit,
        _ => &s.writers[actor as usize].commit,
    }
}

fn commit_mut(s: &mut State, actor: u8) -> &mut Commit {
    match actor {
        OTHERS.. => &mut s.others[(actor - OTHERS) as usize].commit,
        _ => &mut s.writers[actor as usize].commit,
    }
}

/// `commit_id`: unique per actor and manifest derived. Eight actors, seven manifests each.
pub(super) fn commit_id(actor: u8, derived: u8) -> CommitId {
    debug_assert!(actor < 8 && derived < 8);
    actor << 3 | derived
}

/// How a commit ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    /// The change does not apply to the manifest that was read.
    Refused,
    Unknown,
}

pub(super) fn actor_name(actor: u8) -> String {
    match actor {
        OTHERS.. => format!("C{}", actor - OTHERS + 1),
        w => format!("W{}", w + 1),
    }
}

impl<N: Notes> Turn<'_, N> {
    /// Begins a commit, from the manifest that the actor holds or from the newest.
    pub(super) fn begin(&mut self, actor: u8, change: Change, held: bool) -> bool {
        commit_mut(self.s, actor).change = change;
        if !self.model.config.steps {
            let base = *self.s.newest();
            return self.derive(actor, base) && self.publish_at_once(actor);
        }
        if held {
            let base = commit_of(self.s, actor).base;
            return self.derive(actor, base);
        }
        commit_mut(self.s, actor).step = Step::List;
        self.advance(actor, Answer::Truth)
    }

    /// Derives from `base`. False if the model has no room for it.
    fn derive(&mut self, actor: u8, base: Manifest) -> bool {
        let commit = commit_of(self.s, actor);
        let (change, derived) = (commit.change, commit.derived + 1);
        match self.model.derive(self.s, actor, change, &base) {
            _ if derived >= 8 => {
                self.model.out_of_room();
                false
            }
            Some(mut next) => {
                next.commit = commit_id(actor, derived);
                let commit = commit_mut(self.s, actor);
                (commit.base, commit.next, commit.derived, commit.step) = (base, next, derived, Step::Put);
                true
            }
            None => {
                let commit = commit_mut(self.s, actor);
                commit.base = base;
                commit.step = Step::LookAgain(base.version);
                if !self.model.config.steps || self.model.is(Mutant::RefusalWithoutLook) {
                    self.finish(actor, Outcome::Refused);
                }
                true
            }
        }
    }

    /// Section 3 in one step. What may come in between the steps matters only where manifests are pruned.
    fn publish_at_once(&mut self, actor: u8) -> bool {
        let commit = commit_of(self.s, actor);
        if commit.step != Step::Put {
            return true;
        }
        let next = commit.next;
        self.s.manifests[0] = next;
        self.notes.say(|| format!("{} commits {:?} ({:?})", actor_name(actor), commit_of(self.s, actor).change, next));
        self.finish(actor, Outcome::Done);
        true
    }

    /// The next step of a commit.
    pub(super) fn advance(&mut self, actor: u8, answer: Answer) -> bool {
        let name = actor_name(actor);
        let commit = commit_of(self.s, actor);
        let next = commit.next;
        match commit.step {
            Step::Idle => return false,
            Step::List => {
                let version = self.s.newest().version;
                self.notes.say(|| format!("{name} LIST manifest/: {version} is the newest"));
                commit_mut(self.s, actor).step = Step::Read(version);
            }
            Step::Read(version) => {
                let base = self.s.manifest(version);
                if base.version == 0 {
                    self.notes.say(|| format!("{name} GET manifest/{version}: absent; lists again"));
                    commit_mut(self.s, actor).step = Step::List;
                } else {
                    self.notes.say(|| format!("{name} GET manifest/{version}: {base:?}"));
                    return self.derive(actor, base);
                }
            }
            Step::Put => return self.put_manifest(actor, next, answer),
            Step::Get => {
                let found = self.s.manifest(next.version);
                let ours = found.commit == next.commit && !self.model.is(Mutant::CommitRerunOnItself);
                let step = match found.version {
                    0 => Step::Put,
                    _ if ours => Step::CheckLineage,
                    _ if self.model.is(Mutant::TakenNameBelieved) => Step::List,
                    _ if self.model.is(Mutant::CommitRerunOnItself) && found.commit == next.commit => Step::List,
                    _ => Step::CheckTaken,
                };
                self.notes.say(|| match step {
                    Step::Put => format!("{name} GET manifest/{}: absent, a 409; once more", next.version),
                    Step::CheckLineage => format!("{name} GET manifest/{}: its own", next.version),
                    Step::CheckTaken => format!("{name} GET manifest/{}: another's ({found:?})", next.version),
                    _ => format!("{name} GET manifest/{}: not taken for its own; lists again", next.version),
                });
                commit_mut(self.s, actor).step = step;
                if step == Step::CheckTaken {
                    commit_mut(self.s, actor).base = found;
                }
                if step == Step::CheckLineage {
                    self.created(actor);
                }
            }
            Step::CheckLineage => {
                let passed = self.lineage_holds(&next);
                self.notes.say(|| format!("{name} checks its lineage: {}", if passed { "it holds" } else { "lost" }));
                self.finish(actor, if passed { Outcome::Done } else { Outcome::Unknown });
            }
            Step::CheckTaken => {
                let found = commit.base;
                let passed = self.leads_back_to(&found);
                self.notes.say(|| match passed {
                    true => format!("{name} checks that one's lineage: it holds, so its own never landed"),
                    false => format!("{name} checks that one's lineage: lost, so its own may have landed before"),
                });
                match passed {
                    true => commit_mut(self.s, actor).step = Step::List,
                    false => self.finish(actor, Outcome::Unknown),
                }
            }
            Step::LookAgain(version) => {
                let newest = self.s.newest().version;
                self.notes.say(|| format!("{name} LIST manifest/: {newest} is the newest"));
                match newest == version {
                    true => self.finish(actor, Outcome::Refused),
                    false => commit_mut(self.s, actor).step = Step::List,
                }
            }
        }
        true
    }

    fn put_manifest(&mut self, actor: u8, next: Manifest, answer: Answer) -> bool {
        let absent = self.s.manifest(next.version).version == 0;
        let said = match answer {
            Answer::Truth if absent => "ok",
            Answer::Truth => "already exists",
            Answer::LostAck => "lost ack (it landed)",
            Answer::Conflict => "409 (nothing landed)",
            Answer::Late => "timeout (it may land later)",
        };
        self.notes.say(|| format!("{} PUT manifest/{} ({next:?}): {said}", actor_name(actor), next.version));
        if absent && matches!(answer, Answer::Truth | Answer::LostAck) && !self.s.create_manifest(next) {
            self.model.out_of_room();
            return false;
        }
        match answer {
            Answer::Truth if absent => self.created(actor),
            Answer::Truth => commit_mut(self.s, actor).step = Step::Get,
            Answer::LostAck => self.s.faults.lost_ack -= 1,
            Answer::Conflict => {
                self.s.faults.conflict -= 1;
                commit_mut(self.s, actor).step = Step::Get;
            }
            Answer::Late => {
                self.s.faults.late -= 1;
                self.s.late_manifest = next;
            }
        }
        true
    }

    /// Our manifest is there. Is it part of the lineage?
    fn created(&mut self, actor: u8) {
        let later =
            self.model.is(Mutant::SentinelBeforeLineageCheck) && commit_of(self.s, actor).change == Change::Claim;
        if later {
            commit_mut(self.s, actor).unchecked = true;
        }
        match self.model.is(Mutant::NoLineageCheck) || later {
            true => self.finish(actor, Outcome::Done),
            false => commit_mut(self.s, actor).step = Step::CheckLineage,
        }
    }

    /// Section 3, step 4.
    fn lineage_holds(&self, ours: &Manifest) -> bool {
        if self.model.is(Mutant::PredecessorOnly) {
            let before = self.s.manifest(ours.version - 1);
            return before.version > 0 && before.commit == ours.parent;
        }
        self.leads_back_to(ours)
    }

    /// Whether the newest manifest is this one, or leads back to it by `parent_commit_id`.
    fn leads_back_to(&self, this: &Manifest) -> bool {
        let mut at = *self.s.newest();
        while at.version > this.version {
            let before = self.s.manifest(at.version - 1);
            if before.version == 0 || before.commit != at.parent {
                return false;
            }
            at = before;
        }
        at.version == this.version && at.commit == this.commit
    }

    /// The check that the mutant put off.
    pub(super) fn check_late(&mut self, w: u8) -> bool {
        let commit = commit_of(self.s, w);
        if !commit.unchecked {
            return true;
        }
        // It holds the claim as `base` by now.
        let claim = commit.base;
        let passed = self.lineage_holds(&claim);
        self.notes.say(|| format!("W{} checks the lineage of its claim: {passed}", w + 1));
        commit_mut(self.s, w).unchecked = false;
        if !passed {
            self.stop(w);
        }
        passed
    }

    /// What the actor makes of its commit.
    fn finish(&mut self, actor: u8, outcome: Outcome) {
        let commit = commit_mut(self.s, actor);
        let (change, base, next) = (commit.change, commit.base, commit.next);
        commit.step = Step::Idle;
        (commit.change, commit.next) = (Change::Nothing, Manifest::default());
        if outcome == Outcome::Done {
            commit.base = next;
        }
        // A manifest that is held is of use only to commits in steps.
        if !self.model.config.steps || (actor >= OTHERS && outcome != Outcome::Done) {
            commit_mut(self.s, actor).base = Manifest::default();
        }
        let told = matches!(change, Change::Touch | Change::Flush(_) | Change::Close);
        if outcome == Outcome::Done && told && !self.in_lineage(next.commit) {
            self.broke(Invariant::I6);
        }
        if outcome == Outcome::Done && self.model.config.steps {
            self.s.hint = self.s.hint.max(next.version);
        }
        if actor >= OTHERS {
            let other = &mut self.s.others[(actor - OTHERS) as usize];
            other.commits_left -= 1;
            return;
        }
        match outcome {
            Outcome::Done => self.committed(actor, change, &base, &next),
            Outcome::Refused => self.fenced(actor, || format!("cannot {change:?}: the manifest has another claim")),
            Outcome::Unknown => self.stop(actor),
        }
    }

    /// The identities of the initial manifest and of all that were the newest since.
    fn in_lineage(&self, commit: CommitId) -> bool {
        // With commits in one step there is nothing but the lineage.
        !self.model.config.steps || self.s.lineage & (1 << commit) != 0 || self.s.newest().commit == commit
    }
}

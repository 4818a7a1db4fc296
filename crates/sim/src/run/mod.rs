//! Deterministic simulation of the real log: several processes of `fencepost-wal` share one simulated store, in one
//! thread and in virtual time, and everything that is random comes from one seed.
//!
//! It owns the schedule (when requests are sent, land and are answered, who stalls for how long, who dies), the
//! workload, and an oracle that checks the protocol's invariants after every step. The log itself is the real one.
//! The same seed gives the same run, to the last request.

mod adversary;
mod collector;
mod coverage;
mod follower;
mod habits;
mod keeper;
mod network;
mod oracle;
mod process;
mod trace;
mod world;
mod writer;

use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "mutants")]
pub use fencepost_wal::mutants::Mutant;

use fencepost_wal::{ManifestStore, Shard, ShardManifest};
use tokio::task::JoinSet;

use crate::rng::Rng;
pub use coverage::Coverage;
use habits::Habits;
pub use oracle::{Invariant, Violation};
use process::{Process, Role, live};
use world::World;

/// After this much virtual time something waits for what never comes.
const TOO_LONG: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

/// What became of one run.
#[derive(Debug, Clone)]
pub struct Report {
    /// The seed that repeats it.
    pub seed: u64,
    /// The first broken promise, which ended the run.
    pub violation: Option<Violation>,
    /// What the run met.
    pub coverage: Coverage,
    /// A hash over everything that happened, with its virtual times.
    pub trace_hash: u64,
    /// How many things happened.
    pub steps: u64,
    /// All of it, line by line, if asked for.
    pub trace: Vec<String>,
    /// Virtual time that it took.
    pub virtual_time: Duration,
}

/// Runs the simulation of one seed. With `trace`, the report tells everything that happened.
pub fn simulate(seed: u64, trace: bool) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let mut rng = Rng::new(seed);
    let habits = Habits::draw(&mut rng);
    let failed = |what: String| Report {
        seed,
        violation: Some(Violation { invariant: Invariant::Liveness, what }),
        coverage: Coverage::default(),
        trace_hash: 0,
        steps: 0,
        trace: Vec::new(),
        virtual_time: Duration::ZERO,
    };
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(e) => return failed(format!("no runtime: {e}")),
    };
    runtime.block_on(async {
        let world = World::new(habits, trace);
        world.note("run", format_args!("seed {seed}: {:?}", world.habits));
        tokio::select! {
            biased;
            () = world.failed() => {}
            () = run(&world, &mut rng) => {}
            () = tokio::time::sleep(TOO_LONG) => world.fail("run", Invariant::Liveness, "it never ends".into()),
        }
        let (violation, coverage, trace_hash, steps, trace, virtual_time) = world.end();
        Report { seed, violation, coverage, trace_hash, steps, trace, virtual_time }
    })
}

/// The adversary's plot in the run of a seed, by name; `None`: it has none.
pub fn plot_of(seed: u64) -> Option<String> {
    Habits::draw(&mut Rng::new(seed)).plot.map(|plot| format!("{plot:?}"))
}

/// The same with a rule of the protocol turned off.
#[cfg(feature = "mutants")]
pub fn simulate_mutant(seed: u64, trace: bool, mutant: Mutant) -> Report {
    fencepost_wal::mutants::set(Some(mutant));
    let report = simulate(seed, trace);
    fencepost_wal::mutants::set(None);
    report
}

async fn run(world: &Arc<World>, rng: &mut Rng) {
    if let Err(e) = create_shard(world, rng).await {
        return world.fail("run", Invariant::Liveness, format!("the shard cannot be created: {e}"));
    }
    let mut actors = JoinSet::new();
    let roles = [
        (Role::Writer, world.habits.writers),
        (Role::Collector, world.habits.collectors),
        (Role::Follower, world.habits.followers),
        (Role::Keeper, world.habits.keepers),
    ];
    for (role, count) in roles {
        for number in 0..count {
            actors.spawn(act(Arc::clone(world), role, number, rng.fork()));
        }
    }
    while let Some(ended) = actors.join_next().await {
        if let Err(e) = ended {
            return world.fail("run", Invariant::Panic, e.to_string());
        }
        // The others end with the writers.
        if world.rounds_left() == 0 {
            world.calm_down();
        }
    }
    world.calm_down();
    // Whatever is on the wire lands.
    tokio::time::sleep(Duration::from_secs(1)).await;
    last_look(world, rng).await;
}

fn quiet_shard(world: &Arc<World>, name: &str, dice: Rng) -> Result<(Arc<Process>, Shard), String> {
    let process = Process::new(world, name.to_owned(), Role::Writer, true, dice);
    let shard = network::shard_of(&process).map_err(|e| e.to_string())?;
    Ok((process, shard))
}

/// The shard's first manifest, before there are any faults.
async fn create_shard(world: &Arc<World>, rng: &mut Rng) -> Result<(), String> {
    world.set_calm(true);
    let (_, shard) = quiet_shard(world, "init", rng.fork())?;
    let first = ShardManifest::first(shard.id(), 0, vec![]);
    let created = ManifestStore::new(shard).initialize(first).await.map(drop).map_err(|e| e.to_string());
    world.set_calm(false);
    created
}

/// One actor: a process, and when it ends another in its place, until the rounds are used up.
async fn act(world: Arc<World>, role: Role, number: u64, mut dice: Rng) {
    let mut incarnation = 0;
    while world.rounds_left() > 0 {
        incarnation += 1;
        let letter = match role {
            Role::Writer => 'w',
            Role::Collector => 'c',
            Role::Follower => 'f',
            Role::Keeper => 'k',
        };
        let is_steady = role != Role::Writer && number == 0;
        let process = Process::new(&world, format!("{letter}{number}.{incarnation}"), role, is_steady, dice.fork());
        let Ok(shard) = network::shard_of(&process) else { return };
        process.restart().await;
        let life = async {
            match role {
                Role::Writer => {
                    // A takeover costs a round too, so that those who only fence each other come to an end.
                    world.take_round();
                    let wrote = writer::write(&process, &shard).await;
                    if let Err(error) = wrote {
                        world.fail(&process.name, Invariant::Truth, format!("a writer could not go on: {error}"));
                    }
                }
                Role::Collector => {
                    while world.rounds_left() > 0 {
                        process.pause().await;
                        let seen = world.changes();
                        if let Err(error) = collector::collect_once(&process, &shard).await {
                            writer::judge_error(&process, &error);
                        }
                        world.wait_for_change(seen).await;
                    }
                }
                Role::Follower => follower::follow(&process, &shard).await,
                Role::Keeper => keeper::keep(&process, &shard).await,
            }
        };
        live(&process, life).await;
        process.is_gone();
    }
}

/// After the storm: the shard opens, holds what was promised, and takes rows.
async fn last_look(world: &Arc<World>, rng: &mut Rng) {
    let (process, shard) = match quiet_shard(world, "last", rng.fork()) {
        Ok(quiet) => quiet,
        Err(e) => return world.fail("run", Invariant::Liveness, e),
    };
    let before = world.state().oracle.rows.acknowledged();
    world.set_rounds(3);
    let owned = writer::write(&process, &shard).await;
    let after = world.state().oracle.rows.acknowledged();
    match owned {
        Ok(true) if after > before => {}
        other => {
            let what =
                format!("with all faults gone, the shard takes no rows: {other:?}, {before} to {after} acknowledged");
            world.fail("last", Invariant::Liveness, what);
        }
    }
    let verdict = world.state().oracle.check_rows();
    world.judge("last", verdict);
    if let Err(error) = collector::collect_once(&process, &shard).await {
        writer::judge_error(&process, &error);
    }
}

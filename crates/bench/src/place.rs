//! Where a measurement takes place: a fresh folder on one of the stores, with counters of requests.

use std::collections::HashMap;
use std::sync::Arc;

use clap::ValueEnum;
use fencepost::Store;
use fencepost_sim::{CountingStore, Counts, Latency, LatencyStore, Pace, RequestCounts};
use object_store::memory::InMemory;
use object_store::path::Path;
use tempfile::TempDir;
use url::Url;

use crate::Result;

/// Milliseconds that a PUT takes on the simulated S3, and so on: medians that S3 Standard shows for small objects.
pub(crate) const PUT_MILLIS: u64 = 30;
const GET_MILLIS: u64 = 15;
const LIST_MILLIS: u64 = 30;
const DELETE_MILLIS: u64 = 30;
/// What one request transfers in a second, in bytes.
const BYTES_PER_SECOND: u64 = 80 << 20;

/// A kind of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StoreKind {
    /// In memory, without any delay: what the CPU does is measured.
    Memory,
    /// In memory; PUT 30 ms, GET and HEAD 15 ms, LIST and DELETE 30 ms, 80 MiB/s per request.
    S3,
    /// As `s3`, but each request takes 0.5 to 4 times as long, at random.
    S3Jitter,
    /// Files of this machine, each fsynced.
    File,
}

/// Which store was asked for.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    Kind(StoreKind),
    /// A folder on a real store. What is measured there is written below it, and stays.
    Url {
        url: String,
        options: HashMap<String, String>,
    },
}

impl Target {
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Kind(kind) => kind.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned()),
            Self::Url { url, .. } => url.clone(),
        }
    }

    /// A folder in which nothing is yet.
    pub(crate) fn place(&self) -> Result<Place> {
        match self {
            Self::Kind(kind) => Place::on(*kind),
            Self::Url { url, options } => {
                let url = format!("{}/{}", url.trim_end_matches('/'), uuid::Uuid::new_v4());
                Ok(Place::around(Store::open(&url, options)?, None, None))
            }
        }
    }
}

/// A fresh folder on a store.
#[derive(Debug)]
pub(crate) struct Place {
    plain: Store,
    pace: Option<Pace>,
    counts: Counts,
    _folder: Option<TempDir>,
}

impl Place {
    pub(crate) fn on(kind: StoreKind) -> Result<Self> {
        if kind == StoreKind::File {
            let folder = tempfile::tempdir()?;
            let path = folder.path().join("t");
            let store = Store::open(&path.to_string_lossy(), &HashMap::new())?;
            return Ok(Self::around(store, None, Some(folder)));
        }
        take_memory();
        let url = Url::parse("memory://bench/t")?;
        let store = Store::from_parts(url, Arc::new(InMemory::new()), Path::from("t"));
        let pace = match kind {
            StoreKind::S3 => Some(pace(Latency::constant)),
            StoreKind::S3Jitter => Some(pace(|millis| {
                Latency::quantiles([(0.0, millis / 2), (0.5, millis), (0.99, 2 * millis), (1.0, 4 * millis)])
            })),
            StoreKind::Memory | StoreKind::File => None,
        };
        Ok(Self::around(store, pace, None))
    }

    /// A place in memory where every request takes equally long.
    pub(crate) fn with_round_trips_of(millis: u64) -> Result<Self> {
        Ok(Self { pace: Some(Pace::every(Latency::constant(millis))), ..Self::on(StoreKind::Memory)? })
    }

    fn around(plain: Store, pace: Option<Pace>, folder: Option<TempDir>) -> Self {
        Self { plain, pace, counts: Counts::default(), _folder: folder }
    }

    /// The store as a system under test sees it: slow and counted.
    pub(crate) fn store(&self) -> Store {
        let (pace, counts) = (self.pace.clone(), self.counts.clone());
        self.plain.clone().wrapped(|inner| {
            let inner = match pace {
                Some(pace) => Arc::new(LatencyStore::paced(inner, pace, 0)),
                None => inner,
            };
            crate::trace::traced(Arc::new(CountingStore::counted_by(inner, counts)))
        })
    }

    /// The same place without delay and uncounted, to prepare what is measured.
    pub(crate) fn unmeasured(&self) -> Store {
        self.plain.clone()
    }

    /// Requests so far.
    pub(crate) fn requests(&self) -> RequestCounts {
        self.counts.snapshot()
    }
}

/// Takes memory from the operating system, and gives it back. What a process has not used for seconds, because one system waited for its timer, the
/// kernel may have cleared and the hypervisor of a virtual machine taken away: the next system would pay for that.
fn take_memory() {
    const BYTES: usize = 512 << 20;
    const PAGE: usize = 4096;
    let mut memory: Vec<u8> = Vec::with_capacity(BYTES);
    memory.resize(BYTES, 1);
    std::hint::black_box(memory.iter().step_by(PAGE).map(|byte| usize::from(*byte)).sum::<usize>());
}

fn pace(of: impl Fn(u64) -> Latency) -> Pace {
    Pace {
        put: of(PUT_MILLIS),
        get: of(GET_MILLIS),
        list: of(LIST_MILLIS),
        delete: of(DELETE_MILLIS),
        bytes_per_second: Some(BYTES_PER_SECOND),
    }
}

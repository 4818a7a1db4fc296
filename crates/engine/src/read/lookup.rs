//! Finding rows by their keys. Every key is looked for in the shard that it belongs to, from the newest source to the
//! oldest, until a version of it is found (I8: a tombstone too), then in the base table; the rows are read when all
//! places are known.
//!
//! MemTables are asked directly. SSTables are asked in groups, side by side within a group: first their bloom filters,
//! then the primary-key indexes of those that may have a key. An SSTable is opened only if it has a row of the answer, or
//! if another engine wrote it, whose index may have lost a key: then its key columns are read.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{BooleanArray, RecordBatch, RecordBatchOptions, UInt64Array};
use arrow_schema::{Schema, SchemaRef};
use arrow_select::concat::concat_batches;
use arrow_select::filter::filter_record_batch;
use arrow_select::take::take_record_batch;
use fencepost_wal::{RowFilter, SsTable};
use futures::{StreamExt, TryStreamExt, stream};
use lance::Dataset;
use tokio::sync::Semaphore;

use super::source::conform;
use super::{ShardMoment, Snapshot, WantedKeys};
use crate::error::{Error, Result};
use crate::key::KeyEncoder;
use crate::lance_store::{self, ROW_ID};
use crate::memtable::MemTableSnapshot;
use crate::rows::TOMBSTONE;
use crate::sharding::{PartOfRows, Router, ShardValue};
use crate::shards::SHARDS_AT_ONCE;
use crate::sstable::SsTablePlace;

/// SSTables of a shard whose filters are asked at once, beginning with few: the newest ones often have what is wanted.
const FIRST_GROUP: usize = 4;
const LARGEST_GROUP: usize = 64;

/// Bloom filters that one lookup loads at once, of all shards together.
const FILTERS_AT_ONCE: usize = 64;

/// SSTables whose index or rows one lookup reads at once, of all shards together.
const SOURCES_AT_ONCE: usize = 16;

/// The newest rows of these keys, without those that are deleted or were never there, in the order of the keys; `keys` has
/// the columns of the primary key.
pub(super) async fn get(
    snapshot: &Arc<Snapshot>,
    keys: &RecordBatch,
    projection: Option<&[&str]>,
) -> Result<RecordBatch> {
    let format = &snapshot.format;
    let Some(encoder) = &format.keys else {
        return Err(Error::NotSupported(
            "rows of a table without a primary key cannot be looked up by key; use SQL with a filter, or create the table \
             with a primary key"
                .into(),
        ));
    };
    let schema = match projection {
        None => Arc::clone(&format.user),
        Some(names) => projected(&format.user, names)?,
    };
    let misfit = |error| match error {
        Error::InvalidBatch(reason) => Error::InvalidOptions(format!("the keys do not fit the table: {reason}")),
        other => other,
    };
    let (keys, encoded) = format.encode_keys(keys).map_err(misfit)?;
    if encoded.len() == 1
        && let Some(found) = in_memory(snapshot, encoded.get(0), &schema)?
    {
        return Ok(found);
    }
    let wanted = WantedKeys::of_keys(&keys, encoder, format).map_err(misfit)?;
    // Boxed: a lookup in memory does not pay for its size.
    Box::pin(find(snapshot, &wanted, &schema)).await
}

/// The newest row of one key if a MemTable of the only shard has it (I8: newest first): nothing is awaited, and nothing is
/// copied. `None`: the key is to be looked for in the long way.
fn in_memory(snapshot: &Snapshot, key: &[u8], schema: &SchemaRef) -> Result<Option<RecordBatch>> {
    let [shard] = snapshot.shards.as_slice() else {
        return Ok(None);
    };
    match shard.view.memtables.iter().find_map(|memtable| Some((memtable, memtable.newest_row(key)?))) {
        Some((memtable, row)) => memtable.row(row, schema),
        None => Ok(None),
    }
}

fn projected(user: &SchemaRef, names: &[&str]) -> Result<SchemaRef> {
    let mut fields = Vec::with_capacity(names.len());
    for name in names {
        let Ok(field) = user.field_with_name(name) else {
            let known: Vec<&str> = user.fields().iter().map(|field| field.name().as_str()).collect();
            return Err(Error::InvalidOptions(format!(
                "column `{name}` is unknown; the table has the columns {}",
                known.join(", ")
            )));
        };
        fields.push(field.clone());
    }
    Ok(Arc::new(Schema::new(fields)))
}

/// The newest rows of these keys in the columns of `schema`, in the order of the keys.
pub(super) async fn find(snapshot: &Arc<Snapshot>, wanted: &WantedKeys, schema: &SchemaRef) -> Result<RecordBatch> {
    let Some(encoder) = snapshot.format.keys.as_ref().filter(|_| wanted.len() > 0) else {
        return Ok(RecordBatch::new_empty(Arc::clone(schema)));
    };
    let mut columns: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
    let keys = snapshot.format.primary_key.iter();
    columns.extend(keys.filter(|key| schema.index_of(key).is_err()).cloned());
    let lookup = Lookup {
        snapshot,
        wanted,
        encoder,
        columns,
        schema,
        filters: Semaphore::new(FILTERS_AT_ONCE),
        sources: Semaphore::new(SOURCES_AT_ONCE),
    };
    lookup.run().await
}

struct Lookup<'s> {
    snapshot: &'s Arc<Snapshot>,
    wanted: &'s WantedKeys,
    encoder: &'s KeyEncoder,
    /// Those of the answer and of the key.
    columns: Vec<String>,
    schema: &'s SchemaRef,
    filters: Semaphore,
    sources: Semaphore,
}

/// Where the newest versions of some keys are.
struct Found {
    place: Place,
    /// The number of each key, and its row: a position in a MemTable, a row id elsewhere.
    rows: Vec<(usize, u64)>,
}

enum Place {
    MemTable(MemTableSnapshot),
    SsTable { place: SsTablePlace, by_index: bool },
    Base,
}

impl Lookup<'_> {
    async fn run(&self) -> Result<RecordBatch> {
        let asked = self.by_shard()?.into_iter().map(|(shard, numbers)| self.in_shard(shard, numbers));
        let asked: Vec<_> = asked.collect();
        let mut found: Vec<Found> = stream::iter(asked)
            .buffer_unordered(SHARDS_AT_ONCE)
            .try_fold(Vec::new(), async |mut all, found| {
                all.extend(found);
                Ok(all)
            })
            .await?;
        found.extend(self.in_base(&found).await?);
        let rows: Vec<_> = found.into_iter().map(|found| self.rows_of(found)).collect();
        let rows: Vec<(RecordBatch, Vec<usize>)> = stream::iter(rows).buffered(SOURCES_AT_ONCE).try_collect().await?;
        self.in_order(rows)
    }

    /// The shards that may have one of the keys, and which.
    fn by_shard(&self) -> Result<Vec<(&Arc<ShardMoment>, Vec<usize>)>> {
        let snapshot = self.snapshot;
        let sharding = snapshot.base.sharding();
        let all = || (0..self.wanted.len()).collect::<Vec<_>>();
        let mut groups: Option<HashMap<ShardValue, Vec<usize>>> = None;
        // Lance may have made a table whose sharding column is no part of the key.
        if sharding.column().is_some() && !sharding.divides_key(&snapshot.format.primary_key) {
            let routed = Router::try_new(sharding, &snapshot.format.user)?.groups(self.wanted.batch())?;
            let numbers = |rows: Vec<u64>| rows.into_iter().filter_map(|row| usize::try_from(row).ok()).collect();
            groups = Some(routed.into_iter().map(|(value, rows)| (value, numbers(rows))).collect());
        }
        let of_shard = |shard: &ShardMoment| match (&groups, &shard.view.value) {
            (None, _) | (_, ShardValue::All | ShardValue::Unknown) => all(),
            (Some(groups), value) => groups.get(value).cloned().unwrap_or_default(),
        };
        let asked = snapshot.shards.iter().map(|shard| (shard, of_shard(shard)));
        Ok(asked.filter(|(_, numbers)| !numbers.is_empty()).collect())
    }

    async fn in_shard(&self, shard: &Arc<ShardMoment>, numbers: Vec<usize>) -> Result<Vec<Found>> {
        let mut left = Left { numbers, found: Vec::new() };
        for memtable in &shard.view.memtables {
            let keys = left.numbers.iter().map(|number| self.wanted.key(*number));
            let rows = left.numbers.iter().zip(memtable.newest_rows(keys));
            let rows = rows.filter_map(|(number, row)| Some((*number, row? as u64))).collect();
            left.take(Place::MemTable(memtable.clone()), rows);
        }
        let parts = self.parts(&shard.view.sstables)?;
        let mut sstables = shard.view.sstables.as_slice();
        let mut size = FIRST_GROUP;
        while !sstables.is_empty() && !left.numbers.is_empty() {
            let (group, older) = sstables.split_at(size.min(sstables.len()));
            (sstables, size) = (older, (size * FIRST_GROUP).min(LARGEST_GROUP));
            let possible: Vec<_> =
                group.iter().map(|sstable| self.possible_in(shard, sstable, &parts, &left.numbers)).collect();
            let possible: Vec<_> = stream::iter(possible)
                .buffered(LARGEST_GROUP)
                .try_filter(|(_, numbers)| std::future::ready(!numbers.is_empty()))
                .try_collect()
                .await?;
            let found: Vec<_> =
                possible.into_iter().map(|(place, numbers)| self.in_sstable(place, numbers, &parts)).collect();
            let mut found = stream::iter(found).buffered(SOURCES_AT_ONCE);
            // Newest first: what a newer one has is not taken from an older one.
            while let Some((place, rows)) = found.try_next().await? {
                left.take(place, rows);
            }
        }
        Ok(left.found)
    }

    /// Which of the wanted keys belong to a shard's part of an SSTable; each filter of rows is evaluated once.
    fn parts(&self, sstables: &[SsTable]) -> Result<HashMap<RowFilter, (PartOfRows, Vec<bool>)>> {
        let mut parts = HashMap::new();
        for filter in sstables.iter().filter_map(|sstable| sstable.base.as_ref()?.filter) {
            if let Entry::Vacant(missing) = parts.entry(filter) {
                let part = PartOfRows::of(filter, self.snapshot.base.sharding(), &self.snapshot.format.user)?;
                let mask = part.mask(self.wanted.batch())?;
                missing.insert((part, mask.iter().collect()));
            }
        }
        Ok(parts)
    }

    /// Those of these keys that an SSTable may have.
    async fn possible_in(
        &self,
        shard: &ShardMoment,
        sstable: &SsTable,
        parts: &HashMap<RowFilter, (PartOfRows, Vec<bool>)>,
        numbers: &[usize],
    ) -> Result<(SsTablePlace, Vec<usize>)> {
        let place = SsTablePlace::of(shard.view.shard, sstable);
        let mask = place.filter.and_then(|filter| parts.get(&filter)).map(|(_, mask)| mask);
        let is_ours = |number: &&usize| mask.is_none_or(|mask| mask.get(**number).copied().unwrap_or(false));
        let numbers: Vec<usize> = numbers.iter().filter(is_ours).copied().collect();
        if numbers.is_empty() {
            return Ok((place, numbers));
        }
        let _permit = self.filters.acquire().await;
        let (cache, base) = (&self.snapshot.cache, &self.snapshot.base);
        // The statistics come with what has to be read in front of the filter.
        if !cache.has_bloom_filter(&place)
            && cache.card(&place).await?.statistics().is_some_and(|known| !self.wanted.may_be_in(known, base))
        {
            return Ok((place, Vec::new()));
        }
        let filter = cache.bloom_filter(&place, &self.snapshot.format.primary_key).await?;
        let possible = match filter {
            Some(filter) => self.wanted.possible(&numbers, &filter),
            None => numbers,
        };
        Ok((place, possible))
    }

    /// Those of these keys that an SSTable has.
    async fn in_sstable(
        &self,
        place: SsTablePlace,
        numbers: Vec<usize>,
        parts: &HashMap<RowFilter, (PartOfRows, Vec<bool>)>,
    ) -> Result<(Place, Vec<(usize, u64)>)> {
        let _permit = self.sources.acquire().await;
        let cache = &self.snapshot.cache;
        if cache.card(&place).await?.has_our_sidecars() {
            let rows = cache.positions(&place, self.wanted.index_keys(), &numbers).await?;
            return Ok((Place::SsTable { place, by_index: true }, rows));
        }
        let part = place.filter.and_then(|filter| parts.get(&filter)).map(|(part, _)| part);
        // The last row of a key is the newest one.
        let rows = self.scan(&cache.dataset(&place).await?, part).await?;
        let rows: HashMap<usize, u64> = rows.into_iter().collect();
        let rows = numbers.iter().filter_map(|number| Some((*number, *rows.get(number)?))).collect();
        Ok((Place::SsTable { place, by_index: false }, rows))
    }

    /// The keys that no shard has, in the base table. It has a key once, unless another program broke that: then all of
    /// its rows are found, as any other query finds them.
    async fn in_base(&self, newer: &[Found]) -> Result<Option<Found>> {
        let mut is_open = vec![true; self.wanted.len()];
        for (number, _) in newer.iter().flat_map(|found| &found.rows) {
            if let Some(is_open) = is_open.get_mut(*number) {
                *is_open = false;
            }
        }
        let dataset = self.snapshot.base.dataset();
        let is_empty = !self.snapshot.with_base || dataset.manifest().fragments.is_empty();
        if is_empty || !is_open.contains(&true) {
            return Ok(None);
        }
        let mut rows = self.scan(dataset, None).await?;
        rows.retain(|(number, _)| is_open.get(*number) == Some(&true));
        Ok((!rows.is_empty()).then_some(Found { place: Place::Base, rows }))
    }

    /// The rows of a dataset that have one of the keys, by an index of Lance's, a filter, or by reading all keys.
    async fn scan(&self, dataset: &Dataset, part: Option<&PartOfRows>) -> Result<Vec<(usize, u64)>> {
        let columns = &self.snapshot.format.primary_key;
        let mut batches = lance_store::scan_with_row_ids(dataset, columns, self.wanted.filter().cloned()).await?;
        let mut rows = Vec::new();
        while let Some(batch) = batches.try_next().await? {
            let batch = part.map_or_else(|| Ok(batch.clone()), |part| part.choose(&batch))?;
            let ids = batch.column_by_name(ROW_ID).and_then(|ids| ids.as_primitive_opt::<UInt64Type>());
            let Some(ids) = ids else {
                return Err(Error::InvalidBatch(format!("a scan of {} has no row ids", dataset.uri())));
            };
            let keys = self.encoder.encode(&batch)?;
            let numbers = keys
                .iter()
                .zip(ids.values())
                .filter_map(|(key, id)| self.wanted.number_of(key).map(|number| (number, *id)));
            rows.extend(numbers);
        }
        Ok(rows)
    }

    /// The rows, without tombstones, and the number of the key of each.
    async fn rows_of(&self, found: Found) -> Result<(RecordBatch, Vec<usize>)> {
        let _permit = self.sources.acquire().await;
        let Found { place, rows } = found;
        let (mut numbers, ids): (Vec<usize>, Vec<u64>) = rows.into_iter().unzip();
        let mut columns = self.columns.clone();
        let batch = match &place {
            Place::Base => lance_store::take(self.snapshot.base.dataset(), &ids, &columns).await?,
            Place::SsTable { place, by_index } => {
                columns.push(TOMBSTONE.to_owned());
                let batch = lance_store::take(&self.snapshot.cache.dataset(place).await?, &ids, &columns).await?;
                if *by_index {
                    self.check(place, &batch, &numbers)?;
                }
                batch
            }
            Place::MemTable(memtable) => {
                columns.push(TOMBSTONE.to_owned());
                let schema = memtable.schema();
                let index =
                    |name: &String| schema.index_of(name).map_err(Error::arrow("choosing a MemTable's columns"));
                let indices = columns.iter().map(index).collect::<Result<Vec<_>>>()?;
                let rows: Vec<usize> = ids.iter().filter_map(|id| usize::try_from(*id).ok()).collect();
                memtable.take(&rows, &indices)?
            }
        };
        let Some(tombstones) = batch.column_by_name(TOMBSTONE).and_then(|column| column.as_boolean_opt()) else {
            return Ok((conform(&batch, self.schema)?, numbers));
        };
        let live = BooleanArray::new(!tombstones.values(), None);
        let batch = filter_record_batch(&batch, &live).map_err(Error::arrow("leaving out deleted rows"))?;
        let mut is_live = live.values().iter();
        numbers.retain(|_| is_live.next().unwrap_or(false));
        Ok((conform(&batch, self.schema)?, numbers))
    }

    /// Pair check: the rows that an index pointed to have the keys that it was asked for.
    fn check(&self, place: &SsTablePlace, batch: &RecordBatch, numbers: &[usize]) -> Result<()> {
        let keys = self.encoder.encode(batch)?;
        let is_same = keys.iter().zip(numbers).all(|(key, number)| key == self.wanted.key(*number));
        if is_same && keys.len() == numbers.len() {
            return Ok(());
        }
        let url = format!("{}/_pk_index", place.describe(self.snapshot.base.lance_store()));
        let reason = "it points to rows of other keys; restore it from a copy, and run `fencepost verify`".to_owned();
        Err(Error::Corrupt { url, reason })
    }

    fn in_order(&self, rows: Vec<(RecordBatch, Vec<usize>)>) -> Result<RecordBatch> {
        let failed = || Error::arrow("putting the rows of a lookup in order");
        let mut order: Vec<(usize, u64)> = Vec::new();
        for number in rows.iter().flat_map(|(_, numbers)| numbers) {
            order.push((*number, order.len() as u64));
        }
        order.sort_unstable();
        if self.schema.fields().is_empty() {
            let options = RecordBatchOptions::new().with_row_count(Some(order.len()));
            return RecordBatch::try_new_with_options(Arc::clone(self.schema), vec![], &options).map_err(failed());
        }
        let all = concat_batches(self.schema, rows.iter().map(|(batch, _)| batch)).map_err(failed())?;
        let order = UInt64Array::from_iter_values(order.into_iter().map(|(_, row)| row));
        take_record_batch(&all, &order).map_err(failed())
    }
}

/// The keys of a shard that are still looked for, and what was found.
struct Left {
    numbers: Vec<usize>,
    found: Vec<Found>,
}

impl Left {
    /// The rows of a place that is older than all before.
    fn take(&mut self, place: Place, mut rows: Vec<(usize, u64)>) {
        rows.retain(|(number, _)| self.numbers.binary_search(number).is_ok());
        if rows.is_empty() {
            return;
        }
        let mut taken: Vec<usize> = rows.iter().map(|(number, _)| *number).collect();
        taken.sort_unstable();
        self.numbers.retain(|number| taken.binary_search(number).is_err());
        self.found.push(Found { place, rows });
    }
}

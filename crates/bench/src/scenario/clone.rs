//! A clone of a table, by the size of the table.

use std::sync::Arc;

use fencepost::{CloneOptions, MergeOptions, Table as FencepostTable};
use slatedb::admin::{AdminBuilder, CloneSourceSpec};

use super::{Plan, timed};
use crate::Result;
use crate::contender::{Fencepost, Setting, Slate, System, Writer, create_sharded};
use crate::place::{Place, StoreKind};
use crate::report::{Figures, Table};
use crate::rows::{Rows, Shape};

/// Megabytes of data, and shards that they are in.
const SIZES: [(usize, u32); 4] = [(1, 1), (100, 1), (1024, 1), (1, 16)];
/// A vector of 16 KiB makes rows large enough for a gigabyte to be few rows.
const SHAPE: Shape = Shape::Document { dimensions: 4096 };
const ROW_BYTES: usize = 16 << 10;
const BATCH: usize = 64;

pub(super) async fn run(plan: &Plan) -> Result<Table> {
    let target = plan.target_or(StoreKind::S3);
    let title = format!("a clone of a table, everything flushed, store `{}`", target.name());
    let mut table = Table::new("clone", title, &["MB", "shards", "system"]);
    table.main = Some("ms");
    table.note("Fencepost: half of the data in the base table, half in SSTables; opening the table is counted. SlateDB: half compacted or in L0 as its defaults make it");
    for (megabytes, shards) in SIZES.map(|(size, shards)| (plan.size(size), shards)) {
        let key =
            |system| [megabytes.to_string(), shards.to_string(), Setting::defaults(system).system_name().to_owned()];
        for _ in 0..if megabytes > 100 { 1 } else { plan.rounds } {
            let place = target.place()?;
            fill_fencepost(&place, megabytes, shards).await?;
            let before = place.requests();
            let (seconds, _) = timed(async {
                let source = FencepostTable::open(place.store()).await?;
                let clone = place.store().sibling(&format!("{}-clone", place.store().url()))?;
                Ok(source.clone_to(clone, &CloneOptions::default()).await?)
            })
            .await?;
            table.add(&key(System::Fencepost).each_ref().map(String::as_str), figures(&place, before, seconds, shards));
            drop(place);
            // It has no shards.
            if plan.wants(System::Slate) && shards == 1 {
                let place = target.place()?;
                fill_slate(&place, megabytes).await?;
                let before = place.requests();
                let store = place.store();
                let admin =
                    AdminBuilder::new(store.root().clone().join("clone"), Arc::clone(store.object_store())).build();
                let source = CloneSourceSpec::new(Slate::path(&store));
                let (seconds, ()) =
                    timed(async { Ok(admin.create_clone_builder_from_source(source).build().await?) }).await?;
                table.add(&key(System::Slate).each_ref().map(String::as_str), figures(&place, before, seconds, 1));
            }
        }
    }
    let [small, _, large, many] = SIZES.map(|(size, shards)| [plan.size(size).to_string(), shards.to_string()]);
    let ours = Setting::defaults(System::Fencepost).system_name();
    let slate = Setting::defaults(System::Slate).system_name();
    let of = |[size, shards]: &[String; 2], system: &str, figure: &str| table.median(&[size, shards, system], figure);
    let ratio = |a: Option<f64>, b: Option<f64>| Some(a? / b?);
    let mut goals = vec![(
        "requests at the largest size, times those at the smallest".to_owned(),
        ratio(of(&large, ours, "requests"), of(&small, ours, "requests")),
    )];
    for (what, of_ours) in [("one shard", &small), ("a shard of 16", &many)] {
        for figure in ["ms", "requests"] {
            let per_shard = format!("{figure} / shard");
            let found = ratio(of(of_ours, ours, &per_shard), of(&small, slate, &per_shard));
            goals.push((format!("{figure} for {what}, times SlateDB's"), found));
        }
    }
    for (what, found) in goals {
        table.at_most(&what, found, 1.0);
    }
    Ok(table)
}

fn figures(place: &Place, before: fencepost_sim::RequestCounts, seconds: f64, shards: u32) -> Figures {
    let spent = place.requests() - before;
    let (ms, requests) = (seconds * 1e3, spent.requests() as f64);
    let mut figures = vec![
        ("ms", ms),
        ("requests", requests),
        ("ms / shard", ms / f64::from(shards)),
        ("requests / shard", requests / f64::from(shards)),
    ];
    figures.extend(super::requests(spent));
    figures
}

fn rows(megabytes: usize) -> impl Iterator<Item = Result<Rows>> {
    let total = ((megabytes << 20) / ROW_BYTES).max(2);
    (0..total.div_ceil(BATCH)).map(move |n| SHAPE.rows((n * BATCH) as i64..total.min((n + 1) * BATCH) as i64))
}

async fn fill_fencepost(place: &Place, megabytes: usize, shards: u32) -> Result<()> {
    create_sharded(&place.unmeasured(), SHAPE, shards).await?;
    let Fencepost { table, writer } = Fencepost::open_unlimited(&place.unmeasured(), SHAPE).await?;
    let halves = rows(megabytes).count().div_ceil(2);
    for (n, rows) in rows(megabytes).enumerate() {
        writer.put(rows?.batch).await?;
        if n + 1 == halves {
            writer.flush().await?;
            table.merge(&MergeOptions::default(), |_| {}).await?;
        }
    }
    Ok(writer.close().await?)
}

async fn fill_slate(place: &Place, megabytes: usize) -> Result<()> {
    let settings =
        slatedb::Settings { flush_interval: Some(std::time::Duration::from_millis(1)), ..Default::default() };
    let slate = Box::new(Slate::open_with(&place.unmeasured(), settings).await?);
    for rows in rows(megabytes) {
        slate.put(&rows?).await?;
    }
    let flush = slatedb::config::FlushOptions { flush_type: slatedb::config::FlushType::MemTable };
    slate.db.flush_with_options(flush).await?;
    slate.close().await
}

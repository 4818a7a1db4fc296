//! How many requests lie behind one another from open to the first acknowledged row.

use super::{Plan, timed};
use crate::Result;
use crate::clients::bare_put;
use crate::contender::{Lance, Setting, System, Writer, dataset};
use crate::place::Place;
use crate::report::{Figures, Table};
use crate::rows::Shape;

/// What every request takes, in milliseconds.
const ROUND_TRIP: u64 = 40;

pub(super) async fn run(plan: &Plan) -> Result<Table> {
    let title = format!("sequential round trips, every request takes {ROUND_TRIP} ms, nothing to replay");
    let mut table = Table::new("takeover", title, &["system", "what"]);
    table.main = Some("round trips");
    let shape = Shape::Text;
    // Timers take a little longer than they are asked to.
    let one = bare_put(&Place::with_round_trips_of(ROUND_TRIP)?).await?;
    table.note(format!("counted in bare PUTs, of which one took {one:.1} ms (median)"));
    for _ in 0..plan.rounds {
        for system in [System::Fencepost, System::Lance, System::Slate] {
            if !plan.wants(system) {
                continue;
            }
            let place = Place::with_round_trips_of(ROUND_TRIP)?;
            let first = Setting::defaults(system).open(&place.unmeasured(), shape).await?;
            first.put(&shape.rows([1])?).await?;
            first.close().await?;
            let name = Setting::defaults(system).system_name();
            let mut begin = place.requests();
            let mut record = |table: &mut Table, what: &'static str, seconds: f64| {
                let mut figures: Figures = vec![("round trips", seconds * 1e3 / one)];
                figures.extend(super::requests(place.requests() - begin));
                begin = place.requests();
                table.add(&[name, what], figures);
            };
            let row = shape.rows([2])?;
            let mut total = 0.0;
            let writer: Box<dyn Writer> = match system {
                System::Lance => {
                    let (seconds, opened) = timed(dataset(&place.store(), shape)).await?;
                    record(&mut table, "opening the base table", seconds);
                    let config = lance::dataset::mem_wal::ShardWriterConfig::default()
                        .with_max_wal_flush_interval(std::time::Duration::from_millis(1));
                    let (seconds, lance) = timed(Lance::open_on(opened, config)).await?;
                    record(&mut table, "opening the writer", seconds);
                    total += seconds;
                    Box::new(lance)
                }
                System::Slate => {
                    let (seconds, writer) = timed(Setting::gather(system, 1).open(&place.store(), shape)).await?;
                    record(&mut table, "opening the writer", seconds);
                    total += seconds;
                    writer
                }
                _ => {
                    let (seconds, opened) = timed(async { Ok(fencepost::Table::open(place.store()).await?) }).await?;
                    record(&mut table, "opening the base table", seconds);
                    let (seconds, writer) = timed(async { Ok(opened.writer(Default::default()).await?) }).await?;
                    record(&mut table, "opening the writer", seconds);
                    total += seconds;
                    Box::new(crate::contender::Fencepost { table: opened, writer })
                }
            };
            let (seconds, ()) = timed(writer.put(&row)).await?;
            record(&mut table, "first row", seconds);
            total += seconds;
            table.add(&[name, "writer and first row"], vec![("round trips", total * 1e3 / one)]);
            writer.close().await?;
        }
    }
    let found =
        table.median(&[Setting::defaults(System::Fencepost).system_name(), "writer and first row"], "round trips");
    // What the CPU does in between is less than half of one.
    table.at_most("round trips from open to the first acknowledged row", found, 8.5);
    Ok(table)
}

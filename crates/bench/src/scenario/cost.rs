//! What rows cost that come one by one, at a rate: requests at list prices.

use std::sync::Arc;
use std::time::Duration;

use super::Plan;
use crate::Result;
use crate::clients::{at, at_rate, pool};
use crate::contender::{Setting, System, close};
use crate::place::StoreKind;
use crate::report::Table;
use crate::rows::Shape;

/// Dollars per request: S3 Standard, us-east-1, list prices of 2025 (<https://aws.amazon.com/s3/pricing/>). PUT, COPY, POST and
/// LIST are of one class; DELETE is free.
pub(crate) const PUT_DOLLARS: f64 = 0.005 / 1000.0;
pub(crate) const GET_DOLLARS: f64 = 0.0004 / 1000.0;

/// Fencepost with lingers around the latencies of the peers.
const SETTINGS: [Setting; 12] = [
    Setting::defaults(System::Fencepost),
    Setting::gather(System::Fencepost, 10),
    Setting::gather(System::Fencepost, 20),
    Setting::gather(System::Fencepost, 30),
    Setting::gather(System::Fencepost, 40),
    Setting::gather(System::Fencepost, 50),
    Setting::gather(System::Fencepost, 70),
    Setting::gather(System::Fencepost, 90),
    Setting::defaults(System::Lance),
    Setting::gather(System::Lance, 5),
    Setting::defaults(System::Slate),
    Setting::gather(System::Slate, 5),
];

/// Rows a second.
const RATES: [u64; 3] = [1, 100, 10_000];

pub(super) async fn run(plan: &Plan) -> Result<Table> {
    let target = plan.target_or(StoreKind::S3);
    let title = format!("requests of rows that come one by one, store `{}`", target.name());
    let mut table = Table::new("cost", title, &["rows/s", "system", "setting"]);
    table.main = Some("$ per billion rows");
    table
        .note("at equal p50: between two lingers of Fencepost the cost is taken from the straight line between theirs");
    table.note("S3 Standard, us-east-1, list prices of 2025: $0.005 per 1,000 PUTs and LISTs, $0.0004 per 1,000 GETs and HEADs");
    for rate in RATES {
        let time = if rate <= 100 { plan.time.max(Duration::from_secs(8)) } else { plan.time };
        for _ in 0..plan.rounds {
            for setting in plan.settings(SETTINGS) {
                let place = target.place()?;
                let writer = Arc::new(setting.open(&place.store(), Shape::Text).await?);
                let rows = pool(Shape::Text)?;
                at_rate(&writer, &rows, rate.max(100), 100).await?;
                let before = place.requests();
                let count = (time.as_secs_f64() * rate as f64) as u64;
                let latencies = at_rate(&writer, &rows, rate, count).await?;
                let spent = place.requests() - before;
                close(writer).await?;
                let dollars =
                    (spent.put + spent.list) as f64 * PUT_DOLLARS + (spent.get + spent.head) as f64 * GET_DOLLARS;
                table.add(
                    &[&rate.to_string(), setting.system_name(), &setting.tuning_name()],
                    vec![
                        ("$ per billion rows", dollars * 1e9 / count as f64),
                        ("p50 ms", at(&latencies, 0.5)),
                        ("p99 ms", at(&latencies, 0.99)),
                        ("PUT/row", spent.put as f64 / count as f64),
                        ("GET+HEAD/row", (spent.get + spent.head) as f64 / count as f64),
                        ("LIST/row", spent.list as f64 / count as f64),
                    ],
                );
            }
        }
        goals(&mut table, rate);
    }
    Ok(table)
}

/// The cost of a latency, by what settings of a continuous knob have cost at others: the cheapest of those that are as fast, or what lies
/// between two of them. (A cost falls with the time that rows wait for company ever more slowly, so that a straight line lies above it.)
fn cost_at(latency: f64, known: &[(f64, f64)]) -> f64 {
    // Timers are exact to a millisecond.
    let as_fast = known.iter().filter(|(p50, _)| *p50 <= latency + 1.0).map(|(_, dollars)| *dollars);
    let between = known.iter().flat_map(|fast| known.iter().map(move |slow| (fast, slow)));
    let between = between.filter(|(fast, slow)| fast.0 <= latency && latency < slow.0);
    let between = between.map(|(fast, slow)| fast.1 + (slow.1 - fast.1) * (latency - fast.0) / (slow.0 - fast.0));
    as_fast.chain(between).min_by(f64::total_cmp).unwrap_or(f64::INFINITY)
}

/// For each peer as it was set: Fencepost at the same median latency.
fn goals(table: &mut Table, rate: u64) {
    let of_rate = || table.lines.iter().filter(|line| line.labels.first() == Some(&rate.to_string()));
    let is_ours = |labels: &[String]| labels.get(1).is_some_and(|system| system.starts_with("Fencepost"));
    let figures = |line: &crate::report::Line| Some((line.median("p50 ms")?, line.median("$ per billion rows")?));
    let mut found = Vec::new();
    for peer in of_rate().filter(|line| !is_ours(&line.labels)) {
        let Some((latency, dollars)) = figures(peer) else { continue };
        let ours: Vec<(f64, f64)> = of_rate().filter(|line| is_ours(&line.labels)).filter_map(figures).collect();
        found.push((
            format!("cost at {rate} rows/s, as a part of {}", peer.labels.get(1..).unwrap_or_default().join(", ")),
            cost_at(latency, &ours) / dollars,
        ));
    }
    for (what, ratio) in found {
        table.at_most(what, Some(ratio), 1.02);
    }
}

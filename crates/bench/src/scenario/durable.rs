//! Durable appends of one row: how long one takes, how many there are in a second, and what they leave on the store.

use std::sync::Arc;
use std::time::Duration;

use super::Plan;
use crate::Result;
use crate::clients::{Loop, at, bare_put, closed_loop, pool};
use crate::contender::{Setting, System, Tuning, close};
use crate::place::StoreKind;
use crate::report::{Figures, Table};
use crate::rows::Shape;

/// Long enough for every system to be in its stride.
const WARM_UP: Duration = Duration::from_millis(1500);

/// Bytes of a row's values: an `Int64` and 100 letters.
const PAYLOAD: f64 = 108.0;

const SETTINGS: [Setting; 10] = [
    Setting::defaults(System::Fencepost),
    Setting { system: System::Fencepost, tuning: Tuning::InFlight(16) },
    Setting::defaults(System::FencepostLog),
    Setting { system: System::FencepostLog, tuning: Tuning::InFlight(16) },
    Setting::defaults(System::Lance),
    Setting::gather(System::Lance, 5),
    Setting::defaults(System::LanceLog),
    Setting::gather(System::LanceLog, 5),
    Setting::defaults(System::Slate),
    Setting::gather(System::Slate, 5),
];

/// So many clients, in a closed loop.
pub(super) async fn run(plan: &Plan, name: &'static str, clients: &[usize]) -> Result<Table> {
    let target = plan.target_or(StoreKind::S3);
    let floor = bare_put(&target.place()?).await?;
    let title = format!("durable appends of one row, closed loop, store `{}`", target.name());
    let mut table = Table::new(name, title, &["clients", "system", "setting"]);
    table.main = Some("p50 ms");
    table.note(format!("a bare conditional PUT takes {floor:.1} ms (median); ratios are to that"));
    for clients in clients {
        // What one client gains from more PUTs in flight is nothing.
        let is_wanted = |setting: &Setting| *clients > 1 || !matches!(setting.tuning, Tuning::InFlight(_));
        let settings: Vec<Setting> = plan.settings(SETTINGS).into_iter().filter(is_wanted).collect();
        for _ in 0..plan.rounds {
            for setting in &settings {
                let measured = measure(plan, *setting, *clients).await?;
                let labels = [&clients.to_string(), setting.system_name(), &setting.tuning_name()];
                table.add(&labels, figures(&measured, *clients, floor));
            }
        }
        let limits: &[(&str, f64)] = match clients {
            1 => &[("p50 / PUT", 1.05)],
            _ => &[("p50 / PUT", 1.1), ("p99 / PUT", 1.3)],
        };
        for setting in settings.iter().filter(|setting| setting.system == System::Fencepost) {
            let (count, tuning) = (clients.to_string(), setting.tuning_name());
            for (figure, limit) in limits {
                let what = format!("{figure}, {clients} clients, {}, {tuning}", setting.system_name());
                table.at_most(what, table.median(&[&count, setting.system_name(), &tuning], figure), *limit);
            }
        }
    }
    Ok(table)
}

async fn measure(plan: &Plan, setting: Setting, clients: usize) -> Result<Loop> {
    let place = plan.target_or(StoreKind::S3).place()?;
    let writer = Arc::new(setting.open(&place.store(), Shape::Text).await?);
    let measured = closed_loop(&place, &writer, &pool(Shape::Text)?, clients, WARM_UP, plan.time).await?;
    close(writer).await?;
    Ok(measured)
}

fn figures(measured: &Loop, clients: usize, floor: f64) -> Figures {
    let rows = measured.rows as f64;
    let (seconds, requests) = (measured.time.as_secs_f64(), measured.requests);
    vec![
        ("p50 ms", at(&measured.latencies, 0.5)),
        ("p99 ms", at(&measured.latencies, 0.99)),
        ("p99.9 ms", at(&measured.latencies, 0.999)),
        ("p50 / PUT", at(&measured.latencies, 0.5) / floor),
        ("p99 / PUT", at(&measured.latencies, 0.99) / floor),
        ("rows/s", rows / seconds),
        ("of clients / PUT", rows / seconds / (clients as f64 * 1e3 / floor)),
        ("PUT/s", requests.put as f64 / seconds),
        ("GET+HEAD/s", (requests.get + requests.head) as f64 / seconds),
        ("LIST/s", requests.list as f64 / seconds),
        ("bytes/row", requests.bytes_put as f64 / rows.max(1.0)),
    ]
}

/// Bytes on the store per row.
pub(super) async fn wal_bytes(plan: &Plan) -> Result<Table> {
    let target = plan.target_or(StoreKind::S3);
    let title = format!("bytes sent to the store per row of {PAYLOAD} bytes, 256 clients, store `{}`", target.name());
    let mut table = Table::new("wal-bytes", title, &["system", "setting"]);
    table.main = Some("bytes/row");
    for _ in 0..plan.rounds {
        for setting in plan.settings(SETTINGS) {
            let measured = measure(plan, setting, 256).await?;
            let bytes = measured.requests.bytes_put as f64 / (measured.rows as f64).max(1.0);
            table.add(
                &[setting.system_name(), &setting.tuning_name()],
                vec![
                    ("bytes/row", bytes),
                    ("bytes / payload", bytes / PAYLOAD),
                    ("rows/PUT", measured.rows as f64 / (measured.requests.put as f64).max(1.0)),
                ],
            );
        }
    }
    for setting in SETTINGS.first().into_iter().chain(SETTINGS.get(2)) {
        let labels = [setting.system_name(), &setting.tuning_name()];
        table.at_most(format!("bytes/row, {}, defaults", labels[0]), table.median(&labels, "bytes/row"), 140.0);
    }
    Ok(table)
}

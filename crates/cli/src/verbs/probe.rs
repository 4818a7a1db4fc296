//! `fencepost probe`: whether a store may hold a log.

use serde_json::json;

use crate::args::ProbeArgs;
use crate::error::Result;
use crate::{output, table};

/// Probes and says what was found.
pub(crate) async fn run(args: ProbeArgs) -> Result<()> {
    let store = table::open_store(&args.url, &args.storage)?;
    let report = fencepost::wal::probe(&store).await?;
    let url = store.url().to_string();
    let p50_ms = report.put_p50.as_secs_f64() * 1e3;
    let max_ms = report.put_max.as_secs_f64() * 1e3;
    let text = format!(
        "{url} can hold a log: an existing object was never replaced, and each of {} races of {} creates had one \
         winner\nconditional PUT of 4 KiB: median {p50_ms:.1} ms, slowest {max_ms:.1} ms",
        report.rounds, report.racers,
    );
    let value = json!({
        "url": url,
        "fit": true,
        "rounds": report.rounds,
        "racers": report.racers,
        "put_p50_ms": p50_ms,
        "put_max_ms": max_ms,
    });
    output::result(args.output.output, &text, &value)
}

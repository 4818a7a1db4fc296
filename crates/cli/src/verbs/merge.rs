//! `fencepost merge`: moves SSTables into the base table. It takes nothing over: writers go on beside it.

use std::time::Instant;

use fencepost::MergeOptions;
use serde_json::json;

use crate::args::MergeArgs;
use crate::error::Result;
use crate::output::plural;
use crate::progress::Progress;
use crate::{output, table};

/// Merges and says what is in the base table now.
pub(crate) async fn run(args: MergeArgs) -> Result<()> {
    let table = table::open(&args.table).await?;
    let started = Instant::now();
    let options = MergeOptions { optimize_indexes: args.optimize, ..MergeOptions::default() };
    let progress = Progress::sstables();
    let report = table.merge(&options, |p| progress.at(p.sstables, p.of_sstables)).await?;
    drop(progress);
    let seconds = started.elapsed().as_secs_f64();

    let base = table.inspect().await?.base;
    let mut text = format!(
        "merged {} in {seconds:.2} s: {} written, {} deleted; the base table has {} in version {}",
        plural(report.sstables, "SSTable"),
        plural(report.rows, "row"),
        report.deleted,
        plural(base.rows, "row"),
        base.version,
    );
    if report.merged_by_others > 0 {
        text += &format!("; {} merged by another process meanwhile", plural(report.merged_by_others, "SSTable"));
    }
    if args.optimize {
        let names = if report.optimized.is_empty() { "none".into() } else { report.optimized.join(", ") };
        text += &format!("; indexes that cover all of it: {names}");
    }
    let value = json!({
        "sstables": report.sstables,
        "merged_by_others": report.merged_by_others,
        "rows": report.rows,
        "deleted": report.deleted,
        "optimized": report.optimized,
        "base": { "version": base.version, "rows": base.rows },
        "seconds": seconds,
    });
    output::result(args.output.output, &text, &value)
}

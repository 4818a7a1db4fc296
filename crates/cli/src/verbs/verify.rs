//! `fencepost verify`: reads every object of every shard and says what is wrong. Reads only; fences nobody.

use fencepost::Verification;
use fencepost::wal::{Finding, Severity};
use serde_json::{Value, json};

use crate::args::{Output, VerifyArgs};
use crate::error::{CliError, Result};
use crate::output::plural;
use crate::progress::Progress;
use crate::{output, table};

/// Prints the report; damage is a failure.
pub(crate) async fn run(args: VerifyArgs) -> Result<()> {
    let table = table::open(&args.table).await?;
    let progress = Progress::objects("read");
    let report = table.verify(|p| progress.at(p.objects, p.of_objects)).await?;
    drop(progress);
    match args.output.output {
        Output::Json => output::json(&to_json(&report))?,
        Output::Table => output::line(&to_text(&report))?,
    }
    let damaged = of(&report, Severity::Damage).count() as u64;
    match report.findings.iter().find(|finding| finding.severity() == Severity::Damage) {
        None => Ok(()),
        Some(first) => {
            let message =
                format!("{} of damage, the first: {}: {}", plural(damaged, "finding"), first.object, first.detail);
            Err(CliError::failure(message).help(first.kind.what_to_do))
        }
    }
}

fn of(report: &Verification, severity: Severity) -> impl Iterator<Item = &Finding> {
    report.findings.iter().filter(move |finding| finding.severity() == severity)
}

fn to_json(report: &Verification) -> Value {
    let findings = report.findings.iter().map(|finding| {
        json!({
            "severity": finding.severity().to_string(),
            "kind": finding.kind.name,
            "object": finding.object,
            "detail": finding.detail,
            "what_to_do": finding.kind.what_to_do,
        })
    });
    let shards = report.shards.iter().map(|shard| {
        let counts = &shard.counts;
        json!({
            "shard_id": shard.shard_id.to_string(),
            "value": output::shard_value(&shard.value),
            "writer_epoch": counts.writer_epoch.get(),
            "manifests": counts.manifests,
            "manifest_version": counts.manifest_version.get(),
            "replay_after": counts.replay_after.get(),
            "tail": counts.tail.get(),
            "entries": counts.entries,
            "sentinels": counts.sentinels,
            "dead": counts.dead,
            "rows_in_log": counts.rows,
            "sstables": counts.sstables,
            "bytes": counts.bytes,
        })
    });
    json!({
        "damaged": report.is_damaged(),
        "findings": findings.collect::<Vec<_>>(),
        "shards": shards.collect::<Vec<_>>(),
        "sstable_rows": report.sstable_rows,
        "base": { "version": report.base_version, "rows": report.base_rows },
    })
}

fn to_text(report: &Verification) -> String {
    let mut lines = Vec::new();
    for finding in &report.findings {
        lines.push(finding.to_string());
        if finding.severity() > Severity::Info {
            lines.push(format!("  do: {}", finding.kind.what_to_do));
        }
    }
    for shard in &report.shards {
        let counts = &shard.counts;
        lines.push(format!(
            "shard {} ({}): {}, {}, log {}..{} with {}, {}",
            shard.shard_id,
            shard.value,
            plural(counts.manifests, "manifest"),
            match counts.entries {
                1 => "1 log entry".to_string(),
                n => format!("{} log entries", output::count(n)),
            },
            counts.replay_after,
            counts.tail,
            plural(counts.rows, "row"),
            plural(counts.sstables, "SSTable"),
        ));
    }
    lines.push(format!(
        "SSTables hold {}; base table: version {}, {}",
        plural(report.sstable_rows, "row"),
        report.base_version,
        plural(report.base_rows, "row"),
    ));
    let number = |severity| of(report, severity).count() as u64;
    lines.push(match number(Severity::Damage) {
        0 => format!(
            "nothing is damaged ({}, {})",
            plural(number(Severity::Warning), "warning"),
            plural(number(Severity::Info), "remark")
        ),
        damaged => format!("DAMAGED: {}", plural(damaged, "finding")),
    });
    lines.join("\n")
}

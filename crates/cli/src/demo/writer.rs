//! The writer process of the demo and of the crash tests: writes generated rows with several durable appends in
//! flight, and says on stdout what it gives to the table (`put FIRST END`) and what the table said is durable
//! (`ack FIRST END`), so that whoever kills it knows what must be there.

use std::collections::VecDeque;

use super::rows;
use crate::args::WriterArgs;
use crate::error::{CliError, Result};
use crate::verbs::put::{Acknowledged, Puts};
use crate::{output, table};

/// One line of a writer. Rows are numbered; `end` is one beyond the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said {
    /// Rows are given to the table.
    Put {
        /// One beyond the last.
        end: u64,
    },
    /// Rows are durable.
    Ack {
        /// One beyond the last.
        end: u64,
    },
}

impl Said {
    /// Reads a line; none if it is not a whole one.
    pub(crate) fn parse(line: &str) -> Option<Said> {
        let mut words = line.split(' ');
        let verb = words.next()?;
        let _first: u64 = words.next()?.parse().ok()?;
        let end: u64 = words.next()?.parse().ok()?;
        // The last word closes the line: a number without it may have lost digits when the process was killed.
        match (verb, words.next()?, words.next()) {
            ("put", ".", None) => Some(Said::Put { end }),
            ("ack", ".", None) => Some(Said::Ack { end }),
            _ => None,
        }
    }

    fn line(verb: &str, first: u64, end: u64) -> String {
        format!("{verb} {first} {end} .")
    }
}

/// Writes until all rows are acknowledged, or until somebody ends it.
pub(crate) async fn run(args: WriterArgs) -> Result<()> {
    let table = match table::open_if_there(&args.table).await? {
        Some(table) => table,
        None if args.create => {
            let layout = crate::args::LayoutArgs {
                primary_key: rows::KEY.map(str::to_string).to_vec(),
                shard_by: Some("bucket(vehicle,2)".to_string()),
            };
            let (schema, options) = table::plan(rows::schema().as_ref().clone(), &layout)?;
            table::create(&args.table, schema, options).await?
        }
        None => table::open(&args.table).await?,
    };
    let writer = table.writer(table::writer_config(&table, args.memtable_rows).await?).await?;
    let mut puts = Puts::new(&writer, usize::from(args.in_flight));
    let mut waiting: VecDeque<(u64, u64)> = VecDeque::new();
    let last = args.first.saturating_add(args.rows);
    let mut next = args.first;
    while next < last || !puts.is_empty() {
        if next < last && puts.has_room() {
            let end = next.saturating_add(u64::from(args.batch_rows)).min(last);
            let batch = rows::batch(args.seed, next, end - next)
                .map_err(|e| CliError::failure(format!("cannot generate rows: {e}")))?;
            // Said before it is done: rows that nobody announced must never be found.
            output::line(&Said::line("put", next, end))?;
            puts.issue(batch).await;
            waiting.push_back((next, end));
            next = end;
            continue;
        }
        if let Some(answer) = puts.next().await {
            let Acknowledged { .. } = answer?;
            if let Some((first, end)) = waiting.pop_front() {
                output::line(&Said::line("ack", first, end))?;
            }
        }
    }
    drop(puts);
    Ok(writer.close().await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_lines_are_heard_and_cut_ones_are_not() {
        let line = Said::line("ack", 200, 400);
        assert_eq!(Said::parse(&line), Some(Said::Ack { end: 400 }));
        for cut in 0..line.len() {
            assert_eq!(line.get(..cut).and_then(Said::parse), None, "{cut}");
        }
        assert_eq!(Said::parse("something else"), None);
    }
}

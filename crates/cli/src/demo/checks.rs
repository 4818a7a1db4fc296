//! What the demo proves, by reading everything back: each row is recomputed from its number and compared.

use std::collections::BTreeMap;
use std::ops::Range;

use datafusion::prelude::SessionContext;
use fencepost::Table;
use futures::StreamExt;

use super::rows;
use crate::error::{CliError, Result};

/// Fails the demo with a sentence unless `holds`.
pub(crate) fn ensure(holds: bool, sentence: impl FnOnce() -> String) -> Result<()> {
    if holds {
        Ok(())
    } else {
        Err(CliError::failure(format!("a proof of the demo failed: {}", sentence()))
            .help("this is a defect: please report it, with the output of `fencepost demo --keep`"))
    }
}

/// `select count(*)`, by a reader that fences nobody.
pub(crate) async fn count(table: &Table) -> Result<u64> {
    let context = session(table).await?;
    let batches = context.sql("select count(*) as n from t").await?.collect().await?;
    let count = batches.first().and_then(|b| {
        let column = arrow_cast::cast(b.column_by_name("n")?, &arrow_schema::DataType::UInt64).ok()?;
        let column = arrow_array::cast::as_primitive_array::<arrow_array::types::UInt64Type>(&column).clone();
        column.iter().next().flatten()
    });
    count.ok_or_else(|| CliError::failure("count(*) gave no number"))
}

/// Rows of a Lance dataset, counted by Lance itself.
pub(crate) async fn count_with_lance(uri: &str) -> Result<u64> {
    let failed = |e: lance::Error| CliError::failure(format!("Lance cannot open {uri}: {e}"));
    let dataset = lance::dataset::Dataset::open(uri).await.map_err(failed)?;
    Ok(dataset.count_rows(None).await.map_err(failed)? as u64)
}

/// Reads every row that a query sees and compares it with the one that was generated.
pub(crate) async fn visible(table: &Table, seed: u64) -> Result<Found> {
    let context = session(table).await?;
    let mut batches = context.sql("select * from t").await?.execute_stream().await?;
    let mut times = BTreeMap::new();
    while let Some(batch) = batches.next().await {
        let numbers = rows::verify(seed, &batch?);
        for number in numbers.or_else(|reason| ensure(false, || reason).map(|()| Vec::new()))? {
            *times.entry(number).or_insert(0) += 1;
        }
    }
    Ok(Found { times })
}

async fn session(table: &Table) -> Result<SessionContext> {
    let context = SessionContext::new();
    context.register_table("t", table.provider().await?)?;
    Ok(context)
}

/// How often each row number was found.
#[derive(Debug)]
pub(crate) struct Found {
    times: BTreeMap<u64, u64>,
}

impl Found {
    /// All rows, each as often as it was found.
    pub(crate) fn total(&self) -> u64 {
        self.times.values().sum()
    }

    /// Proves I1 and I2 of what the writers said: every acknowledged row once, no row twice, and no other row than
    /// those that were sent.
    pub(crate) fn prove(&self, said: &SaidRows) -> Result<()> {
        for row in said.acknowledged.iter().cloned().flatten() {
            let times = self.times.get(&row).copied().unwrap_or(0);
            ensure(times == 1, || format!("row {row} was acknowledged and is there {times} times"))?;
        }
        for (&row, &times) in &self.times {
            ensure(times == 1, || format!("row {row} is there {times} times"))?;
            let sent = said.sent.iter().any(|range| range.contains(&row));
            ensure(sent, || format!("row {row} is there, but no writer sent it"))?;
        }
        Ok(())
    }
}

/// What writers said about numbered rows.
#[derive(Debug, Clone, Default)]
pub(crate) struct SaidRows {
    /// Rows that the table said are durable.
    pub(crate) acknowledged: Vec<Range<u64>>,
    /// Rows that were given to the table at all.
    pub(crate) sent: Vec<Range<u64>>,
}

impl SaidRows {
    /// Adds what one writer said, whose rows began at `first`.
    pub(crate) fn add(&mut self, first: u64, acknowledged: u64, sent: u64) {
        self.acknowledged.push(first..acknowledged);
        self.sent.push(first..sent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(rows: &[u64]) -> Found {
        let mut times = BTreeMap::new();
        for &row in rows {
            *times.entry(row).or_insert(0) += 1;
        }
        Found { times }
    }

    #[test]
    fn the_proof_finds_lost_doubled_and_invented_rows() {
        let mut said = SaidRows::default();
        said.add(0, 2, 4);
        said.add(10, 11, 12);
        assert!(found(&[0, 1, 2, 10]).prove(&said).is_ok());
        assert!(found(&[0, 2, 10]).prove(&said).is_err());
        assert!(found(&[0, 1]).prove(&said).is_err());
        assert!(found(&[0, 1, 3, 3, 10]).prove(&said).is_err());
        assert!(found(&[0, 1, 4, 10]).prove(&said).is_err());
    }
}

//! The demo's rows: pings of a taxi fleet, each a function of a seed and its number, so that whoever reads a row can
//! tell whether it is the one that was written.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{
    Array, ArrayRef, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef, TimeUnit};

/// The primary key: the vehicle chooses the shard, the ping's number makes it unique.
pub(crate) const KEY: [&str; 2] = ["vehicle", "ping"];

const VEHICLES: u64 = 500;
const STATES: [&str; 4] = ["free", "occupied", "to pickup", "off duty"];
/// 2013-01-01T00:00:00Z, in microseconds.
const EPOCH_US: i64 = 1_356_998_400_000_000;

/// The columns.
pub(crate) fn schema() -> SchemaRef {
    let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    Arc::new(Schema::new(vec![
        Field::new("vehicle", DataType::Int32, false),
        Field::new("ping", DataType::Int64, false),
        Field::new("at", utc, true),
        Field::new("latitude", DataType::Float64, true),
        Field::new("longitude", DataType::Float64, true),
        Field::new("speed_kmh", DataType::Int32, true),
        Field::new("state", DataType::Utf8, true),
    ]))
}

/// Rows `first` to `first + rows`.
pub(crate) fn batch(seed: u64, first: u64, rows: u64) -> Result<RecordBatch, ArrowError> {
    of_numbers(seed, first..first.saturating_add(rows))
}

/// The numbers of a batch's rows.
///
/// # Errors
/// A sentence if a row is not the one that was generated.
pub(crate) fn verify(seed: u64, batch: &RecordBatch) -> Result<Vec<u64>, String> {
    let pings = batch.column_by_name("ping").ok_or("column `ping` is missing")?;
    let pings = arrow_cast::cast(pings, &DataType::UInt64).map_err(|e| e.to_string())?;
    let numbers: Vec<u64> = pings.as_primitive::<UInt64Type>().iter().flatten().collect();
    if numbers.len() != batch.num_rows() {
        return Err("a row has no ping number".to_string());
    }
    let expected = of_numbers(seed, numbers.iter().copied()).map_err(|e| e.to_string())?;
    for (field, written) in expected.schema().fields().iter().zip(expected.columns()) {
        let found =
            batch.column_by_name(field.name()).ok_or_else(|| format!("column `{}` is missing", field.name()))?;
        if found.to_data() != written.to_data() {
            let row = (0..found.len()).find(|&row| found.slice(row, 1).to_data() != written.slice(row, 1).to_data());
            let number = row.and_then(|row| numbers.get(row)).copied().unwrap_or_default();
            return Err(format!("row {number}: column `{}` is not what was written", field.name()));
        }
    }
    Ok(numbers)
}

fn of_numbers(seed: u64, numbers: impl Iterator<Item = u64> + Clone) -> Result<RecordBatch, ArrowError> {
    let hashes = || numbers.clone().map(move |n| (n, hash(seed, n)));
    let ping = Int64Array::from_iter_values(numbers.clone().map(|n| n as i64));
    let vehicle = Int32Array::from_iter_values(hashes().map(|(_, h)| (h % VEHICLES) as i32));
    // One ping every five milliseconds, over the whole fleet.
    let at = TimestampMicrosecondArray::from_iter_values(
        hashes().map(|(n, h)| EPOCH_US + (n as i64).wrapping_mul(5_000) + ((h >> 10) % 5_000) as i64),
    );
    let latitude = Float64Array::from_iter_values(hashes().map(|(_, h)| 40.6 + ((h >> 20) % 25_000) as f64 / 1e5));
    let longitude = Float64Array::from_iter_values(hashes().map(|(_, h)| -74.1 + ((h >> 32) % 30_000) as f64 / 1e5));
    // Some pings come without a speed, as from real receivers.
    let speed: Int32Array =
        hashes().map(|(_, h)| (!(h >> 44).is_multiple_of(17)).then_some(((h >> 44) % 90) as i32)).collect();
    let state: StringArray =
        hashes().map(|(_, h)| STATES.get(((h >> 54) % STATES.len() as u64) as usize).copied()).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(vehicle),
        Arc::new(ping),
        Arc::new(at.with_timezone("UTC")),
        Arc::new(latitude),
        Arc::new(longitude),
        Arc::new(speed),
        Arc::new(state),
    ];
    RecordBatch::try_new(schema(), columns)
}

/// SplitMix64's finalizer over seed and number: spread well, and the same everywhere.
fn hash(seed: u64, n: u64) -> u64 {
    let mut z = seed.wrapping_add(n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rows_are_the_same_however_they_are_cut() {
        let whole = batch(7, 0, 100).unwrap();
        assert_eq!(batch(7, 40, 20).unwrap(), whole.slice(40, 20));
        assert_ne!(batch(8, 0, 100).unwrap(), whole);
    }

    #[test]
    fn a_changed_row_is_found() {
        let good = batch(7, 10, 5).unwrap();
        assert_eq!(verify(7, &good).unwrap(), [10, 11, 12, 13, 14]);
        let mut columns = good.columns().to_vec();
        columns.pop();
        columns.push(Arc::new(StringArray::from(vec!["x"; 5])));
        let bad = RecordBatch::try_new(good.schema(), columns).unwrap();
        assert!(verify(7, &bad).unwrap_err().contains("row 10: column `state`"));
        assert!(verify(8, &good).is_err());
    }
}

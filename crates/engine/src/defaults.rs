//! Settings of writers as a table keeps them: strings by name, in the `writer_config_defaults` of its MemWAL index. The
//! names are Lance's where it has the setting, and begin with `fencepost.` where it has not. Here names and values become
//! a [`WriterConfig`] and back; storing them is `base`'s.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use fencepost_wal::MAX_ENTRY_BYTES;

use crate::config::{MemTableConfig, WriterConfig};
use crate::error::{Error, Result};

/// The least that [`WalConfig::max_buffer_bytes`](fencepost_wal::WalConfig::max_buffer_bytes) may be.
const MIN_BUFFER_BYTES: usize = 4 << 10;

/// One setting.
struct Setting {
    key: &'static str,
    /// What its values look like, for errors.
    looks: &'static str,
    /// `None`: the text is no such value.
    read: fn(&str, &mut WriterConfig) -> Option<()>,
    /// `None`: the config has no value for it.
    write: fn(&WriterConfig) -> Option<String>,
}

const FLAG: &str = "true or false";
const NUMBER: &str = "a whole number";
const MILLIS: &str = "a whole number of milliseconds";

/// In this order: whether there is a MemTable comes before its limits. What Lance allows and we do not is taken to the
/// nearest value that we do.
static SETTINGS: [Setting; 13] = [
    Setting {
        key: "enable_memtable",
        looks: FLAG,
        read: |text, config| {
            config.memtable = parse::<bool>(text)?.then(MemTableConfig::default);
            Some(())
        },
        write: |config| text(config.memtable.is_some()),
    },
    Setting {
        key: "durable_write",
        looks: FLAG,
        read: |text, config| set(&mut config.durable, parse(text)),
        write: |config| text(config.durable),
    },
    Setting {
        key: "max_wal_buffer_size",
        looks: NUMBER,
        read: |text, config| {
            let bytes = parse(text).map(|bytes: usize| bytes.clamp(MIN_BUFFER_BYTES, MAX_ENTRY_BYTES));
            set(&mut config.wal.max_buffer_bytes, bytes)
        },
        write: |config| text(config.wal.max_buffer_bytes),
    },
    Setting {
        key: "max_wal_flush_interval_ms",
        looks: MILLIS,
        read: |text, config| set(&mut config.wal.flush_interval, millis(text)),
        write: |config| text(config.wal.flush_interval.as_millis()),
    },
    Setting {
        key: "max_unflushed_memtable_bytes",
        looks: NUMBER,
        read: |text, config| {
            let bytes = parse(text).map(|bytes: u64| bytes.clamp(1, u64::from(u32::MAX)));
            set(&mut config.wal.max_unflushed_bytes, bytes.and_then(|bytes| usize::try_from(bytes).ok()))
        },
        write: |config| text(config.wal.max_unflushed_bytes),
    },
    Setting {
        key: "backpressure_log_interval_ms",
        looks: MILLIS,
        read: |text, config| set(&mut config.wal.backpressure_log_interval, millis(text)),
        write: |config| text(config.wal.backpressure_log_interval.as_millis()),
    },
    Setting {
        key: "max_memtable_size",
        looks: NUMBER,
        read: |text, config| limit(text, config, |memtable| &mut memtable.max_bytes),
        write: |config| text(config.memtable.as_ref()?.max_bytes),
    },
    Setting {
        key: "max_memtable_rows",
        looks: NUMBER,
        read: |text, config| limit(text, config, |memtable| &mut memtable.max_rows),
        write: |config| text(config.memtable.as_ref()?.max_rows),
    },
    Setting {
        key: "max_memtable_batches",
        looks: NUMBER,
        read: |text, config| limit(text, config, |memtable| &mut memtable.max_batches),
        write: |config| text(config.memtable.as_ref()?.max_batches),
    },
    Setting {
        key: "fencepost.max_in_flight",
        looks: NUMBER,
        read: |text, config| set(&mut config.wal.max_in_flight, parse(text)),
        write: |config| text(config.wal.max_in_flight),
    },
    Setting {
        key: "fencepost.linger_us",
        looks: "a whole number of microseconds",
        read: |text, config| set(&mut config.wal.linger, parse(text).map(Duration::from_micros)),
        write: |config| text(config.wal.linger.as_micros()),
    },
    Setting {
        key: "fencepost.max_puts_per_second",
        looks: "a number",
        read: |text, config| set(&mut config.wal.max_puts_per_second, parse(text).map(Some)),
        write: |config| text(config.wal.max_puts_per_second?),
    },
    Setting {
        key: "fencepost.max_shards",
        looks: NUMBER,
        read: |text, config| set(&mut config.max_shards, parse(text)),
        write: |config| text(config.max_shards),
    },
];

/// The defaults with a table's own ones applied. Names that are not known are somebody else's.
///
/// # Errors
/// [`Error::InvalidOptions`], naming the setting, its value and the table at `place`.
pub(crate) fn read(stored: &HashMap<String, String>, place: &str) -> Result<WriterConfig> {
    let mut config = WriterConfig::default();
    for Setting { key, looks, read, .. } in &SETTINGS {
        if let Some(text) = stored.get(*key)
            && read(text, &mut config).is_none()
        {
            return Err(Error::InvalidOptions(format!(
                "the table at {place} keeps `{key}` = `{text}` for its writers, which is not {looks}; store it anew with \
                 `Table::set_writer_defaults`, or open the writer with a config that does not come from the table"
            )));
        }
    }
    Ok(config)
}

/// What has to be stored so that [`read`] brings these settings back: those that differ from the defaults.
pub(crate) fn write(config: &WriterConfig) -> BTreeMap<&'static str, String> {
    let usual = WriterConfig::default();
    let differs = |Setting { key, write, .. }: &Setting| {
        let value = write(config)?;
        (write(&usual).as_ref() != Some(&value)).then_some((*key, value))
    };
    SETTINGS.iter().filter_map(differs).collect()
}

/// Whether a name is that of a setting here.
pub(crate) fn is_known(key: &str) -> bool {
    SETTINGS.iter().any(|setting| setting.key == key)
}

fn set<T>(field: &mut T, value: Option<T>) -> Option<()> {
    *field = value?;
    Some(())
}

/// Sets a limit of the MemTable, if there is one.
fn limit(text: &str, config: &mut WriterConfig, field: fn(&mut MemTableConfig) -> &mut usize) -> Option<()> {
    let limit = parse::<usize>(text)?.max(1);
    if let Some(memtable) = &mut config.memtable {
        *field(memtable) = limit;
    }
    Some(())
}

fn parse<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

/// At least one.
fn millis(text: &str) -> Option<Duration> {
    parse::<u64>(text).map(|millis| Duration::from_millis(millis.max(1)))
}

fn text(value: impl Display) -> Option<String> {
    Some(value.to_string())
}

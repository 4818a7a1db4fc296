//! The language of `--columns`: "id:int64,name:string,v:float32[4]" ⇄ Arrow schema. It owns names of types and the
//! messages about them; whether Lance can store a type is the engine's business.

use std::sync::Arc;

use arrow_schema::{DataType, Field, Schema, TimeUnit};

use crate::error::{CliError, Result};

/// Explains the language; the long help of `create --columns`.
pub(crate) const HELP: &str = "\
The columns as NAME:TYPE, separated by commas, for example \"id:int64,name:string,v:float32[4]\".

Types: bool, int8, int16, int32, int64, uint8, uint16, uint32, uint64, float16, float32, float64, string,
large_string, binary, date32, timestamp[s|ms|us|ns], timestamp[us,UTC] (any time zone), decimal(PRECISION,SCALE),
lists such as int64[], and lists of a fixed length (vectors) such as float32[768].

Every column may hold nulls, except those of the primary key and those marked so with `!`: \"id:int64!\".";

const NAMES: &str = "bool, int8..int64, uint8..uint64, float16, float32, float64, string, large_string, binary, date32, \
                     timestamp[us], timestamp[us,UTC], decimal(10,2), int64[], float32[4]";

/// Lists of lists deeper than this are refused.
const MAX_NESTING: usize = 8;

/// Reads a column list.
pub(crate) fn parse(text: &str) -> Result<Schema> {
    let mut fields: Vec<Field> = Vec::new();
    for column in split_outside_brackets(text) {
        let column = column.trim();
        let Some((name, data_type)) = column.split_once(':') else {
            return Err(bad(format!("column {column:?} has no type: expected NAME:TYPE")));
        };
        let name = name.trim();
        if name.is_empty() {
            return Err(bad(format!("column {column:?} has no name")));
        }
        if fields.iter().any(|f| f.name() == name) {
            return Err(bad(format!("column `{name}` is named twice")));
        }
        let data_type = data_type.trim();
        let (data_type, nullable) = match data_type.strip_suffix('!') {
            Some(rest) => (rest, false),
            None => (data_type, true),
        };
        let data_type = parse_type(data_type, 0).map_err(|reason| bad(format!("column `{name}`: {reason}")))?;
        fields.push(Field::new(name, data_type, nullable));
    }
    Ok(Schema::new(fields))
}

/// Names a type the way `parse` reads it, if it has a name there.
pub(crate) fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Boolean => "bool".into(),
        DataType::Int8 => "int8".into(),
        DataType::Int16 => "int16".into(),
        DataType::Int32 => "int32".into(),
        DataType::Int64 => "int64".into(),
        DataType::UInt8 => "uint8".into(),
        DataType::UInt16 => "uint16".into(),
        DataType::UInt32 => "uint32".into(),
        DataType::UInt64 => "uint64".into(),
        DataType::Float16 => "float16".into(),
        DataType::Float32 => "float32".into(),
        DataType::Float64 => "float64".into(),
        DataType::Utf8 => "string".into(),
        DataType::LargeUtf8 => "large_string".into(),
        DataType::Binary => "binary".into(),
        DataType::Date32 => "date32".into(),
        DataType::Timestamp(unit, None) => format!("timestamp[{}]", unit_name(unit)),
        DataType::Timestamp(unit, Some(tz)) => format!("timestamp[{},{tz}]", unit_name(unit)),
        DataType::Decimal128(precision, scale) => format!("decimal({precision},{scale})"),
        DataType::List(item) => format!("{}[]", type_name(item.data_type())),
        DataType::FixedSizeList(item, length) => {
            format!("{}[{length}]", type_name(item.data_type()))
        }
        other => other.to_string(),
    }
}

fn parse_type(text: &str, depth: usize) -> Result<DataType, String> {
    if depth > MAX_NESTING {
        return Err(format!("lists nest more than {MAX_NESTING} deep"));
    }
    let text = text.trim();
    if let Some(rest) = text.strip_suffix(']') {
        let Some((item, inside)) = rest.rsplit_once('[') else {
            return Err(format!("type {text:?} closes a bracket that it did not open"));
        };
        let (item, inside) = (item.trim(), inside.trim());
        if item == "timestamp" {
            return parse_timestamp(inside);
        }
        let item = Arc::new(Field::new("item", parse_type(item, depth + 1)?, true));
        if inside.is_empty() {
            return Ok(DataType::List(item));
        }
        return match inside.parse::<i32>() {
            Ok(length) if length > 0 => Ok(DataType::FixedSizeList(item, length)),
            _ => Err(format!("the length of a list must be a number from 1 to {}, not {inside:?}", i32::MAX)),
        };
    }
    if let Some(inside) = text.strip_prefix("decimal") {
        return parse_decimal(inside);
    }
    Ok(match text {
        "bool" => DataType::Boolean,
        "int8" => DataType::Int8,
        "int16" => DataType::Int16,
        "int32" => DataType::Int32,
        "int64" => DataType::Int64,
        "uint8" => DataType::UInt8,
        "uint16" => DataType::UInt16,
        "uint32" => DataType::UInt32,
        "uint64" => DataType::UInt64,
        "float16" => DataType::Float16,
        "float32" => DataType::Float32,
        "float64" => DataType::Float64,
        "string" => DataType::Utf8,
        "large_string" => DataType::LargeUtf8,
        "binary" => DataType::Binary,
        "date32" => DataType::Date32,
        "timestamp" => return Err("timestamp needs a unit, for example timestamp[us]".into()),
        "" => return Err(format!("the type is missing; types are {NAMES}")),
        other => return Err(format!("unknown type {other:?}; types are {NAMES}")),
    })
}

fn parse_timestamp(inside: &str) -> Result<DataType, String> {
    let (unit, tz) = match inside.split_once(',') {
        Some((unit, tz)) => (unit.trim(), Some(tz.trim())),
        None => (inside, None),
    };
    let unit = match unit {
        "s" => TimeUnit::Second,
        "ms" => TimeUnit::Millisecond,
        "us" => TimeUnit::Microsecond,
        "ns" => TimeUnit::Nanosecond,
        other => return Err(format!("the unit of a timestamp is s, ms, us or ns, not {other:?}")),
    };
    if tz == Some("") {
        return Err("the time zone of the timestamp is empty: leave the comma out, or write UTC".into());
    }
    Ok(DataType::Timestamp(unit, tz.map(Arc::from)))
}

fn parse_decimal(inside: &str) -> Result<DataType, String> {
    let numbers = inside
        .trim()
        .strip_prefix('(')
        .and_then(|rest| rest.strip_suffix(')'))
        .and_then(|rest| rest.split_once(','))
        .and_then(|(p, s)| Some((p.trim().parse::<u8>().ok()?, s.trim().parse::<i8>().ok()?)));
    match numbers {
        Some((precision @ 1..=38, scale)) if (0..=38).contains(&scale) && scale.unsigned_abs() <= precision => {
            Ok(DataType::Decimal128(precision, scale))
        }
        _ => Err(format!(
            "expected decimal(PRECISION,SCALE) with 1 to 38 digits and no more of them after the point, \
             not \"decimal{inside}\""
        )),
    }
}

/// Splits at commas, but not at those of `timestamp[us,UTC]` and `decimal(10,2)`.
fn split_outside_brackets(text: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    text.split(|c| {
        match c {
            '[' | '(' => depth += 1,
            ']' | ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    })
    .collect()
}

fn unit_name(unit: &TimeUnit) -> &'static str {
    match unit {
        TimeUnit::Second => "s",
        TimeUnit::Millisecond => "ms",
        TimeUnit::Microsecond => "us",
        TimeUnit::Nanosecond => "ns",
    }
}

fn bad(message: String) -> CliError {
    CliError::usage(format!("--columns: {message}"))
        .help("write columns as NAME:TYPE,NAME:TYPE; `fencepost create --help` lists the types")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn message(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    /// Writes a schema the way `parse` reads it.
    fn render(schema: &Schema) -> String {
        let columns: Vec<String> = schema
            .fields()
            .iter()
            .map(|f| {
                let mark = if f.is_nullable() { "" } else { "!" };
                format!("{}:{}{mark}", f.name(), type_name(f.data_type()))
            })
            .collect();
        columns.join(",")
    }

    #[test]
    fn reads_the_example_of_the_manual() {
        let schema = parse("id:int64, name:string, v:float32[4], tags:string[]").unwrap();
        let item = |t| Arc::new(Field::new("item", t, true));
        assert_eq!(
            schema,
            Schema::new(vec![
                Field::new("id", DataType::Int64, true),
                Field::new("name", DataType::Utf8, true),
                Field::new("v", DataType::FixedSizeList(item(DataType::Float32), 4), true),
                Field::new("tags", DataType::List(item(DataType::Utf8)), true),
            ])
        );
    }

    #[test]
    fn commas_in_types_do_not_split_columns() {
        let schema = parse("at:timestamp[us,Europe/Berlin],price:decimal(10,2),z:int8").unwrap();
        assert_eq!(schema.fields().len(), 3);
        assert_eq!(
            schema.field(0).data_type(),
            &DataType::Timestamp(TimeUnit::Microsecond, Some("Europe/Berlin".into()))
        );
        assert_eq!(schema.field(1).data_type(), &DataType::Decimal128(10, 2));
    }

    #[test]
    fn an_exclamation_mark_forbids_nulls() {
        assert!(!parse("id:int64!").unwrap().field(0).is_nullable());
    }

    #[test]
    fn errors_name_the_column_and_the_reason() {
        assert!(message("id").contains("\"id\" has no type"));
        assert!(message("id:int46").contains("unknown type \"int46\""));
        assert!(message("id:int64,id:string").contains("`id` is named twice"));
        assert!(message("a:int64,").contains("has no type"));
        assert!(message(":int64").contains("has no name"));
        assert!(message("a:").contains("type is missing"));
        assert!(message("a:timestamp").contains("needs a unit"));
        assert!(message("a:timestamp[m]").contains("s, ms, us or ns"));
        assert!(message("a:timestamp[s,]").contains("time zone of the timestamp is empty"));
        assert!(message("a:decimal(40,2)").contains("decimal(PRECISION,SCALE)"));
        assert!(message("a:decimal(4,5)").contains("decimal(PRECISION,SCALE)"));
        assert!(message("a:float32[0]").contains("length of a list"));
        assert!(message("a:float32]").contains("did not open"));
        assert!(message(&format!("a:int8{}", "[]".repeat(20))).contains("nest more than"));
    }

    fn any_type() -> impl Strategy<Value = DataType> {
        let unit = prop::sample::select(vec![
            TimeUnit::Second,
            TimeUnit::Millisecond,
            TimeUnit::Microsecond,
            TimeUnit::Nanosecond,
        ]);
        let tz = prop::option::of(prop::sample::select(vec!["UTC", "Europe/Berlin", "+02:00"]));
        let leaf = prop_oneof![
            prop::sample::select(vec![
                DataType::Boolean,
                DataType::Int8,
                DataType::Int64,
                DataType::UInt16,
                DataType::Float16,
                DataType::Float64,
                DataType::Utf8,
                DataType::LargeUtf8,
                DataType::Binary,
                DataType::Date32,
            ]),
            (unit, tz).prop_map(|(unit, tz)| DataType::Timestamp(unit, tz.map(Arc::from))),
            (1_u8..=38).prop_flat_map(|p| (Just(p), 0..=p as i8)).prop_map(|(p, s)| DataType::Decimal128(p, s)),
        ];
        leaf.prop_recursive(3, 6, 1, |inner| {
            let item = inner.prop_map(|t| Arc::new(Field::new("item", t, true)));
            (item, prop::option::of(1_i32..5000)).prop_map(|(item, length)| match length {
                Some(length) => DataType::FixedSizeList(item, length),
                None => DataType::List(item),
            })
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(columns in prop::collection::btree_map("[a-zA-Z_][a-zA-Z0-9_ ]{0,10}[a-z]", (any_type(), any::<bool>()), 1..8)) {
            let fields: Vec<Field> = columns.into_iter().map(|(name, (t, nullable))| Field::new(name, t, nullable)).collect();
            let schema = Schema::new(fields);
            prop_assert_eq!(parse(&render(&schema)).unwrap(), schema);
        }

        #[test]
        fn any_text_is_an_answer_and_no_panic(text in "[a-z0-9:,\\[\\]()! ]{0,40}") {
            let _ = parse(&text);
        }
    }
}

//! Every format gives the same rows, and input that does not fit is named by file, place and column.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::io::{Cursor, Write};
use std::path::PathBuf;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int32Type, Int64Type};
use arrow_array::{Array, Int64Array, StringArray};
use arrow_select::concat::concat_batches;

use super::*;
use crate::columns;

fn table(text: &str) -> SchemaRef {
    Arc::new(columns::parse(text).unwrap())
}

struct File {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

fn file(name: &str, bytes: &[u8]) -> File {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::File::create(&path).unwrap().write_all(bytes).unwrap();
    File { _dir: dir, path }
}

fn read(name: &str, bytes: &[u8], schema: &SchemaRef, batch_rows: usize) -> Result<RecordBatch> {
    let file = file(name, bytes);
    let batches = open(&file.path, None, schema, batch_rows)?.collect::<Result<Vec<_>>>()?;
    for batch in &batches {
        assert!(batch.num_rows() <= batch_rows);
        assert_eq!(&batch.schema(), schema);
    }
    Ok(concat_batches(schema, &batches).unwrap())
}

fn message(name: &str, text: &str, schema: &SchemaRef) -> String {
    read(name, text.as_bytes(), schema, 100).unwrap_err().to_string()
}

fn parquet_bytes(batch: &RecordBatch) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = ::parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    bytes
}

fn stream_bytes(batch: &RecordBatch) -> Vec<u8> {
    let mut writer = arrow_ipc::writer::StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    writer.write(batch).unwrap();
    writer.finish().unwrap();
    writer.into_inner().unwrap()
}

fn file_bytes(batch: &RecordBatch) -> Vec<u8> {
    let mut writer = arrow_ipc::writer::FileWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    writer.write(batch).unwrap();
    writer.finish().unwrap();
    writer.into_inner().unwrap()
}

const EXAMPLE: &str = "id:int64!,name:string,small:int32,v:float32[2],tags:string[],at:timestamp[us,UTC],price:decimal(10,2),raw:binary,on:date32,ok:bool";

const EXAMPLE_CSV: &str = "\
name,id,small,v,tags,at,price,raw,on,ok
a,1,7,\"[1,2.5]\",\"[\"\"x\"\",\"\"y\"\"]\",2013-01-01T10:00:00Z,1.50,00ff,2013-02-03,true
,2,,,,,,,,
\"\",3,-1,\"[0,0]\",[],2013-01-01 10:00:00.25,12,,1969-12-31,false
";

#[test]
fn csv_reads_every_type() {
    let schema = table(EXAMPLE);
    let batch = read("a.csv", EXAMPLE_CSV.as_bytes(), &schema, 2).unwrap();
    assert_eq!(batch["id"].as_primitive::<Int64Type>().values(), &[1, 2, 3]);
    let name = batch["name"].as_string::<i32>();
    assert_eq!((name.value(0), name.is_null(1), name.value(2), name.is_null(2)), ("a", true, "", false));
    let small: Vec<Option<i32>> = batch["small"].as_primitive::<Int32Type>().iter().collect();
    assert_eq!(small, [Some(7), None, Some(-1)]);
    let v = batch["v"].as_fixed_size_list().value(0);
    assert_eq!(v.as_primitive::<Float32Type>().values(), &[1.0, 2.5]);
    assert_eq!(batch["tags"].as_list::<i32>().value(0).len(), 2);
    assert_eq!(batch["raw"].as_binary::<i32>().value(0), [0, 255]);
    for column in ["v", "tags", "at", "price", "raw", "on", "ok"] {
        assert!(batch[column].is_null(1), "{column}");
    }
}

#[test]
fn every_format_gives_the_same_rows() {
    let schema = table(EXAMPLE);
    let batch = read("a.csv", EXAMPLE_CSV.as_bytes(), &schema, 10).unwrap();
    let mut json = arrow_json::LineDelimitedWriter::new(Vec::new());
    json.write(&batch).unwrap();
    json.finish().unwrap();
    assert_eq!(read("a.ndjson", &json.into_inner(), &schema, 2).unwrap(), batch);
    assert_eq!(read("a.parquet", &parquet_bytes(&batch), &schema, 2).unwrap(), batch);
    assert_eq!(read("a.arrow", &file_bytes(&batch), &schema, 2).unwrap(), batch);
    assert_eq!(read("a.arrows", &stream_bytes(&batch), &schema, 2).unwrap(), batch);
}

#[test]
fn arrow_streams_and_files_come_through_pipes() {
    let schema = table("id:int64");
    let batch = read("a.csv", b"id\n1\n2\n3\n", &schema, 10).unwrap();
    for bytes in [stream_bytes(&batch), file_bytes(&batch)] {
        let pipe = Box::new(Cursor::new(bytes));
        let batches = arrow::read_unseekable("<stdin>".into(), pipe, &schema, 2).unwrap();
        let rows: Vec<usize> = batches.map(|b| b.unwrap().num_rows()).collect();
        assert_eq!(rows, [2, 1]);
    }
}

#[test]
fn columns_come_in_any_order_and_absent_ones_are_null() {
    let schema = table("a:int64,b:string,c:float64");
    let batch = read("a.csv", b"c,a\n1.5,2\n", &schema, 10).unwrap();
    assert_eq!(batch["a"].as_primitive::<Int64Type>().value(0), 2);
    assert!(batch["b"].is_null(0));
    let batch = read("a.jsonl", b"{\"c\": 1, \"a\": 2}\n\n{}\n", &schema, 10).unwrap();
    assert_eq!(batch.num_rows(), 2);
    assert!(batch["a"].is_null(1));
}

#[test]
fn wider_types_are_narrowed_only_without_loss() {
    let wide = RecordBatch::try_from_iter([("a", Arc::new(Int64Array::from(vec![1, 2, 70_000])) as Arc<dyn Array>)]);
    let wide = parquet_bytes(&wide.unwrap());
    assert!(read("a.parquet", &wide, &table("a:int32"), 10).is_ok());
    let error = read("a.parquet", &wide, &table("a:int16"), 10).unwrap_err().to_string();
    assert!(error.contains("a.parquet: row 3, column `a`: 70000 does not fit int16"), "{error}");
    let error = read("a.parquet", &wide, &table("a:date32"), 10).unwrap_err().to_string();
    assert!(error.contains("is int64 in the file but date32 in the table"), "{error}");
}

#[test]
fn bad_csv_is_named_by_line_and_column() {
    let schema = table("id:int64!,name:string,v:int8[]");
    assert!(
        message("a.csv", "id,name\n1,a\nx,b\n", &schema).ends_with("line 3, column `id`: \"x\" does not fit int64")
    );
    assert!(message("a.csv", "id,name\n1,a\n,b\n", &schema).contains("line 3, column `id`: null"));
    assert!(message("a.csv", "id,name\n1\n", &schema).contains("line 2: 1 fields, but the header has 2"));
    assert!(message("a.csv", "id,nmae\n1,a\n", &schema).contains("the table has no column `nmae`"));
    assert!(message("a.csv", "id,id\n1,2\n", &schema).contains("`id` is there twice"));
    assert!(message("a.csv", "name\na\n", &schema).contains("column `id` is missing"));
    assert!(message("a.csv", "", &schema).contains("is empty"));
    assert!(message("a.csv", "id,v\n1,\"[1,\"\n", &schema).contains("line 2, column `v`"));
    let said = message("a.csv", "id,v\n1,[1]\n2,\"[1,1.5]\"\n", &schema);
    assert!(said.contains("line 3, column `v`"), "{said}");
    let latin = read("a.csv", b"id,name\n1,\xe9\n", &schema, 10).unwrap_err().to_string();
    assert!(latin.contains("line 2: column `name` is not UTF-8 text"), "{latin}");
}

#[test]
fn bad_ndjson_is_named_by_line() {
    let schema = table("id:int64!,name:string,v:int8[]");
    assert!(
        message("a.ndjson", "{\"id\":1}\n{\"id\":1.5}\n", &schema)
            .contains("line 2, column `id`: \"1.5\" does not fit int64")
    );
    assert!(message("a.ndjson", "{\"id\":1}\n\n{\"x\":1}\n", &schema).contains("line 3: the table has no column `x`"));
    assert!(message("a.ndjson", "{\"id\":1}\n{\"id\":\n", &schema).contains("line 2: not valid JSON"));
    assert!(message("a.ndjson", "[1]\n", &schema).contains("line 1: not a JSON object"));
    assert!(message("a.ndjson", "{\"name\":\"a\"}\n", &schema).contains("line 1, column `id`: null"));
    assert!(message("a.ndjson", "{\"id\":1,\"v\":[300]}\n", &schema).contains("line 1, column `v`"));
    assert!(message("a.ndjson", "{\"id\":1}{\"id\":2}\n", &schema).contains("line 1"));
}

#[test]
fn a_file_of_another_format_is_refused() {
    let schema = table("id:int64");
    assert!(message("a.parquet", "id\n1\n", &schema).contains("cannot read"));
    assert!(message("a.arrow", "id\n1\n", &schema).contains("cannot read"));
    assert!(message("a.txt", "id\n1\n", &schema).contains("cannot be told by its suffix"));
    assert!(open(&PathBuf::from("no such file.csv"), None, &schema, 1).is_err());
    assert!(open(&PathBuf::from("-"), None, &schema, 1).is_err());
    let dir = tempfile::tempdir().unwrap();
    let error = open(dir.path(), Some(Format::Csv), &schema, 1).err().unwrap();
    assert!(error.to_string().contains("is a directory"));
}

#[test]
fn the_columns_of_text_are_inferred() {
    let csv = file("a.csv", b"id,x,name,at,none\n1,1.5,a,2013-01-01T10:00:00,\n2,2,,,\n");
    let schema = schema_of(&csv.path, None).unwrap();
    let types: Vec<String> = schema.fields().iter().map(|f| columns::type_name(f.data_type())).collect();
    assert_eq!(types, ["int64", "float64", "string", "timestamp[s]", "string"]);

    let json = file("a.ndjson", b"{\"name\":\"a\",\"id\":1}\n{\"id\":2,\"v\":[1.5]}\n");
    let schema = schema_of(&json.path, None).unwrap();
    let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
    assert_eq!(names, ["id", "name", "v"]);
    assert_eq!(columns::type_name(schema.field(2).data_type()), "float64[]");
}

#[test]
fn the_columns_of_a_file_lose_what_tables_do_not_keep() {
    let dictionary: arrow_array::DictionaryArray<Int32Type> = ["a", "b", "a"].into_iter().collect();
    let field = Field::new("d", dictionary.data_type().clone(), true)
        .with_metadata([("PARQUET:field_id".to_string(), "7".to_string())].into());
    let schema = Arc::new(Schema::new(vec![field]));
    let batch = RecordBatch::try_new(schema, vec![Arc::new(dictionary)]).unwrap();
    let arrow = file("a.arrow", &file_bytes(&batch));
    let found = Arc::new(schema_of(&arrow.path, None).unwrap());
    assert_eq!(*found, Schema::new(vec![Field::new("d", DataType::Utf8, true)]));
    let rows = read("a.arrow", &file_bytes(&batch), &found, 10).unwrap();
    assert_eq!(rows["d"].as_ref(), &StringArray::from(vec!["a", "b", "a"]) as &dyn Array);
}

#[test]
fn the_columns_of_stdin_cannot_be_asked_for() {
    assert!(schema_of(&PathBuf::from("-"), Some(Format::Csv)).is_err());
}

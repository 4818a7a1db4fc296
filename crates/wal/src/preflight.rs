//! Checks of an Arrow IPC stream in front of Arrow's own reader, which takes much for granted: it panics at types,
//! counts and extents that do not fit together, and copies whatever a buffer's extent says, as often as it says so. An
//! object without a checksum (Lance writes none) may hold anything.
//!
//! What passes costs memory in proportion to its bytes: no string, field or byte of a body counts twice, and nothing
//! is compressed. It knows Arrow's framing and layouts, not which rows make sense; Arrow's reader checks values.

use std::collections::VecDeque;

use arrow_ipc::convert::fb_to_schema;
use arrow_ipc::{Endianness, FieldNode, Message, MessageHeader, MetadataVersion, Type, root_as_message};
use arrow_schema::{DataType, Field, Schema, UnionMode};

/// Rows of one array: as many bits as the largest entry has. Products of it with widths and list sizes stay far from
/// the end of 64 bits.
const MAX_LENGTH: i64 = 1 << 31;
/// What a field takes of a schema message at least.
const FIELD_BYTES: usize = 32;
const CONTINUATION: u32 = u32::MAX;

type Checked<T = ()> = Result<T, String>;

/// The schema at the beginning of a stream of which these are the first bytes; `None` if they do not reach to its end.
pub(crate) fn peek_schema(first: &[u8]) -> Checked<Option<Schema>> {
    match next_message(first)? {
        Framed::Message { message, size, .. } => schema_of(&message, size).map(Some),
        Framed::End => Err("it holds no Arrow schema".into()),
        Framed::CutShort => Ok(None),
    }
}

/// Checks a whole stream.
pub(crate) fn check(stream: &[u8]) -> Checked {
    let mut rest = stream;
    let mut schema = None;
    loop {
        let (message, size, behind) = match next_message(rest)? {
            Framed::Message { message, size, behind } => (message, size, behind),
            Framed::End => return Ok(()),
            Framed::CutShort => return Err("its Arrow stream is cut short".into()),
        };
        let body_bytes = message.bodyLength();
        let body = usize::try_from(body_bytes).ok().and_then(|length| behind.split_at_checked(length));
        let (_, next) = body.ok_or_else(|| format!("a message of {body_bytes} bytes is cut short"))?;
        let batch = |batch: arrow_ipc::RecordBatch<'_>, types: &[&DataType]| {
            Batch::of(&batch, body_bytes, message.version())?.check(types)
        };
        match (message.header_type(), &schema) {
            (MessageHeader::Schema, None) => schema = Some(schema_of(&message, size)?),
            (MessageHeader::RecordBatch, Some(schema)) => {
                let header = message.header_as_record_batch().ok_or("a batch without a header")?;
                let types: Vec<&DataType> = schema.fields().iter().map(|field| field.data_type()).collect();
                batch(header, &types)?;
            }
            (MessageHeader::DictionaryBatch, Some(schema)) => {
                let header = message.header_as_dictionary_batch().ok_or("a dictionary without a header")?;
                if header.isDelta() {
                    return Err("a dictionary that adds to another, which no engine writes".into());
                }
                let values = values_of(schema, header.id()).ok_or("a dictionary of no column")?;
                batch(header.data().ok_or("a dictionary without values")?, &[values])?;
            }
            (kind, _) => return Err(format!("a message of the kind {kind:?} where none may be")),
        }
        rest = next;
    }
}

enum Framed<'a> {
    /// A message, how long it is, and what is behind it.
    Message { message: Message<'a>, size: usize, behind: &'a [u8] },
    /// The end-of-stream marker, with nothing behind it, or nothing at all.
    End,
    /// Fewer bytes than there have to be.
    CutShort,
}

/// The next message of a stream, as Arrow's reader frames it.
fn next_message(stream: &[u8]) -> Checked<Framed<'_>> {
    let number = |bytes: &[u8]| bytes.first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes));
    let mut rest = stream;
    if number(rest) == Some(CONTINUATION) {
        rest = rest.get(4..).unwrap_or_default();
    }
    let Some(size) = number(rest) else {
        return Ok(if stream.is_empty() { Framed::End } else { Framed::CutShort });
    };
    rest = rest.get(4..).unwrap_or_default();
    if size == 0 {
        return match rest {
            [] => Ok(Framed::End),
            _ => Err("its Arrow stream goes on behind its end".into()),
        };
    }
    let Some((message, behind)) = rest.split_at_checked(size as usize) else {
        return Ok(Framed::CutShort);
    };
    let framed = root_as_message(message).map_err(|e| format!("it is no Arrow stream: {e}"))?;
    Ok(Framed::Message { message: framed, size: message.len(), behind })
}

fn schema_of(message: &Message<'_>, size: usize) -> Checked<Schema> {
    let schema = message.header_as_schema().ok_or("its Arrow stream does not begin with a schema")?;
    let mut budget = Budget(size);
    if schema.endianness() != Endianness::Little {
        return Err("its numbers are big-endian".into());
    }
    let fields = schema.fields().ok_or("its schema has no fields")?;
    for field in fields {
        check_field(&field, true, &mut budget)?;
    }
    budget.take_metadata(schema.custom_metadata())?;
    Ok(fb_to_schema(schema))
}

/// The bytes of a message that are not accounted for. Flatbuffers may refer to one thing many times.
struct Budget(usize);

impl Budget {
    fn take(&mut self, bytes: usize) -> Checked {
        self.0 = self.0.checked_sub(bytes).ok_or("its schema says the same thing many times")?;
        Ok(())
    }

    fn take_metadata<'a>(&mut self, pairs: Option<impl IntoIterator<Item = arrow_ipc::KeyValue<'a>>>) -> Checked {
        for pair in pairs.into_iter().flatten() {
            self.take(pair.key().map_or(0, str::len) + pair.value().map_or(0, str::len) + 4)?;
        }
        Ok(())
    }
}

/// Whether Arrow can make a field of it.
fn check_field(field: &arrow_ipc::Field<'_>, may_be_dictionary: bool, budget: &mut Budget) -> Checked {
    let name = field.name().unwrap_or_default();
    budget.take(FIELD_BYTES + name.len())?;
    budget.take_metadata(field.custom_metadata())?;
    let bad = || format!("its column `{}` has no valid type", name.escape_debug());
    if let Some(dictionary) = field.dictionary()
        && may_be_dictionary
    {
        let index = dictionary.indexType().ok_or_else(bad)?;
        if !matches!(index.bitWidth(), 8 | 16 | 32 | 64) {
            return Err(bad());
        }
    }
    let is_valid = match field.type_type() {
        Type::Null
        | Type::Bool
        | Type::Binary
        | Type::BinaryView
        | Type::LargeBinary
        | Type::Utf8
        | Type::Utf8View
        | Type::LargeUtf8 => true,
        Type::Int => field.type_as_int().is_some_and(|t| matches!(t.bitWidth(), 8 | 16 | 32 | 64)),
        Type::FloatingPoint => field.type_as_floating_point().is_some_and(|t| (0..=2).contains(&t.precision().0)),
        Type::FixedSizeBinary => field.type_as_fixed_size_binary().is_some_and(|t| t.byteWidth() >= 0),
        Type::Date => field.type_as_date().is_some_and(|t| (0..=1).contains(&t.unit().0)),
        Type::Time => {
            field.type_as_time().is_some_and(|t| matches!((t.bitWidth(), t.unit().0), (32, 0 | 1) | (64, 2 | 3)))
        }
        Type::Timestamp => match field.type_as_timestamp() {
            Some(t) => {
                budget.take(t.timezone().map_or(0, str::len))?;
                // Arrow writes no zone for an empty one: the type would be another after a rewrite.
                (0..=3).contains(&t.unit().0) && t.timezone().is_none_or(|zone| !zone.is_empty())
            }
            None => false,
        },
        Type::Interval => field.type_as_interval().is_some_and(|t| (0..=2).contains(&t.unit().0)),
        Type::Duration => field.type_as_duration().is_some_and(|t| (0..=3).contains(&t.unit().0)),
        Type::Decimal => field.type_as_decimal().is_some_and(|t| {
            let digits = match t.bitWidth() {
                32 => 9,
                64 => 18,
                128 => 38,
                256 => 76,
                _ => 0,
            };
            (1..=digits).contains(&t.precision()) && i8::try_from(t.scale()).is_ok()
        }),
        Type::List | Type::LargeList | Type::ListView | Type::LargeListView => children(field) == 1,
        Type::FixedSizeList => {
            children(field) == 1 && field.type_as_fixed_size_list().is_some_and(|t| t.listSize() >= 0)
        }
        Type::Struct_ => true,
        Type::Map => field.type_as_map().is_some() && is_map_of_pairs(field),
        Type::RunEndEncoded => children(field) == 2 && has_run_ends(field),
        // Their type ids would have to be checked against each other; no engine stores them.
        Type::Union => return Err(format!("its column `{}` is a union, which is not supported", name.escape_debug())),
        _ => false,
    };
    if !is_valid {
        return Err(bad());
    }
    for child in field.children().into_iter().flatten() {
        check_field(&child, true, budget)?;
    }
    Ok(())
}

fn children(field: &arrow_ipc::Field<'_>) -> usize {
    field.children().map_or(0, |children| children.len())
}

fn is_map_of_pairs(field: &arrow_ipc::Field<'_>) -> bool {
    let entries = field.children().filter(|children| children.len() == 1).map(|children| children.get(0));
    entries.is_some_and(|entries| {
        entries.type_type() == Type::Struct_ && children(&entries) == 2 && entries.dictionary().is_none()
    })
}

fn has_run_ends(field: &arrow_ipc::Field<'_>) -> bool {
    let ends = field.children().filter(|children| !children.is_empty()).map(|children| children.get(0));
    ends.is_some_and(|ends| {
        let is_end = |t: arrow_ipc::Int<'_>| t.is_signed() && matches!(t.bitWidth(), 16 | 32 | 64);
        ends.dictionary().is_none() && ends.type_as_int().is_some_and(is_end)
    })
}

/// The type of the values of a dictionary, by the first column that has it, as Arrow's reader looks for it.
fn values_of(schema: &Schema, id: i64) -> Option<&DataType> {
    fn find(field: &Field, id: i64) -> Option<&DataType> {
        #[allow(deprecated, reason = "the reader goes by it")]
        let is_it = field.dict_id() == Some(id);
        match field.data_type() {
            DataType::Dictionary(_, values) if is_it => Some(values),
            DataType::Dictionary(_, values) => nested(values).into_iter().find_map(|child| find(child, id)),
            other => nested(other).into_iter().find_map(|child| find(child, id)),
        }
    }
    schema.fields().iter().find_map(|field| find(field, id))
}

fn nested(data_type: &DataType) -> Vec<&Field> {
    match data_type {
        DataType::List(child)
        | DataType::LargeList(child)
        | DataType::ListView(child)
        | DataType::LargeListView(child)
        | DataType::FixedSizeList(child, _)
        | DataType::Map(child, _) => vec![child.as_ref()],
        DataType::Struct(fields) => fields.iter().map(AsRef::as_ref).collect(),
        DataType::RunEndEncoded(ends, values) => vec![ends.as_ref(), values.as_ref()],
        DataType::Union(fields, UnionMode::Sparse | UnionMode::Dense) => {
            fields.iter().map(|(_, field)| field.as_ref()).collect()
        }
        _ => Vec::new(),
    }
}

/// The counts and extents of a batch, taken one by one as Arrow's reader does.
struct Batch {
    rows: i64,
    nodes: VecDeque<(i64, i64)>,
    /// Lengths; their sum is within the body.
    buffers: VecDeque<i64>,
    variadic: VecDeque<i64>,
}

impl Batch {
    fn of(batch: &arrow_ipc::RecordBatch<'_>, body_bytes: i64, version: MetadataVersion) -> Checked<Self> {
        if !(0..=MetadataVersion::V5.0).contains(&version.0) {
            return Err(format!("its Arrow metadata version is {}", version.0));
        }
        if batch.compression().is_some() {
            return Err("it is compressed, which no engine writes".into());
        }
        let nodes = batch.nodes().ok_or("a batch without arrays")?;
        let node = |node: &FieldNode| match (node.length(), node.null_count()) {
            (length, nulls) if (0..=MAX_LENGTH).contains(&length) && (0..=length).contains(&nulls) => {
                Ok((length, nulls))
            }
            (length, nulls) => Err(format!("an array of {length} rows, {nulls} of them null")),
        };
        let mut left = body_bytes;
        let buffers = batch.buffers().ok_or("a batch without buffers")?.iter().map(|buffer| {
            let (offset, length) = (buffer.offset(), buffer.length());
            let end = offset.checked_add(length).filter(|end| offset >= 0 && length >= 0 && *end <= body_bytes);
            // No byte may count twice: a buffer that is not aligned is copied.
            left -= end.map_or(0, |_| length);
            match end {
                Some(_) if left >= 0 => Ok(length),
                _ => Err(format!("a buffer of {length} bytes at {offset} of {body_bytes}")),
            }
        });
        let buffers: VecDeque<i64> = buffers.collect::<Result<_, _>>()?;
        let variadic: VecDeque<i64> = batch.variadicBufferCounts().into_iter().flatten().collect();
        if variadic.iter().any(|count| !(0..=buffers.len() as i64).contains(count)) {
            return Err("a column of more buffers than there are".into());
        }
        let rows = batch.length();
        if !(0..=MAX_LENGTH).contains(&rows) {
            return Err(format!("a batch of {rows} rows"));
        }
        Ok(Self { rows, nodes: nodes.iter().map(node).collect::<Result<_, _>>()?, buffers, variadic })
    }

    /// Whether these columns can be taken from it.
    fn check(mut self, columns: &[&DataType]) -> Checked {
        for column in columns {
            let length = self.array(column)?;
            if length != self.rows {
                return Err(format!("a column of {length} rows in a batch of {}", self.rows));
            }
        }
        match self.variadic.is_empty() {
            true => Ok(()),
            false => Err("buffers of no column".into()),
        }
    }

    fn node(&mut self) -> Checked<(i64, i64)> {
        self.nodes.pop_front().ok_or_else(|| "a batch of fewer arrays than its schema has".into())
    }

    fn buffer(&mut self) -> Checked<i64> {
        self.buffers.pop_front().ok_or_else(|| "a batch of fewer buffers than its schema has".into())
    }

    /// A validity bitmap, which is there if something is null.
    fn validity(&mut self, (length, nulls): (i64, i64)) -> Checked {
        let bytes = self.buffer()?;
        match nulls == 0 || bytes >= length.div_euclid(8) + i64::from(length % 8 > 0) {
            true => Ok(()),
            false => Err(format!("a bitmap of {bytes} bytes for {length} rows")),
        }
    }

    /// A buffer of whole values, at least as many as there are rows.
    fn values(&mut self, rows: i64, width: i64) -> Checked {
        let bytes = self.buffer()?;
        let is_whole = width == 0 || bytes % width == 0;
        match is_whole && rows.checked_mul(width).is_some_and(|needed| bytes >= needed) {
            true => Ok(()),
            false => Err(format!("a buffer of {bytes} bytes for {rows} values of {width}")),
        }
    }

    /// Takes an array and what it consists of; how many rows it has.
    fn array(&mut self, data_type: &DataType) -> Checked<i64> {
        use DataType as T;
        if let T::BinaryView | T::Utf8View = data_type {
            let count = self.variadic.pop_front().ok_or("a column without a count of buffers")?;
            let node = self.node()?;
            self.validity(node)?;
            self.values(node.0, 16)?;
            for _ in 0..count {
                self.buffer()?;
            }
            return Ok(node.0);
        }
        let node = self.node()?;
        let (length, nulls) = node;
        match data_type {
            T::Null => {
                if nulls != length {
                    return Err(format!("an array of nulls of {length} rows, {nulls} of them null"));
                }
            }
            T::Boolean => {
                self.validity(node)?;
                self.values(length.div_euclid(8) + i64::from(length % 8 > 0), 1)?;
            }
            T::FixedSizeBinary(width) => {
                self.validity(node)?;
                self.values(length, i64::from(*width))?;
            }
            // An array without rows may have no offsets.
            T::Utf8 | T::Binary | T::List(_) | T::Map(..) => {
                self.validity(node)?;
                self.values(if length == 0 { 0 } else { length + 1 }, 4)?;
            }
            T::LargeUtf8 | T::LargeBinary | T::LargeList(_) => {
                self.validity(node)?;
                self.values(if length == 0 { 0 } else { length + 1 }, 8)?;
            }
            T::ListView(_) | T::LargeListView(_) => {
                let width = if matches!(data_type, T::ListView(_)) { 4 } else { 8 };
                self.validity(node)?;
                self.values(length, width)?;
                self.values(length, width)?;
            }
            T::FixedSizeList(..) | T::Struct(_) => self.validity(node)?,
            T::Dictionary(keys, _) => {
                self.validity(node)?;
                self.values(length, keys.primitive_width().unwrap_or_default() as i64)?;
            }
            T::RunEndEncoded(..) => {}
            other => {
                let width = other.primitive_width().ok_or_else(|| format!("a column of the type {other}"))?;
                self.validity(node)?;
                self.values(length, width as i64)?;
            }
        }
        match data_type {
            T::Utf8 | T::Binary | T::LargeUtf8 | T::LargeBinary => drop(self.buffer()?),
            T::FixedSizeList(child, size) => {
                let values = self.array(child.data_type())?;
                if values < length * i64::from(*size) {
                    return Err(format!("{length} lists of {size} values, of which there are {values}"));
                }
            }
            T::Struct(fields) => {
                for field in fields {
                    let rows = self.array(field.data_type())?;
                    if rows != length {
                        return Err(format!("a column of {rows} rows in a struct of {length}"));
                    }
                }
            }
            T::Dictionary(..) => {}
            other => {
                for child in nested(other) {
                    self.array(child.data_type())?;
                }
            }
        }
        Ok(length)
    }
}

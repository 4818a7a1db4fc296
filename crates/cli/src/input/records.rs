//! CSV text as records (RFC 4180, any line end). It is ours because two things matter here that common parsers drop:
//! whether a field was quoted (`""` is an empty string, nothing is null) and the line a record starts at.

use std::io::BufRead;

use super::MAX_RECORD_BYTES;

/// One record. The buffers are reused from record to record.
#[derive(Debug, Default)]
pub(crate) struct Record {
    text: Vec<u8>,
    fields: Vec<Span>,
    /// The line that the record starts at, counted from 1.
    pub(crate) line: u64,
}

#[derive(Debug, Clone, Copy)]
struct Span {
    end: usize,
    quoted: bool,
}

/// One field: its bytes and whether it stood in quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RawField<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) quoted: bool,
}

impl Record {
    /// How many fields it has.
    pub(crate) fn len(&self) -> usize {
        self.fields.len()
    }

    /// Its fields, in order.
    pub(crate) fn fields(&self) -> impl Iterator<Item = RawField<'_>> {
        let mut start = 0;
        self.fields.iter().map(move |span| {
            let bytes = self.text.get(start..span.end).unwrap_or_default();
            start = span.end;
            RawField { bytes, quoted: span.quoted }
        })
    }

    fn clear(&mut self) {
        self.text.clear();
        self.fields.clear();
    }

    fn end_field(&mut self, quoted: bool) {
        self.fields.push(Span { end: self.text.len(), quoted });
    }
}

/// Where the parser stands within a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    FieldStart,
    Bare,
    Quoted,
    /// After a quote inside a quoted field: its end, or the first half of a doubled quote.
    QuoteSeen,
}

/// Reads records from text.
pub(crate) struct Records<R> {
    input: R,
    delimiter: u8,
    line: u64,
    buffer: Vec<u8>,
}

impl<R: BufRead> Records<R> {
    pub(crate) fn new(input: R, delimiter: u8) -> Self {
        Self { input, delimiter, line: 0, buffer: Vec::new() }
    }

    /// Reads the next record; false at the end. Empty lines are skipped. The error is a sentence that names the line.
    pub(crate) fn read(&mut self, record: &mut Record) -> Result<bool, String> {
        loop {
            record.clear();
            if !self.read_line()? {
                return Ok(false);
            }
            if trim_line_end(&self.buffer).is_empty() {
                continue;
            }
            record.line = self.line;
            self.parse(record)?;
            return Ok(true);
        }
    }

    fn parse(&mut self, record: &mut Record) -> Result<(), String> {
        let mut state = State::FieldStart;
        loop {
            let content = trim_line_end(&self.buffer);
            for &byte in content {
                state = self.step(state, byte, record)?;
            }
            if state != State::Quoted {
                record.end_field(state == State::QuoteSeen);
                return Ok(());
            }
            // The quoted field goes on in the next line, and the line end belongs to it.
            let line_end = self.buffer.get(content.len()..).unwrap_or_default();
            record.text.extend_from_slice(line_end);
            if record.text.len() as u64 > MAX_RECORD_BYTES {
                return Err(format!("line {}: the record is longer than {MAX_RECORD_BYTES} bytes", record.line));
            }
            if !self.read_line()? {
                return Err(format!("line {}: a quote is opened and never closed", record.line));
            }
        }
    }

    fn step(&self, state: State, byte: u8, record: &mut Record) -> Result<State, String> {
        Ok(match (state, byte) {
            (State::FieldStart, b'"') => State::Quoted,
            (State::FieldStart | State::Bare, b) if b == self.delimiter => {
                record.end_field(false);
                State::FieldStart
            }
            (State::FieldStart | State::Bare, b) => {
                record.text.push(b);
                State::Bare
            }
            (State::Quoted, b'"') => State::QuoteSeen,
            (State::Quoted, b) => {
                record.text.push(b);
                State::Quoted
            }
            (State::QuoteSeen, b'"') => {
                record.text.push(b'"');
                State::Quoted
            }
            (State::QuoteSeen, b) if b == self.delimiter => {
                record.end_field(true);
                State::FieldStart
            }
            (State::QuoteSeen, b) => {
                return Err(format!(
                    "line {}: {:?} follows a closing quote; a quote inside a quoted field is written twice",
                    self.line,
                    char::from(b)
                ));
            }
        })
    }

    fn read_line(&mut self) -> Result<bool, String> {
        self.buffer.clear();
        let line = self.line + 1;
        let mut limited = std::io::Read::take(&mut self.input, MAX_RECORD_BYTES);
        let n = limited.read_until(b'\n', &mut self.buffer).map_err(|e| format!("line {line}: {e}"))?;
        if n == 0 {
            return Ok(false);
        }
        if n as u64 == MAX_RECORD_BYTES && self.buffer.last() != Some(&b'\n') {
            return Err(format!("line {line} is longer than {MAX_RECORD_BYTES} bytes"));
        }
        if line == 1 && self.buffer.starts_with(b"\xef\xbb\xbf") {
            self.buffer.drain(..3);
        }
        self.line = line;
        Ok(true)
    }
}

fn trim_line_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    type Fields = Vec<(String, bool)>;

    fn all(text: &str) -> Result<Vec<(u64, Fields)>, String> {
        let mut records = Records::new(text.as_bytes(), b',');
        let mut record = Record::default();
        let mut out = Vec::new();
        while records.read(&mut record)? {
            let fields: Fields =
                record.fields().map(|f| (String::from_utf8(f.bytes.to_vec()).unwrap(), f.quoted)).collect();
            assert_eq!(fields.len(), record.len());
            out.push((record.line, fields));
        }
        Ok(out)
    }

    fn texts(text: &str) -> Vec<Vec<String>> {
        all(text).unwrap().into_iter().map(|(_, fields)| fields.into_iter().map(|f| f.0).collect()).collect()
    }

    #[test]
    fn plain_records() {
        assert_eq!(texts("a,b\n1,2\n"), [["a", "b"], ["1", "2"]]);
        assert_eq!(texts("a,b\r\n1,2"), [["a", "b"], ["1", "2"]]);
        assert_eq!(texts("\u{feff}a,\n"), [["a", ""]]);
        assert!(texts("").is_empty());
        assert!(texts("\n\r\n").is_empty());
    }

    #[test]
    fn quotes_are_remembered() {
        let records = all("\"\",,\"a\"\"b\",\"x,y\"\n").unwrap();
        let expected = [("", true), ("", false), ("a\"b", true), ("x,y", true)].map(|(t, q)| (t.to_string(), q));
        assert_eq!(records, [(1, expected.to_vec())]);
    }

    #[test]
    fn lines_are_counted_through_quoted_line_ends() {
        let records = all("a,b\n\"x\r\ny\",1\n\n2,3\n").unwrap();
        let lines: Vec<u64> = records.iter().map(|r| r.0).collect();
        assert_eq!(lines, [1, 2, 5]);
        assert_eq!(texts("\"x\r\ny\",1\n"), [["x\r\ny", "1"]]);
    }

    #[test]
    fn broken_quotes_are_named() {
        assert!(all("a\n\"b\n").unwrap_err().contains("line 2: a quote is opened"));
        assert!(all("\"a\"b\n").unwrap_err().contains("line 1: 'b' follows a closing quote"));
    }

    proptest! {
        #[test]
        fn quoted_fields_come_back(rows in prop::collection::vec(prop::collection::vec("[a,\"\r\n é]{0,6}", 1..4), 0..5)) {
            let mut text = String::new();
            for row in &rows {
                let fields: Vec<String> = row.iter().map(|f| format!("\"{}\"", f.replace('"', "\"\""))).collect();
                text.push_str(&fields.join(","));
                text.push('\n');
            }
            prop_assert_eq!(texts(&text), rows);
        }

        #[test]
        fn any_text_is_an_answer_and_no_panic(text in "[a,\"\r\n]{0,30}") {
            let _ = all(&text);
        }
    }
}

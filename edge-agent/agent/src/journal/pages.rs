//! Reads the rows of a damaged SQLite file page by page, without its b-trees, so that a damaged page
//! costs only what it holds. The format: <https://www.sqlite.org/fileformat2.html>.
//!
//! Nothing that is read here can be trusted: the caller verifies each row. Every length is bounded,
//! and no content makes this code panic. A page yields at most what its bytes can hold: cells that
//! overlap, or a cell that is listed many times, do not multiply it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// The page size of every journal: SQLite's default.
const PAGE_BYTES: usize = 4096;
/// The largest row that is read; a frame has at most 256 KiB.
const ROW_BYTES_MAX: usize = 512 * 1024;
const COLUMNS_MAX: usize = 32;

const TABLE_LEAF: u8 = 0x0d;
const INDEX_LEAF: u8 = 0x0a;
const LEAF_HEADER_BYTES: usize = 8;

/// The most bytes of a row that a leaf page holds itself, by kind of page, and the fewest if the
/// rest is in overflow pages.
const TABLE_LOCAL_MAX: usize = PAGE_BYTES - 35;
const INDEX_LOCAL_MAX: usize = (PAGE_BYTES - 12) * 64 / 255 - 23;
const LOCAL_MIN: usize = (PAGE_BYTES - 12) * 32 / 255 - 23;
const OVERFLOW_BYTES: usize = PAGE_BYTES - 4;

const LOG_HEADER_BYTES: usize = 32;
const LOG_FRAME_HEADER_BYTES: usize = 24;

/// A value of a row. A floating-point number counts as `Null`: the journal has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Null,
    Integer(i64),
    Text(String),
    Blob(Vec<u8>),
}

/// A row as stored, with its row id if its table has row ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub id: Option<i64>,
    pub values: Vec<Value>,
}

/// Which content of a page is read: with the write-ahead log, or without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageVersion {
    Newest,
    WithoutLog,
}

/// A database file with its write-ahead log, open for reading.
pub struct PageFile {
    database: File,
    database_pages: u32,
    /// The write-ahead log, and the offset of the newest content of each page in it.
    log: Option<(File, BTreeMap<u32, u64>)>,
}

impl PageFile {
    /// Opens a database and the write-ahead log beside it, if there is one.
    pub fn open(path: &Path) -> io::Result<Self> {
        let database = File::open(path)?;
        let pages = database.metadata()?.len().div_ceil(PAGE_BYTES as u64);
        let mut log_path = path.as_os_str().to_owned();
        log_path.push("-wal");
        let log = File::open(log_path).ok().map(|file| {
            let newest = read_log_index(&file);
            (file, newest)
        });
        Ok(Self { database, database_pages: u32::try_from(pages).unwrap_or(u32::MAX), log })
    }

    /// Returns the pages to read, each with the version to read it in. Pages that the log replaces
    /// come a second time at the end: the log may be what is damaged.
    pub fn pages(&self) -> impl Iterator<Item = (u32, PageVersion)> + '_ {
        let last = self.database_pages;
        let logged = self.log.iter().flat_map(|(_, newest)| newest.keys().copied());
        let beyond = logged.clone().filter(move |number| *number > last);
        let older = logged.filter(move |number| *number <= last);
        // Page 1 holds only the schema.
        (2..=last)
            .chain(beyond)
            .map(|number| (number, PageVersion::Newest))
            .chain(older.map(|number| (number, PageVersion::WithoutLog)))
    }

    /// Returns the rows of a leaf page; none if it is another page or cannot be read. Each is read
    /// when it is asked for: all cells of a damaged page may name the same large row.
    pub fn rows(&self, number: u32, version: PageVersion) -> impl Iterator<Item = Row> + '_ {
        let page = self.read(number, version).unwrap_or_default();
        let has_ids = match page.first() {
            Some(&TABLE_LEAF) => Some(true),
            Some(&INDEX_LEAF) => Some(false),
            _ => None,
        };
        let cells = has_ids.and_then(|_| u16_at(&page, 3)).unwrap_or(0);
        let mut page_bytes = 0_usize;
        let rows = (0..cells).map_while(move |i| {
            let pointer = usize::from(i).saturating_mul(2).saturating_add(LEAF_HEADER_BYTES);
            let at = u16_at(&page, pointer)?;
            let Some(cell) = Cell::parse(page.get(usize::from(at)..).unwrap_or_default(), has_ids?)
            else {
                return Some(None);
            };
            // The cells of a page do not overlap, so together they are no larger than the page.
            page_bytes = page_bytes.saturating_add(cell.page_bytes);
            (page_bytes <= PAGE_BYTES).then(|| self.row(&cell, version))
        });
        rows.flatten()
    }

    /// Reads the row of a cell.
    fn row(&self, cell: &Cell<'_>, version: PageVersion) -> Option<Row> {
        let mut record = cell.local.to_vec();
        let mut next = cell.overflow_page;
        while record.len() < cell.bytes {
            let page = self.read(next, version)?;
            let take = cell.bytes.saturating_sub(record.len()).min(OVERFLOW_BYTES);
            record.extend_from_slice(page.get(4..)?.get(..take)?);
            next = u32_at(&page, 0)?;
        }
        Some(Row { id: cell.id, values: decode_record(&record)? })
    }

    /// Reads a page; `None` if it does not exist or the disk cannot read it.
    fn read(&self, number: u32, version: PageVersion) -> Option<Vec<u8>> {
        let mut page = vec![0; PAGE_BYTES];
        if version == PageVersion::Newest
            && let Some((log, newest)) = &self.log
            && let Some(at) = newest.get(&number)
        {
            log.read_exact_at(&mut page, *at).ok()?;
            return Some(page);
        }
        let at = u64::from(number.checked_sub(1)?).checked_mul(PAGE_BYTES as u64)?;
        self.database.read_exact_at(&mut page, at).ok()?;
        Some(page)
    }
}

/// What a leaf page holds of a row.
struct Cell<'p> {
    id: Option<i64>,
    /// The length of the whole row.
    bytes: usize,
    /// The part of the row that is on the page.
    local: &'p [u8],
    /// The page with the next part; 0 if the row is on this page alone.
    overflow_page: u32,
    /// How many bytes of the page the cell takes.
    page_bytes: usize,
}

impl<'p> Cell<'p> {
    /// Parses the cell that begins `rest`; `None` if it does not fit the page.
    fn parse(rest: &'p [u8], has_id: bool) -> Option<Self> {
        let whole = rest.len();
        let (bytes, used) = varint(rest)?;
        let bytes = usize::try_from(bytes).ok().filter(|bytes| *bytes <= ROW_BYTES_MAX)?;
        let mut rest = rest.get(used..)?;
        let mut id = None;
        if has_id {
            let (value, used) = varint(rest)?;
            id = Some(value.cast_signed());
            rest = rest.get(used..)?;
        }
        let local_max = if has_id { TABLE_LOCAL_MAX } else { INDEX_LOCAL_MAX };
        let (local, rest) = rest.split_at_checked(local_bytes(bytes, local_max))?;
        let overflow_page = if local.len() < bytes { u32_at(rest, 0)? } else { 0 };
        let page_bytes = whole.saturating_sub(rest.len());
        Some(Self { id, bytes, local, overflow_page, page_bytes })
    }
}

/// Returns how many of a row's `bytes` its leaf page holds.
const fn local_bytes(bytes: usize, local_max: usize) -> usize {
    if bytes <= local_max {
        return bytes;
    }
    let most = LOCAL_MIN.saturating_add(bytes.saturating_sub(LOCAL_MIN) % OVERFLOW_BYTES);
    if most <= local_max { most } else { LOCAL_MIN }
}

/// Returns the offset of the newest committed content of each page in a write-ahead log.
fn read_log_index(log: &File) -> BTreeMap<u32, u64> {
    let (mut committed, mut pending) = (BTreeMap::new(), BTreeMap::new());
    let mut header = [0; LOG_HEADER_BYTES];
    let page_bytes = |header: &[u8]| u32_at(header, 8).map(|bytes| bytes as usize);
    if log.read_exact_at(&mut header, 0).is_err() || page_bytes(&header) != Some(PAGE_BYTES) {
        return committed;
    }
    let salt = header[16..24].to_vec();
    let mut at = LOG_HEADER_BYTES as u64;
    let mut frame = [0; LOG_FRAME_HEADER_BYTES];
    while log.read_exact_at(&mut frame, at).is_ok() && frame[8..16] == salt[..] {
        let (Some(number), Some(commit)) = (u32_at(&frame, 0), u32_at(&frame, 4)) else { break };
        pending.insert(number, at.saturating_add(LOG_FRAME_HEADER_BYTES as u64));
        if commit != 0 {
            committed.append(&mut pending);
        }
        at = at.saturating_add((LOG_FRAME_HEADER_BYTES + PAGE_BYTES) as u64);
    }
    committed
}

/// Decodes a row: a header with the type of each column, then the values.
fn decode_record(record: &[u8]) -> Option<Vec<Value>> {
    let (header_bytes, used) = varint(record)?;
    let header_bytes = usize::try_from(header_bytes).ok()?;
    let mut header = record.get(used..header_bytes)?;
    let mut body = record.get(header_bytes..)?;
    let mut values = Vec::new();
    while !header.is_empty() {
        let (kind, used) = varint(header)?;
        header = header.get(used..)?;
        let bytes = value_bytes(kind)?;
        let content = body.get(..bytes)?;
        body = body.get(bytes..)?;
        values.push(decode_value(kind, content)?);
        if values.len() > COLUMNS_MAX {
            return None;
        }
    }
    Some(values)
}

/// Returns how many bytes a value of a type has; `None` for a type that does not exist.
fn value_bytes(kind: u64) -> Option<usize> {
    match kind {
        0 | 8 | 9 => Some(0),
        1..=4 => usize::try_from(kind).ok(),
        5 => Some(6),
        6 | 7 => Some(8),
        10 | 11 => None,
        _ => usize::try_from(kind.checked_sub(12)? / 2).ok(),
    }
}

fn decode_value(kind: u64, content: &[u8]) -> Option<Value> {
    Some(match kind {
        0 | 7 => Value::Null,
        8 => Value::Integer(0),
        9 => Value::Integer(1),
        1..=6 => {
            // Big-endian two's complement: the first bit is the sign.
            let sign = content.first().is_some_and(|byte| byte & 0x80 != 0);
            let start: i64 = if sign { -1 } else { 0 };
            Value::Integer(content.iter().fold(start, |all, byte| (all << 8) | i64::from(*byte)))
        }
        _ if kind.is_multiple_of(2) => Value::Blob(content.to_vec()),
        _ => Value::Text(String::from_utf8(content.to_vec()).ok()?),
    })
}

/// Reads a variable-length integer. Returns it with the number of bytes that it has.
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0;
    for (byte, used) in bytes.iter().take(9).zip(1_usize..) {
        if used == 9 {
            return Some(((value << 8) | u64::from(*byte), used));
        }
        value = (value << 7) | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((value, used));
        }
    }
    None
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_any_size_are_read_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let db = rusqlite::Connection::open(&path).unwrap();
        db.execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER, b BLOB, x TEXT)")
            .unwrap();
        let sizes = [0, 1, 100, 4_000, 4_040, 4_061, 4_062, 8_000, 8_190, 60_000, 262_144];
        let numbers = [0, 1, -1, 127, -128, 40_000, -70_000, 1 << 40, i64::MAX, i64::MIN, 2];
        for (size, number) in sizes.iter().zip(numbers) {
            let blob: Vec<u8> = (0..*size).map(|i| u8::try_from(i % 251).unwrap()).collect();
            db.execute(
                "INSERT INTO t (n, b, x) VALUES (?1, ?2, 'é')",
                rusqlite::params![number, blob],
            )
            .unwrap();
        }
        drop(db);
        let file = PageFile::open(&path).unwrap();
        let mut rows: Vec<Row> =
            file.pages().flat_map(|(page, version)| file.rows(page, version)).collect();
        rows.sort_by_key(|row| row.id);
        assert_eq!(rows.len(), sizes.len());
        for ((row, size), number) in rows.iter().zip(sizes).zip(numbers) {
            let [Value::Null, Value::Integer(n), Value::Blob(blob), Value::Text(text)] =
                &row.values[..]
            else {
                panic!("{size}: {:?}", row.values.len())
            };
            assert_eq!((*n, blob.len(), text.as_str()), (number, size, "é"));
            assert!(blob.iter().enumerate().all(|(i, byte)| usize::from(*byte) == i % 251));
        }
    }

    /// A page whose cells all are the same cell, of a row as large as a row may be, in overflow pages
    /// that refer to themselves. Read each time, it would take a gigabyte.
    #[test]
    fn a_cell_that_a_page_lists_a_thousand_times_takes_no_more_memory_than_a_page_of_cells() {
        const AT: usize = 3_000;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let mut pages = vec![vec![0_u8; PAGE_BYTES]; 3];
        let page = &mut pages[1];
        page[0] = TABLE_LEAF;
        page[3..5].copy_from_slice(&1_000_u16.to_be_bytes());
        for i in 0..1_000 {
            let pointer = u16::try_from(AT).unwrap().to_be_bytes();
            page[LEAF_HEADER_BYTES + 2 * i..][..2].copy_from_slice(&pointer);
        }
        // The lengths of row and header as varints, the row's id, and one BLOB as long as the rest.
        let bytes = ROW_BYTES_MAX;
        let blob = u64::try_from(2 * (bytes - 5) + 12).unwrap();
        let varint4 = |value: u64| {
            let part = |shift: u32, more: u8| u8::try_from((value >> shift) & 0x7f).unwrap() | more;
            [part(21, 0x80), part(14, 0x80), part(7, 0x80), part(0, 0)]
        };
        let local = local_bytes(bytes, TABLE_LOCAL_MAX);
        let mut cell = varint4(bytes as u64).to_vec();
        cell.push(7);
        cell.push(5);
        cell.extend(varint4(blob));
        cell.resize(5 + local, 0xab);
        cell.extend(3_u32.to_be_bytes());
        page[AT..AT + cell.len()].copy_from_slice(&cell);
        pages[2][..4].copy_from_slice(&3_u32.to_be_bytes());
        std::fs::write(&path, pages.concat()).unwrap();
        let rows = PageFile::open(&path).unwrap().rows(2, PageVersion::Newest).count();
        assert!(rows > 0, "a row that overlaps no other is read");
        assert!(rows * local <= PAGE_BYTES, "{rows} rows of {local} bytes");
    }

    #[test]
    fn random_pages_are_read_without_a_panic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        };
        let mut bytes: Vec<u8> = (0..200 * PAGE_BYTES).map(|_| random()).collect();
        for page in 0..200 {
            bytes[page * PAGE_BYTES] = [TABLE_LEAF, INDEX_LEAF][page % 2];
        }
        std::fs::write(&path, &bytes).unwrap();
        std::fs::write(folder.path().join("a.db-wal"), &bytes[..50_000]).unwrap();
        let file = PageFile::open(&path).unwrap();
        let found: usize =
            file.pages().map(|(page, version)| file.rows(page, version).count()).sum();
        assert!(found < 200 * 4096);
    }
}

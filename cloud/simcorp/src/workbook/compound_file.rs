//! Reads the workbook's stream out of a compound file, the container of an `.xls`. Only to check the
//! stream before calamine reads the same file: a chain of sectors may lead back to itself, and
//! calamine follows it without end.

use super::limits::WorkbookLimit;

/// The first number of a sector that is no sector but a mark.
const FIRST_MARK: u32 = 0xffff_fffa;
/// The marks that are not the number of a sector with a part of the table.
const FIRST_NO_TABLE: u32 = 0xffff_fffc;
const END_OF_CHAIN: u32 = 0xffff_fffe;
const HEADER_BYTES: usize = 512;
const ENTRY_BYTES: usize = 128;
const SMALL_SECTOR_BYTES: usize = 64;
/// A shorter stream lies in small sectors.
const SMALL_STREAM_BYTES: usize = 4096;
/// The names of the stream, the usual one first.
const STREAMS: [&str; 2] = ["Workbook", "Book"];

const TRUNCATED: WorkbookLimit = WorkbookLimit::Damaged("a sector lies outside the file");

/// Sectors of one size, and the table that says which sector follows which.
struct Sectors<'b> {
    bytes: &'b [u8],
    size: usize,
    next: Vec<u32>,
}

impl<'b> Sectors<'b> {
    /// Returns a sector. The last one of a file may be shorter.
    fn get(&self, id: u32) -> Result<&'b [u8], WorkbookLimit> {
        let start = usize::try_from(id).ok().and_then(|id| id.checked_mul(self.size));
        let rest = start.and_then(|start| self.bytes.get(start..)).ok_or(TRUNCATED)?;
        let sector = rest.get(..self.size.min(rest.len())).unwrap_or_default();
        if sector.is_empty() { Err(TRUNCATED) } else { Ok(sector) }
    }

    /// Returns the content of a chain, at most `len` bytes.
    fn chain(&self, start: u32, len: usize) -> Result<Vec<u8>, WorkbookLimit> {
        let mut content = Vec::new();
        let mut id = start;
        while id != END_OF_CHAIN {
            let sector = self.get(id)?;
            let wanted = len.saturating_sub(content.len()).min(sector.len());
            content.extend_from_slice(sector.get(..wanted).unwrap_or_default());
            if content.len() >= len {
                break;
            }
            if content.len() > self.bytes.len() {
                return Err(WorkbookLimit::Damaged("a chain of sectors leads back to itself"));
            }
            let at = usize::try_from(id).ok().and_then(|id| self.next.get(id));
            id = *at.ok_or(WorkbookLimit::Damaged("a chain of sectors leaves the table"))?;
        }
        Ok(content)
    }
}

/// An entry of the directory.
struct Entry {
    name: String,
    start: u32,
    len: usize,
}

/// Returns the stream with the workbook.
///
/// # Errors
/// When the file is damaged, or has no such stream.
pub fn workbook_stream(file: &[u8]) -> Result<Vec<u8>, WorkbookLimit> {
    let header = file.get(..HEADER_BYTES);
    let header = header.ok_or(WorkbookLimit::Damaged("it has no header"))?;
    let size = match u16_at(header, 30) {
        Some(9) => 512,
        Some(12) => 4096,
        _ => return Err(WorkbookLimit::Damaged("its sectors have an unknown size")),
    };
    // The header takes a whole sector.
    let bytes = file.get(size..).ok_or(TRUNCATED)?;
    let mut sectors = Sectors { bytes, size, next: Vec::new() };
    sectors.next = table(&sectors, header)?;

    let entries = sectors.chain(header_u32(header, 48), usize::MAX)?;
    let entries = entries.chunks_exact(ENTRY_BYTES).map(|entry| Entry::read(entry, size));
    let entries = entries.collect::<Result<Vec<Entry>, WorkbookLimit>>()?;
    let root = entries.first().ok_or(WorkbookLimit::Damaged("its directory is empty"))?;
    let named = |name: &&str| entries.iter().find(|entry| entry.name.eq_ignore_ascii_case(name));
    let entry = STREAMS.iter().find_map(named);
    let entry = entry.ok_or(WorkbookLimit::Damaged("it has no workbook"))?;
    // calamine reads the small sectors of every file that has some.
    let tables = usize::try_from(header_u32(header, 64)).unwrap_or(usize::MAX);
    let (mut small, mut next) = (Vec::new(), Vec::new());
    if tables > 0 {
        small = sectors.chain(root.start, root.len)?;
        next = sectors.chain(header_u32(header, 60), tables.saturating_mul(size))?;
    }
    if entry.len >= SMALL_STREAM_BYTES {
        return sectors.chain(entry.start, entry.len);
    }
    let next = numbers(&next).collect();
    let small = Sectors { bytes: &small, size: SMALL_SECTOR_BYTES, next };
    small.chain(entry.start, entry.len)
}

impl Entry {
    fn read(entry: &[u8], sector_bytes: usize) -> Result<Self, WorkbookLimit> {
        const WRONG: WorkbookLimit = WorkbookLimit::Damaged("a name in its directory");
        let name = entry.get(..64).ok_or(WRONG)?;
        // calamine reads a name with a byte order mark in another encoding.
        if [&b"\xff\xfe"[..], b"\xfe\xff", b"\xef\xbb\xbf"].iter().any(|m| name.starts_with(m)) {
            return Err(WRONG);
        }
        let units = name.chunks_exact(2).filter_map(|unit| u16_at(unit, 0));
        let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
        let len = u64::from(header_u32(entry, 120));
        // Files with small sectors leave the upper half undefined.
        let upper = if sector_bytes == 512 { 0 } else { u64::from(header_u32(entry, 124)) };
        let len = usize::try_from(len | (upper << 32)).unwrap_or(usize::MAX);
        Ok(Self { name: String::from_utf16_lossy(&units), start: header_u32(entry, 116), len })
    }
}

/// Returns the table of the sectors that follow each sector. Its own sectors are listed in the header
/// and in a chain of further lists.
fn table(sectors: &Sectors<'_>, header: &[u8]) -> Result<Vec<u32>, WorkbookLimit> {
    const TOO_LONG: WorkbookLimit = WorkbookLimit::Damaged("its table of sectors is too long");
    let sectors_max = sectors.bytes.len().checked_div(sectors.size).unwrap_or(0).saturating_add(1);
    let mut listed: Vec<u32> = numbers(header.get(76..).unwrap_or_default()).collect();
    let (mut list, mut lists) = (header_u32(header, 68), 0_usize);
    while list < FIRST_MARK {
        lists = lists.saturating_add(1);
        if lists > sectors_max {
            return Err(TOO_LONG);
        }
        listed.extend(numbers(sectors.get(list)?));
        list = listed.pop().ok_or(TRUNCATED)?;
    }
    listed.retain(|id| *id < FIRST_NO_TABLE);
    if listed.len() > sectors_max {
        return Err(TOO_LONG);
    }
    let mut next = Vec::new();
    for id in listed {
        next.extend(numbers(sectors.get(id)?));
    }
    Ok(next)
}

fn numbers(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.chunks_exact(4).map(|four| header_u32(four, 0))
}

/// Returns a number of 16 bits; `None` outside the bytes.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let two = bytes.get(at..)?.first_chunk::<2>()?;
    Some(u16::from_le_bytes(*two))
}

/// Returns a number of 32 bits; `None` outside the bytes.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_le_bytes(*four))
}

/// Returns a number of a part whose length is known.
fn header_u32(bytes: &[u8], at: usize) -> u32 {
    u32_at(bytes, at).unwrap_or(END_OF_CHAIN)
}

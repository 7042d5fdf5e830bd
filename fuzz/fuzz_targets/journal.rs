//! A journal with damaged bytes: what is salvaged of it was in it before.
//!
//! The bytes are a list of changes, each of eight bytes and the new content: where the content goes
//! (the database file, or a page in the write-ahead log), its length, the page, and the place in it.
#![no_main]
use std::sync::LazyLock;

use simcorp_edge::fuzzing::IntactJournal;
use tempfile::tempdir;

const PAGE_BYTES: usize = 4096;

static INTACT: LazyLock<IntactJournal> =
    LazyLock::new(|| IntactJournal::write(tempdir().unwrap().path(), 7).unwrap());

/// The database file and its write-ahead log.
struct Files {
    database: Vec<u8>,
    log: Vec<u8>,
}

impl Files {
    fn intact() -> Self {
        // A header with the size of pages, and zeros as the salt.
        let mut log = vec![0; 32];
        log[8..12].copy_from_slice(&4096_u32.to_be_bytes());
        Self { database: INTACT.bytes.clone(), log }
    }

    /// Writes `content` over the database from `at` on.
    fn overwrite(&mut self, at: usize, content: &[u8]) {
        let end = self.database.len().min(at + content.len());
        if let Some(place) = self.database.get_mut(at..end) {
            place.copy_from_slice(&content[..place.len()]);
        }
    }

    /// Adds a page of the database to the log, with `content` from `at` on, and commits it.
    fn add_to_log(&mut self, page: u32, at: usize, content: &[u8]) {
        let start = usize::try_from(page).unwrap().saturating_sub(1) * PAGE_BYTES;
        let present = self.database.get(start..start + PAGE_BYTES);
        let mut bytes = present.map_or_else(|| vec![0; PAGE_BYTES], <[u8]>::to_vec);
        for (place, byte) in bytes.iter_mut().skip(at).zip(content) {
            *place = *byte;
        }
        self.log.extend_from_slice(&page.to_be_bytes());
        self.log.extend_from_slice(&1_u32.to_be_bytes());
        self.log.extend_from_slice(&[0; 16]);
        self.log.extend_from_slice(&bytes);
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut files = Files::intact();
    let mut rest = bytes;
    while let Some((&[target, length, p0, p1, _, _, a0, a1], after)) = rest.split_first_chunk::<8>()
    {
        let (content, after) = after.split_at(after.len().min(usize::from(length)));
        let at = usize::from(u16::from_be_bytes([a0, a1])) % PAGE_BYTES;
        let page = u16::from_be_bytes([p0, p1]);
        if target % 4 == 0 {
            files.add_to_log(u32::from(page), at, content);
        } else {
            let pages = files.database.len() / PAGE_BYTES;
            files.overwrite(usize::from(page) % pages * PAGE_BYTES + at, content);
        }
        rest = after;
    }
    let folder = tempdir().unwrap();
    let salvaged = INTACT.salvage(folder.path(), &files.database, &files.log).unwrap();
    for payload in &salvaged {
        assert!(INTACT.payloads.contains(payload), "a frame that was not in the journal");
    }
    if bytes.is_empty() {
        assert_eq!(salvaged, INTACT.payloads);
    }
});

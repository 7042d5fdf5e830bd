#![no_main]
//! Any workbook, once its cells are read: sheets between record separators, cells between tabs.

use roast::formats::makers::{Cell, Worksheet, cropster};

fn cell(text: &str) -> Cell {
    match text.parse() {
        Ok(number) => Cell::Number(number),
        Err(_) if text.is_empty() => Cell::Empty,
        Err(_) => Cell::Text(text.to_owned()),
    }
}

libfuzzer_sys::fuzz_target!(|text: &str| {
    let sheet = |text: &str| {
        let (name, rows) = text.split_once('\n').unwrap_or((text, ""));
        let rows = rows.lines().map(|row| row.split('\t').map(cell).collect()).collect();
        Worksheet { name: name.to_owned(), rows }
    };
    let sheets: Vec<Worksheet> = text.split('\u{1e}').map(sheet).collect();
    if let Ok(recording) = cropster(&sheets) {
        assert!(recording.marks.iter().all(|(_, at)| *at < recording.samples.len()));
        let weights = [recording.weight_in_g, recording.weight_out_g];
        assert!(weights.into_iter().flatten().all(|weight| weight > 0.0));
        assert!(recording.samples.windows(2).all(|pair| pair[0].t_ms < pair[1].t_ms));
    }
});

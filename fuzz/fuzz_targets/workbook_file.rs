//! The bytes of a workbook: as they are, or as the content of the files in an archive. An even first
//! byte chooses the latter: the sheet, the texts, the workbook and its relations are then separated by
//! record separators.
#![no_main]

#[path = "../../cloud/simcorp/src/workbook/mod.rs"]
mod workbook;

const WORKBOOK: &[u8] =
    br#"<workbook><sheets><sheet name="a" sheetId="1" r:id="r1"/></sheets></workbook>"#;
const RELATIONS: &[u8] = br#"<Relationships><Relationship Id="r1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/worksheet" Target="worksheets/sheet1.xml"/></Relationships>"#;

/// Returns an archive with the given content of its files. Empty content becomes a valid one.
fn archive(content: &[u8]) -> Vec<u8> {
    let mut parts = content.split(|byte| *byte == 0x1e);
    let mut part =
        |valid: &'static [u8]| parts.next().filter(|part| !part.is_empty()).unwrap_or(valid);
    let sheet = part(b"<worksheet><sheetData/></worksheet>");
    let texts = part(b"<sst/>");
    let (workbook, relations) = (part(WORKBOOK), part(RELATIONS));
    fuzz::zip(&[
        ("xl/workbook.xml", workbook),
        ("xl/_rels/workbook.xml.rels", relations),
        ("xl/sharedStrings.xml", texts),
        ("xl/worksheets/sheet1.xml", sheet),
    ])
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((choice, content)) = bytes.split_first() else { return };
    let file = if choice % 2 == 0 { archive(content) } else { content.to_vec() };
    if !workbook::is_workbook(&file) {
        return;
    }
    if let Ok(recording) = workbook::read(&file) {
        assert!(recording.samples.windows(2).all(|pair| pair[0].t_ms < pair[1].t_ms));
        assert!(recording.marks.iter().all(|(_, at)| *at < recording.samples.len()));
    }
});

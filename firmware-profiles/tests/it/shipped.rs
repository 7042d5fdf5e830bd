//! Tests every shipped profile: it has no findings, is unverified, and allows no writes.

use firmware_profiles::{SHIPPED, Writes, check, shipped};

#[test]
fn every_shipped_profile_has_no_findings_is_unverified_and_disables_writes() {
    for entry in SHIPPED {
        let checked = check(entry.text).unwrap_or_else(|e| panic!("{}:\n{e}", entry.id));
        assert_eq!(checked.profile.machine.id, entry.id, "the file name differs from the id");
        assert!(!checked.profile.machine.verified, "{}", entry.id);
        assert_eq!(checked.profile.machine.writes, Writes::Disabled, "{}", entry.id);
    }
}

#[test]
fn every_profile_file_is_in_the_catalogue() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/machines");
    let mut files: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|f| f.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    let listed: Vec<String> = SHIPPED.iter().map(|e| format!("{}.toml", e.id)).collect();
    assert_eq!(files, listed);
}

#[test]
fn the_two_giesen_generations_encode_zero_differently() {
    let raw_of_zero = |id| {
        let profile = check(shipped(id).unwrap().text).unwrap().profile;
        let burner = profile.controls.into_iter().find(|c| c.name == "burner").unwrap();
        (burner.raw(0.0), burner.auto_raw.unwrap())
    };
    assert_eq!(raw_of_zero("giesen.wxa.s7-2019"), (1.0, 0.0));
    assert_eq!(raw_of_zero("giesen.wxa.s7-pro"), (0.0, -1.0));
}

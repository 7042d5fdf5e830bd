//! Imports of roast profiles in each format, and what is exported of them again. The first byte
//! chooses the format.
#![no_main]
use contract::profile::ProfileBody;
use ingestion::dry_run::{ImportFormat, imported_profiles, profile_table};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((choice, body)) = bytes.split_first() else { return };
    let format = match choice % 3 {
        0 => ImportFormat::Json,
        1 => ImportFormat::Csv,
        _ => ImportFormat::Alog,
    };
    let profiles = match imported_profiles(format, body) {
        Ok(profiles) => profiles,
        Err(error) => return assert!(!error.status().is_server_error(), "{error}"),
    };
    for profile in &profiles {
        let written = serde_json::to_vec(profile).unwrap();
        // A number that is not finite would come back as none.
        assert_eq!(&serde_json::from_slice::<ProfileBody>(&written).unwrap(), profile);
        if format == ImportFormat::Alog {
            let mut pairs = profile.curve.iter().flat_map(|curve| curve.points.windows(2));
            assert!(pairs.all(|pair| pair[0].elapsed_seconds < pair[1].elapsed_seconds));
        }
    }
    if format == ImportFormat::Csv && !profiles.is_empty() {
        let table = profile_table(profiles.clone()).unwrap();
        let again = imported_profiles(ImportFormat::Csv, table.as_bytes()).unwrap();
        assert_eq!(again, profiles, "{table}");
    }
});

//! The settings of machines: stored in both databases, checked, and changed over HTTP.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may break

mod api;
mod store;

use contract::Origin;
use inference::Settings;

fn origin(text: &str) -> Origin {
    text.parse().unwrap()
}

/// Settings with a threshold of first crack and nothing else.
fn threshold(fc_bt_threshold_c: f64) -> Settings {
    Settings { fc_bt_threshold_c: Some(fc_bt_threshold_c), ..Settings::default() }
}

#[test]
fn settings_override_only_what_they_set() {
    let gap = Settings { session_gap_seconds: Some(60.0), ..Settings::default() };
    let both = threshold(190.0).overridden_by(gap);
    assert_eq!(both, Settings { session_gap_seconds: Some(60.0), ..threshold(190.0) });
    let effective = Settings::DEFAULTS.overridden_by(both);
    assert_eq!(effective.fc_bt_threshold_c, Some(190.0));
    assert_eq!(effective.session_gap_seconds, Some(60.0));
    assert_eq!(effective.min_first_crack_seconds, Some(300.0), "a default");
}

#[test]
fn a_setting_out_of_range_is_named_with_its_range() {
    for good in [100.0, 300.0] {
        assert_eq!(threshold(good).problems(), []);
    }
    for bad in [99.9, 300.1, f64::NAN] {
        assert_eq!(threshold(bad).problems(), [("fcBtThresholdC", "not 100 to 300")]);
    }
    let several = Settings { drop_silence_seconds: Some(0.0), ..threshold(0.0) };
    let fields: Vec<_> = several.problems().into_iter().map(|(field, _)| field).collect();
    assert_eq!(fields, ["fcBtThresholdC", "dropSilenceSeconds"]);
    assert_eq!(Settings::DEFAULTS.problems(), []);
}

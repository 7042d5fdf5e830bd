//! A frame from its bytes to rows, curves, telemetry points and the messages of the streams.
#![no_main]
use contract::{Channel, EpochMs, Frame};

const RECEIVED: EpochMs = EpochMs(1_760_000_000_000);
/// Values below this keep a hundredth of a degree or better in single precision.
const EXACT_MAX: f64 = 10_000.0;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(frame) = Frame::decode(bytes) else { return };
    let views = match ingestion::dry_run::frame_views(bytes, RECEIVED) {
        Ok(views) => views,
        Err(error) => panic!("{error}"),
    };
    for point in &views.points {
        let elapsed_s = point.elapsed_seconds;
        assert!((0.0..1e13).contains(&elapsed_s), "{elapsed_s} s");
        assert!(point.bt_c.is_none_or(f64::is_finite), "{:?}", point.bt_c);
    }
    assert!(views.points.len() >= frame.sample_count());
    for (i, point) in views.points.iter().take(frame.sample_count()).enumerate() {
        let sent = frame.value(&Channel::Bt, i).filter(|sent| sent.abs() < EXACT_MAX);
        if let Some(sent) = sent {
            assert!(point.bt_c.is_some_and(|back| (back - sent).abs() < 0.01), "{sent}");
        }
    }
    for duration_s in views.durations_s {
        assert!((0.0..1e13).contains(&duration_s), "{duration_s} s");
    }
    assert!(views.messages.len() >= 2 * frame.sample_count());
});

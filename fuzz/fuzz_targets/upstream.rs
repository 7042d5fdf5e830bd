//! Messages of upstream Sim-Corp's publishers, one in each line, stored in SQLite as they arrive. A
//! line begins with the kind of its message (`T` or `E`), and the time since the line before in
//! letters: `a` is a second, `b` two, `c` four.
#![no_main]
use std::sync::{LazyLock, Mutex};

use contract::envelope::PayloadKind;
use contract::{EpochMs, Origin};
use database::{Database, DatabaseConfig};
use ingestion::IngestStore;
use ingestion::dry_run::{FrameViews, UpstreamIngestion};
use tempfile::{TempDir, tempdir};
use tokio::runtime::Runtime;

const NOW: EpochMs = EpochMs(1_760_000_000_000);
/// After so many inputs a new database begins, so that it stays small.
const INPUTS_MAX: u32 = 1_000;

struct Cloud {
    runtime: Runtime,
    ingestion: UpstreamIngestion,
    inputs: u32,
    _folder: TempDir,
}

impl Cloud {
    fn open() -> Self {
        let (runtime, folder) = (fuzz::runtime(), tempdir().unwrap());
        let url = format!("sqlite:{}", folder.path().join("cloud.db").display());
        let config = DatabaseConfig { url: url.into(), ..DatabaseConfig::default() };
        let database = runtime.block_on(async {
            let database = Database::open(&config).await.unwrap();
            database.migrate_up().await.unwrap();
            database
        });
        let ingestion = UpstreamIngestion::new(IngestStore::new(database));
        Self { runtime, ingestion, inputs: 0, _folder: folder }
    }

    /// Returns the machine of the next input: one of its own, so that the input does not depend on
    /// those before.
    fn next_machine(&mut self) -> Origin {
        if self.inputs >= INPUTS_MAX {
            *self = Self::open();
        }
        self.inputs += 1;
        format!("org-{}/leipzig/r-1", self.inputs).parse().unwrap()
    }
}

fn check(views: &FrameViews) {
    for point in &views.points {
        let elapsed_s = point.elapsed_seconds;
        assert!((0.0..1e13).contains(&elapsed_s), "{elapsed_s} s");
        assert!(point.bt_c.is_none_or(f64::is_finite), "{:?}", point.bt_c);
    }
    for duration_s in &views.durations_s {
        assert!((0.0..1e13).contains(duration_s), "{duration_s} s");
    }
    for message in &views.messages {
        assert!(serde_json::from_str::<serde_json::Value>(message).is_ok(), "{message}");
    }
}

/// Parses a line: the kind of its message, the time since the line before, and the message.
fn parse(line: &str) -> Option<(PayloadKind, i64, &[u8])> {
    let (kind, wait, message) = match line.as_bytes() {
        [b'T', wait @ b'a'..=b'z', message @ ..] => (PayloadKind::Telemetry, wait, message),
        [b'E', wait @ b'a'..=b'z', message @ ..] => (PayloadKind::Event, wait, message),
        _ => return None,
    };
    Some((kind, 1_000_i64 << (wait - b'a'), message))
}

static CLOUD: LazyLock<Mutex<Cloud>> = LazyLock::new(|| Mutex::new(Cloud::open()));

libfuzzer_sys::fuzz_target!(|text: &str| {
    let mut cloud = CLOUD.lock().unwrap();
    let origin = cloud.next_machine();
    let mut now = NOW;
    for (kind, wait_ms, message) in text.lines().filter_map(parse) {
        now = now.plus_ms(wait_ms);
        let received = cloud.ingestion.receive(&origin, kind, message, now);
        if let Some(views) = cloud.runtime.block_on(received).unwrap() {
            check(&views);
        }
    }
});

//! The driver that replays a recorded roast at any speed.

use std::path::Path;

use contract::Channel;
use roast::recording::{FILE_BYTES_MAX, Recording};

use crate::{Driver, DriverError, ReadFuture, Reading};

pub struct Replay {
    recording: Recording,
    speed: f64,
    /// The next sample to play.
    next: usize,
}

impl Replay {
    /// Opens the recording; `speed` is in recorded seconds per second.
    ///
    /// # Errors
    /// When the file cannot be read, is too large or has no samples.
    pub fn open(file: &Path, speed: f64) -> Result<Self, DriverError> {
        let name = file.display().to_string();
        let unreadable = |problem: String| DriverError::Recording(name.clone(), problem);
        let size = std::fs::metadata(file).map_err(|e| unreadable(e.to_string()))?.len();
        if size > FILE_BYTES_MAX as u64 {
            return Err(unreadable("larger than 32 MB".to_owned()));
        }
        let bytes = std::fs::read(file).map_err(|e| unreadable(e.to_string()))?;
        let recording =
            roast::formats::read_bytes(&bytes).map_err(|e| unreadable(e.to_string()))?;
        if recording.samples.is_empty() {
            return Err(unreadable("it has no samples".to_owned()));
        }
        Ok(Self { recording, speed, next: 0 })
    }
}

impl Driver for Replay {
    /// Returns the newest sample that is due. At high speed the samples between two reads are
    /// skipped, as they would be with a real machine; their events are not skipped.
    fn read(&mut self, mono_ms: u64) -> ReadFuture<'_> {
        #[allow(clippy::cast_possible_truncation)] // recorded time, ms; a very late time saturates
        let due_ms = (mono_ms as f64 * self.speed) as i64;
        let samples = &self.recording.samples;
        let from = self.next;
        while self.next < samples.len() && samples[self.next].t_ms <= due_ms {
            self.next = self.next.saturating_add(1);
        }
        let answer = match self.next.checked_sub(1) {
            Some(_) if from == samples.len() => Err(DriverError::Ended),
            Some(i) => {
                let sample = samples[i];
                let played = from..self.next;
                let marks = self.recording.marks.iter().filter(|(_, at)| played.contains(at));
                Ok(Reading {
                    values: vec![
                        (Channel::Bt, sample.bt_c),
                        (Channel::Et, sample.et_c),
                        (Channel::Gas, sample.gas_pct),
                        (Channel::Fan, sample.fan_pct),
                    ],
                    events: marks.map(|(kind, _)| *kind).collect(),
                    ..Reading::default()
                })
            }
            None => Ok(Reading::default()),
        };
        Box::pin(std::future::ready(answer))
    }
}

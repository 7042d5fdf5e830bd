//! The rows that subscribers have not received yet.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{BEHIND_MAX, LiveRow};

/// The rows that subscribers may still read, the oldest first.
#[derive(Default)]
pub struct KeptRows {
    rows: VecDeque<Arc<LiveRow>>,
    bytes: usize,
}

impl KeptRows {
    /// Keeps a row. Drops the oldest of too many rows, and the largest ones of too large rows.
    pub fn push(&mut self, row: Arc<LiveRow>, bytes_max: usize) {
        self.bytes = self.bytes.saturating_add(row.row.memory());
        self.rows.push_back(row);
        while self.bytes > bytes_max || self.rows.len() > BEHIND_MAX {
            let index = if self.bytes > bytes_max {
                // The oldest of equal ones.
                let rows = self.rows.iter().enumerate().rev();
                rows.max_by_key(|(_, row)| row.row.memory()).map_or(0, |(index, _)| index)
            } else {
                0
            };
            let Some(dropped) = self.rows.remove(index) else { break };
            self.bytes = self.bytes.saturating_sub(dropped.row.memory());
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::row_json;
    use crate::store::{ArrivedFrame, FrameRow};

    /// Returns a row with so many samples.
    pub fn row(arrival: i64, samples: i32) -> Arc<LiveRow> {
        let frame = FrameRow {
            chain_no: 1,
            number: 1,
            machine_no: 1,
            arrival,
            boot: None,
            mono_ms: 0,
            first_seq: 0,
            t0_ms: 1_760_000_000_000,
            wall_ms: None,
            offsets_ms: (0..samples).collect(),
            values: Default::default(),
            extras: None,
            quality: None,
            trust: 0,
            received_ms: 0,
            published: None,
        };
        let arrived = ArrivedFrame {
            org_id: "acme".to_owned(),
            site_id: "leipzig".to_owned(),
            machine_id: "r-1".to_owned(),
            kid: String::new(),
            frame,
        };
        let row = row_json::committed_frame(arrived, &std::collections::HashMap::new()).unwrap();
        Arc::new(LiveRow { row, missing: Arc::from([]) })
    }

    #[test]
    fn large_rows_are_dropped_before_small_ones() {
        let mut kept = KeptRows::default();
        for arrival in 0..20 {
            kept.push(row(arrival, 10), 100_000);
            kept.push(row(1_000 + arrival, 4_096), 100_000);
            assert!(kept.bytes <= 100_000);
        }
        let small = kept.rows.iter().filter(|row| row.row.arrival < 1_000).count();
        assert_eq!(small, 20, "rows of another machine push none of them out");
        for arrival in 0..5_000 {
            kept.push(row(arrival, 1), usize::MAX);
        }
        assert_eq!(kept.rows.len(), BEHIND_MAX);
    }
}

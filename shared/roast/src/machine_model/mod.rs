//! The model of one machine: where its marks lie, learned from the marks of its earlier roasts.
//!
//! All learning is prequential: a roast is evaluated with the model of the roasts before it, and
//! then its marks are learned. Every parameter starts from a stated prior, so the first roast gets
//! a sensible result with a wide interval that states its true uncertainty.

pub(crate) mod calibration;
mod development;
mod learned_mean;
mod mark_line;
mod mark_offset;

use serde::{Deserialize, Serialize};

use crate::batch::{Batch, BatchOffsets};
use crate::rise_model::RiseModel;
use crate::roast_course::RoastCourse;

pub use development::DevelopmentShare;
pub use learned_mean::LearnedMean;
pub use mark_line::{LINE_CENTRE_S, MarkLine};
pub use mark_offset::MarkOffset;

/// The normal distribution's quantile, in standard deviations: 90 % lie within ± this.
pub const Z90: f64 = 1.645;
/// A mark's residual is limited to this, in deviations.
const SURPRISE_MAX: f64 = 2.0;
/// How fast old scatter is forgotten: it never weighs more than this many marks.
const SCATTER_MARKS_MAX: f64 = 25.0;

/// The model learned from one machine's earlier roasts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineModel {
    /// The number of roasts learned.
    pub roasts: u32,
    /// The line of dry end.
    pub dry_end: MarkLine,
    /// The line of first crack.
    pub first_crack: MarkLine,
    /// How first crack deviates from that line, by beans and batch size.
    #[serde(default)]
    pub habits: BatchOffsets,
    /// The line of second crack.
    pub second_crack: MarkLine,
    /// The share of development in a roast.
    #[serde(default)]
    pub development: DevelopmentShare,
    /// The line of DROP.
    pub drop: MarkLine,
    /// The time from first crack to its end.
    pub first_crack_lasts: LearnedMean,
    /// The time from second crack to its end.
    pub second_crack_lasts: LearnedMean,
    /// The time from DROP to cool beans.
    pub cooling_lasts: LearnedMean,
    /// The offset of the CHARGE mark from the bean curve's knee.
    pub charge_offset: MarkOffset,
    /// The offset of the turning point's mark from the lowest reading.
    pub tp_offset: MarkOffset,
    /// The offset of the DROP mark from the bean curve's knee.
    pub drop_offset: MarkOffset,
    /// The offset of the DROP mark from the moment the burner goes out.
    pub burner_offset: MarkOffset,
    /// The offset of the DROP mark from the exhaust curve's knee.
    #[serde(default)]
    pub exhaust_offset: MarkOffset,
    /// The usual course of a roast, for roasts whose beginning was not recorded.
    #[serde(default)]
    pub course: RoastCourse,
    /// The models of the next minute of BT and of ET.
    pub ahead: [RiseModel; 2],
}

impl Default for MachineModel {
    fn default() -> Self {
        Self {
            roasts: 0,
            dry_end: MarkLine::dry_end(),
            first_crack: MarkLine::first_crack(),
            habits: BatchOffsets::default(),
            second_crack: MarkLine::second_crack(),
            development: DevelopmentShare::default(),
            drop: MarkLine::drop(),
            first_crack_lasts: LearnedMean::prior(90.0, 30.0),
            second_crack_lasts: LearnedMean::prior(60.0, 40.0),
            cooling_lasts: LearnedMean::prior(240.0, 120.0),
            charge_offset: MarkOffset::default(),
            tp_offset: MarkOffset::default(),
            drop_offset: MarkOffset::default(),
            burner_offset: MarkOffset::default(),
            exhaust_offset: MarkOffset::default(),
            course: RoastCourse::default(),
            ahead: [RiseModel::default(), RiseModel::default()],
        }
    }
}

impl MachineModel {
    /// Returns the model for this batch: the machine's line of first crack, moved by the habits.
    #[must_use]
    pub fn for_batch(&self, batch: &Batch) -> Self {
        let mut expected = self.clone();
        // The scatter of marks is learned after the habits are subtracted, so it already includes
        // the uncertainty of the habits.
        expected.first_crack.shift(self.habits.offset_c(batch));
        expected
    }

    /// Learns a first crack of this batch at `t_s` after CHARGE and `bt_c`.
    pub fn learn_first_crack(&mut self, batch: &Batch, t_s: f64, bt_c: f64) {
        let habit = self.habits.offset_c(batch);
        self.habits.learn(batch, bt_c - self.first_crack.expected_c(t_s));
        self.first_crack.learn(t_s, bt_c - habit);
    }
}

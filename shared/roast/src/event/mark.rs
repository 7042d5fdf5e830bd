//! The marks that detection returns.

use contract::EventKind;
use serde::{Deserialize, Serialize};

/// The method that found a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// The bean temperature bent down.
    Break,
    /// The event happened during a gap in the data, anywhere in it.
    Gap,
    /// The burner went out with full air, and the bean curve confirmed the mark.
    Burner,
    /// The discharge door opened, and the bean curve confirmed the mark.
    Door,
    /// A scale measured the batch arrive or leave, and the bean curve confirmed the mark.
    Scale,
    /// The exhaust temperature bent down, and the bean curve confirmed the mark. Used if on this
    /// machine the exhaust is closer to people's marks than the bean curve.
    Exhaust,
    /// The roast ran already when tracking began; its CHARGE is estimated.
    BegunBefore,
    /// The reading was the lowest.
    Lowest,
    /// The temperature crossed the line learned for this machine. A revision of first crack also
    /// takes the usual share of development into account.
    Learned,
    /// The temperature crossed the default line, because this machine has no marks yet.
    Prior,
    /// The mark follows another mark after a delay learned from people's marks on this machine, or
    /// after the default delay.
    Lasting,
    /// The crack sensor counted several cracks.
    Acoustic,
    /// A machine or a person reported it.
    #[serde(rename = "told")]
    Reported,
}

impl Method {
    /// Returns the name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Break => "break",
            Self::Gap => "gap",
            Self::Burner => "burner",
            Self::Door => "door",
            Self::Scale => "scale",
            Self::Exhaust => "exhaust",
            Self::BegunBefore => "begun_before",
            Self::Lowest => "lowest",
            Self::Learned => "learned",
            Self::Prior => "prior",
            Self::Lasting => "lasting",
            Self::Acoustic => "acoustic",
            Self::Reported => "told",
        }
    }
}

/// One mark and its uncertainty.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DetectedMark {
    /// What happened.
    pub kind: EventKind,
    /// The time of the mark, ms of event time.
    pub at_ms: i64,
    /// The start of the 90 % interval, ms.
    pub from_ms: i64,
    /// The end of the 90 % interval, ms.
    pub to_ms: i64,
    /// The event time of the sample that made it known.
    pub known_ms: i64,
    /// Bean temperature at the mark, °C.
    pub bt_c: Option<f64>,
    /// Probability (0..1) that it happened within 30 s of `at_ms`.
    pub confidence: f64,
    /// The method that found it.
    pub method: Method,
    /// 0 at first; increases with each new estimate of the same mark.
    pub revision: u32,
    /// The time that the curve shows, without the correction learned from this machine's marks.
    pub curve_ms: i64,
}

impl DetectedMark {
    pub(crate) const fn reported(kind: EventKind, at_ms: i64, bt_c: Option<f64>) -> Self {
        Self {
            kind,
            at_ms,
            from_ms: at_ms,
            to_ms: at_ms,
            known_ms: at_ms,
            bt_c,
            confidence: 1.0,
            method: Method::Reported,
            revision: 0,
            curve_ms: at_ms,
        }
    }
}

/// A change of the known marks caused by a sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MarkChange {
    /// A new mark, or a new revision of one.
    Detected(DetectedMark),
    /// The mark was wrong: the beans were never in (CHARGE), or had left before it.
    Withdrawn(EventKind),
}

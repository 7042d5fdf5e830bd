//! Why the guard says no, in sentences.

/// Why something is not moved.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refused {
    #[error("the profile lets nothing be written to this machine")]
    Disabled,
    #[error("the profile has no control that is written so")]
    Unknown,
    #[error("{0} is moved at the machine alone")]
    Local(String),
    #[error("{control} goes from {low} to {high}, not to {value}")]
    Range { control: String, value: f64, low: f64, high: f64 },
    #[error("{control} moves by at most {most} at once, not by {step}")]
    Step { control: String, step: f64, most: f64 },
    #[error("{control} was moved just now; the next step is due in {wait_ms} ms")]
    Soon { control: String, wait_ms: u64 },
    #[error("{0} values were written within the hour, and the profile allows no more")]
    Worn(u32),
    #[error("{control} needs {need}, which does not hold or is not known")]
    Needs { control: String, need: String },
    #[error("the profile forbids {0}")]
    Forbidden(String),
    #[error("the machine is not read soundly: {0}")]
    Unsound(String),
    #[error("the machine did not follow when {0} was moved last; only less heat is written to it")]
    Unheeded(String),
    /// More is asked for than is looked at, it waited too long, or something newer took its place.
    #[error("the machine is busy")]
    Busy,
    #[error("it was not written: {0}")]
    Unsent(String),
    /// It was written, or may have been, and the machine did not say that it took it.
    #[error("the machine did not confirm it: {0}")]
    Unconfirmed(String),
}

//! The reasons for which a write is refused, as sentences.

/// Why a write to a control was refused, or is not confirmed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WriteError {
    #[error("the profile does not allow writes to this machine")]
    Disabled,
    #[error("the profile has no control for this write")]
    NoSuchControl,
    #[error("{0} is moved at the machine alone")]
    LocalOnly(String),
    #[error("{control} goes from {low} to {high}, not to {value}")]
    OutOfRange { control: String, value: f64, low: f64, high: f64 },
    #[error("{control} moves by at most {most} at once, not by {step}")]
    StepTooLarge { control: String, step: f64, most: f64 },
    #[error("{control} was moved just now; the next step is allowed in {wait_ms} ms")]
    TooSoon { control: String, wait_ms: u64 },
    #[error("{0} values were written within the hour, and the profile allows no more")]
    WriteBudgetSpent(u32),
    #[error("{control} needs {need}, which does not hold or is not known")]
    NeedNotMet { control: String, need: String },
    #[error("the profile forbids {0}")]
    Forbidden(String),
    #[error("the readings of the machine are not reliable: {0}")]
    ReadingsUnreliable(String),
    #[error("the machine did not follow when {0} was moved last; only less heat is written to it")]
    NotFollowed(String),
    /// The queue is full, the write waited too long, or a newer write replaced it.
    #[error("the machine is busy")]
    Busy,
    #[error("it was not written: {0}")]
    NotSent(String),
    /// The write was sent, or may have been, and the machine did not acknowledge it.
    #[error("the machine did not confirm it: {0}")]
    Unconfirmed(String),
}

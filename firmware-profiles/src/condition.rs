//! The conditions and steps that a profile writes as text: needs, forbid rules and safe-state
//! steps.

/// A comparison operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    Less,
    AtMost,
    AtLeast,
    More,
}

/// A condition that must hold.
#[derive(Debug, Clone, PartialEq)]
pub enum Condition {
    /// One of the profile's states holds.
    State(String),
    /// A channel is compared with a number: `drumRpm >= 20`.
    Compare { channel: String, operator: Operator, value: f64 },
}

impl Condition {
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split_ascii_whitespace().collect();
        match parts[..] {
            [state] if is_name(state) => Some(Self::State(state.to_owned())),
            [channel, operator, value] if is_name(channel) => {
                let operator = match operator {
                    "<" => Operator::Less,
                    "<=" => Operator::AtMost,
                    ">=" => Operator::AtLeast,
                    ">" => Operator::More,
                    _ => return None,
                };
                let value = value.parse().ok().filter(|v: &f64| v.is_finite())?;
                Some(Self::Compare { channel: channel.to_owned(), operator, value })
            }
            _ => None,
        }
    }
}

/// A step towards the safe state.
#[derive(Debug, Clone, PartialEq)]
pub enum SafeStep {
    Set {
        control: String,
        value: f64,
    },
    /// Sets the control to the largest value of its range.
    Max {
        control: String,
    },
    /// Sets the control to the smallest value of its range.
    Min {
        control: String,
    },
    /// Leaves the control as it is.
    Keep {
        control: String,
    },
}

impl SafeStep {
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (control, value) = text.split_once('=')?;
        let (control, value) = (control.trim(), value.trim());
        if !is_name(control) {
            return None;
        }
        let control = control.to_owned();
        Some(match value {
            "max" => Self::Max { control },
            "min" => Self::Min { control },
            "keep" => Self::Keep { control },
            number => {
                let value = number.parse().ok().filter(|v: &f64| v.is_finite())?;
                Self::Set { control, value }
            }
        })
    }

    #[must_use]
    pub fn control(&self) -> &str {
        match self {
            Self::Set { control, .. }
            | Self::Max { control }
            | Self::Min { control }
            | Self::Keep { control } => control,
        }
    }
}

/// A write that the profile forbids.
#[derive(Debug, Clone, PartialEq)]
pub struct ForbidRule {
    pub control: String,
    /// The forbidden value; `None` forbids all values.
    pub value: Option<f64>,
    pub condition: Option<Condition>,
}

impl ForbidRule {
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (what, while_) = match text.split_once(" while ") {
            Some((what, condition)) => (what, Some(Condition::parse(condition)?)),
            None => (text, None),
        };
        let (control, value) = match what.split_once('=') {
            Some((control, value)) => (control, Some(value.trim().parse().ok()?)),
            None => (what, None),
        };
        let control = control.trim();
        is_name(control).then(|| Self { control: control.to_owned(), value, condition: while_ })
    }
}

/// Returns whether the text is a valid name of a channel, state or control: letters, digits and
/// `_`.
pub fn is_name(text: &str) -> bool {
    (1..=32).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && !text.starts_with(|c: char| c.is_ascii_digit())
}

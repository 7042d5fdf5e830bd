//! Why a machine was not read: what happened on the wire, and what to try.

use std::io;

use protocols::modbus_answer::{AnswerError, Exception};

/// Why a machine was not read.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    #[error("cannot reach {0}: {1}")]
    Unreachable(String, io::Error),
    #[error("{0} accepts no connection within {1} ms")]
    NotAccepted(String, u64),
    /// Not one byte of an answer came.
    #[error("{0} does not answer within {1} ms")]
    Silent(String, u64),
    /// The peer closed the connection before a byte of the answer.
    #[error("{0} closed the connection before it answered")]
    Closed(String),
    /// The peer reset the connection before a byte of the answer.
    #[error("{0} reset the connection before it answered")]
    Reset(String),
    /// Bytes came in time, and they hold no message of the protocol.
    #[error("{0}: {1} bytes came within {2} ms, but no answer that can be read")]
    Unreadable(String, usize, u64),
    /// Bytes came that are not the answer.
    #[error("{0}: {1}")]
    Misunderstood(String, AnswerError),
    #[error("{0} answers with {1}")]
    Exception(String, Exception),
    /// The unit failed several times in a row, and its pause is not over.
    #[error("{0} is not polled until its next retry; its last failure: {1}")]
    Paused(String, String),
    #[error("{0}: {1}")]
    Protocol(String, String),
    /// The port was opened a moment ago, and the machine may still be starting.
    #[error("{0} was opened; reading starts in {1} ms, after the settling time")]
    Settling(String, u64),
    #[error("cannot read the recording {0}: {1}")]
    Recording(String, String),
    #[error("the profile {0}: {1}")]
    Profile(String, String),
    /// The recording has been played to its end; no more readings follow.
    #[error("the recording has ended")]
    Ended,
}

impl DriverError {
    /// Returns the error of a connection that broke while an answer was awaited. An end of file and
    /// a reset have variants of their own, since the texts of the system mislead.
    pub(crate) fn broken(name: String, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Closed(name),
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => Self::Reset(name),
            _ => Self::Unreachable(name, error),
        }
    }

    /// Returns the error of a machine of which `received` bytes came within the time limit, and no
    /// message.
    pub(crate) fn unanswered(name: String, received: usize, limit_ms: u64) -> Self {
        match received {
            0 => Self::Silent(name, limit_ms),
            _ => Self::Unreadable(name, received, limit_ms),
        }
    }

    /// Returns what to try at the machine; `None` where the error's text says it.
    #[must_use]
    pub fn advice(&self) -> Option<&'static str> {
        Some(match self {
            Self::Unreachable(_, error) => unreachable_advice(error.kind()),
            Self::NotAccepted(..) => {
                "check that the machine is switched on, its cable, and machine.profile.host"
            }
            Self::Silent(..) => {
                "check that the machine is switched on. Modbus: check the unit's number (station); \
                 on RS-485 swap A and B and check baud rate and parity; behind a serial server \
                 try the transport modbus-rtu-over-tcp. For a slow machine raise \
                 machine.profile.timeout_ms"
            }
            Self::Closed(_) | Self::Reset(_) => {
                "close other programs that use the machine, since many accept one connection only; \
                 check machine.profile.port and the transport of the profile"
            }
            Self::Unreadable(..) => {
                "check baud rate and parity, and that the profile is that of the machine's firmware"
            }
            Self::Misunderstood(_, error) => answer_advice(error),
            Self::Exception(_, exception) => exception_advice(*exception)?,
            Self::Paused(..)
            | Self::Protocol(..)
            | Self::Settling(..)
            | Self::Recording(..)
            | Self::Profile(..)
            | Self::Ended => return None,
        })
    }
}

const fn unreachable_advice(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::PermissionDenied => {
            "add the agent's user to the group of the line, usually: usermod -aG dialout USER"
        }
        io::ErrorKind::NotFound => {
            "check that the adapter is plugged in, and machine.profile.device or machine.profile.host"
        }
        io::ErrorKind::ConnectionRefused => {
            "check machine.profile.port, and that the machine's server is switched on"
        }
        _ => "check power and cable of the machine, and its address in machine.profile",
    }
}

const fn answer_advice(error: &AnswerError) -> &'static str {
    match error {
        AnswerError::OnlyEcho => {
            "the adapter returns what it sends, and the unit is silent: check the unit's number \
             (station), swap A and B, check baud rate and parity"
        }
        AnswerError::OtherUnit(_) => {
            "set station to the unit that answered, or remove the second device with this number"
        }
        AnswerError::OtherFunction(_) | AnswerError::OtherTransaction => {
            "close other programs that use the line; for a slow machine raise \
             machine.profile.timeout_ms"
        }
        AnswerError::Checksum | AnswerError::Noise(_) => {
            "check baud rate, parity and stop bits, the ground wire and the 120 Ω at both ends; \
             close other programs that use the line"
        }
        AnswerError::Short { .. } => {
            "raise machine.profile.timeout_ms, or lower block_max in the profile"
        }
        AnswerError::Count { .. } => {
            "lower block_max in the profile; for a slow machine raise machine.profile.timeout_ms"
        }
        AnswerError::RtuFrame => "use the transport modbus-rtu-over-tcp in the profile",
        AnswerError::TcpFrame => "use the transport modbus-tcp in the profile",
    }
}

const fn exception_advice(exception: Exception) -> Option<&'static str> {
    Some(match exception.0 {
        0x01 => "read another table: holding in place of input, or input in place of holding",
        0x02 | 0x03 => {
            "check the address in the profile: addresses begin at 0, so 40001 is `holding 0`; \
             lower block_max"
        }
        0x04 => "look for a fault that the machine shows, such as a broken probe",
        0x05 | 0x06 => "poll less often: raise poll_ms or min_gap_ms in the profile",
        0x0A => "check which units the gateway serves, and its serial port",
        0x0B => "check power and line of the unit behind the gateway, and its number (station)",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_on_the_wire_has_advice() {
        let name = || "10.0.0.5:502 unit 1".to_owned();
        let answers = [
            AnswerError::OnlyEcho,
            AnswerError::OtherUnit(2),
            AnswerError::OtherFunction(4),
            AnswerError::OtherTransaction,
            AnswerError::Checksum,
            AnswerError::Short { received: 3, expected: 9 },
            AnswerError::Count { received: 1, requested: 2 },
            AnswerError::RtuFrame,
            AnswerError::TcpFrame,
            AnswerError::Noise(3),
        ];
        let answers = answers.map(|error| DriverError::Misunderstood(name(), error));
        let exceptions = [1, 2, 3, 4, 5, 6, 0x0A, 0x0B];
        let exceptions = exceptions.map(|code| DriverError::Exception(name(), Exception(code)));
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let others = [
            DriverError::Unreachable(name(), refused),
            DriverError::NotAccepted(name(), 300),
            DriverError::Silent(name(), 300),
            DriverError::Unreadable(name(), 12, 300),
            DriverError::Closed(name()),
            DriverError::Reset(name()),
        ];
        for error in answers.into_iter().chain(exceptions).chain(others) {
            assert!(error.advice().is_some(), "{error}");
            assert!(error.to_string().contains(&name()), "{error}");
        }
    }

    #[test]
    fn an_exception_is_named() {
        let error = DriverError::Exception("plc unit 2".to_owned(), Exception(0x0B));
        let text =
            "plc unit 2 answers with exception 0x0B (gateway target device failed to respond)";
        assert_eq!(error.to_string(), text);
    }
}

//! Finds the answer to a Modbus request in the received bytes, and says why other bytes are not the
//! answer. Pure. A frame on a serial line has no number, so its unit, function and checksum identify
//! it; noise, another unit's frames and the echo of the request are skipped.

use std::fmt;
use std::ops::Range;

use crate::crc16;

/// The length of the header of Modbus TCP: transaction, protocol, length and unit.
const HEADER_BYTES: usize = 7;
/// The unit and the checksum of an RTU frame.
const RTU_FRAME_BYTES: usize = 3;

/// How requests and answers are framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Modbus TCP: a header with a transaction number and a length.
    Tcp,
    /// Modbus RTU: the unit before, a checksum behind; on a serial line or over TCP.
    Rtu,
}

/// Whether a line returns our own requests, as some RS-485 adapters do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Echo {
    /// No answer has shown it yet.
    #[default]
    Unknown,
    /// The line returns answers only.
    Absent,
    /// The line returns each request before the answer.
    Present,
}

/// The answer in the received bytes of an RTU line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RtuAnswer {
    /// The position of its frame.
    pub frame: Range<usize>,
    /// What this answer shows about the line.
    pub echo: Echo,
}

/// A Modbus exception code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exception(pub u8);

impl Exception {
    /// Returns the name of the exception in the Modbus application protocol.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self.0 {
            0x01 => "illegal function",
            0x02 => "illegal data address",
            0x03 => "illegal data value",
            0x04 => "server device failure",
            0x05 => "acknowledge",
            0x06 => "server device busy",
            0x08 => "memory parity error",
            0x0A => "gateway path unavailable",
            0x0B => "gateway target device failed to respond",
            _ => "not in the standard",
        }
    }

    /// Returns whether a gateway sent it in place of the unit, which did not answer.
    #[must_use]
    pub const fn is_of_gateway(self) -> bool {
        matches!(self.0, 0x0A | 0x0B)
    }

    /// Returns whether the unit may answer the same request later.
    #[must_use]
    pub const fn is_temporary(self) -> bool {
        matches!(self.0, 0x04..=0x06)
    }
}

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exception 0x{:02X} ({})", self.0, self.name())
    }
}

/// Why bytes that arrived are not the answer to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// The line returned the request, and nothing else came.
    #[error("only the echo of the request came back")]
    OnlyEcho,
    /// The answer names another unit.
    #[error("an answer came, but from unit {0}")]
    OtherUnit(u8),
    /// The answer names another function.
    #[error("an answer came, but to function {0:#04x}, which was not requested")]
    OtherFunction(u8),
    /// The transaction number is that of another request.
    #[error("an answer came, but to another request (its transaction number differs)")]
    OtherTransaction,
    /// The checksum of an RTU frame does not match its bytes.
    #[error("an answer came with a wrong checksum (CRC)")]
    Checksum,
    /// The answer is not complete.
    #[error("only {received} of {expected} bytes of the answer came")]
    Short {
        /// The bytes that came.
        received: usize,
        /// The length of a complete answer.
        expected: usize,
    },
    /// The answer has another number of values.
    #[error("an answer came with {received} values, and {requested} were requested")]
    Count {
        /// The values in the answer.
        received: usize,
        /// The values that the request asked for.
        requested: usize,
    },
    /// The peer uses RTU frames on a Modbus TCP connection.
    #[error("a Modbus RTU frame came in place of Modbus TCP")]
    RtuFrame,
    /// The peer uses Modbus TCP where RTU frames are expected.
    #[error("Modbus TCP came in place of a Modbus RTU frame")]
    TcpFrame,
    /// The bytes are no part of any answer.
    #[error("{0} bytes came that are not a Modbus answer")]
    Noise(usize),
}

/// Returns the answer to the RTU frame `request` in the bytes received since it was sent; `None`
/// while there is none.
///
/// The answer to functions 5, 6 and 22 repeats the request. Unless `echo` is [`Echo::Absent`], its
/// first copy counts as the echo, so that an echo never passes for an acknowledgement.
#[must_use]
pub fn find_rtu_answer(request: &[u8], received: &[u8], echo: Echo) -> Option<RtuAnswer> {
    let [unit, function, ..] = request else { return None };
    let (start, echo) = skip_echo(request, received, echo);
    let frame = (start..received.len()).find_map(|at| {
        let frame = rtu_frame(received, at)?;
        let is_ours = frame[0] == *unit && frame[1] & 0x7f == *function;
        is_ours.then(|| at..at.saturating_add(frame.len()))
    })?;
    Some(RtuAnswer { frame, echo })
}

/// Returns why the received bytes are not the answer to `request`; `None` if no byte came.
#[must_use]
pub fn explain(
    framing: Framing,
    request: &[u8],
    received: &[u8],
    echo: Echo,
) -> Option<AnswerError> {
    if received.is_empty() {
        return None;
    }
    Some(match framing {
        Framing::Tcp => explain_tcp(request, received),
        Framing::Rtu => explain_rtu(request, received, echo),
    })
}

/// Returns where the answer may begin, and what the bytes show about the line.
fn skip_echo(request: &[u8], received: &[u8], echo: Echo) -> (usize, Echo) {
    let answer_repeats_request = matches!(request.get(1), Some(5 | 6 | 22));
    if answer_repeats_request && echo == Echo::Absent {
        return (0, echo);
    }
    let found = received.windows(request.len().max(1)).position(|bytes| bytes == request);
    let start = found.map_or(0, |at| at.saturating_add(request.len()));
    match found {
        _ if answer_repeats_request => (start, echo),
        Some(_) => (start, Echo::Present),
        None => (start, Echo::Absent),
    }
}

/// Returns the frame of an answer that begins at `at`; `None` if it is not complete or its checksum
/// is wrong.
fn rtu_frame(received: &[u8], at: usize) -> Option<&[u8]> {
    let rest = received.get(at..)?;
    let length = match rest {
        [_, 1..=4, bytes, ..] => usize::from(*bytes).saturating_add(5),
        [_, 5 | 6 | 15 | 16, ..] => 8,
        [_, 22, ..] => 10,
        [_, 0x81..=0x98, ..] => 5,
        _ => return None,
    };
    let frame = rest.get(..length)?;
    let (body, sum) = frame.split_last_chunk::<2>()?;
    (crc16(body) == u16::from_le_bytes(*sum)).then_some(frame)
}

/// Returns the length of the PDU of the answer to a request, in bytes; `function` is the one in the
/// answer, which says whether it is an exception.
fn answer_pdu_bytes(request_pdu: &[u8], function: u8) -> usize {
    let count = match request_pdu {
        [_, _, _, high, low, ..] => usize::from(u16::from_be_bytes([*high, *low])),
        _ => 0,
    };
    match function {
        1 | 2 => count.div_ceil(8).saturating_add(2),
        3 | 4 => count.saturating_mul(2).saturating_add(2),
        22 => 7,
        0x80.. => 2,
        _ => 5,
    }
}

fn explain_rtu(request: &[u8], received: &[u8], echo: Echo) -> AnswerError {
    let (start, _) = skip_echo(request, received, echo);
    let rest = received.get(start..).unwrap_or_default();
    if rest.is_empty() {
        return AnswerError::OnlyEcho;
    }
    let noise = AnswerError::Noise(rest.len());
    let [unit, function, ..] = request else { return noise };
    if let Some(frame) = (0..rest.len()).find_map(|at| rtu_frame(rest, at)) {
        return match frame {
            [other, ..] if other != unit => AnswerError::OtherUnit(*other),
            [_, other, ..] if other & 0x7f != *function => AnswerError::OtherFunction(*other),
            _ => noise,
        };
    }
    // A transaction number, protocol 0, and a length that fits.
    if let [_, _, 0, 0, 0, length @ 2..=254, unit_of, ..] = rest
        && rest.len() == usize::from(*length).saturating_add(6)
        && unit_of == unit
    {
        return AnswerError::TcpFrame;
    }
    let begins = |bytes: &[u8]| matches!(bytes, [u, f] if u == unit && f & 0x7f == *function);
    let Some(at) = rest.windows(2).position(begins) else { return noise };
    let pdu = request.get(1..).unwrap_or_default();
    let answered = rest.get(at.saturating_add(1)).copied().unwrap_or(*function);
    let expected = answer_pdu_bytes(pdu, answered).saturating_add(RTU_FRAME_BYTES);
    let received = rest.len().saturating_sub(at);
    if received < expected {
        AnswerError::Short { received, expected }
    } else {
        AnswerError::Checksum
    }
}

fn explain_tcp(request: &[u8], received: &[u8]) -> AnswerError {
    let noise = AnswerError::Noise(received.len());
    if rtu_frame(received, 0).is_some_and(|frame| frame.len() == received.len()) {
        return AnswerError::RtuFrame;
    }
    let Some((asked, pdu)) = request.split_first_chunk::<HEADER_BYTES>() else { return noise };
    let Some(function) = pdu.first() else { return noise };
    let Some(header) = received.first_chunk::<HEADER_BYTES>() else {
        let expected = answer_pdu_bytes(pdu, *function).saturating_add(HEADER_BYTES);
        return AnswerError::Short { received: received.len(), expected };
    };
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    if header[2..4] != [0, 0] || !(2..=254).contains(&length) {
        return noise;
    }
    if header[..2] != asked[..2] {
        return AnswerError::OtherTransaction;
    }
    if header[6] != asked[6] {
        return AnswerError::OtherUnit(header[6]);
    }
    let expected = length.saturating_add(HEADER_BYTES - 1);
    if received.len() < expected {
        return AnswerError::Short { received: received.len(), expected };
    }
    match received.get(HEADER_BYTES) {
        Some(other) if other & 0x7f != *function => AnswerError::OtherFunction(*other),
        _ => noise,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads two holding registers of unit 1.
    const READ: [u8; 6] = [1, 3, 0, 0, 0, 2];
    /// Writes 0 to holding register 40 of unit 1; the acknowledgement has the same bytes.
    const WRITE: [u8; 6] = [1, 6, 0, 40, 0, 0];

    fn rtu(body: &[u8]) -> Vec<u8> {
        [body, &crc16(body).to_le_bytes()].concat()
    }

    fn tcp(transaction: u8, unit: u8, pdu: &[u8]) -> Vec<u8> {
        let length = u8::try_from(pdu.len() + 1).unwrap();
        [&[0, transaction, 0, 0, 0, length, unit][..], pdu].concat()
    }

    fn found(request: &[u8], received: &[u8], echo: Echo) -> Option<(Vec<u8>, Echo)> {
        let answer = find_rtu_answer(request, received, echo)?;
        Some((received[answer.frame].to_vec(), answer.echo))
    }

    #[test]
    fn an_answer_is_found_behind_an_echo_noise_and_another_units_frame() {
        let (request, answer) = (rtu(&READ), rtu(&[1, 3, 4, 7, 8, 0, 5]));
        let other = rtu(&[9, 3, 4, 7, 8, 0, 5]);
        for before in [&[0_u8; 0][..], &[0], &[0xff, 1, 3], &other] {
            let received = [before, &answer].concat();
            let expected = Some((answer.clone(), Echo::Absent));
            assert_eq!(found(&request, &received, Echo::Unknown), expected, "{before:x?}");
            let received = [before, &request, &answer].concat();
            let expected = Some((answer.clone(), Echo::Present));
            assert_eq!(found(&request, &received, Echo::Unknown), expected, "{before:x?}");
        }
        for cut in 0..request.len() + answer.len() {
            let received = &[&request[..], &answer].concat()[..cut];
            assert_eq!(found(&request, received, Echo::Present), None, "{cut}");
        }
        let exception = rtu(&[1, 0x83, 2]);
        assert_eq!(found(&request, &exception, Echo::Absent), Some((exception, Echo::Absent)));
    }

    #[test]
    fn the_echo_of_a_write_is_not_its_acknowledgement() {
        let write = rtu(&WRITE);
        let twice = write.repeat(2);
        assert_eq!(found(&write, &write, Echo::Present), None);
        assert_eq!(found(&write, &write, Echo::Unknown), None, "it may be either");
        assert_eq!(found(&write, &twice, Echo::Present), Some((write.clone(), Echo::Present)));
        assert_eq!(found(&write, &write, Echo::Absent), Some((write.clone(), Echo::Absent)));
        // The acknowledgement of function 16 is shorter than its request.
        let write = rtu(&[1, 16, 0, 40, 0, 1, 2, 0, 0]);
        let acknowledgement = rtu(&[1, 16, 0, 40, 0, 1]);
        assert_eq!(found(&write, &write, Echo::Unknown), None);
        let both = [&write[..], &acknowledgement].concat();
        assert_eq!(found(&write, &both, Echo::Unknown), Some((acknowledgement, Echo::Present)));
    }

    #[test]
    fn other_bytes_on_a_serial_line_are_explained() {
        let request = rtu(&READ);
        let mut damaged = rtu(&[1, 3, 4, 7, 8, 0, 5]);
        damaged[4] ^= 1;
        for (received, expected) in [
            (vec![], None),
            (request.clone(), Some(AnswerError::OnlyEcho)),
            (rtu(&[9, 3, 4, 7, 8, 0, 5]), Some(AnswerError::OtherUnit(9))),
            (rtu(&[1, 4, 4, 7, 8, 0, 5]), Some(AnswerError::OtherFunction(4))),
            (damaged, Some(AnswerError::Checksum)),
            (vec![1, 3, 4, 7], Some(AnswerError::Short { received: 4, expected: 9 })),
            (vec![1, 0x83, 2], Some(AnswerError::Short { received: 3, expected: 5 })),
            (vec![0xff, 0xfe, 0xff], Some(AnswerError::Noise(3))),
            (tcp(1, 1, &[3, 4, 7, 8, 0, 5]), Some(AnswerError::TcpFrame)),
        ] {
            let found = explain(Framing::Rtu, &request, &received, Echo::Unknown);
            assert_eq!(found, expected, "{received:x?}");
        }
    }

    #[test]
    fn other_bytes_on_a_tcp_connection_are_explained() {
        let request = tcp(7, 1, &READ[1..]);
        for (received, expected) in [
            (vec![], None),
            (tcp(6, 1, &[3, 4, 7, 8, 0, 5]), Some(AnswerError::OtherTransaction)),
            (tcp(7, 255, &[3, 4, 7, 8, 0, 5]), Some(AnswerError::OtherUnit(255))),
            (tcp(7, 1, &[4, 4, 7, 8, 0, 5]), Some(AnswerError::OtherFunction(4))),
            (vec![0, 7, 0], Some(AnswerError::Short { received: 3, expected: 13 })),
            (
                tcp(7, 1, &[3, 4, 7, 8, 0, 5])[..10].to_vec(),
                Some(AnswerError::Short { received: 10, expected: 13 }),
            ),
            (b"HTTP/1.1 400".to_vec(), Some(AnswerError::Noise(12))),
            (rtu(&[1, 3, 4, 7, 8, 0, 5]), Some(AnswerError::RtuFrame)),
        ] {
            let found = explain(Framing::Tcp, &request, &received, Echo::Unknown);
            assert_eq!(found, expected, "{received:x?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_searched_and_explained(
            request in proptest::collection::vec(any::<u8>(), 0..16),
            received in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            for echo in [Echo::Unknown, Echo::Absent, Echo::Present] {
                if let Some(answer) = find_rtu_answer(&request, &received, echo) {
                    prop_assert!(answer.frame.end <= received.len());
                }
                for framing in [Framing::Tcp, Framing::Rtu] {
                    let explained = explain(framing, &request, &received, echo);
                    prop_assert_eq!(explained.is_none(), received.is_empty());
                }
            }
        }
    }
}

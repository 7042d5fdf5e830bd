//! Checks Modbus TCP requests before a decoder sees them: their length, and that the numbers in
//! them fit each other. The limits are those of the Modbus application protocol V1.1b3, section 6.

/// The length of the header: transaction, protocol, length and unit.
const HEADER_BYTES: usize = 7;
/// The longest request, with its header, in bytes.
pub const REQUEST_BYTES_MAX: usize = HEADER_BYTES + PDU_BYTES_MAX;
const PDU_BYTES_MAX: usize = 253;

/// Why bytes are not a Modbus TCP request; the connection must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRequest {
    /// The protocol number is not 0: another protocol is spoken on this port.
    #[error("not Modbus TCP")]
    Protocol,
    /// The length field is outside its bounds.
    #[error("a length of {0}, which no Modbus request has")]
    Length(u16),
    /// The request's length or quantity does not fit its function.
    #[error("function {function:#04x} with a length or quantity that does not fit")]
    Form {
        /// The function code.
        function: u8,
    },
}

/// Returns the length of the first request in `bytes`, in bytes with its header; `None` if it is
/// not complete yet.
///
/// # Errors
/// When the bytes cannot become a request.
pub fn first_request(bytes: &[u8]) -> Result<Option<usize>, InvalidRequest> {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    if header[2..4] != [0, 0] {
        return Err(InvalidRequest::Protocol);
    }
    // It counts the unit and the PDU.
    let length = u16::from_be_bytes([header[4], header[5]]);
    let pdu_bytes = usize::from(length).wrapping_sub(1);
    if !(1..=PDU_BYTES_MAX).contains(&pdu_bytes) {
        return Err(InvalidRequest::Length(length));
    }
    let end = pdu_bytes.saturating_add(HEADER_BYTES);
    let Some(pdu) = bytes.get(HEADER_BYTES..end) else { return Ok(None) };
    if is_well_formed(pdu) {
        return Ok(Some(end));
    }
    Err(InvalidRequest::Form { function: pdu[0] })
}

/// Returns whether the request's length and quantities fit its function. A function that this
/// product does not serve may have any content: it gets an exception.
fn is_well_formed(pdu: &[u8]) -> bool {
    let word = |at: usize| match pdu.get(at..) {
        Some(&[high, low, ..]) => usize::from(u16::from_be_bytes([high, low])),
        _ => 0, // which no quantity may be
    };
    let has_after = |head: usize, bytes: usize| pdu.len().checked_sub(head) == Some(bytes);
    let byte = |at: usize| pdu.get(at).map_or(0, |byte| usize::from(*byte));
    match pdu[0] {
        0x01 | 0x02 => pdu.len() == 5 && (1..=2_000).contains(&word(3)),
        0x03 | 0x04 => pdu.len() == 5 && (1..=125).contains(&word(3)),
        0x05 => pdu.len() == 5 && [0, 0xff00].contains(&word(3)),
        0x06 => pdu.len() == 5,
        0x0f => {
            let (bits, bytes) = (word(3), byte(5));
            (1..=1_968).contains(&bits) && bytes == bits.div_ceil(8) && has_after(6, bytes)
        }
        0x10 => {
            let (words, bytes) = (word(3), byte(5));
            (1..=123).contains(&words)
                && bytes / 2 == words
                && bytes % 2 == 0
                && has_after(6, bytes)
        }
        0x11 => pdu.len() == 1,
        0x16 => pdu.len() == 7,
        0x17 => {
            let (read, written, bytes) = (word(3), word(7), byte(9));
            (1..=125).contains(&read)
                && (1..=121).contains(&written)
                && bytes / 2 == written
                && bytes % 2 == 0
                && has_after(10, bytes)
        }
        0x2b => pdu.len() == 4,
        function => function < 0x80,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(pdu: &[u8]) -> Vec<u8> {
        let length = u8::try_from(pdu.len() + 1).unwrap();
        [&[0, 9, 0, 0, 0, length, 1][..], pdu].concat()
    }

    #[test]
    fn a_request_is_complete_when_all_its_bytes_are_there() {
        let read = request(&[3, 0, 2, 0, 1]);
        for cut in 0..read.len() {
            assert_eq!(first_request(&read[..cut]), Ok(None), "{cut}");
        }
        assert_eq!(first_request(&read), Ok(Some(12)));
        let two = [read.clone(), read].concat();
        assert_eq!(first_request(&two), Ok(Some(12)), "the second one waits");
    }

    #[test]
    fn quantities_outside_the_limits_of_their_function_are_refused() {
        for pdu in [
            &[0x0f, 0, 0, 0xff, 0xff, 1, 0][..], // 65,535 coils in one byte
            &[0x10, 0, 0, 0x80, 0, 0],           // 2 · 32,768 does not fit 16 bits
            &[0x17, 0, 0, 0, 1, 0, 0, 0x80, 0, 0],
            &[0x10, 0, 0, 0, 2, 4, 0, 1],
            &[3, 0, 0, 0, 0],
            &[3, 0, 0, 0, 126],
            &[1, 0, 0, 0x7, 0xd1],
            &[5, 0, 0, 0x12, 0x34],
            &[6, 0, 0],
            &[0x83, 2],
        ] {
            let expected = Err(InvalidRequest::Form { function: pdu[0] });
            assert_eq!(first_request(&request(pdu)), expected, "{pdu:x?}");
        }
        for pdu in [
            &[0x0f, 0, 0, 0, 9, 2, 0xff, 1][..],
            &[0x10, 0, 0, 0, 2, 4, 0, 1, 0, 2],
            &[0x16, 0, 4, 0, 0xf2, 0, 0x25],
            &[0x17, 0, 0, 0, 1, 0, 0, 0, 1, 2, 0, 7],
            &[0x2b, 0x0e, 1, 0],
            &[0x55, 1, 2, 3],
        ] {
            assert_eq!(first_request(&request(pdu)), Ok(Some(pdu.len() + 7)), "{pdu:x?}");
        }
    }

    #[test]
    fn another_protocol_and_an_impossible_length_are_refused() {
        assert_eq!(first_request(b"GET / HTTP/1.1\r\n"), Err(InvalidRequest::Protocol));
        for (length, text) in [(0_u16, 0), (1, 1), (255, 255), (65_535, 65_535)] {
            let bytes = [&[0, 1, 0, 0][..], &length.to_be_bytes(), &[1, 3]].concat();
            assert_eq!(first_request(&bytes), Err(InvalidRequest::Length(text)));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_end_the_check(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(Some(length)) = first_request(&bytes) {
                prop_assert!((8..=REQUEST_BYTES_MAX.min(bytes.len())).contains(&length));
            }
        }
    }
}

//! Siemens S7: ISO on TCP (RFC 1006) with the few messages that a roaster needs: connect, negotiate
//! the message size, read variables, write one variable. Implements both sides, since the emulator
//! answers the driver's requests.

/// The largest message that the client requests, in bytes; the controller may choose less.
pub const PDU_BYTES: u16 = 480;
/// The most variables in one request.
pub const ITEMS_MAX: usize = 16;
const TPKT_BYTES: usize = 4;
const MESSAGE_BYTES_MAX: usize = 1024;
/// The parameters of a connection request.
const LOCAL_TSAP: u8 = 0xc1;
const REMOTE_TSAP: u8 = 0xc2;

/// Why an answer is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum S7Error {
    #[error("not an S7 message: {0}")]
    Malformed(&'static str),
    #[error("the controller refuses: class {class:#04x}, code {code:#04x}")]
    Rejected { class: u8, code: u8 },
    /// The result code of a write: 0x03 not allowed, 0x05 no such address, 0x06 wrong type, 0x0a no
    /// such block.
    #[error("the controller does not take the value: code {0:#04x}")]
    WriteRejected(u8),
    #[error("the answer is to another request")]
    OtherRequest,
}

/// Consecutive bytes of one area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// 0x81 inputs, 0x82 outputs, 0x83 flags, 0x84 data block.
    pub area: u8,
    /// The number of the data block; 0 for the other areas.
    pub block: u16,
    pub byte: u16,
    pub bytes: u16,
}

/// Encodes the connection request of the client at the TSAP `local` to the controller at `remote`.
#[must_use]
pub fn connect(local: [u8; 2], remote: [u8; 2]) -> Vec<u8> {
    let parts: [&[u8]; 6] = [
        &[0x11, 0xe0, 0x00, 0x00, 0x00, 0x01, 0x00], // connection request, class 0
        &[0xc0, 0x01, 0x0a],                         // 1024 bytes per packet
        &[LOCAL_TSAP, 0x02],
        &local,
        &[REMOTE_TSAP, 0x02],
        &remote,
    ];
    tpkt_frame(&parts.concat())
}

/// Encodes the request for the message size.
#[must_use]
pub fn setup(reference: u16) -> Vec<u8> {
    let [high, low] = PDU_BYTES.to_be_bytes();
    request_message(reference, &[0xf0, 0x00, 0x00, 0x01, 0x00, 0x01, high, low], &[])
}

/// Encodes a read of `items`, at most [`ITEMS_MAX`].
#[must_use]
pub fn read(reference: u16, items: &[Item]) -> Vec<u8> {
    let items = &items[..items.len().min(ITEMS_MAX)];
    #[allow(clippy::cast_possible_truncation)] // at most ITEMS_MAX
    let mut parameters = vec![0x04, items.len() as u8];
    for item in items {
        push_item(&mut parameters, *item, None);
    }
    request_message(reference, &parameters, &[])
}

/// Encodes one write: the bytes of `item`, or with `bit` only that bit of its byte (0 or 1).
#[must_use]
pub fn write(reference: u16, item: Item, bit: Option<u8>, bytes: &[u8]) -> Vec<u8> {
    let mut parameters = vec![0x05, 0x01];
    push_item(&mut parameters, item, bit);
    // The length is in bits: 8 for each byte, 1 for a single bit.
    let kind = if bit.is_some() { 0x03 } else { 0x04 };
    let length = if bit.is_some() { 1 } else { item.bytes.saturating_mul(8) };
    let mut data = vec![0x00, kind];
    data.extend_from_slice(&length.to_be_bytes());
    data.extend_from_slice(bytes);
    request_message(reference, &parameters, &data)
}

fn push_item(parameters: &mut Vec<u8>, item: Item, bit: Option<u8>) {
    let kind = if bit.is_some() { 0x01 } else { 0x02 };
    parameters.extend_from_slice(&[0x12, 0x0a, 0x10, kind]);
    parameters.extend_from_slice(&item.bytes.to_be_bytes());
    parameters.extend_from_slice(&item.block.to_be_bytes());
    parameters.push(item.area);
    let address = (u32::from(item.byte) << 3) | u32::from(bit.unwrap_or(0) & 7);
    parameters.extend_from_slice(&address.to_be_bytes()[1..]);
}

fn request_message(reference: u16, parameters: &[u8], data: &[u8]) -> Vec<u8> {
    message(0x01, reference, None, parameters, data)
}

#[allow(clippy::cast_possible_truncation)] // callers keep messages below MESSAGE_BYTES_MAX
fn message(
    kind: u8,
    reference: u16,
    error: Option<[u8; 2]>,
    parameters: &[u8],
    data: &[u8],
) -> Vec<u8> {
    let mut text = vec![0x02, 0xf0, 0x80, 0x32, kind, 0x00, 0x00];
    text.extend_from_slice(&reference.to_be_bytes());
    text.extend_from_slice(&(parameters.len() as u16).to_be_bytes());
    text.extend_from_slice(&(data.len() as u16).to_be_bytes());
    text.extend_from_slice(&error.unwrap_or_default()[..error.map_or(0, |e| e.len())]);
    text.extend_from_slice(parameters);
    text.extend_from_slice(data);
    tpkt_frame(&text)
}

fn tpkt_frame(text: &[u8]) -> Vec<u8> {
    #[allow(clippy::cast_possible_truncation)] // below MESSAGE_BYTES_MAX
    let length = text.len().saturating_add(TPKT_BYTES) as u16;
    let mut bytes = vec![0x03, 0x00];
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(text);
    bytes
}

/// Returns the full length of the message that begins with these four bytes.
///
/// # Errors
/// When no message begins with these bytes.
pub fn message_length(head: [u8; TPKT_BYTES]) -> Result<usize, S7Error> {
    let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
    if head[0] != 0x03 || !(TPKT_BYTES + 3..=MESSAGE_BYTES_MAX).contains(&length) {
        return Err(S7Error::Malformed("no packet begins here"));
    }
    Ok(length)
}

/// Checks that the controller accepted the connection. `text` is the message without its first four
/// bytes, here and below.
///
/// # Errors
/// When the controller did not accept the connection.
pub fn parse_connect_answer(text: &[u8]) -> Result<(), S7Error> {
    match text.get(1) {
        Some(0xd0) => Ok(()),
        _ => Err(S7Error::Malformed(
            "the controller does not accept the connection; check rack and slot, or the TSAPs",
        )),
    }
}

/// Returns the negotiated message size, in bytes.
///
/// # Errors
/// When the answer is none, to another request, or a refusal.
pub fn parse_setup_answer(text: &[u8], reference: u16) -> Result<u16, S7Error> {
    let (parameters, _) = answer(text, reference)?;
    match parameters {
        [0xf0, _, _, _, _, _, high, low] => Ok(u16::from_be_bytes([*high, *low])),
        _ => Err(S7Error::Malformed("the answer to the set-up has another form")),
    }
}

/// Returns the bytes of each item; `None` for an item that the controller does not have.
///
/// # Errors
/// When the answer is malformed, belongs to another request, is a refusal, or does not have the
/// requested items.
pub fn parse_read_answer(
    text: &[u8],
    reference: u16,
    items: &[Item],
) -> Result<Vec<Option<Vec<u8>>>, S7Error> {
    let (parameters, mut data) = answer(text, reference)?;
    if parameters.first() != Some(&0x04)
        || parameters.get(1).map(|n| usize::from(*n)) != Some(items.len())
    {
        return Err(S7Error::Malformed("the answer has other variables than were asked for"));
    }
    let short = S7Error::Malformed("the answer ends too early");
    let mut values = Vec::with_capacity(items.len());
    for item in items {
        let head = data.first_chunk::<4>().ok_or(short.clone())?;
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        if head[0] != 0xff {
            data = &data[4..];
            values.push(None);
            continue;
        }
        // For transport sizes 3, 4 and 5 the length is in bits.
        let length = if matches!(head[1], 0x03..=0x05) { length.div_ceil(8) } else { length };
        let bytes = data[4..].get(..length).ok_or(short.clone())?;
        if length != usize::from(item.bytes) {
            return Err(S7Error::Malformed("a variable has another length than was asked for"));
        }
        values.push(Some(bytes.to_vec()));
        // All items except the last are padded to an even length.
        let is_last = values.len() == items.len();
        let padded = if is_last { length } else { length.next_multiple_of(2) };
        data = data[4..].get(padded..).ok_or(short.clone())?;
    }
    Ok(values)
}

/// Checks that the controller acknowledged the write.
///
/// # Errors
/// When the answer is none, to another request, or a refusal.
pub fn parse_write_answer(text: &[u8], reference: u16) -> Result<(), S7Error> {
    match answer(text, reference)? {
        ([0x05, 0x01], [0xff]) => Ok(()),
        ([0x05, 0x01], [code]) => Err(S7Error::WriteRejected(*code)),
        _ => Err(S7Error::Malformed("not the answer to a write")),
    }
}

/// Returns the parameters and data of an answer.
fn answer(text: &[u8], reference: u16) -> Result<(&[u8], &[u8]), S7Error> {
    let header = text.get(3..15).ok_or(S7Error::Malformed("too short"))?;
    if text[..2] != [0x02, 0xf0] || header[0] != 0x32 || !matches!(header[1], 0x02 | 0x03) {
        return Err(S7Error::Malformed("not an answer"));
    }
    if u16::from_be_bytes([header[4], header[5]]) != reference {
        return Err(S7Error::OtherRequest);
    }
    if header[10..12] != [0, 0] {
        return Err(S7Error::Rejected { class: header[10], code: header[11] });
    }
    split(header, &text[15..])
}

fn split<'t>(header: &[u8], rest: &'t [u8]) -> Result<(&'t [u8], &'t [u8]), S7Error> {
    let short = S7Error::Malformed("the answer ends too early");
    let parameters = usize::from(u16::from_be_bytes([header[6], header[7]]));
    let data = usize::from(u16::from_be_bytes([header[8], header[9]]));
    let (parameters, rest) = rest.split_at_checked(parameters).ok_or(short.clone())?;
    Ok((parameters, rest.get(..data).ok_or(short)?))
}

/// A request to the controller. A TSAP is `None` when it is missing or not of two bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Connect { local: Option<[u8; 2]>, remote: Option<[u8; 2]> },
    Setup { reference: u16 },
    Read { reference: u16, items: Vec<Item> },
    Write { reference: u16, item: Item, bit: Option<u8>, bytes: Vec<u8> },
}

/// Decodes a request, on the controller's side.
///
/// # Errors
/// When it is not one of the four requests.
pub fn parse_request(text: &[u8]) -> Result<Request, S7Error> {
    if text.get(1) == Some(&0xe0) {
        let (local, remote) = (tsap(text, LOCAL_TSAP), tsap(text, REMOTE_TSAP));
        return Ok(Request::Connect { local, remote });
    }
    let header = text.get(3..13).ok_or(S7Error::Malformed("too short"))?;
    if header[..2] != [0x32, 0x01] {
        return Err(S7Error::Malformed("not a request"));
    }
    let reference = u16::from_be_bytes([header[4], header[5]]);
    let (parameters, data) = split(header, &text[13..])?;
    match parameters {
        [0xf0, ..] => Ok(Request::Setup { reference }),
        [0x04, _, rest @ ..] => {
            let items = rest.as_chunks().0.iter().map(parse_item);
            Ok(Request::Read { reference, items: items.take(ITEMS_MAX).collect() })
        }
        [0x05, 0x01, rest @ ..] => {
            let item = rest.first_chunk().ok_or(S7Error::Malformed("a write of nothing"))?;
            let bit = (item[3] == 0x01).then_some(item[11] & 7);
            let item = parse_item(item);
            match data {
                [_, 0x03, 0, 1, value] if bit.is_some() => {
                    Ok(Request::Write { reference, item, bit, bytes: vec![*value] })
                }
                [_, 0x04, high, low, bytes @ ..]
                    if bit.is_none()
                        && usize::from(item.bytes) == bytes.len()
                        && usize::from(u16::from_be_bytes([*high, *low]))
                            == bytes.len().saturating_mul(8) =>
                {
                    Ok(Request::Write { reference, item, bit, bytes: bytes.to_vec() })
                }
                _ => Err(S7Error::Malformed("a write whose value has another length")),
            }
        }
        _ => Err(S7Error::Malformed("neither a set-up, a read nor a write")),
    }
}

/// Returns a TSAP of a connection request.
fn tsap(text: &[u8], parameter: u8) -> Option<[u8; 2]> {
    let mut rest = text.get(7..)?;
    while let [found, length, after @ ..] = rest {
        let (value, next) = after.split_at_checked(usize::from(*length))?;
        if *found == parameter {
            return value.try_into().ok();
        }
        rest = next;
    }
    None
}

fn parse_item(item: &[u8; 12]) -> Item {
    Item {
        bytes: u16::from_be_bytes([item[4], item[5]]),
        block: u16::from_be_bytes([item[6], item[7]]),
        area: item[8],
        // A 24-bit address in bits can exceed 65,535 bytes; no item lies there.
        byte: u16::try_from(u32::from_be_bytes([0, item[9], item[10], item[11]]) >> 3)
            .unwrap_or(u16::MAX),
    }
}

/// Encodes the answer to a connection request, on the controller's side; so do the functions below
/// for the other requests.
#[must_use]
pub fn answer_connect() -> Vec<u8> {
    tpkt_frame(&[0x06, 0xd0, 0x00, 0x01, 0x00, 0x01, 0x00])
}

/// Encodes the refusal of a connection request.
#[must_use]
pub fn refuse_connect() -> Vec<u8> {
    tpkt_frame(&[0x06, 0x80, 0x00, 0x01, 0x00, 0x00, 0x00])
}

#[must_use]
pub fn answer_setup(reference: u16) -> Vec<u8> {
    let [high, low] = PDU_BYTES.to_be_bytes();
    message(0x03, reference, Some([0, 0]), &[0xf0, 0, 0, 1, 0, 1, high, low], &[])
}

#[must_use]
#[allow(clippy::cast_possible_truncation)] // items are few and small
pub fn answer_read(reference: u16, values: &[Option<Vec<u8>>]) -> Vec<u8> {
    let mut data = Vec::new();
    let mut values_left = values.len();
    for value in values {
        values_left = values_left.saturating_sub(1);
        let Some(bytes) = value else {
            data.extend_from_slice(&[0x0a, 0x00, 0x00, 0x00]);
            continue;
        };
        data.extend_from_slice(&[0xff, 0x04]);
        data.extend_from_slice(&(bytes.len().saturating_mul(8) as u16).to_be_bytes());
        data.extend_from_slice(bytes);
        if values_left > 0 && bytes.len() % 2 == 1 {
            data.push(0);
        }
    }
    message(0x03, reference, Some([0, 0]), &[0x04, values.len() as u8], &data)
}

/// Encodes the answer to a write; `code` 0xff acknowledges it.
#[must_use]
pub fn answer_write(reference: u16, code: u8) -> Vec<u8> {
    message(0x03, reference, Some([0, 0]), &[0x05, 0x01], &[code])
}

#[must_use]
pub fn answer_error(reference: u16, class: u8, code: u8) -> Vec<u8> {
    message(0x03, reference, Some([class, code]), &[], &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    const ITEMS: [Item; 3] = [
        Item { area: 0x84, block: 3, byte: 112, bytes: 4 },
        Item { area: 0x84, block: 2, byte: 82, bytes: 1 },
        Item { area: 0x83, block: 0, byte: 40, bytes: 2 },
    ];

    #[test]
    fn read_setup_and_connect_messages_round_trip() {
        let request = read(7, &ITEMS);
        assert_eq!(message_length(*request.first_chunk().unwrap()), Ok(request.len()));
        let expected = Request::Read { reference: 7, items: ITEMS.to_vec() };
        assert_eq!(parse_request(&request[4..]), Ok(expected));
        let held = vec![Some(vec![0x43, 0x36, 0, 0]), Some(vec![1]), None];
        let answer = answer_read(7, &held);
        assert_eq!(parse_read_answer(&answer[4..], 7, &ITEMS), Ok(held));
        assert_eq!(parse_read_answer(&answer[4..], 8, &ITEMS), Err(S7Error::OtherRequest));
        assert_eq!(parse_setup_answer(&answer_setup(1)[4..], 1), Ok(PDU_BYTES));
        assert_eq!(parse_connect_answer(&answer_connect()[4..]), Ok(()));
        assert_eq!(
            parse_read_answer(&answer_error(7, 0x85, 0)[4..], 7, &ITEMS),
            Err(S7Error::Rejected { class: 0x85, code: 0 })
        );
    }

    #[test]
    fn a_connection_request_names_both_tsaps() {
        let request = connect([0x02, 0x00], [0x01, 0x0a]);
        assert_eq!(
            request[11..],
            [0xc0, 0x01, 0x0a, 0xc1, 0x02, 0x02, 0x00, 0xc2, 0x02, 0x01, 0x0a],
            "the parameters after the header of 11 bytes"
        );
        assert_eq!(message_length(*request.first_chunk().unwrap()), Ok(request.len()));
        let (local, remote) = (Some([0x02, 0x00]), Some([0x01, 0x0a]));
        assert_eq!(parse_request(&request[4..]), Ok(Request::Connect { local, remote }));
        let short = Request::Connect { local, remote: None };
        assert_eq!(parse_request(&request[4..request.len() - 1]), Ok(short));
        assert!(parse_connect_answer(&refuse_connect()[4..]).is_err());
    }

    #[test]
    fn write_messages_round_trip() {
        let whole = write(7, ITEMS[2], None, &[0x12, 0x34]);
        assert_eq!(message_length(*whole.first_chunk().unwrap()), Ok(whole.len()));
        let expected =
            Request::Write { reference: 7, item: ITEMS[2], bit: None, bytes: vec![0x12, 0x34] };
        assert_eq!(parse_request(&whole[4..]), Ok(expected));
        let bit = write(8, ITEMS[1], Some(5), &[1]);
        let expected =
            Request::Write { reference: 8, item: ITEMS[1], bit: Some(5), bytes: vec![1] };
        assert_eq!(parse_request(&bit[4..]), Ok(expected));
        assert_eq!(parse_write_answer(&answer_write(7, 0xff)[4..], 7), Ok(()));
        assert_eq!(
            parse_write_answer(&answer_write(7, 0x05)[4..], 7),
            Err(S7Error::WriteRejected(5))
        );
        assert_eq!(parse_write_answer(&answer_write(7, 0xff)[4..], 8), Err(S7Error::OtherRequest));
        let refused = Err(S7Error::Rejected { class: 0x85, code: 0 });
        assert_eq!(parse_write_answer(&answer_error(7, 0x85, 0)[4..], 7), refused);
        let another = Err(S7Error::Malformed("not the answer to a write"));
        assert_eq!(parse_write_answer(&answer_read(7, &[Some(vec![1])])[4..], 7), another);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(text: Vec<u8>, reference: u16) {
            let _ = (
                parse_read_answer(&text, reference, &ITEMS),
                parse_write_answer(&text, reference),
                parse_setup_answer(&text, reference),
                parse_connect_answer(&text),
                parse_request(&text),
            );
        }

        #[test]
        fn an_answer_with_a_changed_byte_does_not_panic(at in 0_usize..60, byte: u8) {
            let mut answer = answer_read(7, &[Some(vec![1, 2, 3, 4]), Some(vec![1]), None]);
            if let Some(slot) = answer.get_mut(at) {
                *slot = byte;
            }
            let _ = parse_read_answer(&answer[4..], 7, &ITEMS);
        }
    }
}

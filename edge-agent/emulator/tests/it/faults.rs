//! Each fault as a client sees it. After a fault the roast goes on where it was.

use std::time::Duration;

use emulator::{Emulator, Fault};
use firmware_profiles::Transport;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};

use crate::{
    ANSWER_WAIT_MAX, BT, BURNER, Client, Message, profile, read_holding, simulated, start, tenths,
};

/// Starts `toper.tkm-sx.plc` with a client, and returns the bean temperatures that it will show.
async fn machine() -> (Emulator, Client, Vec<u16>) {
    let emulator = start(&profile("toper.tkm-sx.plc")).await;
    let client = Client::connect(&emulator).await;
    (emulator, client, simulated(3).iter().map(tenths).collect())
}

#[tokio::test]
async fn a_silent_unit_does_not_answer_and_the_other_units_do() {
    let mut profile = profile("toper.tkm-sx.plc");
    // The environment temperature is at another unit.
    profile.channels[1].station = Some(2);
    let emulator = start(&profile).await;
    let mut client = Client::connect(&emulator).await;
    emulator.inject_fault(Some(1), Fault::Silent);
    client.send(1, &read_holding(BT, 1)).await;
    // Requests are answered in their order, and the first answer is that of unit 2.
    client.holding(2, 0).await;
    emulator.clear_faults();
    assert_eq!(client.bt().await, tenths(&simulated(1)[0]));
}

#[tokio::test]
async fn a_slow_answer_is_delayed_and_correct() {
    let (emulator, mut client, shown) = machine().await;
    let delay = Duration::from_millis(150);
    emulator.inject_fault(None, Fault::Slow(delay));
    let began = Instant::now();
    assert_eq!(client.bt().await, shown[0]);
    assert!(began.elapsed() >= delay, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_refusal_has_its_code_and_a_later_fault_of_a_unit_replaces_it() {
    let (emulator, mut client, shown) = machine().await;
    for code in [4, 6] {
        emulator.inject_fault(Some(1), Fault::Refuses(code));
        assert_eq!(client.ask(1, &read_holding(BT, 1)).await, [0x83, code]);
    }
    emulator.inject_fault(Some(2), Fault::Refuses(4));
    emulator.inject_fault(Some(1), Fault::Ignores);
    assert_eq!(client.bt().await, shown[0]);
}

#[tokio::test]
async fn garbage_is_no_modbus_message_and_leaves_the_connection_open() {
    let (emulator, mut client, shown) = machine().await;
    emulator.inject_fault(None, Fault::Garbage);
    let transaction = client.send(1, &read_holding(BT, 1)).await;
    // As long as the answer would be, and no part of its head is right.
    let noise = client.bytes(11).await;
    assert_ne!(noise[..2], transaction.to_be_bytes());
    assert_ne!(noise[2..4], [0, 0]);
    assert_ne!(noise[6..9], [1, 3, 2]);
    emulator.clear_faults();
    // The value that the garbage stood for is lost.
    assert_eq!(client.bt().await, shown[1]);
}

#[tokio::test]
async fn a_machine_that_hangs_up_sends_half_an_answer() {
    let (emulator, mut client, shown) = machine().await;
    emulator.inject_fault(None, Fault::HangsUp);
    client.send(1, &read_holding(BT, 1)).await;
    let mut sent = Vec::new();
    let end = client.stream.read_to_end(&mut sent);
    timeout(ANSWER_WAIT_MAX, end).await.expect("the end of the connection").unwrap();
    assert_eq!(sent, [0, 1, 0, 0, 0]);
    emulator.clear_faults();
    assert_eq!(Client::connect(&emulator).await.bt().await, shown[0]);
}

#[tokio::test]
async fn another_master_s_answer_comes_before_ours() {
    let (emulator, mut client, shown) = machine().await;
    emulator.inject_fault(None, Fault::OtherMaster);
    let transaction = client.send(1, &read_holding(BT, 1)).await;
    let (foreign, ours) = (client.receive().await, client.receive().await);
    assert_ne!(foreign.transaction, transaction);
    let [3, 2, high, low] = ours.pdu[..] else { panic!("{ours:?}") };
    assert_eq!((u16::from_be_bytes([high, low]), ours.transaction), (shown[0], transaction));
    assert_eq!(foreign, Message { transaction: foreign.transaction, ..ours });
    emulator.clear_faults();
    assert_eq!(client.bt().await, shown[1]);
}

#[tokio::test]
async fn an_ignored_write_is_acknowledged() {
    let (emulator, mut client, _) = machine().await;
    let [high, low] = BURNER.to_be_bytes();
    let write = |value: u8| [16, high, low, 0, 1, 2, 0, value];
    assert_eq!(client.ask(1, &write(55)).await, [16, high, low, 0, 1]);
    assert_eq!(client.holding(1, BURNER).await, 55);
    emulator.inject_fault(None, Fault::Ignores);
    assert_eq!(client.ask(1, &write(0)).await, [16, high, low, 0, 1]);
    assert_eq!(client.holding(1, BURNER).await, 55);
}

#[tokio::test]
async fn a_late_refusal_comes_after_its_time() {
    let (emulator, mut client, shown) = machine().await;
    let late = Duration::from_millis(50);
    emulator.inject_fault(Some(1), Fault::RefusesLate(0x0B, late));
    let began = Instant::now();
    assert_eq!(client.ask(1, &read_holding(BT, 1)).await, [0x83, 0x0B]);
    assert!(began.elapsed() >= late, "{:?}", began.elapsed());
    emulator.clear_faults();
    assert_eq!(client.bt().await, shown[0]);
}

/// Waits for the end of the connection, and returns the bytes before it.
async fn rest(client: &mut Client) -> std::io::Result<Vec<u8>> {
    let mut sent = Vec::new();
    let end = client.stream.read_to_end(&mut sent);
    timeout(ANSWER_WAIT_MAX, end).await.expect("the end of the connection")?;
    Ok(sent)
}

#[tokio::test]
async fn a_connection_ends_after_an_answer_when_idle_or_by_a_reset() {
    let (emulator, mut client, shown) = machine().await;
    emulator.inject_fault(None, Fault::ClosesAfterAnswer);
    assert_eq!(client.bt().await, shown[0]);
    assert!(rest(&mut client).await.unwrap().is_empty());
    emulator.inject_fault(None, Fault::ClosesIdle(Duration::from_millis(20)));
    let mut client = Client::connect(&emulator).await;
    assert!(rest(&mut client).await.unwrap().is_empty());
    emulator.inject_fault(None, Fault::ResetsReused);
    let mut client = Client::connect(&emulator).await;
    client.bt().await;
    client.send(1, &read_holding(BT, 1)).await;
    let end = rest(&mut client).await;
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_answer_is_cut_short_or_names_another_unit() {
    let (emulator, mut client, _) = machine().await;
    emulator.inject_fault(None, Fault::CutsShort);
    let transaction = client.send(1, &read_holding(BT, 1)).await;
    let [high, low] = transaction.to_be_bytes();
    assert_eq!(client.bytes(5).await, [high, low, 0, 0, 0]);
    let mut client = Client::connect(&emulator).await;
    emulator.inject_fault(None, Fault::OtherUnit);
    client.send(1, &read_holding(BT, 1)).await;
    assert_eq!(client.receive().await.unit, 0x41);
}

#[tokio::test]
async fn a_serial_server_answers_in_rtu_frames_and_its_line_may_return_the_request() {
    let mut profile = profile("toper.tkm-sx.plc");
    profile.transport = Transport::ModbusRtuOverTcp { host: String::new(), port: 0, station: 1 };
    let emulator = start(&profile).await;
    let mut client = Client::connect(&emulator).await;
    let request = rtu(&[&[1][..], &read_holding(BT, 1)].concat());
    let [high, low] = tenths(&simulated(1)[0]).to_be_bytes();
    let answer = rtu(&[1, 3, 2, high, low]);
    client.stream.write_all(&request).await.unwrap();
    assert_eq!(client.bytes(7).await, answer);
    emulator.inject_fault(None, Fault::EchoesOnly);
    client.stream.write_all(&request).await.unwrap();
    assert_eq!(client.bytes(8).await, request);
    emulator.inject_fault(None, Fault::Echoes);
    client.stream.write_all(&request).await.unwrap();
    let both = client.bytes(15).await;
    assert_eq!(both[..8], request);
    emulator.inject_fault(None, Fault::WrongChecksum);
    client.stream.write_all(&request).await.unwrap();
    let wrong = client.bytes(7).await;
    assert_eq!(wrong[..3], answer[..3]);
    assert_ne!(rtu(&wrong[..5]), wrong);
}

/// Returns a frame with its checksum, which is computed bit by bit as in the specification.
fn rtu(frame: &[u8]) -> Vec<u8> {
    let mut sum = 0xffff_u16;
    for byte in frame {
        sum ^= u16::from(*byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { (sum >> 1) ^ 0xa001 } else { sum >> 1 };
        }
    }
    [frame, &sum.to_le_bytes()].concat()
}

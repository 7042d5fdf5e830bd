//! What the registers show without a fault.

use firmware_profiles::encoding::{Order, Type};

use crate::{BT, Client, profile, read_holding, simulated, start, tenths};

#[tokio::test]
async fn a_register_follows_the_simulated_roast() {
    let emulator = start(&profile("toper.tkm-sx.plc")).await;
    let mut client = Client::connect(&emulator).await;
    // A roast takes about eleven minutes.
    let expected: Vec<u16> = simulated(200).iter().map(tenths).collect();
    let mut shown = Vec::new();
    for _ in 0..expected.len() {
        shown.push(client.bt().await);
    }
    assert_eq!(shown, expected);
    let (low, high) = (shown.iter().min().unwrap(), shown.iter().max().unwrap());
    assert!(*low < 1_200 && *high > 1_900, "no roast: {low} to {high} tenths of a degree");
}

#[tokio::test]
async fn a_number_of_two_registers_has_its_high_word_first() {
    let emulator = start(&profile("imf.rm.tcp")).await;
    let mut client = Client::connect(&emulator).await;
    let mut shown = Vec::new();
    for _ in 0..3 {
        // The bean and the environment temperature of one reading.
        for register in [12, 10] {
            let answer = client.ask(1, &read_holding(register, 2)).await;
            let [3, 4, a, b, c, d] = answer[..] else { panic!("{answer:?}") };
            shown.push(u32::from_be_bytes([a, b, c, d]));
        }
    }
    #[allow(clippy::cast_possible_truncation)] // as the machine shows it
    let bits = |value: f64| (value as f32).to_bits();
    let expected: Vec<u32> =
        simulated(3).iter().flat_map(|reading| [bits(reading.bt_c), bits(reading.et_c)]).collect();
    assert_eq!(shown, expected);
}

#[tokio::test]
async fn bytes_of_a_register_and_swapped_bytes_are_where_the_profile_says() {
    let mut profile = profile("toper.tkm-sx.plc");
    profile.channels[0].order = Some(Order::HighFirstSwapped);
    for (at, addr) in [(3, "holding 60.high"), (4, "holding 60.low")] {
        profile.channels[at].addr = addr.to_owned();
        profile.channels[at].kind = Some(Type::U8);
    }
    let (gas, drum) = (&profile.channels[3].name, &profile.channels[4].name);
    assert_eq!((gas.as_str(), drum.as_str()), ("gasPct", "drumPct"));
    let emulator = start(&profile).await;
    let mut client = Client::connect(&emulator).await;
    let reading = &simulated(1)[0];
    assert_eq!(client.bt().await, tenths(reading).swap_bytes());
    // The drum's percentage is not part of the simulated roast; it stands where the fan does.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 0 to 100 %
    let expected = [reading.gas_pct, reading.fan_pct].map(|pct| pct.round() as u8);
    assert_eq!(client.holding(1, 60).await.to_be_bytes(), expected);
}

#[tokio::test]
async fn a_reading_is_served_when_all_its_values_are_read() {
    let emulator = start(&profile("toper.tkm-sx.plc")).await;
    let mut client = Client::connect(&emulator).await;
    let mut values = Vec::new();
    // The channels of the profile in their order, and their divisors.
    for (register, divisor) in
        [(BT, 10.0), (0, 10.0), (20, 10.0), (1105, 1.0), (1215, 1.0), (1040, 1.0)]
    {
        assert_eq!(emulator.served(), [], "{register} was not read");
        values.push(f64::from(client.holding(1, register).await) / divisor);
    }
    let served = emulator.served();
    assert_eq!((served.len(), &served[0].values), (1, &values));
    // The next reading begins, and is not complete.
    client.bt().await;
    assert_eq!(emulator.served(), served);
}

#[tokio::test]
async fn a_client_that_reconnects_gets_the_last_reading_again() {
    let emulator = start(&profile("toper.tkm-sx.plc")).await;
    let expected: Vec<u16> = simulated(2).iter().map(tenths).collect();
    let first = Client::connect(&emulator).await.bt().await;
    let mut second = Client::connect(&emulator).await;
    let again = (second.bt().await, second.bt().await);
    assert_eq!((first, again), (expected[0], (expected[0], expected[1])));
}

#[tokio::test]
async fn a_request_that_the_machine_does_not_know_is_refused() {
    let emulator = start(&profile("toper.tkm-sx.plc")).await;
    let mut client = Client::connect(&emulator).await;
    for (request, exception) in [
        (read_holding(3, 1), [0x83, 2]),
        // Register 1 is between two that exist.
        (read_holding(0, 3), [0x83, 2]),
        // Register 2 is a holding register, not an input register.
        (vec![4, 0, 2, 0, 1], [0x84, 2]),
        (vec![0x2b, 0x0e, 1, 0], [0xab, 1]),
    ] {
        assert_eq!(client.ask(1, &request).await, exception, "{request:02x?}");
    }
    // No answer comes from a unit that the profile does not have: the next one is of unit 1.
    client.send(9, &read_holding(BT, 1)).await;
    assert_eq!(client.bt().await, tenths(&simulated(1)[0]), "no reading was lost");
}

#[tokio::test]
async fn boards_have_no_line_to_emulate() {
    let profile = profile("generic.probes.boards");
    let any = "127.0.0.1:0".parse().unwrap();
    let every = std::time::Duration::from_secs(1);
    let refused = emulator::Emulator::start(&profile, any, 1_000, every).await;
    assert_eq!(refused.err().unwrap().to_string(), "boards have no line");
}

//! Reads values in the forms that machines of other makers send: other byte orders and sizes, the
//! connection of a small S7 controller, and text lines of other programs.

use std::net::SocketAddr;
use std::time::Duration;

use driver::{ConnectionSettings, Driver, DriverError, DriverHandles, Reading};
use emulator::{Emulator, Endpoint};
use firmware_profiles::{Profile, Transport, check, shipped};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

fn open(profile: &Profile, address: SocketAddr) -> Box<dyn Driver> {
    let settings = ConnectionSettings {
        host: Some(address.ip().to_string()),
        port: Some(address.port()),
        // No local answer takes longer, however busy this computer is.
        timeout_ms: Some(5_000),
        ..ConnectionSettings::default()
    };
    driver::open(profile, &settings, DriverHandles::default()).unwrap()
}

fn values(reading: &Reading) -> Vec<(&str, Option<f64>)> {
    reading.values.iter().map(|(channel, value)| (channel.as_str(), *value)).collect()
}

/// The registers of a machine that has one temperature, 187.25 °C, in many forms.
const REGISTERS: [(u16, &[u16]); 9] = [
    (10, &[0x433b, 0x4000]),
    (20, &[0x4000, 0x433b]),
    (30, &[0x3b43, 0x0040]),
    (40, &[0x0040, 0x3b43]),
    (50, &[0x5007]),
    (60, &[0x4128]),
    (70, &[3_872]),
    (80, &[0x4067, 0x6800, 0, 0]),
    (90, &[0x5007, 0, 0, 0]),
];

/// Answers reads of [`REGISTERS`] by the bytes of the protocol; shares no code with the driver.
async fn serve_registers(listener: TcpListener) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut request = [0; 12];
    while stream.read_exact(&mut request).await.is_ok() {
        let start = u16::from_be_bytes([request[8], request[9]]);
        let count = usize::from(u16::from_be_bytes([request[10], request[11]]));
        let (_, words) = REGISTERS.iter().find(|(register, _)| *register == start).unwrap();
        assert_eq!(words.len(), count, "the registers at {start}");
        let data: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        let bytes = u8::try_from(data.len()).unwrap();
        let head = [request[0], request[1], 0, 0, 0, bytes + 3, request[6], request[7], bytes];
        stream.write_all(&[&head[..], &data].concat()).await.unwrap();
    }
}

#[tokio::test]
async fn values_are_read_in_each_byte_order_and_size_and_derived_from_raw_counts() {
    let mut text = "[machine]\nid = \"acme.forms.plc\"\nname = \"n\"\ncontroller = \"c\"\n\
        version = 1\nfuel = \"gas\"\nsource = \"s\"\n\
        [transport]\nkind = \"modbus-tcp\"\nhost = \"h\"\n[safe_state]\norder = []\n"
        .to_owned();
    for (name, form) in [
        ("abcdC", "addr = \"holding 10\"\ntype = \"f32\"\norder = \"high-first\""),
        ("cdabC", "addr = \"holding 20\"\ntype = \"f32\"\norder = \"low-first\""),
        ("badcC", "addr = \"holding 30\"\ntype = \"f32\"\norder = \"high-first-swapped\""),
        ("dcbaC", "addr = \"holding 40\"\ntype = \"f32\"\norder = \"low-first-swapped\""),
        (
            "baC",
            "addr = \"holding 50\"\ntype = \"u16\"\norder = \"high-first-swapped\"\ndivisor = 10",
        ),
        ("doubleC", "addr = \"holding 80\"\ntype = \"f64\"\norder = \"high-first\""),
        (
            "longC",
            "addr = \"holding 90\"\ntype = \"i64\"\norder = \"low-first-swapped\"\ndivisor = 10",
        ),
        ("gasPct", "addr = \"holding 60.high\"\ntype = \"u8\""),
        ("fanPct", "addr = \"holding 60.low\"\ntype = \"i8\""),
        ("btRaw", "addr = \"holding 70\"\ntype = \"u16\"\ndivisor = 10"),
    ] {
        let unit = match name {
            "gasPct" | "fanPct" => "unit = \"pct\"",
            "btRaw" => "unit = \"none\"",
            _ => "unit = \"C\"\nvalid = [-20, 350]",
        };
        text.extend(["[[channel]]\nname = \"", name, "\"\n", form, "\n", unit, "\n"]);
    }
    text += "[[derived]]\nname = \"btC\"\nunit = \"C\"\noffset = -200\nvalid = [-20, 350]\n\
        terms = [{ channel = \"btRaw\", factor = 1 }]\n";
    let profile = check(&text).unwrap().profile;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut driver = open(&profile, listener.local_addr().unwrap());
    tokio::spawn(serve_registers(listener));
    let reading = driver.read(0).await.unwrap();
    let expected = [
        ("abcdC", 187.25),
        ("cdabC", 187.25),
        ("badcC", 187.25),
        ("dcbaC", 187.25),
        ("baC", 187.2),
        ("doubleC", 187.25),
        ("longC", 187.2),
        ("gasPct", 65.0),
        ("fanPct", 40.0),
        ("btRaw", 387.2),
        ("btC", 187.2),
    ];
    assert_eq!(reading.values.len(), expected.len());
    for ((name, value), (channel, found)) in expected.into_iter().zip(values(&reading)) {
        let is_same = found.is_some_and(|found| (found - value).abs() < 1e-9);
        assert!(name == channel && is_same, "{channel} is {found:?}, {name} is {value}");
    }
    assert!(reading.quality_flags.is_empty(), "{:?}", reading.quality_flags);
}

#[tokio::test]
async fn an_s7_controller_is_reached_by_the_tsaps_of_the_profile() {
    let rack_and_slot = check(shipped("giesen.wxa.s7-2019").unwrap().text).unwrap().profile;
    let mut by_tsap = rack_and_slot.clone();
    let Transport::S7 { local_tsap, remote_tsap, .. } = &mut by_tsap.transport else {
        panic!("not S7")
    };
    *local_tsap = Some("02.00".to_owned());
    *remote_tsap = Some("03.0a".to_owned());
    let any = "127.0.0.1:0".parse().unwrap();
    let machine = Emulator::start(&by_tsap, any, 1_000, Duration::from_secs(1)).await.unwrap();
    let Endpoint::Tcp(address) = *machine.endpoint() else { panic!("a serial line") };
    let reading = open(&by_tsap, address).read(0).await.unwrap();
    assert!(reading.values.iter().all(|(_, value)| value.is_some()), "{reading:?}");
    let refused = open(&rack_and_slot, address).read(0).await;
    assert!(matches!(refused, Err(DriverError::Protocol(..))), "{refused:?}");
}

/// Sends `text` to the first client and keeps the connection open.
async fn serve_text(listener: TcpListener, text: &'static str) -> TcpStream {
    let (mut stream, _) = listener.accept().await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    stream
}

/// Checks what is read of a source that sends `text`: `btC`, `etC` and `gasPct`.
async fn check_lines(profile: &Profile, text: &'static str, expected: [Option<f64>; 3]) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut driver = open(profile, listener.local_addr().unwrap());
    let (reading, _stream) = tokio::join!(driver.read(0), serve_text(listener, text));
    let reading = reading.unwrap_or_else(|e| panic!("{text}: {e}"));
    let found: Vec<Option<f64>> = values(&reading).iter().map(|(_, value)| *value).collect();
    assert_eq!(found[..3], expected, "{text}");
}

#[tokio::test]
async fn a_table_is_read_with_semicolons_decimal_commas_and_quotes() {
    let profile = check(shipped("generic.line.csv").unwrap().text).unwrap().profile;
    let all = [Some(183.2), Some(201.5), Some(60.0)];
    for (text, expected) in [
        ("btC;etC;gasPct\n183,2;201,5;60\n", all),
        ("\"btC\",\"etC\",\"gasPct\"\r\n\"183.2\",\"201.5\",\"60\"\r\n", all),
        ("btC,etC,gasPct\n183.2,nan,60\n", [Some(183.2), None, Some(60.0)]),
        ("btC;etC;gasPct\n183,2;-inf;ERR\n", [Some(183.2), None, None]),
    ] {
        check_lines(&profile, text, expected).await;
    }
}

#[tokio::test]
async fn json_is_read_with_values_that_json_does_not_have() {
    let mut profile = check(shipped("generic.line.jsonl").unwrap().text).unwrap().profile;
    for (text, expected) in [
        ("{\"btC\": 183.2, \"etC\": nan, \"gasPct\": 60}\n", [Some(183.2), None, Some(60.0)]),
        ("{\"btC\": 183.2, \"etC\": -Infinity, \"gasPct\": 60}\n", [Some(183.2), None, Some(60.0)]),
        (
            "{\"btC\": \"183.2\", \"etC\": \"201,5\", \"gasPct\": \"60\"}\n",
            [Some(183.2), Some(201.5), Some(60.0)],
        ),
        ("{\"MAX31855\":{\"btC\":183.2},\"etC\":201.5}\n", [None, Some(201.5), None]),
    ] {
        check_lines(&profile, text, expected).await;
    }
    profile.channels[0].addr = "MAX31855.btC".to_owned();
    let nested = "{\"Time\":\"2026-06-01T10:00:00\",\"MAX31855\":{\"btC\":183.2},\"etC\":201.5}\n";
    check_lines(&profile, nested, [Some(183.2), Some(201.5), None]).await;
}

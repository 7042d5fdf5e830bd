//! Tests that connections of other computers cost the agent no sample.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use emulator::{Emulator, Endpoint};
use testbed::{free_port, wait_for, wait_for_port};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};

use crate::profiles::Gateway;

const PATIENCE: Duration = Duration::from_secs(30);

/// Opens connections from eight computers to a port, more from each than it may have, and sends the
/// beginning of a request on every second one.
async fn hold_connections(port: u16, start: &[u8]) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for n in 0..64 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 1, n % 8 + 1], 0))).unwrap();
        let connect = socket.connect(SocketAddr::from(([127, 0, 0, 1], port)));
        let mut stream = tokio::time::timeout(PATIENCE, connect).await.unwrap().unwrap();
        if n % 2 == 0 {
            let _ = stream.write_all(start).await; // the agent may have closed it
        }
        held.push(stream);
    }
    held
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_samples_while_connections_hold_every_place_of_its_ports() {
    let text = firmware_profiles::shipped("toper.tkm-sx.plc").unwrap().text;
    let checked = firmware_profiles::check(text).unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    let machine =
        Emulator::start(&checked.profile, any, 500, Duration::from_millis(50)).await.unwrap();
    let Endpoint::Tcp(address) = machine.endpoint() else { panic!("a TCP machine") };
    let (modbus_port, websocket) = (free_port().unwrap(), free_port().unwrap());
    let mut gateway = Gateway::new(&format!(
        "id = \"toper.tkm-sx.plc\"\nhost = \"127.0.0.1\"\nport = {}\ntimeout_ms = 50\n\
         [artisan]\nmodbus = \"127.0.0.1:{modbus_port}\"\nwebsocket = \"127.0.0.1:{websocket}\"\n",
        address.port()
    ));
    gateway.process.start().unwrap();
    for port in [gateway.port, websocket, modbus_port] {
        wait_for_port(port).await.unwrap_or_else(|e| panic!("{e}: {}", gateway.log()));
    }
    let held = [
        hold_connections(gateway.port, b"GET /status HTTP/1.1\r\nHost: ").await,
        hold_connections(websocket, b"GET /WebSocket HTTP/1.1\r\nHost: ").await,
        hold_connections(modbus_port, &[0, 9, 0, 0, 0, 6, 1]).await,
    ];
    let before = machine.served().len();
    wait_for("20 more readings are served", PATIENCE, || async {
        machine.served().len() > before + 20
    })
    .await
    .unwrap_or_else(|e| panic!("{e}: {}", gateway.log()));
    // Health is answered although the page has no place for another request.
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
    stream
        .write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let files = std::fs::read_dir(format!("/proc/{}/fd", gateway.process.pid().unwrap()));
    let files = files.unwrap().count();
    assert!(files < 120, "{files} files are open");
    drop(held);
    assert!(gateway.process.stop(PATIENCE).await.unwrap().success());
    assert!(!gateway.frames().is_empty());
}

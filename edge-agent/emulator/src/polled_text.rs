//! Emulates machines that are polled with text lines: TC4 and Kaleido.

use firmware_profiles::address::{Address, TC4_READS};
use protocols::kaleido;
use tokio::io::AsyncReadExt as _;

use crate::{Fault, Machine, Wire, answer};

pub async fn serve_tc4(wire: &mut dyn Wire, machine: &Machine) -> std::io::Result<()> {
    let mut lines = Lines::default();
    loop {
        let line = lines.next(wire).await?;
        let fault = machine.fault(None);
        let reply = if line == "READ" {
            if matches!(fault, Some(Fault::Refuses(_))) {
                "# error\r\n".to_owned()
            } else {
                let (values, _) = machine.next_values();
                let value = |name: &str| {
                    values.iter().find(|(n, _)| n == name).map_or(0.0, |(_, value)| *value)
                };
                let fields: Vec<String> =
                    TC4_READS.iter().map(|n| format!("{:.2}", value(n))).collect();
                fields.join(",") + "\r\n"
            }
        } else if line.starts_with("CHAN;") {
            "# Active channels set to 1200\r\n".to_owned()
        } else {
            continue;
        };
        // The answer to another program's request arrives just before ours.
        let other = async { b"# 17.3\r\n".to_vec() };
        answer(wire, fault, reply.as_bytes(), other).await?;
    }
}

pub async fn serve_kaleido(wire: &mut dyn Wire, machine: &Machine) -> std::io::Result<()> {
    let mut lines = Lines::default();
    loop {
        let line = lines.next(wire).await?;
        let fault = machine.fault(None);
        let reply = match kaleido::parse_request(&line) {
            Some(("RD", _)) if matches!(fault, Some(Fault::Refuses(_))) => "{0,ER:1}\n".to_owned(),
            Some(("RD", _)) => {
                let (values, _) = machine.next_values();
                let fields: Vec<String> =
                    values.iter().map(|(n, v)| format!("{n}:{v:.2}")).collect();
                format!("{{0,{}}}\n", fields.join(","))
            }
            Some(("PI", _)) => "{0,PI:1}\n".to_owned(),
            Some((tag, Some(value))) if value.parse::<f64>().is_ok() => {
                if !matches!(fault, Some(Fault::Ignores | Fault::Refuses(_))) {
                    let raw = value.parse().unwrap_or(0.0);
                    machine.panel().write_control(&Address::Name(tag.to_owned()), raw);
                }
                continue; // only the readback shows the effect
            }
            _ => continue,
        };
        answer(wire, fault, reply.as_bytes(), async { b"{0,SN:1}\n".to_vec() }).await?;
    }
}

#[derive(Default)]
struct Lines {
    buffer: Vec<u8>,
}

impl Lines {
    async fn next(&mut self, wire: &mut dyn Wire) -> std::io::Result<String> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line = String::from_utf8_lossy(&self.buffer[..end]).trim().to_owned();
                self.buffer.drain(..=end);
                return Ok(line);
            }
            let mut bytes = [0; 256];
            let read = wire.read(&mut bytes).await?;
            if read == 0 || self.buffer.len() > protocols::LINE_BYTES_MAX {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            self.buffer.extend_from_slice(&bytes[..read]);
        }
    }
}

//! Modbus TCP, reading only.
//!
//! A late answer to a request that timed out would be taken for the next one's, so any error or
//! timeout closes the connection; the next read opens a new one. Registers that lie next to each
//! other are read together.

use std::net::SocketAddr;
use std::time::Duration;

use contract::{Channel, EventKind};
use tokio::net::TcpStream;
use tokio_modbus::client::{Context, Reader as _, tcp};
use tokio_modbus::slave::Slave;

use super::{Answer, Driver, DriverError, Reading};
use crate::config::{self, ModbusChannel, ModbusKind, ModbusTable};

/// The protocol's limit.
const WORDS_MAX: u16 = 125;

/// One request: neighbouring registers of one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Block {
    table: ModbusTable,
    address: u16,
    words: u16,
}

pub struct Modbus {
    config: config::Modbus,
    blocks: Vec<Block>,
    connection: Option<Context>,
    /// Whether each mark's register had its value at the last read; `None` before the first.
    marked: Option<Vec<bool>>,
}

impl Modbus {
    pub fn new(config: &config::Modbus) -> Self {
        let blocks = blocks(config);
        Self { config: config.clone(), blocks, connection: None, marked: None }
    }

    fn name(&self) -> String {
        format!("{}:{} unit {}", self.config.host, self.config.port, self.config.unit)
    }

    async fn connect(&self) -> Result<Context, DriverError> {
        let unreachable = |error| DriverError::Unreachable(self.name(), error);
        let target = (self.config.host.as_str(), self.config.port);
        let mut addresses = tokio::net::lookup_host(target).await.map_err(unreachable)?;
        let address: SocketAddr = addresses
            .next()
            .ok_or_else(|| unreachable(std::io::Error::other("the name has no address")))?;
        let stream = TcpStream::connect(address).await.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        Ok(tcp::attach_slave(stream, Slave(self.config.unit)))
    }

    async fn read_blocks(&mut self) -> Result<Vec<Vec<u16>>, DriverError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let mut words = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let answer = match block.table {
                ModbusTable::Holding => {
                    connection.read_holding_registers(block.address, block.words).await
                }
                ModbusTable::Input => {
                    connection.read_input_registers(block.address, block.words).await
                }
            };
            let problem = |problem: String| DriverError::Protocol(self.name(), problem);
            let read = answer.map_err(|error| problem(error.to_string()))?;
            words.push(read.map_err(|code| problem(format!("{code} at {}", block.address)))?);
        }
        self.connection = Some(connection);
        Ok(words)
    }

    async fn read_all(&mut self) -> Result<Reading, DriverError> {
        let limit = Duration::from_millis(self.config.timeout_ms);
        // A timeout drops the connection with the future that holds it.
        let Ok(read) = tokio::time::timeout(limit, self.read_blocks()).await else {
            return Err(DriverError::Silent(self.name(), self.config.timeout_ms));
        };
        let words = read?;
        let find = |table: ModbusTable, address: u16, count: u16| -> Option<&[u16]> {
            let covers = |b: &Block| {
                b.table == table && b.address <= address && address + count <= b.address + b.words
            };
            let at = self.blocks.iter().position(covers)?;
            let offset = usize::from(address - self.blocks[at].address);
            words.get(at)?.get(offset..offset + usize::from(count))
        };
        let values = self.config.channels.iter().filter_map(|channel| {
            let raw = find(channel.table, channel.address, channel.kind.words())?;
            Some((Channel::parse(&channel.name)?, value_of(channel, raw)))
        });
        let values = values.collect();
        let now: Vec<bool> = self
            .config
            .marks
            .iter()
            .map(|mark| {
                find(ModbusTable::Holding, mark.address, 1).is_some_and(|w| w[0] == mark.value)
            })
            .collect();
        // At the first read nothing has changed: a machine that is found roasting was not charged
        // this second.
        let before = self.marked.replace(now.clone()).unwrap_or_else(|| now.clone());
        let rising = now.iter().zip(&before).map(|(now, before)| *now && !*before);
        let marks = self.config.marks.iter().zip(rising).filter(|(_, rose)| *rose);
        let marks = marks.filter_map(|(mark, _)| EventKind::parse(&mark.event)).collect();
        Ok(Reading { values, marks })
    }
}

impl Driver for Modbus {
    fn read(&mut self, _mono_ms: u64) -> Answer<'_> {
        Box::pin(self.read_all())
    }
}

/// Joins registers without a hole between them into as few requests as the protocol allows. Holes
/// are not read over: some controllers fault on registers they do not have.
fn blocks(config: &config::Modbus) -> Vec<Block> {
    let channels = config.channels.iter().map(|c| (c.table, c.address, c.kind.words()));
    let marks = config.marks.iter().map(|m| (ModbusTable::Holding, m.address, 1));
    let mut wanted: Vec<(bool, u16, u16)> =
        channels.chain(marks).map(|(table, a, w)| (table == ModbusTable::Input, a, w)).collect();
    wanted.sort_unstable();
    let mut blocks: Vec<Block> = Vec::new();
    for (input, address, words) in wanted {
        let table = if input { ModbusTable::Input } else { ModbusTable::Holding };
        let end = address.saturating_add(words);
        match blocks.last_mut() {
            Some(b)
                if b.table == table
                    && address <= b.address + b.words
                    && end - b.address <= WORDS_MAX =>
            {
                b.words = b.words.max(end - b.address);
            }
            _ => blocks.push(Block { table, address, words }),
        }
    }
    blocks
}

fn value_of(channel: &ModbusChannel, raw: &[u16]) -> Option<f64> {
    let long = || {
        let (high, low) = if channel.low_word_first { (raw[1], raw[0]) } else { (raw[0], raw[1]) };
        (u32::from(high) << 16) | u32::from(low)
    };
    let whole = match channel.kind {
        ModbusKind::U16 => Some(i64::from(raw[0])),
        ModbusKind::I16 => Some(i64::from(raw[0].cast_signed())),
        ModbusKind::U32 => Some(i64::from(long())),
        ModbusKind::I32 => Some(i64::from(long().cast_signed())),
        ModbusKind::F32 => None,
    };
    if whole.is_some() && whole == channel.missing {
        return None;
    }
    let raw = whole.map_or_else(|| f64::from(f32::from_bits(long())), |whole| whole as f64);
    let value = raw / channel.divisor.unwrap_or(1.0);
    let value = if channel.fahrenheit { (value - 32.0) / 1.8 } else { value };
    value.is_finite().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(address: u16, kind: ModbusKind) -> ModbusChannel {
        ModbusChannel { address, kind, ..ModbusChannel::default() }
    }

    #[test]
    fn neighbours_are_read_together_and_holes_are_not() {
        let channels = vec![
            channel(10, ModbusKind::U16),
            channel(11, ModbusKind::F32),
            channel(14, ModbusKind::U16),
            channel(0, ModbusKind::U16),
        ];
        let config = config::Modbus { channels, ..config::Modbus::default() };
        let table = ModbusTable::Holding;
        let expected =
            [(0, 1), (10, 3), (14, 1)].map(|(address, words)| Block { table, address, words });
        assert_eq!(blocks(&config), expected);
    }

    #[test]
    fn words_mean_what_the_profile_says() {
        let mut c = channel(0, ModbusKind::I16);
        c.divisor = Some(10.0);
        assert_eq!(value_of(&c, &[0xffff]), Some(-0.1));
        c.missing = Some(-1);
        assert_eq!(value_of(&c, &[0xffff]), None);
        let mut f = channel(0, ModbusKind::F32);
        assert_eq!(value_of(&f, &[0x4348, 0x0000]), Some(200.0));
        f.low_word_first = true;
        f.fahrenheit = true;
        assert_eq!(value_of(&f, &[0x0000, 0x43c8]), Some((400.0 - 32.0) / 1.8));
        assert_eq!(value_of(&f, &[0x0000, 0x7fc0]), None, "not a number is no reading");
    }
}

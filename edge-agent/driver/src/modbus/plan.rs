//! Plans which registers are read together. Pure.

use firmware_profiles::Gap;
use firmware_profiles::address::{Address, Table};
use tokio_modbus::Request;

use crate::bus::ReadPoint;

/// The largest gap that is read to join two registers, in words, where the profile allows gaps.
const SMALL_GAP: u32 = 8;

/// One read request: consecutive registers in one table of one unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    pub table: Table,
    pub start: u16,
    pub words: u16,
    /// The indices of the points in this block.
    pub points: Vec<usize>,
}

/// One unit and the blocks to read from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    pub station: u8,
    pub blocks: Vec<Block>,
    /// Whether a point of the unit is read before others.
    pub read_first: bool,
}

impl Block {
    /// Returns the request that reads the block.
    #[must_use]
    pub const fn request(&self) -> Request<'static> {
        let (start, count) = (self.start, self.words);
        match self.table {
            Table::Coil => Request::ReadCoils(start, count),
            Table::Discrete => Request::ReadDiscreteInputs(start, count),
            Table::Holding => Request::ReadHoldingRegisters(start, count),
            Table::Input => Request::ReadInputRegisters(start, count),
        }
    }

    /// Returns the address of the first register, as a profile writes it.
    #[must_use]
    pub fn address(&self) -> String {
        let table = match self.table {
            Table::Coil => "coil",
            Table::Discrete => "discrete",
            Table::Holding => "holding",
            Table::Input => "input",
        };
        format!("{table} {}", self.start)
    }

    fn is_read_first(&self, points: &[ReadPoint]) -> bool {
        self.points.iter().any(|point| points[*point].read_first)
    }
}

/// Joins neighbouring registers into as few requests as `block_max` and `gaps` allow. Units, and
/// the blocks of a unit, with points that are read first come first.
#[must_use]
pub fn plan_units(points: &[ReadPoint], block_max: u16, gaps: Gap) -> Vec<Unit> {
    let gap_max = if gaps == Gap::Small { SMALL_GAP } else { 0 };
    let mut requested: Vec<(u8, Table, u16, u16, usize)> = points
        .iter()
        .enumerate()
        .filter_map(|(i, point)| match point.address {
            Address::Modbus { station, table, register, .. } => {
                Some((station, table, register, point.kind.words(), i))
            }
            _ => None,
        })
        .collect();
    requested.sort_unstable();
    let mut units: Vec<Unit> = Vec::new();
    for (station, table, register, words, point) in requested {
        if units.last().is_none_or(|unit| unit.station != station) {
            units.push(Unit { station, blocks: Vec::new(), read_first: false });
        }
        let Some(unit) = units.last_mut() else { continue };
        let end = u32::from(register).saturating_add(u32::from(words));
        let joined = unit.blocks.last_mut().filter(|b| {
            let reaches =
                u32::from(b.start).saturating_add(u32::from(b.words)).saturating_add(gap_max);
            b.table == table
                && u32::from(register) <= reaches
                && end.saturating_sub(u32::from(b.start)) <= u32::from(block_max)
        });
        if let Some(block) = joined {
            let length = u16::try_from(end.saturating_sub(u32::from(block.start)));
            block.words = block.words.max(length.unwrap_or(u16::MAX));
            block.points.push(point);
        } else {
            unit.blocks.push(Block { table, start: register, words, points: vec![point] });
        }
    }
    for unit in &mut units {
        unit.blocks.sort_by_key(|block| !block.is_read_first(points));
        unit.read_first = unit.blocks.iter().any(|block| block.is_read_first(points));
    }
    units.sort_by_key(|unit| !unit.read_first);
    units
}

/// Splits a block into one request per point, for a controller that refuses to read them together.
#[must_use]
pub fn split_block(block: &Block, points: &[ReadPoint]) -> Vec<Block> {
    let singles = block.points.iter().filter_map(|i| match points[*i].address {
        Address::Modbus { table, register, .. } => {
            let words = points[*i].kind.words();
            Some(Block { table, start: register, words, points: vec![*i] })
        }
        _ => None,
    });
    singles.collect()
}

/// Returns the raw value of a point from the words of its block; `None` when the words are too few.
#[must_use]
pub fn raw(point: &ReadPoint, block: &Block, words: &[u16]) -> Option<f64> {
    let Address::Modbus { register, bit, half, .. } = point.address else { return None };
    let at = usize::from(register.checked_sub(block.start)?);
    let registers = words.get(at..)?.get(..usize::from(point.kind.words()))?;
    match (bit, half) {
        (Some(bit), _) => Some(f64::from((registers[0] >> bit) & 1)),
        (None, Some(half)) => point.kind.decode(point.order, &[half.of(registers[0])]),
        (None, None) => point.kind.decode(point.order, registers),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firmware_profiles::address::Half;
    use firmware_profiles::encoding::{Order, Type};

    fn point(station: u8, table: Table, register: u16, kind: Type) -> ReadPoint {
        let address = Address::Modbus { station, table, register, bit: None, half: None };
        ReadPoint { address, kind, order: Order::HighFirst, read_first: false }
    }

    #[test]
    fn adjacent_registers_are_joined_and_gaps_only_if_allowed() {
        let holding = |register, kind| point(1, Table::Holding, register, kind);
        let points = [
            holding(10, Type::U16),
            holding(11, Type::F32),
            holding(14, Type::U16),
            holding(0, Type::U16),
            point(1, Table::Coil, 1, Type::Bool),
            point(2, Table::Holding, 15, Type::U16),
            holding(10, Type::Bool),
        ];
        let shape = |gaps| -> Vec<(u8, u16, u16)> {
            let units = plan_units(&points, 100, gaps);
            let blocks = units.iter().flat_map(|u| u.blocks.iter().map(move |b| (u.station, b)));
            blocks.map(|(station, b)| (station, b.start, b.words)).collect()
        };
        assert_eq!(shape(Gap::Never), [(1, 1, 1), (1, 0, 1), (1, 10, 3), (1, 14, 1), (2, 15, 1)]);
        assert_eq!(shape(Gap::Small), [(1, 1, 1), (1, 0, 1), (1, 10, 5), (2, 15, 1)]);
    }

    #[test]
    fn units_and_blocks_with_points_that_are_read_first_come_first() {
        let mut points: Vec<ReadPoint> =
            (2..6).map(|unit| point(unit, Table::Holding, 1, Type::I16)).collect();
        points.push(point(9, Table::Coil, 7, Type::Bool));
        points.push(ReadPoint { read_first: true, ..point(9, Table::Holding, 0, Type::I16) });
        let units = plan_units(&points, 100, Gap::Never);
        let stations: Vec<u8> = units.iter().map(|unit| unit.station).collect();
        assert_eq!(stations, [9, 2, 3, 4, 5]);
        assert!(units[0].read_first && !units[1].read_first);
        let addresses: Vec<String> = units[0].blocks.iter().map(Block::address).collect();
        assert_eq!(addresses, ["holding 0", "coil 7"]);
    }

    #[test]
    fn a_block_ends_at_block_max_and_at_the_last_register() {
        let points: Vec<ReadPoint> =
            (0..10).map(|i| point(1, Table::Holding, 65_526 + i, Type::U16)).collect();
        let units = plan_units(&points, 4, Gap::Never);
        let sizes: Vec<u16> = units[0].blocks.iter().map(|b| b.words).collect();
        assert_eq!(sizes, [4, 4, 2]);
    }

    #[test]
    fn the_raw_value_of_a_point_is_taken_from_its_block() {
        let mut flag = point(1, Table::Holding, 12, Type::Bool);
        flag.address = Address::Modbus {
            station: 1,
            table: Table::Holding,
            register: 12,
            bit: Some(3),
            half: None,
        };
        let points = [point(1, Table::Holding, 10, Type::F32), flag];
        let block = &plan_units(&points, 100, Gap::Never)[0].blocks[0];
        let words = [0x4348, 0, 0b1000];
        assert_eq!(raw(&points[0], block, &words), Some(200.0));
        assert_eq!(raw(&points[1], block, &words), Some(1.0));
        assert_eq!(raw(&points[1], block, &words[..2]), None, "an answer that is too short");
        assert_eq!(split_block(block, &points).len(), 2);
    }

    #[test]
    fn two_bytes_of_one_register_are_two_values_of_one_request() {
        let half = |half, kind| {
            let mut byte = point(1, Table::Holding, 60, kind);
            byte.address = Address::Modbus {
                station: 1,
                table: Table::Holding,
                register: 60,
                bit: None,
                half: Some(half),
            };
            byte
        };
        let points = [half(Half::High, Type::U8), half(Half::Low, Type::I8)];
        let units = plan_units(&points, 100, Gap::Never);
        assert_eq!(units[0].blocks.len(), 1);
        let block = &units[0].blocks[0];
        assert_eq!((block.start, block.words), (60, 1));
        let values: Vec<_> = points.iter().map(|point| raw(point, block, &[0x41f6])).collect();
        assert_eq!(values, [Some(65.0), Some(-10.0)]);
    }
}

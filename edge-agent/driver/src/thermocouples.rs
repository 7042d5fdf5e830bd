//! Thermocouple boards on the gateway's own buses, over `embedded-hal`.
//!
//! MAX31855 data sheet 19-5793 (Maxim), MAX31856 data sheet 19-7534, MCP9600 data sheet DS20005426.
//! Tests cover the decoding of the chips' answers; the chips themselves have not been tried.

use embedded_hal::i2c::I2c;
use embedded_hal::spi::SpiDevice;
use firmware_profiles::address::{Address, Chip};
use linux_embedded_hal::spidev::{SpiModeFlags, SpidevOptions};
use linux_embedded_hal::{I2cdev, SpidevDevice};

use crate::DriverError;
use crate::bus::{Bus, PollFuture, RawValues, ReadPoint};

/// The reading of a thermocouple: °C, or `None` if no thermocouple is connected.
type Celsius = Result<Option<f64>, String>;

struct Board {
    chip: Chip,
    device: String,
    at: u8,
    /// Whether a MAX31856 has been configured; from then on it measures continuously.
    started: bool,
}

pub struct Thermocouples {
    boards: Vec<Board>,
}

impl Thermocouples {
    pub fn new(points: &[ReadPoint]) -> Self {
        let boards = points.iter().filter_map(|point| match &point.address {
            Address::Board { chip, device, at } => Some(Board {
                chip: *chip,
                device: device.clone(),
                at: at.unwrap_or(0),
                started: false,
            }),
            _ => None,
        });
        Self { boards: boards.collect() }
    }

    /// Reads all boards. The reads block the current task: a few bytes at 100 kHz take less than a
    /// millisecond.
    fn read_all(&mut self) -> Result<RawValues, DriverError> {
        let mut raws = RawValues::default();
        let (mut any_answered, mut last) = (false, None);
        for board in &mut self.boards {
            match board.read() {
                Ok(celsius) => {
                    any_answered = true;
                    raws.values.push(celsius);
                }
                Err(problem) => {
                    board.started = false;
                    raws.values.push(None);
                    raws.failed_units.push(format!("{}: {problem}", board.device));
                    last = Some(DriverError::Protocol(board.device.clone(), problem));
                }
            }
        }
        match last {
            Some(error) if !any_answered => Err(error),
            _ => Ok(raws),
        }
    }
}

impl Bus for Thermocouples {
    fn poll(&mut self, _mono_ms: u64) -> PollFuture<'_> {
        Box::pin(std::future::ready(self.read_all()))
    }
}

impl Board {
    fn read(&mut self) -> Celsius {
        let open_error = |e: &dyn std::fmt::Display| format!("cannot be opened: {e}");
        match self.chip {
            Chip::Mcp9600 => {
                let mut bus = I2cdev::new(&self.device).map_err(|e| open_error(&e))?;
                mcp9600(&mut bus, self.at)
            }
            Chip::Max31855 => max31855(&mut self.spi(SpiModeFlags::SPI_MODE_0)?),
            Chip::Max31856 => {
                let mut bus = self.spi(SpiModeFlags::SPI_MODE_1)?;
                if !self.started {
                    max31856_start(&mut bus)?;
                    self.started = true;
                    // The first conversion takes a while; until then the chip shows 0 °C.
                    return Ok(None);
                }
                max31856(&mut bus)
            }
        }
    }
}

impl Board {
    /// Opens the SPI bus at 1 MHz. Both chips support 5 MHz, but long wires do not.
    fn spi(&self, mode: SpiModeFlags) -> Result<SpidevDevice, String> {
        let open_error = |e: &dyn std::fmt::Display| format!("cannot be opened: {e}");
        let mut bus = SpidevDevice::open(&self.device).map_err(|e| open_error(&e))?;
        let options = SpidevOptions::new().mode(mode).max_speed_hz(1_000_000).build();
        bus.configure(&options).map_err(|e| open_error(&e))?;
        Ok(bus)
    }
}

fn failed(error: &impl std::fmt::Debug) -> String {
    format!("does not answer: {error:?}")
}

/// Reads a MAX31855: 32 bits with 14 bits of °C/4, then whether the thermocouple is open or
/// shorted.
fn max31855(bus: &mut impl SpiDevice) -> Celsius {
    let mut bytes = [0; 4];
    bus.read(&mut bytes).map_err(|e| failed(&e))?;
    // A missing chip reads as all zeros or all ones.
    if bytes == [0; 4] || bytes == [0xff; 4] {
        return Err("no chip answers".to_owned());
    }
    let fault = bytes[1] & 1 != 0;
    let quarters = i16::from_be_bytes([bytes[0], bytes[1]]) >> 2;
    Ok((!fault).then(|| f64::from(quarters) / 4.0))
}

/// Register 0 of the MAX31856: continuous conversion, open-circuit detection, 50 Hz rejection.
const CR0: u8 = 0b1001_0001;
/// Register 1 of the MAX31856: type K, one reading without averaging.
const CR1: u8 = 0x03;

fn max31856_start(bus: &mut impl SpiDevice) -> Result<(), String> {
    bus.write(&[0x80, CR0, CR1]).map_err(|e| failed(&e))?;
    let mut answer = [0; 2];
    bus.transfer(&mut answer, &[0x01, 0]).map_err(|e| failed(&e))?;
    if answer[1] != CR1 {
        return Err("no MAX31856 answers".to_owned());
    }
    Ok(())
}

/// Reads a MAX31856: 19 bits of °C/128 in registers 0x0C–0x0E, faults in 0x0F. Reads the
/// configuration registers too: after an igniter's spark has reset the chip, it shows 0 °C for
/// ever.
fn max31856(bus: &mut impl SpiDevice) -> Celsius {
    let mut answer = [0; 17];
    bus.transfer(&mut answer, &[0; 17]).map_err(|e| failed(&e))?;
    if answer[1..3] != [CR0, CR1] {
        return Err("the chip has forgotten its settings; it is started anew".to_owned());
    }
    let [high, middle, low, faults] = [answer[13], answer[14], answer[15], answer[16]];
    let raw = i32::from_be_bytes([high, middle, low, 0]) >> 13;
    // An open thermocouple, or a voltage that no thermocouple produces.
    let fault = faults & 0b01 != 0 || faults & 0b10 != 0;
    Ok((!fault).then(|| f64::from(raw) / 128.0))
}

/// Reads the hot junction of an MCP9600: 16 bits of °C/16. Reads the status first, which says
/// whether the input is in range.
fn mcp9600(bus: &mut impl I2c, at: u8) -> Celsius {
    let mut status = [0];
    bus.write_read(at, &[0x04], &mut status).map_err(|e| failed(&e))?;
    let mut bytes = [0; 2];
    bus.write_read(at, &[0x00], &mut bytes).map_err(|e| failed(&e))?;
    let out_of_range = status[0] & 0b0001_0000 != 0;
    Ok((!out_of_range).then(|| f64::from(i16::from_be_bytes(bytes)) / 16.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use embedded_hal::{i2c, spi};

    /// A chip that answers with these bytes.
    struct Answers(Vec<u8>);

    impl spi::ErrorType for Answers {
        type Error = std::convert::Infallible;
    }
    impl SpiDevice for Answers {
        fn transaction(
            &mut self,
            operations: &mut [spi::Operation<'_, u8>],
        ) -> Result<(), Self::Error> {
            for operation in operations {
                match operation {
                    spi::Operation::Read(into) | spi::Operation::Transfer(into, _) => {
                        let n = into.len();
                        into.copy_from_slice(&self.0[..n]);
                    }
                    _ => {}
                }
            }
            Ok(())
        }
    }
    impl i2c::ErrorType for Answers {
        type Error = std::convert::Infallible;
    }
    impl I2c for Answers {
        fn transaction(
            &mut self,
            _: u8,
            operations: &mut [i2c::Operation<'_>],
        ) -> Result<(), Self::Error> {
            let mut register = 0;
            for operation in operations {
                match operation {
                    i2c::Operation::Write(bytes) => register = usize::from(bytes[0]),
                    i2c::Operation::Read(into) => {
                        let n = into.len();
                        into.copy_from_slice(&self.0[register..register + n]);
                    }
                }
            }
            Ok(())
        }
    }

    #[test]
    fn data_sheet_examples_are_read() {
        // +1000 °C, −1 °C, −250 °C: table 4 of the MAX31855 data sheet.
        let read = |bytes: [u8; 4]| max31855(&mut Answers(bytes.to_vec()));
        assert_eq!(read([0x3e, 0x80, 0x19, 0x00]), Ok(Some(1000.0)));
        assert_eq!(read([0xff, 0xf0, 0x19, 0x00]), Ok(Some(-1.0)));
        assert_eq!(read([0xf0, 0x60, 0x19, 0x00]), Ok(Some(-250.0)));
        assert_eq!(read([0x00, 0x01, 0x19, 0x01]), Ok(None), "an open thermocouple");
        assert!(read([0; 4]).is_err());
        // +1000 °C, −1 °C: table 4 of the MAX31856 data sheet.
        let chip = |set: [u8; 2], b: [u8; 4]| {
            max31856(&mut Answers([&[0][..], &set, &[0; 10], &b].concat()))
        };
        let read = |b: [u8; 4]| chip([CR0, CR1], b);
        assert_eq!(read([0x3e, 0x80, 0x00, 0]), Ok(Some(1000.0)));
        assert_eq!(read([0xff, 0xf0, 0x00, 0]), Ok(Some(-1.0)));
        assert_eq!(read([0x3e, 0x80, 0x00, 1]), Ok(None));
        assert!(chip([0, CR1], [0; 4]).is_err(), "the chip was reset by a spark");
        let read = |status: u8| mcp9600(&mut Answers(vec![0x0b, 0xb8, 0, 0, status]), 0x67);
        assert_eq!(read(0), Ok(Some(187.5)));
        assert_eq!(read(0b0001_0000), Ok(None));
    }

    #[test]
    fn a_missing_board_is_reported() {
        let address =
            Address::Board { chip: Chip::Max31856, device: "/dev/spidev99.0".to_owned(), at: None };
        let kind = firmware_profiles::encoding::Type::F32;
        let mut boards = Thermocouples::new(&[ReadPoint {
            address,
            kind,
            order: firmware_profiles::encoding::Order::default(),
            read_first: false,
        }]);
        let problem = boards.read_all().unwrap_err().to_string();
        assert!(problem.starts_with("/dev/spidev99.0: cannot be opened"), "{problem}");
    }
}

//! The profiles that are compiled into the agent.

/// A profile that is compiled into the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShippedProfile {
    pub id: &'static str,
    /// The text of the TOML file.
    pub text: &'static str,
}

macro_rules! entries {
    ($($id:literal),* $(,)?) => {
        [$(ShippedProfile { id: $id, text: include_str!(concat!("../machines/", $id, ".toml")) }),*]
    };
}

/// All shipped profiles, sorted by id.
pub const SHIPPED: &[ShippedProfile] = &entries![
    "besca.bsc.auto-tcp",
    "coffed.sr5.auto",
    "coffeetech.fz94.evo",
    "coffeetech.fz94.rtu",
    "delta.dtb.rtu",
    "diedrich.dr.modbus",
    "fuji.pxg.rtu",
    "generic.line.csv",
    "generic.line.jsonl",
    "generic.probes.boards",
    "giesen.wxa.s7-2019",
    "giesen.wxa.s7-pro",
    "hottop.kn8828b2k.serial",
    "imf.rm.tcp",
    "joper.bsr.plc",
    "kaleido.m.serial",
    "loring.smartroast.modbus-bcd",
    "millcity.dcp.rtu",
    "probat.g.s7",
    "probat.probatone.modbus-7in",
    "santoker.rmaster.wifi",
    "tc4.arduino.artisanq",
    "toper.tkm-sx.plc",
    "watlow.pm.rtu",
];

/// Returns the shipped profile with this id.
#[must_use]
pub fn shipped(id: &str) -> Option<&'static ShippedProfile> {
    SHIPPED.iter().find(|entry| entry.id == id)
}

//! A machine read by its profile: raw values become channels in °C, %, 1/min, with what is wrong
//! with them; states become marks.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;

use contract::{Channel, EventKind, Quality};
use firmware_profiles::address::{Address, Use};
use firmware_profiles::encoding::{self, Type};
use firmware_profiles::{Control, Profile, State, Timing, Transport};
use tokio::time::Instant;

use crate::guard::{Known, Move};
use crate::port::Place;
use crate::{
    Answer, Driver, DriverError, Hand, Reading, Refused, Share, boards, modbus, s7, streams, texts,
};

/// One raw value that the profile wants: a channel's or a state's.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    pub address: Address,
    pub kind: Type,
    pub order: encoding::Order,
}

/// What a bus brought: a raw value a point, in the points' order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Raws {
    pub values: Vec<Option<f64>>,
    /// Units that did not answer while others did.
    pub ailing: Vec<String>,
}

pub type Polling<'b> = Pin<Box<dyn Future<Output = Result<Raws, DriverError>> + 'b>>;
pub type Writing<'b> = Pin<Box<dyn Future<Output = Result<(), Refused>> + 'b>>;

/// A connection to a machine in one protocol.
pub trait Bus {
    /// Asks for every point once. An error when nothing answered at all.
    fn poll(&mut self, mono_ms: u64) -> Polling<'_>;

    /// Makes one move that was allowed, within one time limit. `Ok`: the machine has taken it, or,
    /// where it never says so, it was sent.
    fn write(&mut self, _wanted: Move, _mono_ms: u64) -> Writing<'_> {
        Box::pin(std::future::ready(Err(never())))
    }
}

/// Where the machine is at this site, when not at its maker's default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Site {
    pub host: Option<String>,
    pub port: Option<u16>,
    pub device: Option<PathBuf>,
    pub baud: Option<u32>,
    pub timeout_ms: Option<u64>,
}

pub fn open(profile: &Profile, site: &Site, share: Share) -> Result<Box<dyn Driver>, DriverError> {
    let id = profile.machine.id.clone();
    let wrong = |problem: String| DriverError::Profile(id.clone(), problem);
    let mut profile = profile.clone();
    if let Some(timeout_ms) = site.timeout_ms {
        profile.timing.timeout_ms = timeout_ms;
    }
    let points = points(&profile).map_err(wrong)?;
    let orders = orders(&profile);
    let timing = profile.timing.clone();
    let place = || place(&profile, site).map_err(wrong);
    let bus: Box<dyn Bus> = match &profile.transport {
        Transport::ModbusTcp { .. } | Transport::ModbusRtu { .. } => {
            Box::new(modbus::Modbus::new(place()?, timing, &points, share.clone()))
        }
        Transport::S7 { rack, slot, .. } => {
            Box::new(s7::S7::new(place()?, (*rack, *slot), timing, points, orders))
        }
        Transport::Tc4 { .. } => {
            Box::new(texts::Asked::new(place()?, timing, (points, orders), texts::Dialect::Tc4))
        }
        Transport::Kaleido { .. } => {
            Box::new(texts::Asked::new(place()?, timing, (points, orders), texts::Dialect::Kaleido))
        }
        Transport::Line { format, .. } => Box::new(streams::Told::new(
            place()?,
            timing,
            (points, orders),
            streams::Ear::line(*format),
        )),
        Transport::Hottop { .. } => {
            Box::new(streams::Told::new(place()?, timing, (points, orders), streams::Ear::hottop()))
        }
        Transport::Santoker { .. } => Box::new(streams::Told::new(
            place()?,
            timing,
            (points, orders),
            streams::Ear::santoker(),
        )),
        Transport::Boards {} => Box::new(boards::Boards::new(&points)),
    };
    Ok(Box::new(ProfileDriver::new(profile, bus, share.hand)))
}

/// The profile's address, or this site's.
fn place(profile: &Profile, site: &Site) -> Result<Place, String> {
    match &profile.transport {
        Transport::ModbusTcp { host, port, .. }
        | Transport::S7 { host, port, .. }
        | Transport::Santoker { host, port }
        | Transport::Line { host, port, .. } => {
            let host = site.host.clone().unwrap_or_else(|| host.clone());
            Ok(Place::Tcp { host, port: site.port.unwrap_or(*port) })
        }
        Transport::ModbusRtu { serial, .. }
        | Transport::Tc4 { serial }
        | Transport::Kaleido { serial }
        | Transport::Hottop { serial } => {
            let device = site.device.clone().ok_or(
                "is spoken on a serial line; set machine.profile.device, such as \
                 /dev/serial/by-id/…",
            )?;
            let baud = site.baud.unwrap_or(serial.baud);
            let serial = firmware_profiles::Serial { baud, ..serial.clone() };
            Ok(Place::Serial { device, serial })
        }
        Transport::Boards {} => Err("has no address".to_owned()),
    }
}

/// What is read, channels first, then states.
pub fn points(profile: &Profile) -> Result<Vec<Point>, String> {
    let channels = profile.channels.iter().map(|c| (c.station, &c.addr, c.kind, c.order));
    let states = profile.states.iter().map(|s| (s.station, &s.addr, s.kind, None));
    let point =
        |(station, addr, kind, order): (_, &String, Option<Type>, Option<encoding::Order>)| {
            let address = Address::parse(profile, station, addr, Use::Read)
                .map_err(|expected| format!("{addr:?} is not {expected}"))?;
            // Text protocols carry numbers, whose form nobody needs to say.
            Ok(Point { address, kind: kind.unwrap_or(Type::F32), order: order.unwrap_or_default() })
        };
    channels.chain(states).map(point).collect()
}

/// What whoever asks is told where a machine's language has no word that we would say.
pub fn never() -> Refused {
    Refused::Unsent("nothing is ever written to such a machine".to_owned())
}

/// A control as a bus writes it.
#[derive(Debug, Clone)]
pub struct Order {
    pub address: Address,
    pub control: Control,
}

impl Order {
    /// The raw value of a move; `None` where it is none of one value.
    pub fn raw(&self, wanted: Move) -> Option<f64> {
        match wanted {
            Move::To(_, value) => Some(self.control.raw(value)),
            Move::HandBack(_) => self.control.auto_raw,
            Move::Apply(_) => None,
        }
    }
}

/// By the controls' places in the profile.
pub struct Orders(Vec<Option<Order>>);

impl Orders {
    /// Where a move is written, and what.
    ///
    /// # Errors
    /// When the profile describes no write for it.
    pub fn of(&self, wanted: Move) -> Result<(&Order, f64), Refused> {
        let order = self.0.get(wanted.control()).and_then(Option::as_ref);
        order.and_then(|order| Some((order, order.raw(wanted)?))).ok_or(Refused::Unknown)
    }
}

fn orders(profile: &Profile) -> Orders {
    let order = |control: &Control| {
        let address = Address::parse(profile, control.station, &control.addr, Use::Write).ok()?;
        Some(Order { address, control: control.clone() })
    };
    Orders(profile.controls.iter().map(order).collect())
}

/// How long one answer may take.
pub fn limit(timing: &Timing) -> std::time::Duration {
    std::time::Duration::from_millis(timing.timeout_ms)
}

/// Whether a state holds by a raw value; `None` where it was not read.
fn holds(state: &State, raw: Option<f64>) -> Option<bool> {
    Some((raw? - state.equals).abs() < 1e-6)
}

struct ProfileDriver {
    profile: Profile,
    channels: Vec<Channel>,
    derived: Vec<Channel>,
    bus: Box<dyn Bus>,
    hand: Option<Hand>,
    /// Whether each state held at the last answer; `None` before the first.
    held: Vec<Option<bool>>,
    /// Whether each state holds by the last answer alone.
    states: Vec<Option<bool>>,
    /// Each channel's last value and when, for steps that cannot be.
    last: Vec<Option<(u64, f64)>>,
    /// Since when nothing has answered, and why.
    gap: Option<(u64, String)>,
}

impl ProfileDriver {
    fn new(profile: Profile, bus: Box<dyn Bus>, hand: Option<Hand>) -> Self {
        // The linter has seen that each name is a channel's.
        let named =
            |name: &String| Channel::parse(name).unwrap_or(Channel::Extra("unknown".into()));
        let channels: Vec<Channel> = profile.channels.iter().map(|c| named(&c.name)).collect();
        let derived = profile.derived.iter().map(|d| named(&d.name)).collect();
        let (held, states) = (vec![None; profile.states.len()], vec![None; profile.states.len()]);
        let last = vec![None; channels.len()];
        Self { profile, channels, derived, bus, hand, held, states, last, gap: None }
    }

    /// What raw values mean. Pure but for what it remembers of the last ones.
    fn reading(&mut self, mono_ms: u64, raws: Raws) -> Reading {
        let Raws { values: mut raws, ailing } = raws;
        raws.resize(self.channels.len() + self.held.len(), None);
        let (channels, states) = raws.split_at(self.channels.len());
        let mut reading = Reading { ailing, ..Reading::default() };
        for (i, raw) in channels.iter().enumerate() {
            let value = raw.and_then(|raw| self.profile.channels[i].value(raw));
            if let Some(value) = value
                && let Some(remark) = self.remark(i, mono_ms, value)
            {
                reading.remarks.push((self.channels[i].clone(), remark));
            }
            reading.values.push((self.channels[i].clone(), value));
        }
        for (derived, channel) in self.profile.derived.iter().zip(&self.derived) {
            let terms = derived.terms.iter().map(|term| {
                let at = self.profile.channels.iter().position(|c| c.name == term.channel)?;
                Some(reading.values[at].1? * term.factor)
            });
            let sum = terms.sum::<Option<f64>>().map(|sum| sum + derived.offset);
            reading.values.push((channel.clone(), sum));
        }
        reading.marks = self.marks(states);
        self.states =
            self.profile.states.iter().zip(states).map(|(state, raw)| holds(state, *raw)).collect();
        reading
    }

    fn remark(&mut self, i: usize, mono_ms: u64, value: f64) -> Option<Quality> {
        let channel = &self.profile.channels[i];
        if channel.valid.is_some_and(|[low, high]| !(low..=high).contains(&value)) {
            // Not remembered: the next true value is no spike because this one was none.
            return Some(Quality::Range);
        }
        let before = self.last[i].replace((mono_ms, value));
        let (step, (then_ms, then)) = (channel.max_step_per_s?, before?);
        // After a gap of many seconds anything may have happened.
        let passed_s = mono_ms.saturating_sub(then_ms) as f64 / 1000.0;
        let spike = passed_s < 5.0 && (value - then).abs() > step * passed_s.max(1.0);
        spike.then_some(Quality::Spike)
    }

    /// States that begin to hold. At the first answer nothing has begun: a machine that is found
    /// roasting was not charged this second. A state that was not read is as it was.
    fn marks(&mut self, states: &[Option<f64>]) -> Vec<EventKind> {
        let mut marks = Vec::new();
        for ((state, held), raw) in self.profile.states.iter().zip(&mut self.held).zip(states) {
            let Some(now) = holds(state, *raw) else { continue };
            if now && *held == Some(false) {
                marks.extend(state.mark.as_deref().and_then(EventKind::parse));
            }
            *held = Some(now);
        }
        marks
    }

    /// What the guard of its controls may go by.
    fn known(&self, mono_ms: u64, reading: &Reading) -> Known {
        let remarked: Vec<&Channel> = reading.remarks.iter().map(|(channel, _)| channel).collect();
        let doubtful = |channel: &Channel| {
            let terms = self.profile.derived.iter().zip(&self.derived);
            let terms = terms.filter(|(_, name)| *name == channel).flat_map(|(d, _)| &d.terms);
            let mut names = terms.map(|term| term.channel.as_str()).chain([channel.as_str()]);
            names.any(|name| remarked.iter().any(|channel| channel.as_str() == name))
        };
        let named = |channel: &Channel| channel.as_str().to_owned();
        let sure = reading.values.iter().filter(|(channel, _)| !doubtful(channel));
        let states = self.profile.states.iter().zip(&self.states);
        Known {
            at_ms: Some(mono_ms),
            values: sure.filter_map(|(channel, value)| Some((named(channel), (*value)?))).collect(),
            remarks: reading.remarks.iter().map(|(c, remark)| (named(c), *remark)).collect(),
            states: states.filter_map(|(state, now)| Some((state.name.clone(), (*now)?))).collect(),
        }
    }

    /// Makes the move that is next, if one is.
    async fn obey_one(&mut self, mono_ms: u64) {
        let Some(hand) = self.hand.clone() else { return };
        let Some(next) = hand.next(mono_ms) else { return };
        let began = Instant::now();
        let outcome = self.bus.write(next.wanted, mono_ms).await;
        let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        hand.ended(next, outcome, mono_ms.saturating_add(took_ms));
    }

    async fn ask(&mut self, mono_ms: u64) -> Result<Reading, DriverError> {
        match self.bus.poll(mono_ms).await {
            Ok(raws) if raws.values.iter().all(Option::is_none) => {
                let why = "answers, and has none of the profile's values";
                self.gap.get_or_insert_with(|| (mono_ms, why.to_owned()));
                let id = self.profile.machine.id.clone();
                let why = format!("the machine {why}; {}", raws.ailing.join("; "));
                Err(DriverError::Profile(id, why.trim_end_matches("; ").to_owned()))
            }
            Ok(raws) => {
                let mut reading = self.reading(mono_ms, raws);
                if let Some((since_ms, why)) = self.gap.take() {
                    let seconds = mono_ms.saturating_sub(since_ms) as f64 / 1000.0;
                    reading.notes.push(format!("gap of {seconds:.1} s: {why}"));
                }
                if let Some(hand) = &self.hand {
                    reading.notes.extend(hand.notes());
                    hand.saw(self.known(mono_ms, &reading));
                }
                Ok(reading)
            }
            Err(error) => {
                self.gap.get_or_insert_with(|| (mono_ms, error.to_string()));
                Err(error)
            }
        }
    }
}

impl Driver for ProfileDriver {
    fn read(&mut self, mono_ms: u64) -> Answer<'_> {
        Box::pin(self.ask(mono_ms))
    }

    fn asked(&self) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        match &self.hand {
            Some(hand) => Box::pin(hand.asked()),
            None => Box::pin(std::future::pending()),
        }
    }

    fn obey(&mut self, mono_ms: u64) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        Box::pin(self.obey_one(mono_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers what it is given, one a poll; an error where there is none.
    struct Script(Vec<Option<Vec<Option<f64>>>>);

    impl Bus for Script {
        fn poll(&mut self, _: u64) -> Polling<'_> {
            let next = self.0.remove(0);
            Box::pin(std::future::ready(match next {
                Some(values) => Ok(Raws { values, ailing: Vec::new() }),
                None => Err(DriverError::Silent("plc".to_owned(), 300)),
            }))
        }
    }

    fn driver(polls: Vec<Option<Vec<Option<f64>>>>) -> ProfileDriver {
        let text = "[machine]\nid = \"a.b.c\"\nname = \"n\"\ncontroller = \"c\"\nversion = 1\n\
            fuel = \"gas\"\nsource = \"s\"\n[transport]\nkind = \"modbus-tcp\"\nhost = \"h\"\n\
            [[channel]]\nname = \"btC\"\naddr = \"holding 0\"\ntype = \"u16\"\nunit = \"F\"\n\
            divisor = 10\nvalid = [-20, 350]\nmax_step_per_s = 15\nmissing = [65535]\n\
            [[channel]]\nname = \"drumHz\"\naddr = \"holding 1\"\ntype = \"u16\"\nunit = \"Hz\"\n\
            [[derived]]\nname = \"drumRpm\"\nunit = \"rpm\"\nterms = [{ channel = \"drumHz\", factor = 1.2 }]\n\
            [[state]]\nname = \"charged\"\naddr = \"coil 4\"\ntype = \"bool\"\nequals = 1\nmark = \"CHARGE\"\n\
            [safe_state]\norder = []\n";
        let profile = firmware_profiles::check(text).unwrap().profile;
        ProfileDriver::new(profile, Box::new(Script(polls)), None)
    }

    #[tokio::test]
    async fn raw_values_become_channels_with_what_is_wrong_with_them() {
        let poll = |f: f64| Some(vec![Some(f * 10.0), Some(50.0), Some(0.0)]);
        let mut driver = driver(vec![poll(392.0), poll(482.0), poll(6553.5), poll(1000.0)]);
        let first = driver.read(0).await.unwrap();
        let value = |r: &Reading, i: usize| r.values[i].1;
        assert!((value(&first, 0).unwrap() - 200.0).abs() < 1e-9, "°F becomes °C");
        assert!((value(&first, 2).unwrap() - 60.0).abs() < 1e-9, "derived");
        assert!(first.remarks.is_empty());
        let second = driver.read(1000).await.unwrap();
        assert_eq!(second.remarks, [(Channel::Bt, Quality::Spike)], "50 °C in a second");
        assert_eq!(value(&driver.read(2000).await.unwrap(), 0), None, "the machine's own no");
        let fourth = driver.read(3000).await.unwrap();
        assert_eq!(fourth.remarks, [(Channel::Bt, Quality::Range)]);
    }

    #[tokio::test]
    async fn a_state_that_begins_is_a_mark_and_one_that_was_found_is_not() {
        let poll = |state: Option<f64>| Some(vec![None, Some(50.0), state]);
        let states = [Some(1.0), Some(0.0), None, Some(1.0), Some(1.0)];
        let mut driver = driver(states.map(poll).to_vec());
        let mut marks = Vec::new();
        for i in 0..5 {
            marks.push(driver.read(i * 1000).await.unwrap().marks.len());
        }
        assert_eq!(marks, [0, 0, 0, 1, 0]);
    }

    #[tokio::test]
    async fn a_gap_is_said_once_it_is_over() {
        let poll = || Some(vec![Some(2000.0), None, None]);
        let mut driver = driver(vec![poll(), None, None, poll(), poll()]);
        assert!(driver.read(0).await.is_ok());
        assert!(driver.read(1000).await.is_err() && driver.read(2000).await.is_err());
        let after = driver.read(3500).await.unwrap();
        assert_eq!(after.notes, ["gap of 2.5 s: plc does not answer within 300 ms"]);
        assert!(driver.read(4500).await.unwrap().notes.is_empty());
    }
}

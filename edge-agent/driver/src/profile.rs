//! The driver of a machine that a profile describes: converts raw values to channels in °C, %,
//! 1/min with quality flags, and states to events.

use std::future::Future;
use std::pin::Pin;

use contract::{Channel, EventKind, Quality};
use firmware_profiles::{Profile, State};
use tokio::time::Instant;

use crate::bus::{Bus, RawValues};
use crate::interlock::MachineSnapshot;
use crate::{ControlQueue, Driver, DriverError, ReadFuture, Reading};

/// Returns whether a state holds for a raw value; `None` where it was not read.
fn holds(state: &State, raw: Option<f64>) -> Option<bool> {
    Some((raw? - state.equals).abs() < 1e-6)
}

/// The limits of a channel's values.
#[derive(Clone, Copy)]
struct Bounds {
    valid: Option<[f64; 2]>,
    max_step_per_s: Option<f64>,
}

/// Returns the quality flag of a value; `None` for a good one. `last` is the channel's last value
/// within its range, and its time.
fn quality(
    bounds: Bounds,
    last: &mut Option<(u64, f64)>,
    mono_ms: u64,
    value: f64,
) -> Option<Quality> {
    if bounds.valid.is_some_and(|[low, high]| !(low..=high).contains(&value)) {
        // Not remembered, so that the next valid value is not compared with it and flagged as a
        // spike.
        return Some(Quality::Range);
    }
    let before = last.replace((mono_ms, value));
    let (step, (then_ms, then)) = (bounds.max_step_per_s?, before?);
    // After a gap of many seconds any change is possible.
    let passed_s = mono_ms.saturating_sub(then_ms) as f64 / 1000.0;
    let spike = passed_s < 5.0 && (value - then).abs() > step * passed_s.max(1.0);
    spike.then_some(Quality::Spike)
}

/// A machine that a profile describes, behind one protocol.
pub struct ProfileDriver {
    profile: Profile,
    channels: Vec<Channel>,
    derived: Vec<Channel>,
    bus: Box<dyn Bus>,
    controls: Option<ControlQueue>,
    /// Whether each state held at the last answer; `None` before the first.
    previous_states: Vec<Option<bool>>,
    /// Whether each state holds by the last answer only.
    states: Vec<Option<bool>>,
    /// The last value and its time of each channel, read ones before derived ones, to detect
    /// spikes.
    last: Vec<Option<(u64, f64)>>,
    /// Since when the machine has not answered, monotonic ms, and why.
    outage: Option<(u64, String)>,
}

impl ProfileDriver {
    /// Creates the driver of a machine behind `bus`.
    pub fn new(profile: Profile, bus: Box<dyn Bus>, controls: Option<ControlQueue>) -> Self {
        // The linter has checked that each name is a channel's.
        let parse =
            |name: &String| Channel::parse(name).unwrap_or(Channel::Extra("unknown".into()));
        let channels: Vec<Channel> = profile.channels.iter().map(|c| parse(&c.name)).collect();
        let derived: Vec<Channel> = profile.derived.iter().map(|d| parse(&d.name)).collect();
        let (previous_states, states) =
            (vec![None; profile.states.len()], vec![None; profile.states.len()]);
        let last = vec![None; channels.len().saturating_add(derived.len())];
        Self {
            profile,
            channels,
            derived,
            bus,
            controls,
            previous_states,
            states,
            last,
            outage: None,
        }
    }

    /// Converts raw values to a reading. Pure except for the remembered last values.
    fn convert(&mut self, mono_ms: u64, raws: RawValues) -> Reading {
        let RawValues { values: mut raws, failed_units } = raws;
        raws.resize(self.channels.len().saturating_add(self.previous_states.len()), None);
        let (channels, states) = raws.split_at(self.channels.len());
        let mut reading = Reading { failed_units, ..Reading::default() };
        for (i, raw) in channels.iter().enumerate() {
            let channel = &self.profile.channels[i];
            let value = raw.and_then(|raw| channel.value(raw));
            let bounds = Bounds { valid: channel.valid, max_step_per_s: channel.max_step_per_s };
            let flag = value.and_then(|value| quality(bounds, &mut self.last[i], mono_ms, value));
            reading.quality_flags.extend(flag.map(|flag| (self.channels[i].clone(), flag)));
            reading.values.push((self.channels[i].clone(), value));
        }
        self.derive(mono_ms, &mut reading);
        reading.events = self.begun_events(states);
        self.states =
            self.profile.states.iter().zip(states).map(|(state, raw)| holds(state, *raw)).collect();
        reading
    }

    /// Adds the derived channels to a reading of the others. A derived value that is good by its own
    /// bounds has the flag of a value that it is computed from.
    fn derive(&mut self, mono_ms: u64, reading: &mut Reading) {
        let last = self.last.iter_mut().skip(self.channels.len());
        for ((derived, channel), last) in self.profile.derived.iter().zip(&self.derived).zip(last) {
            let terms = derived.terms.iter().map(|term| {
                let at = self.profile.channels.iter().position(|c| c.name == term.channel)?;
                Some(reading.values[at].1? * term.factor)
            });
            let sum = terms.sum::<Option<f64>>().map(|sum| sum + derived.offset);
            let bounds = Bounds { valid: derived.valid, max_step_per_s: derived.max_step_per_s };
            let flag = sum.and_then(|value| {
                let own = quality(bounds, last, mono_ms, value);
                own.or_else(|| {
                    let mut flags = reading.quality_flags.iter();
                    let is_term = |name: &str| derived.terms.iter().any(|t| t.channel == name);
                    flags.find(|(channel, _)| is_term(channel.as_str())).map(|(_, flag)| *flag)
                })
            });
            reading.quality_flags.extend(flag.map(|flag| (channel.clone(), flag)));
            reading.values.push((channel.clone(), sum));
        }
    }

    /// Returns the events of states that begin to hold. The first answer yields no events: a
    /// machine that is already roasting was not charged this second. A state that was not read
    /// stays unchanged.
    fn begun_events(&mut self, states: &[Option<f64>]) -> Vec<EventKind> {
        let mut marks = Vec::new();
        for ((state, previous), raw) in
            self.profile.states.iter().zip(&mut self.previous_states).zip(states)
        {
            let Some(now) = holds(state, *raw) else { continue };
            if now && *previous == Some(false) {
                marks.extend(state.mark.as_deref().and_then(EventKind::parse));
            }
            *previous = Some(now);
        }
        marks
    }

    /// Builds the snapshot that the interlock checks writes against.
    fn snapshot(&self, mono_ms: u64, reading: &Reading) -> MachineSnapshot {
        let remarked: Vec<&Channel> =
            reading.quality_flags.iter().map(|(channel, _)| channel).collect();
        let doubtful = |channel: &Channel| {
            let terms = self.profile.derived.iter().zip(&self.derived);
            let terms = terms.filter(|(_, name)| *name == channel).flat_map(|(d, _)| &d.terms);
            let mut names = terms.map(|term| term.channel.as_str()).chain([channel.as_str()]);
            names.any(|name| remarked.iter().any(|channel| channel.as_str() == name))
        };
        let to_name = |channel: &Channel| channel.as_str().to_owned();
        let sure = reading.values.iter().filter(|(channel, _)| !doubtful(channel));
        let states = self.profile.states.iter().zip(&self.states);
        MachineSnapshot {
            at_ms: Some(mono_ms),
            values: sure
                .filter_map(|(channel, value)| Some((to_name(channel), (*value)?)))
                .collect(),
            quality_flags: reading
                .quality_flags
                .iter()
                .map(|(c, remark)| (to_name(c), *remark))
                .collect(),
            states: states.filter_map(|(state, now)| Some((state.name.clone(), (*now)?))).collect(),
        }
    }

    /// Executes the next queued write, if there is one.
    async fn execute_next(&mut self, mono_ms: u64) {
        let Some(controls) = self.controls.clone() else { return };
        let Some(next) = controls.next(mono_ms) else { return };
        let began = Instant::now();
        let outcome = self.bus.write(next.command, mono_ms).await;
        let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        controls.complete(next, outcome, mono_ms.saturating_add(took_ms));
    }

    async fn read_once(&mut self, mono_ms: u64) -> Result<Reading, DriverError> {
        match self.bus.poll(mono_ms).await {
            Ok(raws) if raws.values.iter().all(Option::is_none) => {
                let why = "answers, but without any of the profile's values";
                self.outage.get_or_insert_with(|| (mono_ms, why.to_owned()));
                let id = self.profile.machine.id.clone();
                let why = format!("the machine {why}; {}", raws.failed_units.join("; "));
                Err(DriverError::Profile(id, why.trim_end_matches("; ").to_owned()))
            }
            Ok(raws) => {
                let mut reading = self.convert(mono_ms, raws);
                if let Some((since_ms, why)) = self.outage.take() {
                    let seconds = mono_ms.saturating_sub(since_ms) as f64 / 1000.0;
                    reading.notes.push(format!("gap of {seconds:.1} s: {why}"));
                }
                if let Some(controls) = &self.controls {
                    reading.notes.extend(controls.drain_notes());
                    controls.observe(self.snapshot(mono_ms, &reading));
                }
                Ok(reading)
            }
            Err(error) => {
                self.outage.get_or_insert_with(|| (mono_ms, error.to_string()));
                Err(error)
            }
        }
    }
}

impl Driver for ProfileDriver {
    fn read(&mut self, mono_ms: u64) -> ReadFuture<'_> {
        Box::pin(self.read_once(mono_ms))
    }

    fn advice(&self) -> Vec<&'static str> {
        self.bus.advice()
    }

    fn wait_for_write(&self) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        match &self.controls {
            Some(controls) => Box::pin(controls.wait_for_write()),
            None => Box::pin(std::future::pending()),
        }
    }

    fn execute_pending(&mut self, mono_ms: u64) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        Box::pin(self.execute_next(mono_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::PollFuture;

    /// Returns the given answers, one per poll; an error for `None`.
    struct Script(Vec<Option<Vec<Option<f64>>>>);

    impl Bus for Script {
        fn poll(&mut self, _: u64) -> PollFuture<'_> {
            let next = self.0.remove(0);
            Box::pin(std::future::ready(match next {
                Some(values) => Ok(RawValues { values, failed_units: Vec::new() }),
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
    async fn raw_values_become_channels_with_quality_flags() {
        let poll = |f: f64| Some(vec![Some(f * 10.0), Some(50.0), Some(0.0)]);
        let mut driver = driver(vec![poll(392.0), poll(482.0), poll(6553.5), poll(1000.0)]);
        let first = driver.read(0).await.unwrap();
        let value = |r: &Reading, i: usize| r.values[i].1;
        assert!((value(&first, 0).unwrap() - 200.0).abs() < 1e-9, "°F becomes °C");
        assert!((value(&first, 2).unwrap() - 60.0).abs() < 1e-9, "a derived channel");
        assert!(first.quality_flags.is_empty());
        let second = driver.read(1000).await.unwrap();
        assert_eq!(
            second.quality_flags,
            [(Channel::Bt, Quality::Spike)],
            "a step of 50 °C in a second"
        );
        assert_eq!(value(&driver.read(2000).await.unwrap(), 0), None, "a missing value");
        let fourth = driver.read(3000).await.unwrap();
        assert_eq!(fourth.quality_flags, [(Channel::Bt, Quality::Range)]);
    }

    #[tokio::test]
    async fn a_derived_temperature_has_bounds_and_the_flags_of_its_terms() {
        let text = "[machine]\nid = \"a.b.c\"\nname = \"n\"\ncontroller = \"c\"\nversion = 1\n\
            fuel = \"gas\"\nsource = \"s\"\n[transport]\nkind = \"modbus-tcp\"\nhost = \"h\"\n\
            [[channel]]\nname = \"btRaw\"\naddr = \"holding 70\"\ntype = \"u16\"\nunit = \"none\"\n\
            divisor = 10\nvalid = [100, 600]\n\
            [[derived]]\nname = \"btC\"\nunit = \"C\"\noffset = -200\n\
            terms = [{ channel = \"btRaw\", factor = 1 }]\nvalid = [-200, 350]\nmax_step_per_s = 15\n\
            [safe_state]\norder = []\n";
        let profile = firmware_profiles::check(text).unwrap().profile;
        let polls = [3_900.0, 4_900.0, 5_900.0].map(|raw| Some(vec![Some(raw)])).to_vec();
        let (raw, bt) = (Channel::Extra("btRaw".into()), Channel::Bt);
        let mut driver = ProfileDriver::new(profile.clone(), Box::new(Script(polls)), None);
        for (second, value, flag) in
            [(0, 190.0, None), (1, 290.0, Some(Quality::Spike)), (2, 390.0, Some(Quality::Range))]
        {
            let reading = driver.read(second * 1000).await.unwrap();
            assert_eq!(reading.values[1], (bt.clone(), Some(value)));
            let flags: Vec<_> = flag.map(|flag| (bt.clone(), flag)).into_iter().collect();
            assert_eq!(reading.quality_flags, flags, "second {second}");
        }
        // A raw value of a broken probe, from which a valid temperature is computed.
        let polls = vec![Some(vec![Some(500.0)])];
        let mut driver = ProfileDriver::new(profile, Box::new(Script(polls)), None);
        let reading = driver.read(0).await.unwrap();
        assert_eq!(reading.quality_flags, [(raw, Quality::Range), (bt, Quality::Range)]);
    }

    #[tokio::test]
    async fn a_state_that_begins_to_hold_is_an_event_and_one_that_already_held_is_not() {
        let poll = |state: Option<f64>| Some(vec![None, Some(50.0), state]);
        let states = [Some(1.0), Some(0.0), None, Some(1.0), Some(1.0)];
        let mut driver = driver(states.map(poll).to_vec());
        let mut marks = Vec::new();
        for i in 0..5 {
            marks.push(driver.read(i * 1000).await.unwrap().events.len());
        }
        assert_eq!(marks, [0, 0, 0, 1, 0]);
    }

    #[tokio::test]
    async fn a_gap_is_noted_once_when_it_ends() {
        let poll = || Some(vec![Some(2000.0), None, None]);
        let mut driver = driver(vec![poll(), None, None, poll(), poll()]);
        assert!(driver.read(0).await.is_ok());
        assert!(driver.read(1000).await.is_err() && driver.read(2000).await.is_err());
        let after = driver.read(3500).await.unwrap();
        assert_eq!(after.notes, ["gap of 2.5 s: plc does not answer within 300 ms"]);
        assert!(driver.read(4500).await.unwrap().notes.is_empty());
    }
}

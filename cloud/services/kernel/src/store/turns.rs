//! The turns of the organisations at the mission queue. A worker of all organisations serves one
//! after the other, so that many missions of one do not delay those of the others.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How often the database is asked which organisations wait. Between two times, an organisation
/// that is not listed is served when no listed one has a mission.
const LIST_EVERY: Duration = Duration::from_millis(500);
/// The maximum number of sets of goals with turns of their own. At this bound all begin anew.
const SETS_MAX: usize = 64;

/// The turns of each set of goals that workers ask for.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<Vec<String>, Rotation>>);

#[derive(Debug, Default)]
struct Rotation {
    /// The organisation whose turn is next is the first.
    orgs: VecDeque<String>,
    listed: Option<Instant>,
}

impl Turns {
    fn sets(&self) -> MutexGuard<'_, HashMap<Vec<String>, Rotation>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether the waiting organisations must be listed again, and notes that the caller
    /// does it.
    pub(super) fn is_list_due(&self, goals: &[String], now: Instant) -> bool {
        let mut sets = self.sets();
        if sets.len() >= SETS_MAX && !sets.contains_key(goals) {
            sets.clear();
        }
        let rotation = sets.entry(goals.to_vec()).or_default();
        let due = rotation.listed.is_none_or(|at| now.duration_since(at) >= LIST_EVERY);
        if due {
            rotation.listed = Some(now);
        }
        due
    }

    /// Adds the organisations that wait and have no turn yet.
    pub(super) fn add(&self, goals: &[String], waiting: Vec<String>) {
        let mut sets = self.sets();
        let Some(rotation) = sets.get_mut(goals) else { return };
        for org in waiting {
            if !rotation.orgs.contains(&org) {
                rotation.orgs.push_back(org);
            }
        }
    }

    /// Returns the organisation whose turn it is; its next turn is after all others.
    pub(super) fn next(&self, goals: &[String]) -> Option<String> {
        let mut sets = self.sets();
        let orgs = &mut sets.get_mut(goals)?.orgs;
        let org = orgs.pop_front()?;
        orgs.push_back(org.clone());
        Some(org)
    }

    /// Takes the turn of an organisation that has no mission.
    pub(super) fn remove(&self, goals: &[String], org: &str) {
        if let Some(rotation) = self.sets().get_mut(goals) {
            rotation.orgs.retain(|other| other != org);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_organisation_has_a_turn_before_one_has_another() {
        let (turns, now, goals) = (Turns::default(), Instant::now(), ["tidy".to_owned()]);
        assert!(turns.is_list_due(&goals, now));
        assert!(!turns.is_list_due(&goals, now), "one caller lists");
        assert!(turns.is_list_due(&[], now), "other goals have their own turns");
        turns.add(&goals, vec!["a".to_owned(), "b".to_owned()]);
        turns.add(&goals, vec!["b".to_owned(), "c".to_owned()]);
        let next = || turns.next(&goals).unwrap_or_default();
        assert_eq!([next(), next(), next(), next()], ["a", "b", "c", "a"]);
        turns.remove(&goals, "c");
        assert_eq!([next(), next(), next()], ["b", "a", "b"]);
        assert!(turns.is_list_due(&goals, now + LIST_EVERY));
        for n in 0..1_000 {
            turns.is_list_due(&[n.to_string()], now);
        }
        assert!(turns.sets().len() <= SETS_MAX);
    }
}

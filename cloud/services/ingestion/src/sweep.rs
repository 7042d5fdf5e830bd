//! A sweep over the sessions of all organisations: the organisations take turns, and what fails
//! with one item does not keep the others from their turn.

use std::collections::BTreeMap;
use std::time::Duration;

use ::database::StoreError;
use service::tasks;
use tokio::time::Instant;

use crate::store::{OpenReceipt, OrgCursor, PendingSession};

/// How long an item is left out after it has failed; doubled each time it fails again.
const QUARANTINE_MIN: Duration = Duration::from_secs(5);
const QUARANTINE_MAX: Duration = Duration::from_hours(1);
/// The maximum number of items that a sweep leaves out. At this bound a further one takes the place
/// of that whose time is over first.
const QUARANTINED_MAX: usize = 10_000;
/// An organisation has at least this many items in a pass, however many organisations there are.
const SHARE_MIN: i64 = 10;

/// The items of one kind of work that have failed.
#[derive(Debug)]
pub struct Quarantine {
    work: &'static str,
    failed: BTreeMap<String, FailedItem>,
}

#[derive(Debug, Clone, Copy)]
struct FailedItem {
    failures: u32,
    /// The item is left out until then.
    until: Instant,
}

impl Quarantine {
    /// Creates an empty quarantine of a kind of work, which metrics and logs name.
    pub const fn new(work: &'static str) -> Self {
        Self { work, failed: BTreeMap::new() }
    }

    /// Does the work on one item, unless the item is left out because it has failed. An error or a
    /// panic of this item alone is counted and logged, and leaves it out of the next passes, for
    /// longer each time.
    ///
    /// # Errors
    /// When the database does not answer: the sweep then ends, and the next one retries.
    pub async fn each(
        &mut self,
        item: &str,
        now: Instant,
        future: impl Future<Output = Result<(), StoreError>>,
    ) -> Result<(), StoreError> {
        if self.failed.get(item).is_some_and(|failed| now < failed.until) {
            return Ok(());
        }
        match tasks::isolate(self.work, future).await {
            Ok(Ok(())) => {
                if self.failed.remove(item).is_some() {
                    self.publish();
                }
            }
            Ok(Err(error)) if error.is_unavailable() => return Err(error),
            Ok(Err(error)) => {
                let (work, retry_ms) = (self.work, self.leave_out(item, now).as_millis());
                tracing::warn!(%error, item, work, retry_ms, "left an item out of the next sweeps");
            }
            Err(panicked) => {
                let retry_ms = self.leave_out(item, now).as_millis();
                tracing::error!(error = %panicked, item, retry_ms, "left an item out of the next sweeps");
            }
        }
        Ok(())
    }

    /// Notes a failure; returns how long the item is left out.
    fn leave_out(&mut self, item: &str, now: Instant) -> Duration {
        if self.failed.len() >= QUARANTINED_MAX && !self.failed.contains_key(item) {
            let first = self.failed.iter().min_by_key(|(_, failed)| failed.until);
            if let Some(first) = first.map(|(item, _)| item.clone()) {
                self.failed.remove(&first);
            }
        }
        let failures = self.failed.get(item).map_or(0, |failed| failed.failures);
        let wait = QUARANTINE_MIN.saturating_mul(1 << failures.min(16)).min(QUARANTINE_MAX);
        let failed = FailedItem { failures: failures.saturating_add(1), until: now + wait };
        self.failed.insert(item.to_owned(), failed);
        metrics::counter!("simcorp_sweep_failures_total", "work" => self.work).increment(1);
        self.publish();
        wait
    }

    fn publish(&self) {
        let items = self.failed.len() as f64;
        metrics::gauge!("simcorp_sweep_quarantined", "work" => self.work).set(items);
    }
}

/// A row that a sweep examines, with its organisation and its place in the order of time.
pub trait SweptRow {
    fn cursor(&self) -> OrgCursor;

    /// Returns the chain to which the row belongs.
    fn chain(&self) -> i64;

    /// Returns whether the sweep has work with this row.
    fn is_due(&self) -> bool;
}

/// How many rows of each organisation a pass examines, and how many of these it works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassLimits {
    pub examined: i64,
    pub due: i64,
    /// How many of one chain it works on. A machine roasts once in some minutes: one that claims many
    /// roasts a second takes no more work than any other, and its roasts wait for the next round.
    pub due_of_chain: u32,
}

impl PassLimits {
    /// Returns the share of each organisation in the limits of a pass.
    pub fn of_each(self, orgs: usize) -> Self {
        let (examined, due) = (share(self.examined, orgs), share(self.due, orgs));
        Self { examined, due, ..self }
    }
}

impl SweptRow for PendingSession {
    fn cursor(&self) -> OrgCursor {
        let (org_id, session_id) = (self.org_id.clone(), self.session_id.clone());
        OrgCursor { org_id, started_ms: self.started_ms, session_id }
    }

    fn chain(&self) -> i64 {
        self.chain_no
    }

    fn is_due(&self) -> bool {
        self.is_due
    }
}

impl SweptRow for OpenReceipt {
    fn cursor(&self) -> OrgCursor {
        let (org_id, session_id) = (self.org_id.clone(), self.session_id.clone());
        OrgCursor { org_id, started_ms: self.started_ms, session_id }
    }

    fn chain(&self) -> i64 {
        self.chain_no
    }

    fn is_due(&self) -> bool {
        true
    }
}

/// Where a sweep continues in the sessions of each organisation.
#[derive(Debug, Default)]
pub struct OrgTurns(BTreeMap<String, OrgCursor>);

impl OrgTurns {
    /// Returns the position in each of these organisations, and forgets the others.
    pub fn cursors(&mut self, orgs: &[String]) -> Vec<OrgCursor> {
        let mut known = std::mem::take(&mut self.0);
        let cursors: Vec<OrgCursor> = orgs
            .iter()
            .map(|org| known.remove(org).unwrap_or_else(|| OrgCursor::first(org.clone())))
            .collect();
        self.0 = cursors.iter().map(|cursor| (cursor.org_id.clone(), cursor.clone())).collect();
        cursors
    }

    /// Notes the rows that were read, at most `limits.examined` of each organisation: the next pass
    /// continues after the last one that this pass examines, or begins anew where none follows.
    /// Returns the rows that are due, one of each organisation, then the next one of each.
    pub fn take<R: SweptRow>(&mut self, rows: Vec<R>, limits: PassLimits) -> Vec<R> {
        let most = |limit: i64| usize::try_from(limit).unwrap_or(0);
        let mut due_of_orgs = Vec::new();
        self.0.clear();
        for (org, rows) in by_org(rows) {
            let is_full = rows.len() >= most(limits.examined);
            let mut last = rows.last().filter(|_| is_full).map(SweptRow::cursor);
            let mut of_chains: BTreeMap<i64, u32> = BTreeMap::new();
            let is_taken = |row: &R| {
                let taken = of_chains.entry(row.chain()).or_default();
                *taken = taken.saturating_add(u32::from(row.is_due()));
                row.is_due() && *taken <= limits.due_of_chain
            };
            let mut due: Vec<R> = rows.into_iter().filter(is_taken).collect();
            if due.len() > most(limits.due) {
                due.truncate(most(limits.due));
                last = due.last().map(SweptRow::cursor);
            }
            if let Some(last) = last {
                self.0.insert(org, last);
            }
            due_of_orgs.push(due);
        }
        in_turn(due_of_orgs)
    }
}

/// Returns the share of each organisation in the `budget` of a pass.
fn share(budget: i64, orgs: usize) -> i64 {
    let orgs = i64::try_from(orgs).unwrap_or(i64::MAX).max(1);
    budget.checked_div(orgs).unwrap_or(budget).max(SHARE_MIN)
}

/// Returns one row of each organisation, then the next one of each.
pub fn of_orgs_in_turn<R: SweptRow>(rows: Vec<R>) -> Vec<R> {
    in_turn(by_org(rows).into_values().collect())
}

fn by_org<R: SweptRow>(rows: Vec<R>) -> BTreeMap<String, Vec<R>> {
    let mut of_orgs: BTreeMap<String, Vec<R>> = BTreeMap::new();
    for row in rows {
        of_orgs.entry(row.cursor().org_id).or_default().push(row);
    }
    of_orgs
}

/// Takes one item of each organisation, then the next one of each.
pub fn in_turn<T>(waiting: Vec<Vec<T>>) -> Vec<T> {
    let mut waiting: Vec<_> = waiting.into_iter().map(Vec::into_iter).collect();
    let mut ordered = Vec::new();
    loop {
        let before = ordered.len();
        ordered.extend(waiting.iter_mut().filter_map(Iterator::next));
        if ordered.len() == before {
            return ordered;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_item_that_fails_again_and_again_is_left_out_for_longer_and_no_other_is() {
        let mut quarantine = Quarantine::new("test");
        let start = Instant::now();
        let (mut tried, mut others) = (Vec::new(), 0);
        for second in 0..60 {
            let now = start + Duration::from_secs(second);
            let panics = async {
                tried.push(second);
                panic!("a damaged session")
            };
            assert!(quarantine.each("acme/S-1", now, panics).await.is_ok());
            let works = async {
                others += 1;
                Ok(())
            };
            assert!(quarantine.each("acme/S-2", now, works).await.is_ok());
        }
        assert_eq!((tried, others), (vec![0, 5, 15, 35], 60));
        // Once it works, it is an item as any other.
        let (later, mut done) = (start + QUARANTINE_MAX, 0);
        for _ in 0..2 {
            let works = async {
                done += 1;
                Ok(())
            };
            assert!(quarantine.each("acme/S-1", later, works).await.is_ok());
        }
        assert_eq!((done, quarantine.failed.len()), (2, 0));
    }

    #[tokio::test]
    async fn a_row_that_cannot_be_read_is_left_out_and_a_database_that_is_away_ends_the_sweep() {
        let mut quarantine = Quarantine::new("test");
        let now = Instant::now();
        let damaged = async { Err(StoreError::row("testing", "odd")) };
        assert!(quarantine.each("acme/S-1", now, damaged).await.is_ok());
        assert!(quarantine.failed.contains_key("acme/S-1"));
        let away =
            async { Err(StoreError::query("testing")(::database::sqlx::Error::PoolTimedOut)) };
        assert!(quarantine.each("acme/S-2", now, away).await.is_err());
        assert_eq!(quarantine.failed.len(), 1, "the item has nothing to do with it");
    }

    #[tokio::test]
    async fn the_number_of_items_that_are_left_out_is_bounded() {
        let mut quarantine = Quarantine::new("test");
        let now = Instant::now();
        for n in 0..QUARANTINED_MAX + 10 {
            quarantine.leave_out(&n.to_string(), now);
        }
        assert_eq!(quarantine.failed.len(), QUARANTINED_MAX);
    }

    #[test]
    fn organisations_take_turns_and_each_continues_where_it_was() {
        let row = |org: &str, n: i64| PendingSession {
            org_id: org.to_owned(),
            session_id: format!("{org}-{n}"),
            started_ms: n,
            chain_no: n.min(7),
            is_due: n != 4,
        };
        let ids = |rows: Vec<PendingSession>| -> Vec<String> {
            rows.into_iter().map(|row| row.session_id).collect()
        };
        let orgs = ["flood".to_owned(), "calm".to_owned()];
        let mut turns = OrgTurns::default();
        let two = PassLimits { examined: 2, due: 2, due_of_chain: 1 };
        let first = orgs.clone().map(OrgCursor::first).to_vec();
        assert_eq!(turns.cursors(&orgs), first);
        let read = vec![row("flood", 1), row("flood", 2), row("calm", 7)];
        assert_eq!(ids(turns.take(read, two)), ["calm-7", "flood-1", "flood-2"]);
        assert_eq!(turns.cursors(&orgs), [row("flood", 2).cursor(), first[1].clone()]);
        assert_eq!(ids(turns.take(vec![row("flood", 3)], two)), ["flood-3"]);
        assert_eq!(turns.cursors(&orgs), first, "after the last one it begins anew");
        let read = (3..=6).map(|n| row("flood", n)).collect();
        assert_eq!(
            ids(turns.take(read, PassLimits { examined: 4, ..two })),
            ["flood-3", "flood-5"]
        );
        assert_eq!(turns.cursors(&orgs)[0], row("flood", 5).cursor(), "the sixth is not lost");
        assert_eq!(
            ids(turns.take(vec![row("flood", 4)], PassLimits { examined: 1, ..two })),
            [""; 0]
        );
        assert_eq!(turns.cursors(&orgs)[0], row("flood", 4).cursor(), "it was examined");
        let read = (6..=9).map(|n| row("flood", n)).collect();
        let all = PassLimits { examined: 4, due: 4, due_of_chain: 1 };
        assert_eq!(ids(turns.take(read, all)), ["flood-6", "flood-7"], "one of each chain");
        assert_eq!(turns.cursors(&orgs)[0], row("flood", 9).cursor());
        assert_eq!((share(50, 2), share(50, 0), share(50, 1_000)), (25, 50, SHARE_MIN));
    }
}

//! Display names of machines, and aliases: which id continues an earlier one. Stored and signed
//! data keep the id under which a machine sent them; only answers name the present one.

use std::collections::{BTreeMap, BTreeSet};

use ::database::sqlx::{FromRow, query, query_as, query_scalar};
use ::database::{StoreError, Tx, on, on_tx};
use contract::{EpochMs, MachineId, OrgId, Origin, SiteId, upstream_id};
use serde_json::json;

use super::IngestStore;
use super::annotations::ChangedBy;

/// The maximum number of rows of an organisation; `GET /machines` lists at most 1 000 machines.
const NAMES_MAX: usize = 2_000;

/// Site and machine id.
type Key = (String, String);

/// What is stored about one machine id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Naming {
    display_name: Option<String>,
    /// The id that was declared as this one's successor.
    successor: Option<String>,
    /// The last id of the line of successors; `None`: the id itself.
    current: Option<String>,
    updated_ms: i64,
}

/// The display names and aliases of an organisation's machines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MachineNaming {
    rows: BTreeMap<Key, Naming>,
    /// The earlier ids of each machine, by its present id: a list of sessions looks up each of them.
    earlier_ids: BTreeMap<Key, BTreeSet<String>>,
}

/// A change of a machine's name or alias.
#[derive(Debug, Clone, Copy)]
pub enum MachineChange<'c> {
    /// Sets the display name, or removes it.
    Rename(Option<&'c str>),
    /// Declares the id under which the machine continues.
    Alias(&'c MachineId),
    /// Removes that declaration.
    Unalias,
}

/// Why a name or alias was not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameRefusal {
    #[error("the organisation has no such machine")]
    UnknownMachine,
    #[error("the machine has no alias")]
    NoAlias,
    #[error("the machine already continues as {0}; remove that alias first")]
    OtherSuccessor(String),
    #[error("{0} is the same machine or an earlier id of it; no id can continue itself")]
    Circle(String),
    #[error("the organisation has {} names and aliases already; remove some first", NAMES_MAX)]
    TooMany,
}

#[derive(FromRow)]
struct NameRow {
    site_id: String,
    machine_id: String,
    display_name: Option<String>,
    successor_id: Option<String>,
    current_id: Option<String>,
    updated_ms: i64,
}

const SELECT_NAMES: &str = "SELECT site_id, machine_id, display_name, successor_id, current_id, \
                            updated_ms FROM machine_names WHERE org_id = $1";

fn key(site: &str, machine: &str) -> Key {
    (site.to_owned(), machine.to_owned())
}

fn names_of(rows: Vec<NameRow>) -> MachineNaming {
    let of = |row: NameRow| {
        let naming = Naming {
            display_name: row.display_name,
            successor: row.successor_id,
            current: row.current_id,
            updated_ms: row.updated_ms,
        };
        ((row.site_id, row.machine_id), naming)
    };
    let mut names =
        MachineNaming { rows: rows.into_iter().map(of).collect(), ..MachineNaming::default() };
    names.index();
    names
}

impl MachineNaming {
    /// Returns the id under which a machine continues: its own, if it has no successor.
    #[must_use]
    pub fn current_id(&self, site: &str, machine: &str) -> String {
        let naming = self.rows.get(&key(site, machine));
        naming.and_then(|naming| naming.current.clone()).unwrap_or_else(|| machine.to_owned())
    }

    /// Returns the display name of a machine, by its present id. A machine that has none under this
    /// id keeps the newest one of its earlier ids.
    #[must_use]
    pub fn display_name(&self, site: &str, current: &str) -> Option<String> {
        let own =
            self.rows.get(&key(site, current)).and_then(|naming| naming.display_name.as_ref());
        let earlier = || {
            let named = self.earlier(site, current).filter_map(|(_, naming)| {
                naming.display_name.as_ref().map(|name| (naming.updated_ms, name))
            });
            named.max().map(|(_, name)| name)
        };
        own.or_else(earlier).cloned()
    }

    /// Returns the earlier ids of a machine, by its present id, sorted.
    #[must_use]
    pub fn previous_ids(&self, site: &str, current: &str) -> Vec<String> {
        self.earlier(site, current).map(|(id, _)| upstream_id::spelling(id)).collect()
    }

    /// Returns the earlier ids of a machine with what is stored about them, by its present id.
    fn earlier(&self, site: &str, current: &str) -> impl Iterator<Item = (&str, &Naming)> {
        let ids = self.earlier_ids.get(&key(site, current)).into_iter().flatten();
        ids.filter_map(move |id| Some((id.as_str(), self.rows.get(&key(site, id))?)))
    }

    /// Lists the earlier ids of each machine again.
    fn index(&mut self) {
        self.earlier_ids.clear();
        for ((site, id), naming) in &self.rows {
            if let Some(current) = &naming.current {
                let ids = self.earlier_ids.entry(key(site, current)).or_default();
                ids.insert(id.clone());
            }
        }
    }

    /// Returns site and id of the machines that `machine` names, at all sites: under their present
    /// and earlier ids. Empty if no site has a name or an alias with this id.
    #[must_use]
    pub fn same_machines(&self, machine: &str) -> BTreeSet<(String, String)> {
        let asked = self.rows.keys().filter(|(_, id)| id == machine);
        let present: BTreeSet<Key> =
            asked.map(|(site, id)| (site.clone(), self.current_id(site, id))).collect();
        let rows = self.rows.keys();
        rows.filter(|(site, id)| present.contains(&(site.clone(), self.current_id(site, id))))
            .cloned()
            .collect()
    }

    /// Puts the present id into an origin; returns the display name.
    pub fn present(&self, origin: &mut Origin) -> Option<String> {
        if self.rows.is_empty() {
            return None;
        }
        let site = origin.site.as_str();
        let current = self.current_id(site, origin.machine.as_str());
        let name = self.display_name(site, &current);
        if let Ok(id) = MachineId::new(current) {
            origin.machine = id;
        }
        name
    }

    fn apply(
        &mut self,
        (site, machine): (&str, &str),
        change: MachineChange<'_>,
        now: EpochMs,
    ) -> Result<(), NameRefusal> {
        let before = self.rows.len();
        match change {
            MachineChange::Rename(name) => self.rename((site, machine), name, now),
            MachineChange::Alias(successor) => {
                self.alias((site, machine), successor.as_str(), now)?;
            }
            MachineChange::Unalias => {
                let naming = self.rows.get_mut(&key(site, machine));
                let naming = naming.filter(|naming| naming.successor.is_some());
                let naming = naming.ok_or(NameRefusal::NoAlias)?;
                (naming.successor, naming.updated_ms) = (None, now.0);
            }
        }
        self.resolve(site);
        if self.rows.len() > before.max(NAMES_MAX) { Err(NameRefusal::TooMany) } else { Ok(()) }
    }

    fn rename(&mut self, (site, machine): (&str, &str), name: Option<&str>, now: EpochMs) {
        let current = self.current_id(site, machine);
        if name.is_none() {
            // The name of an earlier id would be shown in its place.
            for ((at, _), naming) in &mut self.rows {
                if at == site && naming.current.as_ref() == Some(&current) {
                    naming.display_name = None;
                }
            }
        }
        let naming = self.rows.entry((site.to_owned(), current)).or_default();
        (naming.display_name, naming.updated_ms) = (name.map(str::to_owned), now.0);
    }

    fn alias(
        &mut self,
        (site, machine): (&str, &str),
        successor: &str,
        now: EpochMs,
    ) -> Result<(), NameRefusal> {
        let old = self.rows.get(&key(site, machine)).and_then(|naming| naming.successor.as_deref());
        match old {
            Some(same) if same == successor => return Ok(()),
            Some(other) => return Err(NameRefusal::OtherSuccessor(other.to_owned())),
            None => {}
        }
        if self.current_id(site, successor) == machine {
            return Err(NameRefusal::Circle(successor.to_owned()));
        }
        // The successor has a row too: queries compare rows.
        self.rows.entry(key(site, successor)).or_default();
        let naming = self.rows.entry(key(site, machine)).or_default();
        (naming.successor, naming.updated_ms) = (Some(successor.to_owned()), now.0);
        Ok(())
    }

    /// Follows the successors of a site's machines, and removes rows that say nothing.
    fn resolve(&mut self, site: &str) {
        let of_site = self.rows.iter().filter(|((at, _), _)| at == site);
        let successors: BTreeMap<String, String> = of_site
            .filter_map(|((_, id), naming)| Some((id.clone(), naming.successor.clone()?)))
            .collect();
        for ((at, id), naming) in &mut self.rows {
            if at != site {
                continue;
            }
            let mut last = id.as_str();
            // Bounded, although `alias` makes no circles.
            for _ in 0..successors.len() {
                let Some(next) = successors.get(last) else { break };
                last = next;
            }
            naming.current = (last != id).then(|| last.to_owned());
        }
        let named: BTreeSet<&String> = successors.values().collect();
        self.rows.retain(|(at, id), naming| {
            let says = naming.display_name.is_some() || naming.successor.is_some();
            at != site || says || named.contains(id)
        });
        self.index();
    }
}

impl IngestStore {
    /// Returns the display names and aliases of an organisation's machines.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn machine_names(&self, org: &OrgId) -> Result<MachineNaming, StoreError> {
        let rows: Vec<NameRow> = on!(self.database, pool =>
            query_as(SELECT_NAMES).bind(org.as_str()).fetch_all(pool).await)
        .map_err(StoreError::query("reading the names of machines"))?;
        Ok(names_of(rows))
    }

    /// Changes a machine's display name or alias, audits it, and returns the names afterwards.
    ///
    /// # Errors
    /// When the database does not answer; inside, why the change was refused.
    pub async fn change_machine(
        &self,
        org: &OrgId,
        (site, machine): (&SiteId, &MachineId),
        change: MachineChange<'_>,
        by: ChangedBy<'_>,
    ) -> Result<Result<MachineNaming, NameRefusal>, StoreError> {
        let (action, details) = match change {
            MachineChange::Rename(name) => ("machine.rename", json!({"name": name})),
            MachineChange::Alias(successor) => ("machine.alias", json!({"successor": successor})),
            MachineChange::Unalias => ("machine.unalias", json!({})),
        };
        let mut tx = self.database.begin().await?;
        // First: its lock puts the changes of an organisation in order.
        let subject = format!("{site}/{machine}");
        Self::audit(&mut tx, org, by, (action, &subject, details)).await?;
        let before = names_in(&mut tx, org).await?;
        let known = before.rows.contains_key(&key(site.as_str(), machine.as_str()));
        if !known && !has_machine(&mut tx, org, (site, machine)).await? {
            return Ok(Err(NameRefusal::UnknownMachine));
        }
        let mut names = before.clone();
        if let Err(refusal) = names.apply((site.as_str(), machine.as_str()), change, by.now) {
            return Ok(Err(refusal));
        }
        write_changes(&mut tx, org, (&before, &names)).await?;
        tx.commit().await?;
        Ok(Ok(names))
    }
}

async fn names_in(tx: &mut Tx, org: &OrgId) -> Result<MachineNaming, StoreError> {
    let rows: Vec<NameRow> = on_tx!(tx, c =>
        query_as(SELECT_NAMES).bind(org.as_str()).fetch_all(c).await)
    .map_err(StoreError::query("reading the names of machines"))?;
    Ok(names_of(rows))
}

async fn has_machine(
    tx: &mut Tx,
    org: &OrgId,
    (site, machine): (&SiteId, &MachineId),
) -> Result<bool, StoreError> {
    let found: Option<i64> = on_tx!(tx, c => query_scalar(
        "SELECT machine_no FROM machines WHERE org_id = $1 AND site_id = $2 AND machine_id = $3")
        .bind(org.as_str()).bind(site.as_str()).bind(machine.as_str()).fetch_optional(c).await)
    .map_err(StoreError::query("looking for a machine"))?;
    Ok(found.is_some())
}

/// Writes the rows that differ.
async fn write_changes(
    tx: &mut Tx,
    org: &OrgId,
    (before, after): (&MachineNaming, &MachineNaming),
) -> Result<(), StoreError> {
    const DOING: &str = "writing the names of machines";
    for ((site, machine), naming) in &after.rows {
        if before.rows.get(&key(site, machine)) == Some(naming) {
            continue;
        }
        on_tx!(&mut *tx, c => query(
            "INSERT INTO machine_names (org_id, site_id, machine_id, display_name, successor_id, \
             current_id, updated_ms) VALUES ($1, $2, $3, $4, $5, $6, $7) \
             ON CONFLICT (org_id, site_id, machine_id) DO UPDATE SET \
             display_name = EXCLUDED.display_name, successor_id = EXCLUDED.successor_id, \
             current_id = EXCLUDED.current_id, updated_ms = EXCLUDED.updated_ms")
            .bind(org.as_str()).bind(site).bind(machine).bind(naming.display_name.as_deref())
            .bind(naming.successor.as_deref()).bind(naming.current.as_deref())
            .bind(naming.updated_ms).execute(c).await.map(drop))
        .map_err(StoreError::query(DOING))?;
    }
    for (site, machine) in before.rows.keys() {
        if after.rows.contains_key(&key(site, machine)) {
            continue;
        }
        on_tx!(&mut *tx, c => query(
            "DELETE FROM machine_names WHERE org_id = $1 AND site_id = $2 AND machine_id = $3")
            .bind(org.as_str()).bind(site).bind(machine).execute(c).await.map(drop))
        .map_err(StoreError::query(DOING))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> MachineId {
        MachineId::new(text).unwrap()
    }

    fn apply(
        names: &mut MachineNaming,
        machine: &str,
        change: MachineChange<'_>,
    ) -> Result<(), NameRefusal> {
        names.apply(("leipzig", machine), change, EpochMs(7))
    }

    #[test]
    fn a_line_of_renames_ends_at_its_newest_id_and_is_reversed_step_by_step() {
        let mut names = MachineNaming::default();
        let (second, third) = (id("Drum-1"), id("roaster-1"));
        apply(&mut names, "drum-1", MachineChange::Alias(&second)).unwrap();
        apply(&mut names, "Drum-1", MachineChange::Alias(&third)).unwrap();
        assert_eq!(names.current_id("leipzig", "drum-1"), "roaster-1");
        assert_eq!(names.current_id("berlin", "drum-1"), "drum-1", "another site");
        assert_eq!(names.previous_ids("leipzig", "roaster-1"), ["Drum-1", "drum-1"]);
        assert_eq!(names.same_machines("Drum-1").len(), 3);
        apply(&mut names, "Drum-1", MachineChange::Unalias).unwrap();
        assert_eq!(names.current_id("leipzig", "drum-1"), "Drum-1");
        assert_eq!(names.previous_ids("leipzig", "roaster-1"), [""; 0]);
        apply(&mut names, "drum-1", MachineChange::Unalias).unwrap();
        assert_eq!(names, MachineNaming::default(), "nothing is left");
    }

    #[test]
    fn no_id_continues_itself_or_has_two_successors() {
        let mut names = MachineNaming::default();
        let (first, second, third) = (id("drum-1"), id("Drum-1"), id("roaster-1"));
        apply(&mut names, "drum-1", MachineChange::Alias(&second)).unwrap();
        apply(&mut names, "drum-1", MachineChange::Alias(&second)).unwrap();
        let circle = |id: &str| Err(NameRefusal::Circle(id.to_owned()));
        assert_eq!(apply(&mut names, "Drum-1", MachineChange::Alias(&first)), circle("drum-1"));
        assert_eq!(apply(&mut names, "Drum-1", MachineChange::Alias(&second)), circle("Drum-1"));
        let other = Err(NameRefusal::OtherSuccessor("Drum-1".to_owned()));
        assert_eq!(apply(&mut names, "drum-1", MachineChange::Alias(&third)), other);
        let none = Err(NameRefusal::NoAlias);
        assert_eq!(apply(&mut names, "Drum-1", MachineChange::Unalias), none);
    }

    #[test]
    fn a_display_name_stays_with_the_machine_until_it_is_removed() {
        let mut names = MachineNaming::default();
        let second = id("Drum-1");
        apply(&mut names, "drum-1", MachineChange::Rename(Some("Probat"))).unwrap();
        apply(&mut names, "drum-1", MachineChange::Alias(&second)).unwrap();
        assert_eq!(names.display_name("leipzig", "Drum-1").as_deref(), Some("Probat"));
        apply(&mut names, "drum-1", MachineChange::Rename(Some("P12"))).unwrap();
        assert_eq!(names.display_name("leipzig", "Drum-1").as_deref(), Some("P12"));
        apply(&mut names, "Drum-1", MachineChange::Rename(None)).unwrap();
        assert_eq!(names.display_name("leipzig", "Drum-1"), None);
    }

    #[test]
    fn many_machines_are_resolved_to_the_ends_of_their_own_lines() {
        let mut names = MachineNaming::default();
        for n in 0..NAMES_MAX / 2 {
            let successor = Some(format!("new-{n}"));
            let naming = Naming { successor, ..Naming::default() };
            names.rows.insert(key("leipzig", &format!("old-{n}")), naming);
            names.rows.insert(key("leipzig", &format!("new-{n}")), Naming::default());
        }
        apply(&mut names, "new-7", MachineChange::Alias(&id("new-8"))).unwrap();
        assert_eq!(names.current_id("leipzig", "old-7"), "new-8");
        assert_eq!(names.current_id("leipzig", "old-9"), "new-9");
        assert_eq!(names.previous_ids("leipzig", "new-8"), ["new-7", "old-7", "old-8"]);
    }

    /// Each look-up among all rows would make this test take minutes.
    #[test]
    fn the_names_of_a_long_list_are_looked_up_by_an_index() {
        let mut names = MachineNaming::default();
        for n in 0..NAMES_MAX {
            let current = Some("roaster-1".to_owned()).filter(|_| n % 100 == 7);
            let naming = Naming { current, ..Naming::default() };
            names.rows.insert(key("leipzig", &format!("old-{n}")), naming);
        }
        names.index();
        let expected: Vec<String> = names.previous_ids("leipzig", "roaster-1");
        assert_eq!(expected.len(), NAMES_MAX / 100);
        for n in 0..100_000 {
            let earlier = names.earlier("leipzig", if n % 2 == 0 { "other" } else { "none" });
            assert_eq!(earlier.count(), 0);
        }
        assert!(names.previous_ids("berlin", "roaster-1").is_empty());
    }

    #[test]
    fn the_number_of_names_is_bounded() {
        let mut names = MachineNaming::default();
        for n in 0..NAMES_MAX {
            names.rows.insert(key("berlin", &n.to_string()), Naming::default());
        }
        let refused = apply(&mut names, "drum-1", MachineChange::Rename(Some("one more")));
        assert_eq!(refused, Err(NameRefusal::TooMany));
    }
}

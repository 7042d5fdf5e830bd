//! The query parameters with which a client selects machines.

use std::collections::BTreeSet;

use contract::upstream_id;
use http_stack::query::Params;

use crate::store::MachineNaming;

/// The machines that a request asks for: those of `siteId`, the one of `machineId`, or all.
#[derive(Default)]
pub(super) struct MachineFilter {
    site: Option<String>,
    machine: Option<String>,
    /// Site and id of the machine's other ids: those of its aliases.
    same: BTreeSet<(String, String)>,
}

impl MachineFilter {
    pub(super) fn new(params: &Params) -> Self {
        let owned = |name: &str| params.get(name).map(upstream_id::searched);
        Self { site: owned("siteId"), machine: owned("machineId"), same: BTreeSet::new() }
    }

    /// Returns the same filter, for [`matches`](Self::matches) with the aliases of machines.
    pub(super) fn with_names(mut self, names: &MachineNaming) -> Self {
        if let Some(machine) = &self.machine {
            self.same = names.same_machines(machine);
        }
        self
    }

    /// Returns the requested site and machine, for queries.
    pub(super) fn names(&self) -> (Option<&str>, Option<&str>) {
        (self.site.as_deref(), self.machine.as_deref())
    }

    pub(super) fn matches(&self, site: &str, machine: &str) -> bool {
        self.site.as_deref().is_none_or(|expected| expected == site)
            && self.machine.as_deref().is_none_or(|expected| {
                let same = |(of, id): &(String, String)| of == site && id == machine;
                expected == machine || self.same.iter().any(same)
            })
    }
}

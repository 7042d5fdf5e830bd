//! The query parameters with which a client selects machines.

use http_stack::query::Params;

/// The machines that a request asks for: those of `siteId`, the one of `machineId`, or all.
#[derive(Default)]
pub(super) struct MachineFilter {
    site: Option<String>,
    machine: Option<String>,
}

impl MachineFilter {
    pub(super) fn new(params: &Params) -> Self {
        let owned = |name: &str| params.get(name).map(str::to_owned);
        Self { site: owned("siteId"), machine: owned("machineId") }
    }

    /// Returns the requested site and machine, for queries.
    pub(super) fn names(&self) -> (Option<&str>, Option<&str>) {
        (self.site.as_deref(), self.machine.as_deref())
    }

    pub(super) fn matches(&self, site: &str, machine: &str) -> bool {
        self.site.as_deref().is_none_or(|expected| expected == site)
            && self.machine.as_deref().is_none_or(|expected| expected == machine)
    }
}

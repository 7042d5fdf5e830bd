//! The settings by which a test gives each service of `simcorp` a port of its own.

use std::collections::BTreeMap;

use crate::free_port;

/// The listeners of the services, and the setting of each.
pub const LISTENERS: [(&str, &str); 11] = [
    ("fleet", "fleet.listen"),
    ("kernel", "kernel.listen"),
    ("ingestion", "ingestion.listen"),
    ("inference", "inference.listen"),
    ("analytics", "analytics.listen"),
    ("eval", "eval.listen"),
    ("reports", "reports.listen"),
    ("dispatcher", "dispatcher.listen"),
    ("twin", "simulation.twin_listen"),
    ("publisher", "simulation.publisher_listen"),
    ("console", "console.listen"),
];

/// The settings by which one service finds another, and the name of the other.
pub const PEERS: [(&str, &str); 12] = [
    ("fleet.url", "fleet"),
    ("auth.kernel_url", "kernel"),
    ("kernel.eval_url", "eval"),
    ("dispatcher.kernel_url", "kernel"),
    ("analytics.ingestion_url", "ingestion"),
    ("eval.kernel_url", "kernel"),
    ("eval.ingestion_url", "ingestion"),
    ("eval.analytics_url", "analytics"),
    ("reports.kernel_url", "kernel"),
    ("reports.ingestion_url", "ingestion"),
    ("reports.analytics_url", "analytics"),
    ("console.ingestion_url", "ingestion"),
];

/// Returns a free port for each of these listeners.
///
/// # Errors
/// When no free port is found.
pub fn free_ports(
    listeners: impl IntoIterator<Item = &'static str>,
) -> anyhow::Result<BTreeMap<&'static str, u16>> {
    listeners.into_iter().map(|name| Ok((name, free_port()?))).collect()
}

/// Returns the settings by which the services listen on these ports and find each other there.
#[must_use]
pub fn port_settings(ports: &BTreeMap<&'static str, u16>) -> Vec<String> {
    let mut settings = Vec::new();
    for (name, field) in LISTENERS {
        if let Some(port) = ports.get(name) {
            settings.push(format!("{field}=127.0.0.1:{port}"));
        }
    }
    for (field, name) in PEERS {
        if let Some(port) = ports.get(name) {
            settings.push(format!("{field}=http://127.0.0.1:{port}"));
        }
    }
    settings
}

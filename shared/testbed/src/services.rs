//! The settings by which a test gives each service of `simcorp` a port of its own.

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

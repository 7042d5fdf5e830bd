//! Configuration from a TOML file, then `SIMCORP_*` variables, then `--set` flags; later sources
//! override earlier ones.
//!
//! `SIMCORP_DATABASE__URL=…` and `--set database.url=…` both set `url` of `[database]`. Every field
//! has a default, unknown fields are refused, and all mistakes are reported together, each with its
//! field and — for the file — its line.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

const ENV_PREFIX: &str = "SIMCORP_";
/// The largest number of type mistakes that are reported. It also bounds the search for them.
const MISTAKES_MAX: usize = 50;
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// A program's configuration.
pub trait Config: DeserializeOwned + Serialize + Default {
    /// Checks what the types cannot. Called after everything has been read without mistakes.
    fn check(&self, mistakes: &mut Mistakes);
}

/// One mistake: the field, where it was set, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The field, as a path such as `database.url`; empty if the mistake belongs to no field.
    pub field: String,
    /// `edge.toml:12`, `SIMCORP_X`, `--set`, or empty for a default.
    pub location: String,
    /// What is wrong, in words.
    pub problem: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.location.is_empty() {
            write!(f, "{}: ", self.location)?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.problem)
    }
}

/// All mistakes of a configuration.
#[derive(Debug, Default)]
pub struct Mistakes {
    entries: Vec<Mistake>,
    locations: BTreeMap<String, String>,
    /// Values given as text by a variable or a flag, by field: `2` may be a number or a name.
    texts: BTreeMap<String, String>,
}

impl Mistakes {
    /// Adds a mistake of `field`, with the place where the field was set.
    pub fn add(&mut self, field: &str, problem: impl Into<String>) {
        let location = self.location_of(field);
        self.entries.push(Mistake { field: field.to_owned(), location, problem: problem.into() });
    }

    /// Adds a mistake unless `holds`.
    pub fn require(&mut self, holds: bool, field: &str, problem: &str) {
        if !holds {
            self.add(field, problem);
        }
    }

    /// Adds a mistake unless `url` begins with `http://` or `https://`.
    pub fn require_http_url(&mut self, field: &str, url: &str) {
        let http = url.starts_with("http://") || url.starts_with("https://");
        self.require(http, field, "does not begin with http:// or https://");
    }

    /// Adds a mistake unless `url` is encrypted (`https://`) or stays on this machine.
    pub fn require_private_url(&mut self, field: &str, url: &str) {
        let private = url.starts_with("https://") || is_loopback_url(url, "http");
        self.require(private, field, "does not begin with https://");
    }

    /// Returns the mistakes in the order in which they were found.
    #[must_use]
    pub fn into_vec(self) -> Vec<Mistake> {
        self.entries
    }

    /// Returns where a field was set, or else where the nearest enclosing table was.
    fn location_of(&self, field: &str) -> String {
        let mut path = field;
        loop {
            if let Some(location) = self.locations.get(path) {
                return location.clone();
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return String::new(),
            }
        }
    }
}

/// Returns whether a URL of this scheme names this machine by a loopback address or `localhost`. A
/// longer name such as `localhost.example` does not.
#[must_use]
pub fn is_loopback_url(url: &str, scheme: &str) -> bool {
    let rest = url.strip_prefix(scheme).and_then(|rest| rest.strip_prefix("://"));
    let authority = rest.map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default());
    // Behind the last @, as URLs are read; before it stand user and password.
    let host = authority.map(|authority| authority.rsplit('@').next().unwrap_or_default());
    host.is_some_and(|host| {
        ["127.0.0.1", "localhost", "[::1]"].iter().any(|name| {
            host.strip_prefix(name).is_some_and(|port| port.is_empty() || port.starts_with(':'))
        })
    })
}

/// The command-line flags that say where a configuration comes from.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Sources {
    /// Configuration file (TOML)
    #[arg(long, short = 'c', value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Set one field; overrides the file and the environment: --set database.url=…
    #[arg(long, value_name = "FIELD=VALUE", global = true)]
    pub set: Vec<String>,
    /// Print the resulting configuration with secrets masked, and exit
    #[arg(long, global = true)]
    pub print_config: bool,
}

/// All mistakes of a configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub struct ConfigError(pub Vec<Mistake>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let many = if self.0.len() == 1 { "mistake" } else { "mistakes" };
        write!(f, "the configuration has {} {many}:", self.0.len())?;
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

/// Reads a program's configuration.
///
/// # Errors
/// Returns every mistake found, each with its field and place.
pub fn load<C: Config>(
    sources: &Sources,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<C, ConfigError> {
    let mut mistakes = Mistakes::default();
    let mut table = Table::new();
    if let Some(path) = &sources.config {
        match read_file(path) {
            Ok(text) => table = parse_file(path, &text, &mut mistakes),
            Err(problem) => mistakes.add(&path.display().to_string(), problem),
        }
    }
    for (name, value) in environment {
        let Some(field) = name.strip_prefix(ENV_PREFIX) else { continue };
        let field = field.to_ascii_lowercase().replace("__", ".");
        overlay(&mut table, &field, &value, name, &mut mistakes);
    }
    for setting in &sources.set {
        let location = format!("--set {setting}");
        match setting.split_once('=') {
            Some((field, value)) => overlay(&mut table, field, value, location, &mut mistakes),
            None => mistakes.entries.push(Mistake {
                field: String::new(),
                location,
                problem: "is not FIELD=VALUE".to_owned(),
            }),
        }
    }
    let config: C = deserialize_all(table, &mut mistakes);
    if mistakes.entries.is_empty() {
        config.check(&mut mistakes);
    }
    if mistakes.entries.is_empty() { Ok(config) } else { Err(ConfigError(mistakes.entries)) }
}

/// Returns the configuration as TOML, with secrets masked.
///
/// # Errors
/// When a value cannot be written as TOML; no configuration of ours has such a value.
pub fn print<C: Config>(config: &C) -> Result<String, toml::ser::Error> {
    toml::to_string_pretty(config)
}

fn read_file(path: &Path) -> Result<String, String> {
    let problem = |error: std::io::Error| format!("cannot be read: {error}");
    if std::fs::metadata(path).map_err(problem)?.len() > FILE_BYTES_MAX {
        return Err("larger than 1 MB".to_owned());
    }
    std::fs::read_to_string(path).map_err(problem)
}

fn parse_file(path: &Path, text: &str, mistakes: &mut Mistakes) -> Table {
    let name = path.file_name().map_or_else(|| "config".into(), |n| n.to_string_lossy());
    let line = |at: usize| text[..at.min(text.len())].matches('\n').count().saturating_add(1);
    let (parsed, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let at = error.span().map_or(1, |span| line(span.start));
        let problem = error.message().to_owned();
        mistakes.entries.push(Mistake {
            field: String::new(),
            location: format!("{name}:{at}"),
            problem,
        });
    }
    let mut record = |path: &str, at: usize| {
        mistakes.locations.insert(path.to_owned(), format!("{name}:{}", line(at)));
    };
    record_locations(parsed.get_ref(), "", &mut record);
    if mistakes.entries.is_empty() { text.parse().unwrap_or_default() } else { Table::new() }
}

fn record_locations(table: &DeTable<'_>, prefix: &str, record: &mut impl FnMut(&str, usize)) {
    for (key, value) in table {
        let path = if prefix.is_empty() {
            key.get_ref().to_string()
        } else {
            format!("{prefix}.{}", key.get_ref())
        };
        record(&path, key.span().start);
        record_value_locations(value.get_ref(), &path, record);
    }
}

fn record_value_locations(value: &DeValue<'_>, path: &str, record: &mut impl FnMut(&str, usize)) {
    match value {
        DeValue::Table(table) => record_locations(table, path, record),
        DeValue::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                let path = format!("{path}[{i}]");
                record(&path, item.span().start);
                record_value_locations(item.get_ref(), &path, record);
            }
        }
        _ => {}
    }
}

/// Sets one field from text: parsed as a TOML value if it is one, else as the text itself.
fn overlay(table: &mut Table, field: &str, text: &str, location: String, mistakes: &mut Mistakes) {
    let value = format!("v = {text}")
        .parse::<Table>()
        .ok()
        .filter(|parsed| parsed.len() == 1)
        .and_then(|mut parsed| parsed.remove("v"))
        .unwrap_or_else(|| Value::String(text.to_owned()));
    mistakes.locations.insert(field.to_owned(), location);
    mistakes.texts.insert(field.to_owned(), text.to_owned());
    set(table, field, value, mistakes);
}

fn set(table: &mut Table, field: &str, value: Value, mistakes: &mut Mistakes) {
    let mut at = table;
    let mut levels: Vec<&str> = field.split('.').collect();
    let last = levels.pop().unwrap_or_default();
    for level in levels {
        let next = at.entry(level).or_insert_with(|| Value::Table(Table::new()));
        match next {
            Value::Table(inner) => at = inner,
            _ => return mistakes.add(field, format!("{level} is not a table")),
        }
    }
    at.insert(last.to_owned(), value);
}

/// Deserialises the table. Removes each wrong value and tries again until the rest is right, so
/// that one run finds all mistakes.
fn deserialize_all<C: Config>(mut table: Table, mistakes: &mut Mistakes) -> C {
    while mistakes.entries.len() < MISTAKES_MAX {
        let error = match serde_path_to_error::deserialize(Value::Table(table.clone())) {
            Ok(config) => return config,
            Err(error) => error,
        };
        let mut path = error.path().to_string();
        let problem = error.into_inner().message().trim().to_owned();
        if path == "." {
            path.clear();
        }
        // An unknown field is an error of the enclosing table; its name is in the text.
        if let Some(name) =
            problem.strip_prefix("unknown field `").and_then(|p| p.split('`').next())
            && !path.ends_with(name)
        {
            path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        }
        if problem.contains("expected a string")
            && let Some(text) = mistakes.texts.remove(&path)
        {
            set(&mut table, &path, Value::String(text), mistakes);
            continue;
        }
        mistakes.add(&path, problem);
        if !remove(&mut table, &path) {
            break;
        }
    }
    C::default()
}

fn remove(table: &mut Table, path: &str) -> bool {
    let mut steps = path.split(['.', '[']).map(|step| step.trim_end_matches(']'));
    let Some(first) = steps.next() else { return false };
    let mut rest: Vec<&str> = steps.collect();
    let Some(last) = rest.pop() else { return table.remove(first).is_some() };
    let mut at = table.get_mut(first);
    for step in rest {
        at = match (at, step.parse::<usize>()) {
            (Some(Value::Table(inner)), _) => inner.get_mut(step),
            (Some(Value::Array(items)), Ok(i)) => items.get_mut(i),
            _ => None,
        };
    }
    match (at, last.parse::<usize>()) {
        (Some(Value::Table(inner)), _) => inner.remove(last).is_some(),
        (Some(Value::Array(items)), Ok(i)) if i < items.len() => {
            items.remove(i);
            true
        }
        _ => table.remove(first).is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;
    use serde::Deserialize;

    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Sample {
        port: u16,
        name: String,
        database: Database,
        drivers: Vec<Driver>,
    }
    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Database {
        url: Secret,
        pool: u32,
    }
    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Driver {
        host: String,
    }
    impl Config for Sample {
        fn check(&self, mistakes: &mut Mistakes) {
            mistakes.require(
                self.database.pool <= 100,
                "database.pool",
                "more than 100 connections",
            );
        }
    }

    fn load_text(text: &str, env: &[(&str, &str)], set: &[&str]) -> Result<Sample, String> {
        let folder = std::env::temp_dir().join(format!("simcorp-config-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("sample.toml");
        std::fs::write(&path, text).unwrap();
        let set = set.iter().map(|s| (*s).to_owned()).collect();
        let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        load(&Sources { config: Some(path), set, print_config: false }, env)
            .map_err(|e| e.to_string())
    }

    #[test]
    fn flags_overrule_environment_overrules_file() {
        let text =
            "port = 1\nname = 'file'\n[database]\npool = 5\nurl = 'postgres://u:hunter2@h/d'\n";
        let env = [("SIMCORP_PORT", "2"), ("SIMCORP_DATABASE__POOL", "6"), ("OTHER", "x")];
        let config = load_text(text, &env, &["port=3", "name=7"]).unwrap();
        assert_eq!((config.port, config.database.pool, config.name.as_str()), (3, 6, "7"));
        let printed = print(&config).unwrap();
        assert!(printed.contains("url = \"***\"") && !printed.contains("hunter2"), "{printed}");
    }

    #[test]
    fn all_mistakes_come_together_with_their_lines() {
        let text = "port = 'x'\ncolour = 1\n[database]\npool = -4\n[[drivers]]\nhost = 1\n[[drivers]]\nhots = 'a'\n";
        let error = load_text(text, &[("SIMCORP_LIMIT", "1")], &["x"]).unwrap_err();
        for expected in [
            "sample.toml:1: port: invalid type",
            "sample.toml:2: colour: unknown field",
            "sample.toml:4: database.pool: invalid value",
            "sample.toml:6: drivers[0].host: invalid type",
            "hots: unknown field",
            "SIMCORP_LIMIT: limit: unknown field",
            "--set x: is not FIELD=VALUE",
        ] {
            assert!(error.contains(expected), "no {expected:?} in:\n{error}");
        }
        let error = load_text("port = \n", &[], &[]).unwrap_err();
        assert!(error.contains("sample.toml:1: "), "{error}");
        let error = load_text("[database]\npool = 101\n", &[], &[]).unwrap_err();
        assert!(error.contains("sample.toml:2: database.pool: more than 100"), "{error}");
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for url in [
            "http://localhost",
            "http://localhost:8080/x",
            "http://127.0.0.1/",
            "http://[::1]:1?q",
            "http://user:secret@localhost:1",
        ] {
            assert!(is_loopback_url(url, "http"), "{url}");
        }
        for url in [
            "http://localhost.evil",
            "http://127.0.0.1.evil:80",
            "http://localhost@evil.example",
            "http://evil.example/@localhost",
            "https://localhost",
            "localhost",
        ] {
            assert!(!is_loopback_url(url, "http"), "{url}");
        }
    }
}

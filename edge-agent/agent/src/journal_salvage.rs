//! `simcorp-edge journal salvage`: adds the readable frames of a damaged journal to the gateway's
//! journal, while the agent is stopped.

use std::path::Path;

use anyhow::{Context as _, bail};

use crate::clock::GatewayClock;
use crate::config::EdgeConfig;
use crate::journal::salvage::OwnKey;
use crate::journal::{FILE, Journal};
use crate::run;

/// Salvages `file` and prints what was saved and what is missing.
pub fn salvage(config: &EdgeConfig, file: &Path) -> anyhow::Result<()> {
    let (folder, quota_mb) = (&config.journal.folder, config.journal.quota_mb);
    let shown = file.display();
    let found = file.canonicalize().with_context(|| shown.to_string())?;
    // The journal that the agent uses is replaced, and not added to itself.
    let in_use = folder.join(FILE).canonicalize().is_ok_and(|path| path == found);
    let id = run::key_id(config)?;
    let public = run::signer(config, &id).ok().and_then(|signer| signer.public_key().ok());
    if public.is_none() {
        println!("the signing key does not answer: frames are verified by their digests only");
    }
    let key = OwnKey::new(id, public);
    let now = GatewayClock::start().wall();
    let (mut journal, replaced) = Journal::open_or_salvage(folder, quota_mb, &key, now)?;
    let report = match replaced {
        Some(report) if in_use => report,
        _ if in_use => bail!("{shown} is the journal in use, and it is not damaged"),
        _ => journal.add_salvaged(folder, &found, &key)?,
    };
    println!("{report}");
    println!("The agent sends the unsent frames when it runs.");
    Ok(())
}

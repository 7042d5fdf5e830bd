//! `simcorp audit`: verifies the audit log in the database.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};
use contract::OrgId;
use database::Database;
use kernel::audit_checkpoint::{CheckpointFile, check_chain, check_entry};
use serde::Serialize;
use trust::PublicKey;

use crate::config::CloudConfig;
use crate::output::Output;

#[derive(Subcommand)]
pub enum AuditCommand {
    /// Check the hash chain of each organisation's log, and compare it with signed checkpoints
    Verify(VerifyArgs),
}

#[derive(Args)]
pub struct VerifyArgs {
    /// Checkpoints that were stored outside the database, one JSON object a line
    #[arg(long, requires = "key")]
    checkpoints: Option<PathBuf>,
    /// The public key of the checkpoints, in PEM
    #[arg(long, requires = "checkpoints")]
    key: Option<PathBuf>,
}

/// The result for one organisation.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VerifiedLog {
    org: OrgId,
    entries: i64,
    checkpoints: usize,
    problem: Option<String>,
}

pub async fn run(
    config: &CloudConfig,
    org: Option<String>,
    command: AuditCommand,
    output: Output,
) -> anyhow::Result<()> {
    let AuditCommand::Verify(args) = command;
    let database = Database::open(&config.database).await?;
    database.check_schema().await?;
    let (mut checkpoints, mut foreign_lines) = (Vec::new(), 0);
    if let (Some(file), Some(key)) = (args.checkpoints, args.key) {
        let pem = std::fs::read_to_string(&key)
            .with_context(|| format!("cannot read {}", key.display()))?;
        let key = PublicKey::from_pem(&pem)
            .with_context(|| format!("{} is not a public key in PEM", key.display()))?;
        ensure!(file.is_file(), "there is no file {}", file.display());
        (checkpoints, foreign_lines) = CheckpointFile::new(file.clone()).read(&key)?;
        ensure!(
            !checkpoints.is_empty(),
            "{} has no checkpoint that this key signed",
            file.display()
        );
    }
    let wanted = org.map(OrgId::new).transpose()?;
    let mut orgs: Vec<OrgId> =
        database.audit_heads().await?.into_iter().map(|head| head.org).collect();
    // A log that has lost its head has checkpoints at most.
    orgs.extend(checkpoints.iter().map(|one| one.org_id.clone()));
    orgs.sort_unstable();
    orgs.dedup();
    orgs.retain(|org| wanted.as_ref().is_none_or(|wanted| wanted == org));
    let mut logs = Vec::with_capacity(orgs.len());
    for org in orgs {
        let (entries, mut problem) = match check_chain(&database, &org, 0).await {
            Ok(entries) => (entries, None),
            Err(error) => (0, Some(error.to_string())),
        };
        let own: Vec<_> = checkpoints.iter().filter(|one| one.org_id == org).collect();
        for checkpoint in &own {
            if problem.is_none() {
                // The chain was checked above, so the entry proves all before it.
                problem = check_entry(&database, checkpoint).await.err().map(|e| e.to_string());
            }
        }
        logs.push(VerifiedLog { org, entries, checkpoints: own.len(), problem });
    }
    output.rows(&["organisation", "entries", "checkpoints", "result"], &logs, |log| {
        let result = log.problem.clone().unwrap_or_else(|| "unchanged".to_owned());
        vec![log.org.to_string(), log.entries.to_string(), log.checkpoints.to_string(), result]
    })?;
    let broken = logs.iter().filter(|log| log.problem.is_some()).count();
    ensure!(broken == 0, "{broken} of {} logs differ from what was written", logs.len());
    ensure!(foreign_lines == 0, "{foreign_lines} lines are not checkpoints that this key signed");
    Ok(())
}

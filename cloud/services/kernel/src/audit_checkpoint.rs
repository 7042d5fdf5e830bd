//! Signed checkpoints of the audit log, which are kept outside the database.
//!
//! A person with full access to the database can rewrite a whole hash chain. A checkpoint is a
//! signature over the newest entry of a chain; the key and the checkpoints are in files that the
//! database cannot reach. An entry that a checkpoint names and that is gone or has another hash
//! proves that the log was rewritten or truncated.

use std::collections::BTreeMap;
use std::io::{BufRead as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use contract::{Digest, EpochMs, OrgId};
use database::audit::AuditHead;
use database::{Database, StoreError};
use serde::{Deserialize, Serialize};
use service::clock::Clock;
use tokio_util::sync::CancellationToken;
use trust::{Algorithm, FileKey, FileKeyError, PublicKey, SignError, Signer as _};
use utoipa::ToSchema;

/// The number of entries that are read at once when a chain is checked.
const PAGE: i64 = 500;

/// A signature over one entry of an organisation's audit log, and so over all entries before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditCheckpoint {
    #[schema(value_type = String)]
    pub org_id: OrgId,
    /// The number of the entry.
    pub n: i64,
    /// The hash of the entry, in hex.
    #[schema(value_type = String)]
    pub hash: Digest,
    /// When it was signed.
    pub at: EpochMs,
    /// The Ed25519 signature over the text of [`AuditCheckpoint::signed_text`], in Base64.
    pub signature: String,
}

impl AuditCheckpoint {
    /// Returns what the signature covers: five lines, each ended by a line feed.
    #[must_use]
    pub fn signed_text(&self) -> String {
        signed_text(&self.org_id, self.n, &self.hash, self.at)
    }

    /// Returns whether `key` signed this checkpoint.
    #[must_use]
    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        let signature = BASE64.decode(&self.signature);
        signature.is_ok_and(|signature| key.verifies(self.signed_text().as_bytes(), &signature))
    }
}

fn signed_text(org: &OrgId, n: i64, hash: &Digest, at: EpochMs) -> String {
    format!("simcorp audit checkpoint v1\n{org}\n{n}\n{hash}\n{}\n", at.0)
}

/// How the audit log of an organisation contradicts a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum AuditBreak {
    #[error(
        "entry {n} of {org}, which a checkpoint of {at} covers, is missing: the log was truncated or replaced"
    )]
    Missing { org: OrgId, n: i64, at: EpochMs },
    #[error(
        "entry {n} of {org} has another hash than in the checkpoint of {at}: the log was rewritten"
    )]
    Rewritten { org: OrgId, n: i64, at: EpochMs },
    /// The chain cannot be read, or its hashes do not match.
    #[error(transparent)]
    Chain(#[from] StoreError),
}

/// Why no checkpoint can be signed or kept.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error(transparent)]
    Key(#[from] FileKeyError),
    #[error(transparent)]
    Sign(#[from] SignError),
    #[error("the name of the audit key: {0}")]
    Name(#[from] contract::IdError),
    #[error("cannot read or write {path}: {source}", path = path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error(
        "{public} is not the public key of {key}: one of the two files was replaced. Compare \
         {public} with the auditor's copy, restore the file that differs from a backup, and check \
         the log with: simcorp audit verify. To begin with a new key on purpose, move {public} and \
         the checkpoints beside it away first",
        public = public.display(), key = key.display()
    )]
    KeyReplaced { key: PathBuf, public: PathBuf },
    #[error(
        "the audit key {key} is missing, but its public key {public} exists: restore the key from a \
         backup. To begin with a new key on purpose, move {public} and the checkpoints beside it \
         away first",
        public = public.display(), key = key.display()
    )]
    KeyMissing { key: PathBuf, public: PathBuf },
}

impl CheckpointError {
    /// Returns whether the key or its public key was replaced or removed: then the kernel must not
    /// start, because checkpoints by another key would hide what happened.
    #[must_use]
    pub const fn is_evidence(&self) -> bool {
        matches!(self, Self::KeyReplaced { .. } | Self::KeyMissing { .. })
    }
}

/// The key that signs checkpoints, in a file of mode 0600.
pub struct CheckpointSigner {
    key: FileKey,
}

impl CheckpointSigner {
    /// Opens the key. If neither the file nor its public key exists, it creates both; the public key
    /// is beside the key, with the extension `pub.pem`, for the auditor. An existing public key is
    /// never written again: if it is another key's, one of the two files was replaced.
    ///
    /// # Errors
    /// When the file is not a usable key, or cannot be written; and
    /// [`CheckpointError::is_evidence`] if the two files do not belong together.
    pub fn open_or_create(path: &Path) -> Result<Self, CheckpointError> {
        let name: contract::KeyId = "device:audit@cloud".parse()?;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)
                .map_err(|source| CheckpointError::File { path: folder.to_owned(), source })?;
        }
        let public = path.with_extension("pub.pem");
        // Asked first: another instance that creates both files creates the key before this one.
        let is_published = public.exists();
        if !path.exists() {
            if is_published {
                return Err(CheckpointError::KeyMissing { key: path.to_owned(), public });
            }
            // Another instance may create the file at the same time; the first wins.
            if let Err(error) = FileKey::create(path, name.clone(), Algorithm::EdDsa)
                && !path.exists()
            {
                return Err(error.into());
            }
        }
        let key = FileKey::open(path, name)?;
        publish(path, &public, key.public_key())?;
        Ok(Self { key })
    }

    /// Returns the public key, which verifies the checkpoints.
    #[must_use]
    pub const fn public_key(&self) -> &PublicKey {
        self.key.public_key()
    }

    /// Signs a checkpoint of an entry.
    ///
    /// # Errors
    /// When the system provides no random numbers.
    pub fn sign(&self, head: &AuditHead, at: EpochMs) -> Result<AuditCheckpoint, CheckpointError> {
        let text = signed_text(&head.org, head.n, &head.hash, at);
        let signature = BASE64.encode(self.key.sign(text.as_bytes())?);
        Ok(AuditCheckpoint { org_id: head.org.clone(), n: head.n, hash: head.hash, at, signature })
    }
}

/// Writes the public key of the key at `path` to the file `public`, or checks the key that the file
/// already holds.
fn publish(path: &Path, public: &Path, key: &PublicKey) -> Result<(), CheckpointError> {
    let failed = |source| CheckpointError::File { path: public.to_owned(), source };
    let replaced =
        || CheckpointError::KeyReplaced { key: path.to_owned(), public: public.to_owned() };
    let pem = key.to_pem();
    match std::fs::read_to_string(public) {
        Ok(text) => {
            let same = PublicKey::from_pem(&text).is_ok_and(|found| found.to_pem() == pem);
            if same { Ok(()) } else { Err(replaced()) }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            // Renamed as a whole: another instance that starts now must not read a part of it.
            let part = path.with_extension(format!("pub.pem.{}.tmp", std::process::id()));
            std::fs::write(&part, pem).map_err(failed)?;
            std::fs::rename(&part, public).map_err(failed)
        }
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => Err(replaced()),
        Err(error) => Err(failed(error)),
    }
}

/// Checks an organisation's log against a checkpoint: the entry exists with the same hash, and all
/// entries after it are chained to it.
///
/// # Errors
/// [`AuditBreak`] with what contradicts the checkpoint.
pub async fn check_against(
    database: &Database,
    checkpoint: &AuditCheckpoint,
) -> Result<(), AuditBreak> {
    check_entry(database, checkpoint).await?;
    check_chain(database, &checkpoint.org_id, checkpoint.n).await?;
    Ok(())
}

/// Checks only that the entry of a checkpoint exists with the same hash. In a chain that was checked
/// as a whole, this proves every entry before it too.
///
/// # Errors
/// [`AuditBreak`] with what contradicts the checkpoint.
pub async fn check_entry(
    database: &Database,
    checkpoint: &AuditCheckpoint,
) -> Result<(), AuditBreak> {
    let AuditCheckpoint { org_id, n, at, .. } = checkpoint;
    match database.audit_hash(org_id, *n).await? {
        Some(hash) if hash == checkpoint.hash => Ok(()),
        Some(_) => Err(AuditBreak::Rewritten { org: org_id.clone(), n: *n, at: *at }),
        None => Err(AuditBreak::Missing { org: org_id.clone(), n: *n, at: *at }),
    }
}

/// Reads an organisation's log after entry `after`, and checks each entry against the one before.
/// Returns the number of the last entry.
///
/// # Errors
/// When the database does not answer, or the log differs from what was written.
pub async fn check_chain(
    database: &Database,
    org: &OrgId,
    mut after: i64,
) -> Result<i64, StoreError> {
    loop {
        let entries = database.audit_log(org, after, PAGE).await?;
        match entries.last() {
            Some(entry) => after = entry.n,
            None => return Ok(after),
        }
    }
}

/// The file of the checkpoints, one JSON object a line.
pub struct CheckpointFile {
    path: PathBuf,
}

impl CheckpointFile {
    /// Names the file; it is created by the first checkpoint.
    #[must_use]
    pub const fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Reads all checkpoints that `key` signed, oldest first, and the number of lines that it did
    /// not sign.
    ///
    /// # Errors
    /// When the file cannot be read. A missing file has no checkpoints.
    pub fn read(&self, key: &PublicKey) -> Result<(Vec<AuditCheckpoint>, usize), CheckpointError> {
        let failed = |source| CheckpointError::File { path: self.path.clone(), source };
        let file = match std::fs::File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok((Vec::new(), 0));
            }
            Err(error) => return Err(failed(error)),
        };
        let (mut signed, mut foreign) = (Vec::new(), 0_usize);
        for line in std::io::BufReader::new(file).split(b'\n') {
            let line = line.map_err(failed)?;
            match serde_json::from_slice::<AuditCheckpoint>(&line) {
                Ok(checkpoint) if checkpoint.is_signed_by(key) => signed.push(checkpoint),
                _ if line.trim_ascii().is_empty() => {}
                _ => foreign = foreign.saturating_add(1),
            }
        }
        Ok((signed, foreign))
    }

    /// Appends checkpoints, and waits until they are on disk.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn append(&self, checkpoints: &[AuditCheckpoint]) -> Result<(), CheckpointError> {
        let write = || -> std::io::Result<()> {
            let mut file = std::fs::OpenOptions::new()
                .create(true)
                .read(true)
                .append(true)
                .mode(0o600)
                .open(&self.path)?;
            let mut text = Vec::new();
            // A write that the end of the process or a full disk cut off must not spoil this one.
            let mut last = [b'\n'];
            if let Some(end) = file.metadata()?.len().checked_sub(1) {
                file.read_exact_at(&mut last, end)?;
            }
            if last != [b'\n'] {
                text.push(b'\n');
            }
            for checkpoint in checkpoints {
                serde_json::to_writer(&mut text, checkpoint)?;
                text.push(b'\n');
            }
            file.write_all(&text)?;
            file.sync_all()
        };
        write().map_err(|source| CheckpointError::File { path: self.path.clone(), source })
    }
}

/// What the task that writes checkpoints works with.
#[derive(Clone)]
pub struct CheckpointWriter {
    pub database: Database,
    pub signer: std::sync::Arc<CheckpointSigner>,
    pub file: std::sync::Arc<CheckpointFile>,
    pub clock: Clock,
    pub every: Duration,
}

impl CheckpointWriter {
    /// Writes a checkpoint for each log that has grown, at the start and then at intervals. A log
    /// that contradicts its last checkpoint gets no new one: the error is logged at each pass, and
    /// `simcorp_audit_broken_logs` counts these logs.
    pub async fn run(self, stop: CancellationToken) {
        let mut last = None;
        loop {
            if let Err(error) = self.pass(&mut last).await {
                tracing::error!(
                    error = &*error,
                    "cannot write the audit checkpoints; the next pass tries again"
                );
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(self.every) => {}
            }
        }
    }

    /// Reads the last checkpoint of each log.
    fn read_last(&self) -> Result<BTreeMap<OrgId, AuditCheckpoint>, CheckpointError> {
        let (checkpoints, foreign) = self.file.read(self.signer.public_key())?;
        if foreign > 0 {
            tracing::error!(
                foreign,
                "lines of the audit checkpoints are not signed by the audit key"
            );
        }
        Ok(checkpoints.into_iter().map(|one| (one.org_id.clone(), one)).collect())
    }

    /// Checks every log against its last checkpoint, and writes new ones. `last` has the last
    /// checkpoints; while these cannot be read, it is `None` and nothing is signed, because a
    /// rewritten log would not be recognised.
    async fn pass(
        &self,
        last: &mut Option<BTreeMap<OrgId, AuditCheckpoint>>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        if last.is_none() {
            *last = Some(self.read_last()?);
        }
        let Some(last) = last else { return Ok(()) };
        let heads = self.database.audit_heads().await?;
        let mut broken = Vec::new();
        // Those that have lost their head altogether are checked too.
        for checkpoint in last.values() {
            match check_against(&self.database, checkpoint).await {
                Ok(()) => {}
                Err(AuditBreak::Chain(error @ StoreError::Query { .. })) => {
                    return Err(error.into());
                }
                Err(error) => {
                    tracing::error!(%error, "an audit log contradicts its checkpoint; compare it with a backup");
                    broken.push(checkpoint.org_id.clone());
                }
            }
        }
        metrics::gauge!("simcorp_audit_broken_logs").set(broken.len() as f64);
        let (mut new, now) = (Vec::new(), (self.clock)());
        for head in heads {
            let known = last.get(&head.org).is_some_and(|known| known.n >= head.n);
            if known || head.n == 0 || broken.contains(&head.org) {
                continue;
            }
            new.push(self.signer.sign(&head, now)?);
        }
        if new.is_empty() {
            return Ok(());
        }
        self.file.append(&new)?;
        for checkpoint in new {
            // The log leaves the computer: a copy that the computer's owner cannot take back.
            tracing::info!(org = %checkpoint.org_id, n = checkpoint.n, hash = %checkpoint.hash,
                at = checkpoint.at.0, signature = checkpoint.signature, "audit checkpoint");
            last.insert(checkpoint.org_id.clone(), checkpoint);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_audit_key_or_public_key_is_reported_and_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let (key, public) = (file("audit-key.pem"), file("audit-key.pub.pem"));
        let first = CheckpointSigner::open_or_create(&key).unwrap();
        let published = std::fs::read_to_string(&public).unwrap();
        assert_eq!(published, first.public_key().to_pem());
        CheckpointSigner::open_or_create(&key).unwrap();

        // The key is gone: no other one takes its place.
        std::fs::rename(&key, file("kept.pem")).unwrap();
        let missing = CheckpointSigner::open_or_create(&key).err().unwrap();
        assert!(missing.is_evidence() && missing.to_string().contains("is missing"), "{missing}");
        assert!(!key.exists());

        // The key was replaced.
        let other = CheckpointSigner::open_or_create(&file("other.pem")).unwrap();
        std::fs::copy(file("other.pem"), &key).unwrap();
        let replaced = CheckpointSigner::open_or_create(&key).err().unwrap();
        assert!(replaced.is_evidence(), "{replaced}");
        assert!(replaced.to_string().contains("was replaced"), "{replaced}");
        assert_eq!(std::fs::read_to_string(&public).unwrap(), published, "the evidence stays");

        // The public key was replaced, or is no key.
        std::fs::copy(file("kept.pem"), &key).unwrap();
        for content in [other.public_key().to_pem().into_bytes(), b"\xff".to_vec(), Vec::new()] {
            std::fs::write(&public, &content).unwrap();
            assert!(CheckpointSigner::open_or_create(&key).err().unwrap().is_evidence());
            assert_eq!(std::fs::read(&public).unwrap(), content);
        }
        std::fs::write(&public, published.replace('\n', "\r\n")).unwrap();
        CheckpointSigner::open_or_create(&key).unwrap();
    }
}

//! `simcorp-edge profile`: lists, shows, checks and signs machine profiles.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Subcommand;
use contract::KeyId;
use firmware_profiles::{CONTENT_PROFILE, Checked, FILE_BYTES_MAX, SCHEMA, SHIPPED, shipped};
use trust::{FileKey, PublicKey, SignedMessage};

#[derive(Subcommand)]
pub enum ProfileCommand {
    /// List the profiles that are built into this agent
    List,
    /// Print a built-in profile or a file unchanged, with its digest
    Show {
        /// An id of `profile list`, or a file
        profile: String,
    },
    /// Check profiles and print every finding, one sentence each
    Check {
        /// Files, or ids of `profile list`
        #[arg(required = true)]
        profiles: Vec<String>,
    },
    /// Print the JSON Schema of a profile, for editors
    Schema,
    /// Sign a file, so that agents that trust the key accept it; writes FILE.sig
    Sign {
        /// The profile to sign
        file: PathBuf,
        /// The private key, PKCS#8 PEM
        #[arg(long)]
        key_file: PathBuf,
        /// The key's id: device:NAME@SITE
        #[arg(long)]
        kid: KeyId,
    },
}

/// Runs a profile command.
pub fn run(command: &ProfileCommand) -> anyhow::Result<()> {
    match command {
        ProfileCommand::List => list(),
        ProfileCommand::Show { profile } => show(profile),
        ProfileCommand::Check { profiles } => check(profiles),
        ProfileCommand::Schema => {
            print!("{SCHEMA}");
            Ok(())
        }
        ProfileCommand::Sign { file, key_file, kid } => sign(file, key_file, kid),
    }
}

fn list() -> anyhow::Result<()> {
    for entry in SHIPPED {
        let Checked { profile, .. } = firmware_profiles::check(entry.text)?;
        let m = &profile.machine;
        let verified = if m.verified { "verified" } else { "unverified" };
        println!(
            "{:<30} {:<11} {verified:<10} {} ({})",
            entry.id,
            profile.transport.kind(),
            m.name,
            m.controller
        );
    }
    Ok(())
}

fn show(profile: &str) -> anyhow::Result<()> {
    let text = text(profile)?;
    let digest = trust::sha256_digest(text.as_bytes());
    print!("# sha256 {digest}\n{text}");
    Ok(())
}

fn check(profiles: &[String]) -> anyhow::Result<()> {
    let mut wrong = 0_usize;
    for profile in profiles {
        match firmware_profiles::check(&text(profile)?) {
            Ok(Checked { profile: p, digest }) => println!(
                "{profile}: nothing is wrong; {} channels, {} controls, version {}, sha256 {digest}",
                p.channels.len().saturating_add(p.derived.len()),
                p.controls.len(),
                p.machine.version,
            ),
            Err(problem) => {
                wrong = wrong.saturating_add(1);
                println!("{profile}:\n{problem}");
            }
        }
    }
    anyhow::ensure!(wrong == 0, "{wrong} of {} profiles are wrong", profiles.len());
    Ok(())
}

fn sign(file: &Path, key_file: &Path, kid: &KeyId) -> anyhow::Result<()> {
    let text = read(file).map_err(anyhow::Error::msg)?;
    firmware_profiles::check(&text).with_context(|| format!("{}", file.display()))?;
    let key = FileKey::open(key_file, kid.clone())?;
    let message = trust::sign_message(&key, CONTENT_PROFILE, text.into_bytes())?;
    let beside = signature_of(file);
    std::fs::write(&beside, message).with_context(|| beside.display().to_string())?;
    println!("{}", beside.display());
    Ok(())
}

/// Returns the text of a built-in profile, or of a file.
fn text(profile: &str) -> anyhow::Result<String> {
    if let Some(entry) = shipped(profile) {
        return Ok(entry.text.to_owned());
    }
    read(Path::new(profile)).map_err(|problem| {
        anyhow::anyhow!("{profile}: {problem} (and it is not in `simcorp-edge profile list`)")
    })
}

/// Reads a profile's file, at most `FILE_BYTES_MAX` + 1 bytes of it.
///
/// # Errors
/// Returns a sentence for people if the file cannot be read.
pub fn read(file: &Path) -> Result<String, String> {
    let mut text = String::new();
    let bound = FILE_BYTES_MAX.saturating_add(1) as u64;
    std::fs::File::open(file)
        .and_then(|file| file.take(bound).read_to_string(&mut text))
        .map_err(|error| format!("cannot be read: {error}"))?;
    Ok(text)
}

/// Verifies that `text` was signed by one of `keys`. `FILE.sig` holds a signed copy.
///
/// # Errors
/// Returns a sentence for people if the signature is missing, is of another text, or is by another
/// key.
pub fn verify(file: &Path, text: &str, keys: &[PathBuf]) -> Result<(), String> {
    let beside = signature_of(file);
    let with_path = |problem: String| format!("{}: {problem}", beside.display());
    let bytes = std::fs::read(&beside).map_err(|e| with_path(e.to_string()))?;
    let signed = SignedMessage::parse(&bytes).map_err(|e| with_path(e.to_string()))?;
    if signed.content() != CONTENT_PROFILE || signed.payload() != text.as_bytes() {
        return Err(with_path("is the signature of something else".to_owned()));
    }
    for path in keys {
        let pem = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let key = PublicKey::from_pem(&pem).map_err(|e| format!("{}: {e}", path.display()))?;
        if signed.verify(&key).is_ok() {
            return Ok(());
        }
    }
    Err(with_path("is by none of machine.profile.trusted_keys".to_owned()))
}

fn signature_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".sig");
    name.into()
}

//! Tests the signer with real tokens: SoftHSM2 and a TPM 2.0.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may break

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use contract::KeyId;
use testbed::token::{PIN, Pkcs11Token};
use testbed::{Process, binary_path, wait_for};
use trust::{CONTENT_FRAME, CONTENT_RECEIPT, SignedMessage, Signer as _, SocketKey};

const PATIENCE: Duration = Duration::from_secs(30);

struct Gateway {
    folder: tempfile::TempDir,
    token: Pkcs11Token,
    socket: PathBuf,
    signer: Process,
}

fn kid() -> KeyId {
    "device:gw@leipzig".parse().unwrap()
}

impl Gateway {
    async fn start(folder: tempfile::TempDir, token: Pkcs11Token, more: &str) -> Self {
        let at = folder.path();
        let pin = at.join("pin");
        std::fs::write(&pin, format!("{PIN}\n")).unwrap();
        let socket = at.join("signer.sock");
        let config = format!(
            "[token]\nmodule = \"{}\"\nlabel = \"{}\"\npin = \"file:{}\"\n\
             [key]\nsite = \"leipzig\"\ndevice = \"gw\"\n{more}\n\
             [socket]\npath = \"{}\"\n",
            token.module.display(),
            token.label,
            pin.display(),
            socket.display()
        );
        std::fs::write(at.join("signer.toml"), config).unwrap();
        let signer = Process::new(
            binary_path("simcorp-signer").unwrap(),
            ["-c".to_owned(), at.join("signer.toml").display().to_string()],
            at.join("signer.log"),
        );
        let signer =
            token.environment.iter().fold(signer, |signer, (name, value)| signer.env(name, value));
        let mut gateway = Self { folder, token, socket, signer };
        let made = gateway.command("create");
        assert!(made.status.success(), "{made:?}");
        gateway.signer.start().unwrap();
        gateway.answers().await;
        gateway
    }

    async fn answers(&self) {
        wait_for("the signer", PATIENCE, || async { self.key().public_key().is_ok() })
            .await
            .unwrap_or_else(|e| panic!("{e}: {}", self.log()));
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("signer.log")).unwrap_or_default()
    }

    fn command(&self, command: &str) -> Output {
        Command::new(binary_path("simcorp-signer").unwrap())
            .arg("-c")
            .arg(self.folder.path().join("signer.toml"))
            .arg(command)
            .envs(self.token.environment.iter().map(|(name, value)| (name, value)))
            .output()
            .unwrap()
    }

    fn key(&self) -> SocketKey {
        SocketKey::new(&self.socket, kid(), Duration::from_secs(5))
    }

    /// Signs frames and receipts from many threads at once, and verifies each.
    fn signs(&self, askers: usize, each: usize) {
        let public = self.key().public_key().unwrap();
        std::thread::scope(|scope| {
            for asker in 0..askers {
                let public = &public;
                scope.spawn(move || {
                    let key = self.key();
                    for i in 0..each {
                        let text = format!("frame {asker} {i}").into_bytes();
                        let content = if i % 2 == 0 { CONTENT_FRAME } else { CONTENT_RECEIPT };
                        let bytes = trust::sign_message(&key, content, text.clone()).unwrap();
                        let signed = SignedMessage::parse(&bytes).unwrap();
                        signed.verify(public).unwrap();
                        assert_eq!(signed.payload(), text);
                    }
                });
            }
        });
    }

    fn refuses(&self, message: &[u8]) {
        let refused = self.key().sign(message).unwrap_err().to_string();
        assert!(refused.contains("does not sign such a message"), "{refused}");
    }
}

#[tokio::test]
async fn a_soft_token_signs_only_allowed_messages() {
    let folder = tempfile::tempdir().unwrap();
    let token = Pkcs11Token::softhsm(folder.path()).unwrap();
    let mut gateway = Gateway::start(folder, token, "").await;
    assert!(gateway.command("check").status.success());
    let again = gateway.command("create");
    assert!(!again.status.success(), "an existing key must not be replaced");
    let shown = String::from_utf8(gateway.command("show").stdout).unwrap();
    assert!(shown.starts_with("EdDSA -----BEGIN PUBLIC KEY"), "{shown}");
    gateway.signs(8, 50);
    // Arbitrary bytes, another device's frame, a server's TLS handshake.
    gateway.refuses(b"pay 100 to Eve");
    let other =
        trust::FileKey::generate("device:eve@leipzig".parse().unwrap(), trust::Algorithm::EdDsa);
    let eve = Spy(other.unwrap(), std::sync::Mutex::default());
    trust::sign_message(&eve, CONTENT_FRAME, vec![1]).unwrap();
    gateway.refuses(&eve.1.lock().unwrap());
    let server = [&[b' '; 64][..], b"TLS 1.3, server CertificateVerify\0", &[0; 32]].concat();
    gateway.refuses(&server);
    let client = [&[b' '; 64][..], b"TLS 1.3, client CertificateVerify\0", &[0; 32]].concat();
    let proof = gateway.key().sign(&client).unwrap();
    assert!(gateway.key().public_key().unwrap().verifies(&client, &proof));
    // A wrong PIN is tried once; the signer keeps running, so that no restart tries it again.
    gateway.signer.kill();
    std::fs::write(gateway.folder.path().join("pin"), "000000").unwrap();
    gateway.signer.start().unwrap();
    wait_for("the signer refuses the request", PATIENCE, || async {
        let asked = gateway.key().public_key().map_err(|e| e.to_string());
        asked.is_err_and(|e| e.contains("the token cannot be used"))
    })
    .await
    .unwrap();
    assert!(gateway.signer.is_running() && gateway.log().contains("refusing everything"));
}

/// A signer that records the message it signs.
struct Spy(trust::FileKey, std::sync::Mutex<Vec<u8>>);

impl trust::Signer for Spy {
    fn key_id(&self) -> &KeyId {
        self.0.key_id()
    }
    fn public_key(&self) -> Result<trust::PublicKey, trust::SignError> {
        trust::Signer::public_key(&self.0)
    }
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, trust::SignError> {
        *self.1.lock().unwrap() = message.to_vec();
        self.0.sign(message)
    }
}

#[tokio::test]
async fn a_tpm_signs_with_p256_and_its_failure_is_reported_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let token = Pkcs11Token::tpm(folder.path()).await.unwrap();
    let mut gateway = Gateway::start(folder, token, "").await;
    let shown = String::from_utf8(gateway.command("show").stdout).unwrap();
    assert!(shown.starts_with("ES256 -----BEGIN PUBLIC KEY"), "{shown}");
    gateway.signs(4, 20);
    // The TPM disappears: the caller gets an error within the limit.
    let mut tpm = gateway.token.servers.remove(0);
    tpm.kill();
    let began = tokio::time::Instant::now();
    let problem =
        trust::sign_message(&gateway.key(), CONTENT_FRAME, vec![1]).unwrap_err().to_string();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(problem.contains("cannot sign: the token"), "{problem}");
}

#[tokio::test]
async fn only_allowed_users_get_signatures_and_only_for_allowed_purposes() {
    let folder = tempfile::tempdir().unwrap();
    let token = Pkcs11Token::softhsm(folder.path()).unwrap();
    let gateway = Gateway::start(folder, token, "purposes = [\"receipt\"]").await;
    assert!(trust::sign_message(&gateway.key(), CONTENT_RECEIPT, vec![1]).is_ok());
    assert!(
        trust::sign_message(&gateway.key(), CONTENT_FRAME, vec![1]).is_err(),
        "frames are not allowed"
    );
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        return; // only root can act as another user
    }
    open_up(gateway.folder.path());
    let asked = format!(
        "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.settimeout(5)\ns.connect({:?})\n\
         try:\n s.sendall(b'\\x00\\x00\\x00\\x01\\x01'); sys.exit(0 if s.recv(5) else 7)\n\
         except OSError: sys.exit(7)\n",
        gateway.socket.display().to_string()
    );
    let run = |user: &str| {
        let status = Command::new("setpriv")
            .args([
                "--reuid",
                user,
                "--regid",
                user,
                "--clear-groups",
                "--",
                "/usr/bin/python3",
                "-c",
            ])
            .arg(&asked)
            .status();
        status.unwrap().code()
    };
    assert_eq!(run("0"), Some(0));
    assert_eq!(run("65534"), Some(7), "the operating system's kernel reports another user");
}

/// Lets others reach the socket, so that the signer itself must refuse them.
fn open_up(folder: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
}

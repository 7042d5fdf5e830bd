//! A certificate authority for tests. It uses OpenSSL, to be independent of the code under test.

use std::path::PathBuf;
use std::process::Command;

use anyhow::ensure;

/// A certificate authority in a temporary folder, which is removed when it is dropped.
pub struct TestCa {
    folder: tempfile::TempDir,
}

/// The PEM files of a certificate and its key.
#[derive(Debug, Clone)]
pub struct IssuedCertificate {
    /// The path of the certificate.
    pub certificate: PathBuf,
    /// The path of its private key.
    pub key: PathBuf,
}

impl TestCa {
    /// Creates an authority with a P-256 key.
    ///
    /// # Errors
    /// When OpenSSL is not installed or refuses.
    pub fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let authority = Self { folder };
        authority.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=test authority",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
        ])?;
        Ok(authority)
    }

    /// Returns the path of the authority's own certificate (PEM).
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Issues a certificate with this common name, which is valid for localhost.
    ///
    /// # Errors
    /// When OpenSSL refuses.
    pub fn issue(&self, name: &str) -> anyhow::Result<IssuedCertificate> {
        let file = |ending: &str| format!("{name}.{ending}");
        let at = |ending: &str| self.folder.path().join(file(ending));
        let subject = format!("/CN={name}");
        self.openssl(&[
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-subj",
            &subject,
            "-keyout",
            &file("key"),
            "-out",
            &file("csr"),
        ])?;
        std::fs::write(at("ext"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n")?;
        self.openssl(&[
            "x509",
            "-req",
            "-in",
            &file("csr"),
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            &file("ext"),
            "-out",
            &file("pem"),
        ])?;
        Ok(IssuedCertificate { certificate: at("pem"), key: at("key") })
    }

    fn openssl(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let mut command = Command::new("openssl");
        let output = command.args(arguments).current_dir(self.folder.path()).output()?;
        ensure!(
            output.status.success(),
            "openssl {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

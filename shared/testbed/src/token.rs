//! PKCS#11 tokens: SoftHSM2, and a TPM 2.0 (`swtpm` behind `tpm2-abrmd` and `tpm2-pkcs11`).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;

use crate::{Process, free_port, wait_for};

/// The PIN of every token here.
pub const PIN: &str = "482916";
const LABEL: &str = "simcorp";
const PATIENCE: Duration = Duration::from_secs(30);

/// A PKCS#11 token, and what a program needs to use it.
pub struct Pkcs11Token {
    /// The path of the PKCS#11 module.
    pub module: PathBuf,
    /// The label of the token.
    pub label: String,
    /// The environment variables that a program needs to load the module.
    pub environment: Vec<(String, String)>,
    /// The processes that the token needs, in the order in which they were started.
    pub servers: Vec<Process>,
}

impl Pkcs11Token {
    /// Creates a SoftHSM2 token in `folder`; it supports Ed25519 and P-256.
    ///
    /// # Errors
    /// When SoftHSM2 is not installed.
    pub fn softhsm(folder: &Path) -> anyhow::Result<Self> {
        let tokens = folder.join("softhsm");
        std::fs::create_dir_all(&tokens)?;
        let config = folder.join("softhsm2.conf");
        let text = format!("directories.tokendir = {}\nlog.level = ERROR\n", tokens.display());
        std::fs::write(&config, text)?;
        let environment = vec![("SOFTHSM2_CONF".to_owned(), config.display().to_string())];
        let arguments = ["--init-token", "--free", "--label", LABEL, "--pin", PIN, "--so-pin", PIN];
        run("softhsm2-util", &arguments, &environment).context("package softhsm2")?;
        let module = "/usr/lib/softhsm/libsofthsm2.so".into();
        Ok(Self { module, label: LABEL.to_owned(), environment, servers: Vec::new() })
    }

    /// Creates a TPM 2.0 in `folder`; it supports P-256.
    ///
    /// # Errors
    /// When swtpm, tpm2-abrmd, tpm2-pkcs11 or dbus are not installed.
    pub async fn tpm(folder: &Path) -> anyhow::Result<Self> {
        let (state, store) = (folder.join("tpm"), folder.join("tpm2-pkcs11"));
        std::fs::create_dir_all(&state)?;
        std::fs::create_dir_all(&store)?;
        let port = two_adjacent_ports()?;
        let control = port + 1;
        let mut tpm = Process::new(
            "swtpm".into(),
            [
                "socket".to_owned(),
                "--tpm2".to_owned(),
                "--tpmstate".to_owned(),
                format!("dir={}", state.display()),
                "--server".to_owned(),
                format!("type=tcp,port={port}"),
                "--ctrl".to_owned(),
                format!("type=tcp,port={control}"),
                "--flags".to_owned(),
                "not-need-init,startup-clear".to_owned(),
            ],
            folder.join("swtpm.log"),
        );
        tpm.start().context("package swtpm")?;
        let bus = folder.join("bus");
        let address = format!("unix:path={}", bus.display());
        let mut dbus = Process::new(
            "dbus-daemon".into(),
            ["--session", "--nofork", "--nopidfile", "--address", address.as_str()],
            folder.join("dbus.log"),
        );
        dbus.start().context("package dbus")?;
        wait_for("the bus", PATIENCE, || async { bus.exists() }).await?;
        let bus_of = ("DBUS_SESSION_BUS_ADDRESS".to_owned(), address);
        let mut manager = Process::new(
            "tpm2-abrmd".into(),
            ["--session", "--allow-root", "--tcti", &format!("swtpm:host=127.0.0.1,port={port}")],
            folder.join("abrmd.log"),
        )
        .env(&bus_of.0, &bus_of.1);
        manager.start().context("package tpm2-abrmd")?;
        let environment = vec![
            bus_of,
            ("TPM2_PKCS11_TCTI".to_owned(), "tabrmd:bus_type=session".to_owned()),
            ("TPM2TOOLS_TCTI".to_owned(), "tabrmd:bus_type=session".to_owned()),
            ("TPM2_PKCS11_STORE".to_owned(), store.display().to_string()),
        ];
        wait_for("the TPM", PATIENCE, || async {
            run("tpm2_getcap", &["properties-fixed"], &environment).is_ok()
        })
        .await?;
        let store = store.display().to_string();
        run("tpm2_ptool", &["init", "--path", &store], &environment)
            .context("package libtpm2-pkcs11-tools")?;
        let token = [
            "addtoken",
            "--pid",
            "1",
            "--label",
            LABEL,
            "--userpin",
            PIN,
            "--sopin",
            PIN,
            "--path",
            &store,
        ];
        run("tpm2_ptool", &token, &environment)?;
        Ok(Self {
            module: "/usr/lib/x86_64-linux-gnu/pkcs11/libtpm2_pkcs11.so".into(),
            label: LABEL.to_owned(),
            environment,
            servers: vec![tpm, dbus, manager],
        })
    }
}

/// Returns a free port followed by another free port, where the TPM's clients expect its control
/// port.
fn two_adjacent_ports() -> anyhow::Result<u16> {
    for _ in 0..100 {
        let port = free_port()?;
        if port < u16::MAX && std::net::TcpListener::bind(("127.0.0.1", port + 1)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no two free ports side by side")
}

fn run(
    program: &str,
    arguments: &[&str],
    environment: &[(String, String)],
) -> anyhow::Result<String> {
    let environment = environment.iter().map(|(name, value)| (name, value));
    let output = Command::new(program)
        .args(arguments)
        .envs(environment)
        .output()
        .with_context(|| format!("{program} is not installed"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    anyhow::ensure!(output.status.success(), "{program} {arguments:?}: {said}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

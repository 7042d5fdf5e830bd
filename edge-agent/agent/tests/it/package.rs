//! Tests the Debian package: its contents, and how its services are sandboxed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may break

use std::process::Command;

use testbed::{binary_path, workspace_root};

fn run(program: &str, arguments: &[&str]) -> String {
    let output =
        Command::new(program).args(arguments).current_dir(workspace_root()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    said
}

#[test]
fn the_exposure_level_of_the_services_is_below_two_of_ten() {
    for unit in ["simcorp-edge", "simcorp-signer"] {
        let file = format!("packaging/systemd/{unit}.service");
        // The threshold is in tenths.
        run("systemd-analyze", &["security", "--offline=true", "--threshold=20", &file]);
    }
}

#[test]
fn the_package_contains_the_files_that_the_guide_names() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    // Packages the programs as built for tests; the benchmark measures the size of released ones.
    let built = Command::new(workspace_root().join("packaging/build-deb"))
        .arg(out)
        .env("EDGE", binary_path("simcorp-edge").unwrap())
        .env("SIGNER", binary_path("simcorp-signer").unwrap())
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let package = std::fs::read_dir(out).unwrap().next().unwrap().unwrap().path();
    let package = package.to_str().unwrap();
    let files = run("dpkg-deb", &["-c", package]);
    for expected in [
        "./usr/bin/simcorp-edge",
        "./usr/bin/simcorp-signer",
        "./lib/systemd/system/simcorp-edge.service",
        "./lib/systemd/system/simcorp-signer.service",
        "./lib/systemd/system/simcorp-signer.socket",
        "./usr/lib/sysusers.d/simcorp-edge.conf",
        "./etc/simcorp-edge/edge.toml",
        "./usr/share/doc/simcorp-edge/guides/install-gateway.md",
        "./usr/share/doc/simcorp-edge/reference/configuration.md",
        "./usr/share/doc/simcorp-edge/60-simcorp-roaster.rules.example",
    ] {
        assert!(files.contains(expected), "no {expected} in:\n{files}");
    }
    assert!(run("dpkg-deb", &["-I", package, "conffiles"]).contains("/etc/simcorp-edge/edge.toml"));
    for script in ["postinst", "prerm", "postrm"] {
        run("sh", &["-n", &format!("packaging/debian/{script}")]);
    }
    run("sh", &["-n", "packaging/install.sh"]);
}

#[test]
fn the_shipped_configuration_lacks_only_the_names() {
    let config = "packaging/debian/edge.toml";
    let edge = binary_path("simcorp-edge").unwrap();
    let output = Command::new(edge)
        .args(["-c", config, "config", "check"])
        .current_dir(workspace_root())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{said}");
    for field in ["identity.org", "identity.site", "identity.device", "machine.id", "profile"] {
        assert!(said.contains(field), "{said}");
    }
    assert_eq!(said.lines().count(), 6, "{said}");
}

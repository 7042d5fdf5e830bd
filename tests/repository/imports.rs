//! Tests which crate may import which: compares the rules of `allowed` with the output of
//! `cargo metadata`. The table in docs/architecture.md shows the same rules; change both together.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;
use testbed::workspace_root;

/// Crates that do input or output, or read a clock.
const IO: [&str; 7] = ["tokio", "axum", "reqwest", "sqlx", "rusqlite", "rumqttc", "rustix"];

/// Returns the folder of each crate of the workspace, and its dependencies outside of tests.
fn crates() -> BTreeMap<String, (String, Vec<String>)> {
    let mut command = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    command.args(["metadata", "--no-deps", "--format-version=1"]).current_dir(workspace_root());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let root = format!("{}/", metadata["workspace_root"].as_str().unwrap());
    let packages = metadata["packages"].as_array().unwrap().iter().map(|package| {
        let manifest = package["manifest_path"].as_str().unwrap();
        let folder = manifest.strip_prefix(&root).unwrap().trim_end_matches("/Cargo.toml");
        let all = package["dependencies"].as_array().unwrap().iter();
        let normal = all.filter(|dependency| dependency["kind"].is_null());
        let names = normal.map(|dependency| dependency["name"].as_str().unwrap().to_owned());
        (package["name"].as_str().unwrap().to_owned(), (folder.to_owned(), names.collect()))
    });
    packages.collect()
}

/// Returns whether a crate in `from` may depend on a crate in `to`.
fn allowed(from: &str, to: &str) -> bool {
    let within = |folder: &str| to.starts_with(folder);
    if to == "shared/testbed" {
        return ["tests", "cloud/bench", "cloud/libs/service-testbed"].contains(&from);
    }
    if to == "cloud/libs/service-testbed" {
        return false;
    }
    match from {
        "shared/contract" => false,
        "shared/roast" | "shared/trust" => to == "shared/contract",
        _ if from.starts_with("shared/") => within("shared/"),
        "firmware-profiles" => within("shared/"),
        _ if from.starts_with("edge-agent/") => {
            let emulator = to == "edge-agent/emulator";
            (within("edge-agent/") && !emulator) || within("shared/") || to == "firmware-profiles"
        }
        _ if from.starts_with("cloud/libs/") => within("cloud/libs/") || within("shared/"),
        _ if from.starts_with("cloud/services/") => within("cloud/libs/") || within("shared/"),
        "cloud/simcorp" => within("cloud/services/") || within("cloud/libs/") || within("shared/"),
        "cloud/bench" => {
            let gateway = ["edge-agent/emulator", "firmware-profiles"].contains(&to);
            gateway || allowed("cloud/simcorp", to)
        }
        "tests" | "fuzz" => true,
        _ => false,
    }
}

#[test]
fn every_crate_imports_only_what_the_architecture_allows() {
    let crates = crates();
    assert!(crates.len() > 25, "cargo metadata lists {} crates", crates.len());
    let mut forbidden = Vec::new();
    for (name, (folder, dependencies)) in &crates {
        for dependency in dependencies {
            if let Some((to, _)) = crates.get(dependency)
                && !allowed(folder, to)
            {
                forbidden.push(format!("{name} ({folder}) imports {dependency} ({to})"));
            }
        }
    }
    assert!(forbidden.is_empty(), "{forbidden:#?}");
}

#[test]
fn the_pure_crates_do_no_io() {
    let crates = crates();
    for pure in ["contract", "roast", "firmware-profiles"] {
        let (_, dependencies) = &crates[pure];
        let io: Vec<_> = dependencies.iter().filter(|name| IO.contains(&name.as_str())).collect();
        assert!(io.is_empty(), "{pure} depends on {io:?}");
    }
}

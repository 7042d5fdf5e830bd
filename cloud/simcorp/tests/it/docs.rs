//! The configuration examples in the documentation are valid.

use std::process::Command;

use testbed::{binary_path, workspace_root};

fn block(page: &str, kind: &str) -> String {
    let start = format!("```toml {kind}\n");
    page.split(&start).nth(1).and_then(|rest| rest.split("```").next()).unwrap().to_owned()
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(binary_path(program).unwrap()).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_configuration_page_shows_the_defaults_and_a_valid_agent_file() {
    let page =
        std::fs::read_to_string(workspace_root().join("docs/reference/configuration.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("simcorp.toml");
    std::fs::write(&file, block(&page, "simcorp")).unwrap();
    let shown = run("simcorp", &["--config", &file.display().to_string(), "--print-config"]);
    assert_eq!(shown, run("simcorp", &["--print-config"]));
    let file = folder.path().join("edge.toml");
    std::fs::write(&file, block(&page, "simcorp-edge")).unwrap();
    run("simcorp-edge", &["--config", &file.display().to_string(), "config", "check"]);
}

#[test]
fn the_signer_configuration_of_the_key_guide_is_valid() {
    let page = std::fs::read_to_string(workspace_root().join("docs/guides/keys.md")).unwrap();
    let reference =
        std::fs::read_to_string(workspace_root().join("docs/reference/configuration.md")).unwrap();
    assert_eq!(block(&reference, "simcorp-signer"), block(&page, "simcorp-signer"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("signer.toml");
    std::fs::write(&file, block(&page, "simcorp-signer")).unwrap();
    let shown = run("simcorp-signer", &["--config", &file.display().to_string(), "--print-config"]);
    assert!(shown.contains("certificate-request") && shown.contains("credential:pin"), "{shown}");
}

#[test]
fn completions_and_manual_pages_name_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(run("simcorp", &["completions", shell]).contains("consistency"), "{shell}");
    }
    let folder = tempfile::tempdir().unwrap();
    run("simcorp", &["man", &folder.path().display().to_string()]);
    let page = std::fs::read_to_string(folder.path().join("simcorp-roast.1")).unwrap();
    assert!(page.contains("analyze"), "{page}");
}

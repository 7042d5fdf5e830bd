//! Tests that links in documents, and paths of documents in sources, lead to files that exist.

use std::path::{Path, PathBuf};
use std::process::Command;

use testbed::workspace_root;

/// Returns the files of the repository with this ending, relative to its root.
fn files(ending: &str) -> Vec<PathBuf> {
    let mut git = Command::new("git");
    git.args(["ls-files", "-co", "--exclude-standard", &format!("*{ending}")]);
    let output = git.current_dir(workspace_root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let listed = String::from_utf8(output.stdout).unwrap();
    listed.lines().map(PathBuf::from).filter(|file| workspace_root().join(file).is_file()).collect()
}

/// Returns the targets of Markdown's `[text](target)` in `text`, without those outside the
/// repository.
fn targets(text: &str) -> Vec<&str> {
    let all = text.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
    let inside = all.filter(|target| !target.contains("://") && !target.starts_with("mailto:"));
    inside.map(|target| target.split('#').next().unwrap_or(target)).collect()
}

fn is_there(from: &Path, target: &str) -> bool {
    let folder = from.parent().unwrap_or(Path::new(""));
    target.is_empty() || workspace_root().join(folder).join(target).exists()
}

#[test]
fn links_between_documents_lead_to_existing_files() {
    let mut dead = Vec::new();
    let pages = files(".md");
    assert!(pages.len() > 30, "only {} pages", pages.len());
    for page in pages {
        let text = std::fs::read_to_string(workspace_root().join(&page)).unwrap();
        // A fenced block shows code, and code may contain `](`.
        let prose: String = text.split("```").step_by(2).collect();
        for target in targets(&prose) {
            if !is_there(&page, target) {
                dead.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(dead.is_empty(), "dead links: {dead:#?}");
}

#[test]
fn documents_that_sources_name_exist() {
    let mut dead = Vec::new();
    for source in [".rs", ".toml", ".md", "Makefile"].iter().flat_map(|ending| files(ending)) {
        let text = std::fs::read_to_string(workspace_root().join(&source)).unwrap();
        for (at, _) in text.match_indices("docs/") {
            let outside = text[..at].ends_with(['/', '-']);
            let path: String = text[at..]
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || "/-_.".contains(*c))
                .collect();
            let page = path.trim_end_matches('.');
            if !outside
                && Path::new(page).extension().is_some_and(|e| e == "md")
                && !workspace_root().join(page).is_file()
            {
                dead.push(format!("{}: {page}", source.display()));
            }
        }
    }
    assert!(dead.is_empty(), "no such page: {dead:#?}");
}

#[test]
fn link_targets_are_parsed_from_markdown() {
    let text = "See [a](b.md#c), [d](https://e.example) and ![f](g.png \"title\").";
    assert_eq!(targets(text), ["b.md", "g.png"]);
    assert!(!is_there(Path::new("README.md"), "no-such-page.md"));
}

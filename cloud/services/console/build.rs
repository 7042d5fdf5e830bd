//! Bundles the console's assets with the locked versions of `web/package-lock.json`, so that the
//! binary contains them and no page loads anything from another host.

use std::path::Path;
use std::process::Command;

fn main() {
    for path in ["web/src", "web/package.json", "web/package-lock.json"] {
        println!("cargo:rerun-if-changed={path}");
    }
    let web = Path::new("web");
    let out = std::env::var("OUT_DIR").unwrap_or_else(|_| "dist".to_owned());
    // npm writes this file last: it exists once the locked versions are installed.
    let installed = web.join("node_modules/.package-lock.json");
    let newer = |path: &Path| path.metadata().and_then(|m| m.modified()).ok();
    if newer(&installed) < newer(&web.join("package-lock.json")) {
        run(web, &["ci", "--no-audit", "--no-fund"], &out);
    }
    run(web, &["run", "--silent", "build"], &out);
}

#[allow(clippy::panic)] // a build script reports errors by panicking
fn run(web: &Path, arguments: &[&str], out: &str) {
    let status = Command::new("npm").args(arguments).current_dir(web).env("OUT", out).status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("npm {} ended with {status}", arguments.join(" ")),
        Err(error) => panic!("npm is needed to bundle the console's assets: {error}"),
    }
}

//! Simulates a person who types into the program.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use testbed::binary_path;

use super::{Gateway, PATIENCE};

/// A person at the keyboard of `simcorp-edge bring-up`, simulated.
pub(super) struct Typist {
    running: Child,
    keyboard: ChildStdin,
    screen: Receiver<String>,
    told: String,
}

impl Typist {
    pub(super) fn start(gateway: &Gateway, by: [&str; 2]) -> Self {
        let at = |name: &str| gateway.folder.path().join(name).display().to_string();
        let mut command = Command::new(binary_path("simcorp-edge").unwrap());
        // No local response takes longer, however busy this computer is.
        command.args(["--set=sampling.period_ms=2000", "--set=machine.profile.timeout_ms=2000"]);
        command.args(["-c", &at("edge.toml"), "bring-up", "--by", by[0], "--by", by[1]]);
        command.args(["--record", &at("bring-up.jsonl")]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = command.spawn().unwrap();
        let keyboard = running.stdin.take().unwrap();
        let (shown, screen) = channel();
        let lines = BufReader::new(running.stdout.take().unwrap()).lines();
        std::thread::spawn(move || {
            lines.map_while(Result::ok).try_for_each(|line| shown.send(line).map_err(drop))
        });
        Self { running, keyboard, screen, told: String::new() }
    }

    pub(super) fn types(&mut self, line: &str) {
        // The program may have ended already and printed the reason.
        let _ = self.keyboard.write_all(format!("{line}\n").as_bytes());
    }

    pub(super) fn reads(&mut self, wanted: &str) {
        loop {
            let line = self.screen.recv_timeout(PATIENCE);
            let Ok(line) = line else { panic!("no {wanted:?} in {}", self.told) };
            self.told.push_str(&(line.clone() + "\n"));
            if line.contains(wanted) {
                return;
            }
        }
    }

    /// Returns whether the program ended with success, and all of its output.
    pub(super) fn ends(mut self) -> (bool, String) {
        drop(self.keyboard);
        let output = self.running.wait_with_output().unwrap();
        self.told.extend(self.screen.iter().map(|line| line + "\n"));
        (output.status.success(), self.told + &String::from_utf8_lossy(&output.stderr))
    }
}

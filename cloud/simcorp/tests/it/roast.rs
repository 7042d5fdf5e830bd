//! `simcorp roast` as a roaster runs it: no server, no database, only files.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use testbed::{binary_path, recordings};

fn simcorp(arguments: &[&str]) -> Output {
    let mut command = Command::new(binary_path("simcorp").unwrap());
    command.arg("roast").args(arguments).output().unwrap()
}

fn said(arguments: &[&str]) -> String {
    let output = simcorp(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn file(folder: &Path, name: &str) -> String {
    folder.join("skywalker").join(name).display().to_string()
}

fn objects(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn analyze_prints_each_event_and_when_it_was_detected() {
    let Some(folder) = recordings().unwrap() else { return };
    let (first, second) =
        (file(&folder, "roast_25-11-29_1419.alog"), file(&folder, "roast_25-11-29_1440.alog"));
    let told = objects(&said(&["analyze", "--output", "json", &first, &second]));
    assert_eq!(told.len(), 2);
    assert_eq!((&told[0]["file"], &told[0]["samples"]), (&first.clone().into(), &499.into()));
    assert_eq!(told[0]["unit"], "C");
    for event in told[0]["events"].as_array().unwrap() {
        let number = |field: &str| event[field].as_f64().unwrap();
        assert!(event["type"].is_string() && event["method"].is_string());
        assert!(number("known_at") >= number("t") - 60.0, "{event}");
        let interval = event["interval"].as_array().unwrap();
        let (a, b) = (interval[0].as_f64().unwrap(), interval[1].as_f64().unwrap());
        assert!(a <= number("t") && number("t") <= b, "{event}");
        assert!((0.0..=1.0).contains(&number("confidence")));
    }
    assert!(told[0]["analysis"]["developmentRatio"].is_number());
    // The second is judged with what the first one's marks taught.
    let alone = objects(&said(&["analyze", "--output", "json", &second]));
    let fc = |told: &Value| {
        let events = told["events"].as_array().unwrap();
        events.iter().find(|e| e["type"] == "FC").map(|e| e["method"].clone())
    };
    assert_eq!((fc(&alone[0]), fc(&told[1])), (Some("prior".into()), Some("learned".into())));
    let text = said(&["analyze", &first]);
    assert!(text.contains("known at") && text.contains("CHARGE") && text.contains("Development"));
}

#[test]
fn the_events_in_the_file_are_not_used() {
    let Some(folder) = recordings().unwrap() else { return };
    let path = PathBuf::from(file(&folder, "roast_25-11-29_1419.alog"));
    let text = std::fs::read_to_string(&path).unwrap();
    let start = text.find("'timeindex': [").unwrap();
    let end = start + text[start..].find(']').unwrap();
    let unmarked =
        format!("{}'timeindex': [-1, 0, 0, 0, 0, 0, 0, 0{}", &text[..start], &text[end..]);
    let copy = tempfile::tempdir().unwrap();
    let other = copy.path().join("unmarked.alog");
    std::fs::write(&other, unmarked).unwrap();
    let events = |path: &Path| {
        objects(&said(&["analyze", "--output", "json", &path.display().to_string()]))[0]["events"]
            .clone()
    };
    assert_eq!(events(&path), events(&other));
}

#[test]
fn roasts_are_compared_scored_and_drawn() {
    let Some(folder) = recordings().unwrap() else { return };
    let (one, other) =
        (file(&folder, "roast_25-11-29_1419.alog"), file(&folder, "roast_25-11-29_1440.alog"));
    let same: Value =
        serde_json::from_str(&said(&["compare", "--output", "json", "--align", "fc", &one, &one]))
            .unwrap();
    assert_eq!(same["similarity"], 100.0);
    assert!(said(&["compare", &one, &other]).contains("similarity"));
    let recorded = folder.display().to_string();
    let score: Value =
        serde_json::from_str(&said(&["score", "--cuts", "--output", "json", &recorded])).unwrap();
    let cuts = score["cuts"].as_array().unwrap();
    assert!(cuts.iter().any(|t| t["cut"] == "development" && t["kind"] == "DROP"), "{cuts:?}");
    assert!(cuts.iter().all(|t| t["missed"] == 0), "{cuts:?}");
    assert_eq!(score["machines"]["skywalker"]["marks"]["CHARGE"]["marks"], 39);
    assert!(score["all"]["forecast"]["mae_c"].as_f64().unwrap() < 1.0);
    let out = tempfile::tempdir().unwrap();
    let drawing = out.path().join("roast.svg").display().to_string();
    said(&["plot", &one, "--to", &drawing]);
    assert!(std::fs::read_to_string(drawing).unwrap().contains("Development"));
    let image = out.path().join("roast.png");
    said(&["plot", &one, "--to", image.to_str().unwrap()]);
    let image = std::fs::read(image).unwrap();
    assert!(image.starts_with(b"\x89PNG") && image.len() > 20_000, "{} bytes", image.len());
    // Artisan's own file, written anew, is found to be the same roast.
    for name in ["again.alog", "again.csv"] {
        let again = out.path().join(name).display().to_string();
        said(&["export", &one, "--to", &again]);
        let compared: Value =
            serde_json::from_str(&said(&["compare", "--output", "json", &again, &one])).unwrap();
        assert_eq!(compared["btRmseC"].as_f64(), Some(0.0), "{name}: {compared}");
    }
    let alike: Value =
        serde_json::from_str(&said(&["consistency", "--output", "json", &one, &other])).unwrap();
    assert_eq!(alike["dropSeconds"]["roasts"], 2);
    assert!(said(&["consistency", &one, &other]).contains("first crack s"));
}

#[test]
fn score_reads_every_format_and_names_what_it_leaves_out() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let rows = |separator: &str| {
        let row = |s: u32| format!("{s}{separator}{}\n", 190.0 - f64::from(s.min(80)));
        (0..200).map(row).collect::<String>()
    };
    let readings = vec![190.0; 200];
    let roastime = serde_json::json!({"beanTemperature": readings, "sampleRate": 1});
    let lines = |rest: &str| {
        let line = |s: u32| format!("{s}{rest}\n");
        (0..200).map(line).collect::<String>()
    };
    let (kaffelogic, rubasse) = (lines("\t190\t190"), lines(",190,50,80,0,60,40,210,5,0"));
    for (name, text) in [
        ("table.csv", format!("time,bt\n{}", rows(","))),
        ("table.txt", format!("time;bt\n{}", rows(";"))),
        ("roastime.json", roastime.to_string()),
        ("log.klog", format!("k:v\ntime\t#temp\t=mean_temp\n{kaffelogic}")),
        ("rubasse.csv", format!("A,1{}\n{rubasse}", ",0".repeat(22))),
        ("LICENSE", "You may use this.".to_owned()),
        ("settings.json", "{\"points\": []}".to_owned()),
    ] {
        std::fs::write(at(name), text).unwrap();
    }
    let output = simcorp(&["score", "--output", "json", folder.path().to_str().unwrap()]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let score: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(score["all"]["recordings"], 5, "{error}");
    assert_eq!(error.matches("skipped:").count(), 2, "{error}");
    for (name, reason) in [("LICENSE", "not a recording"), ("settings.json", "neither Artisan's")] {
        let line = error.lines().find(|line| line.contains(name)).unwrap_or_default();
        assert!(line.contains("skipped:") && line.contains(reason), "{error}");
    }
}

#[test]
fn a_file_that_is_not_a_recording_gives_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = folder.path().join("x.alog");
    std::fs::write(&wrong, "__import__('os').system('true')").unwrap();
    for (arguments, expected) in [
        (vec!["analyze", "/nowhere/x.alog"], "cannot read /nowhere/x.alog"),
        (vec!["analyze", wrong.to_str().unwrap()], "no line names a time and a bean temperature"),
        (vec!["score", folder.path().to_str().unwrap()], "no recordings in"),
    ] {
        let output = simcorp(&arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(expected), "{error}");
        let is_skipped = error.contains("skipped:") && error.contains("x.alog");
        assert_eq!(is_skipped, arguments[0] == "score", "{error}");
        assert_eq!(output.status.code(), Some(1));
        assert!(!error.contains("panicked"));
    }
}

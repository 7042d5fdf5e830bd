//! Tests the import of recordings of other manufacturers, as users have them.

use std::fmt::Write as _;
use std::process::Command;

use testbed::{binary_path, workspace_root};

fn simcorp(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(binary_path("simcorp").unwrap()).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(String::from_utf8(output.stdout).unwrap()) } else { Err(said) }
}

#[test]
fn a_cropster_workbook_is_converted_to_an_artisan_recording() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/cropster_workbook.py");
    // Cropster exports the older format; users also save it in the newer one.
    for form in ["roast.xls", "roast.xlsx"] {
        let mut python = Command::new(workspace_root().join("target/python/bin/python"));
        let made = python.args([script, &at(form)]).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let alog = at(&format!("{form}.alog"));
        simcorp(&["roast", "export", &at(form), "--to", &alog]).unwrap();
        let text = std::fs::read_to_string(&alog).unwrap();
        let roast = roast::formats::read(&text).unwrap();
        assert_eq!((roast.samples.len(), roast.beans.as_str()), (300, "Sidamo"), "{form}");
        // At CHARGE the file has 212 + 81 °F.
        assert!((roast.samples[0].bt_c.unwrap() - 145.0).abs() < 0.01, "{form}");
        assert_eq!(roast.mark_ms(contract::EventKind::Fc), Some(480_000), "{form}");
        assert!((roast.weight_in_g.unwrap() - 4_762.72).abs() < 0.1, "{form}");
    }
    // Another workbook is refused with its name.
    std::fs::write(at("other.xlsx"), b"PK\x03\x04 and nothing more").unwrap();
    let told = simcorp(&["roast", "analyze", &at("other.xlsx")]).unwrap_err();
    assert!(told.contains("other.xlsx"), "{told}");
}

#[test]
fn a_manufacturer_s_csv_is_read_in_its_own_units() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("roest.csv");
    let mut text = "\u{feff}Time,Air temp (°C),Bean temp (°C),Power (%),Fan (%),Event\n".to_owned();
    for row in 0..600 {
        // The time is in ms: read as seconds, this roast would last a week.
        let bt = if row < 90 { 190.0 - f64::from(row) } else { 100.0 + f64::from(row - 90) / 4.6 };
        let event = if row == 520 { "Firstcrack" } else { "" };
        writeln!(text, "{},210,{bt:.1},60,50,{event}", row * 1000).unwrap();
    }
    std::fs::write(&file, text).unwrap();
    let out = folder.path().join("roast.csv").display().to_string();
    simcorp(&["roast", "export", &file.display().to_string(), "--to", &out]).unwrap();
    let table = roast::formats::read(&std::fs::read_to_string(&out).unwrap()).unwrap();
    assert_eq!(table.samples.last().unwrap().t_ms, 599_000);
    assert_eq!(table.mark_ms(contract::EventKind::Fc), Some(520_000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_imported_recording_becomes_one_session() -> anyhow::Result<()> {
    let stack = crate::support::Stack::start(&["kernel", "ingestion", "fleet"], &[]).await?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("roast.csv");
    let mut text = "time,bean_temp_c,event\n".to_owned();
    for second in 0..700 {
        let bt = match second {
            0..60 => 190.0,
            60..150 => 190.0 - f64::from(second - 60),
            _ => 100.0 + f64::from(second - 150) / 4.9,
        };
        let event = match second {
            60 => "charge",
            560 => "fc",
            690 => "drop",
            _ => "",
        };
        writeln!(text, "{second},{bt:.1},{event}")?;
    }
    std::fs::write(&file, text)?;
    let file = file.display().to_string();
    let import = ["roast", "import", &file, "--site", "leipzig", "--machine", "old", "--at"];
    let import = [&import[..], &["2024-02-03T10:00:00Z"]].concat();
    let told = stack.operate(&import)?;
    assert!(told.contains("700 samples"), "{told}");
    assert_eq!(stack.operate(&import)?, told, "a second import of a file must change nothing");
    let list = stack.get("ingestion", "/sessions?limit=10").await?;
    let list = list.as_array().unwrap();
    assert_eq!(list.len(), 1, "{list:?}");
    assert_eq!(list[0]["startedAt"], "2024-02-03T10:01:00.000Z");
    assert_eq!(list[0]["status"], "CLOSED");
    let id = list[0]["sessionId"].as_str().unwrap();
    let events = stack.get("ingestion", &format!("/sessions/{id}/events")).await?.to_string();
    assert!(events.contains("FC") && events.contains("DROP"), "{events}");
    // The key of the import is revoked.
    let devices = stack.operate(&["device", "list"])?;
    assert!(devices.matches("device:import-").count() == 2, "{devices}");
    assert!(!devices.contains("active"), "{devices}");
    let wrong = stack.operate(&["roast", "import", &file, "--site", "leipzig", "--machine", "a b"]);
    assert!(wrong.unwrap_err().to_string().contains("machine"));
    Ok(())
}

//! Tests the import of recordings of other manufacturers, as users have them.

use std::fmt::Write as _;
use std::process::Command;

use testbed::{binary_path, workspace_root};

/// Returns a roast of 700 s as a table, with CHARGE at 60 s, FC at 560 s and DROP at 690 s.
fn table(separator: char, decimal: char) -> String {
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
        writeln!(text, "{second},{bt:.1},{event}").unwrap();
    }
    text.replace(',', &separator.to_string()).replace('.', &decimal.to_string())
}

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
fn a_workbook_with_cells_far_apart_is_refused_before_it_takes_memory() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("wide.xlsx").display().to_string();
    let script = "import openpyxl, sys; book = openpyxl.Workbook(); sheet = book.active; \
                  sheet['A1'] = 1; sheet['XFD1048576'] = 1; book.save(sys.argv[1])";
    let mut python = Command::new(workspace_root().join("target/python/bin/python"));
    let made = python.args(["-c", script, &file]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let told = simcorp(&["roast", "analyze", &file]).unwrap_err();
    assert!(told.contains("more than 2000000 cells"), "{told}");
}

/// An `.ods` of a few hundred bytes that repeats one cell four million times.
#[test]
fn no_other_kind_of_workbook_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("repeated.ods").display().to_string();
    let script = "import sys, zipfile; z = zipfile.ZipFile(sys.argv[1], 'w'); \
                  z.writestr('mimetype', 'application/vnd.oasis.opendocument.spreadsheet'); \
                  z.writestr('content.xml', '<office:document-content><office:body>\
                  <office:spreadsheet><table:table table:name=\"a\"><table:table-row \
                  table:number-rows-repeated=\"2000\"><table:table-cell \
                  table:number-columns-repeated=\"2000\" office:value-type=\"float\" \
                  office:value=\"1\"/></table:table-row></table:table></office:spreadsheet>\
                  </office:body></office:document-content>'); z.close()";
    let mut python = Command::new(workspace_root().join("target/python/bin/python"));
    let made = python.args(["-c", script, &file]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let told = simcorp(&["roast", "analyze", &file]).unwrap_err();
    assert!(told.contains("File not found"), "{told}");
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
    std::fs::write(&file, table(',', '.'))?;
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

#[test]
fn one_roast_is_the_same_in_every_form_of_a_table() {
    let folder = tempfile::tempdir().unwrap();
    let utf_16 = |text: &str| -> Vec<u8> {
        let units = [0xfeff].into_iter().chain(text.encode_utf16());
        units.flat_map(u16::to_le_bytes).collect()
    };
    let forms = [
        ("good.csv", table(',', '.').into_bytes()),
        ("german.csv", table(';', ',').into_bytes()),
        ("unicode.txt", utf_16(&table('\t', ','))),
    ];
    let export = |(name, bytes): (&str, Vec<u8>)| {
        let file = folder.path().join(name);
        std::fs::write(&file, bytes).unwrap();
        let to = folder.path().join(format!("{name}.out.csv")).display().to_string();
        simcorp(&["roast", "export", &file.display().to_string(), "--to", &to]).unwrap();
        std::fs::read_to_string(to).unwrap()
    };
    let [good, german, unicode] = forms.map(export);
    assert_eq!(good.lines().count(), 701);
    assert_eq!(good, german);
    assert_eq!(good, unicode);
}

/// One file, one error and one exit code, whether it is analyzed, drawn or imported.
#[test]
fn a_recording_without_a_usable_row_fails_in_every_command_with_row_and_reason() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text, expected) in [
        ("words.csv", "time,bt\nsoon,180\n", "row in line 2: \"soon\" is not a time"),
        ("empty.csv", "time,bt\n0,\n", "row in line 2: no bean temperature"),
        ("giesen.csv", "beans,air\n,200\n", "Giesen: no row from line 2 on"),
        ("none.csv", "time,et\n0,200\n", "no line names a time and a bean temperature"),
        ("other.json", "{\"points\": []}", "neither Artisan's timex nor"),
        (
            "plan.alog",
            "{'timex': [], 'temp1': [], 'temp2': []}",
            "no sample has a bean temperature",
        ),
    ] {
        let file = folder.path().join(name).display().to_string();
        std::fs::write(&file, text).unwrap();
        // No cloud is asked: the import ends before it sends anything.
        let place: &[&str] = &["--site", "leipzig", "--machine", "old"];
        let commands: [(&str, &[&str]); 3] = [("analyze", &[]), ("plot", &[]), ("import", place)];
        let told = commands.map(|(command, options)| {
            let mut simcorp = Command::new(binary_path("simcorp").unwrap());
            let output = simcorp.args(["roast", command, &file]).args(options).output().unwrap();
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{command} {name}: {told}");
            assert_eq!(told.matches(expected).count(), 1, "{command} {name}: {told}");
            told
        });
        assert!(told.iter().all(|other| *other == told[0]), "{told:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_save_of_a_roast_corrects_it() -> anyhow::Result<()> {
    let stack = crate::support::Stack::start(&["kernel", "ingestion", "fleet"], &[]).await?;
    let folder = tempfile::tempdir()?;
    let import = |recording: &roast::recording::Recording| -> anyhow::Result<String> {
        let file = folder.path().join("roast.alog");
        std::fs::write(&file, roast::formats::export::alog(recording))?;
        let file = file.display().to_string();
        stack.operate(&["roast", "import", &file, "--site", "leipzig", "--machine", "old"])
    };
    let mut recording = roast::formats::read(&table(',', '.'))?;
    recording.title = "House".to_owned();
    recording.beans = "Guji".to_owned();
    recording.batch = "L7".to_owned();
    recording.roast_id = "9".repeat(32);
    recording.started = contract::EpochMs::parse_iso("2026-03-08T01:44:57Z");
    recording.weight_in_g = Some(400.0);
    import(&recording)?;
    recording.weight_out_g = Some(344.4);
    let weighed = import(&recording)?;
    assert!(!weighed.contains("corrected"), "{weighed}");
    for (kind, at) in &mut recording.marks {
        if *kind == contract::EventKind::Fc {
            *at += 15;
        }
    }
    let marked = import(&recording)?;
    assert!(marked.contains("corrected FC"), "{marked}");

    let list = stack.get("ingestion", "/sessions?limit=10").await?;
    assert_eq!(list.as_array().map(Vec::len), Some(1), "{list}");
    assert_eq!(list[0]["startedAt"], "2026-03-08T01:45:57.000Z", "CHARGE, by the file's date");
    let session = format!("/sessions/{}", list[0]["sessionId"].as_str().unwrap());
    let meta = stack.get("ingestion", &format!("{session}/meta")).await?;
    assert_eq!(meta["roastProfileName"], "House");
    assert_eq!(meta["beanName"], "Guji");
    assert_eq!(meta["weightInG"], 400.0);
    assert_eq!(meta["weightOutG"], 344.4);
    assert_eq!(meta["extra"]["batchNumber"], "L7");
    let overrides = stack.get("ingestion", &format!("{session}/events/overrides")).await?;
    assert_eq!(overrides.as_array().map(Vec::len), Some(1), "{overrides}");
    assert_eq!(overrides[0]["eventType"], "FC");
    assert_eq!(overrides[0]["elapsedSeconds"], 515.0);

    // An unusable file fails the import too.
    let file = folder.path().join("words.csv").display().to_string();
    std::fs::write(&file, "time,bt\nsoon,180\n")?;
    let import = ["roast", "import", &file, "--site", "leipzig", "--machine", "old"];
    let error = stack.operate(&import).unwrap_err().to_string();
    assert!(error.contains("row in line 2"), "{error}");
    Ok(())
}

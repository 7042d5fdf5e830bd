//! What the pages say: with data, without, and without ingestion.

use std::collections::BTreeMap;

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};
use service_testbed::NOW;
use testbed::{FakeService, ReceivedRequest};

use crate::{Console, busy_ingestion};

const UNAVAILABLE: &str = "<p class=\"notice\" role=\"alert\">Ingestion does not answer. \
    Gateways store what they measure and send it later; this page tries again.</p>";

/// An ingestion with these answers by path; every other path is 404.
async fn ingestion(answers: BTreeMap<&'static str, Value>) -> FakeService {
    let answer = move |request: &ReceivedRequest| -> Response {
        match answers.get(request.path.as_str()) {
            Some(body) => Json(body.clone()).into_response(),
            None => (StatusCode::NOT_FOUND, Json(json!({"error": "not found"}))).into_response(),
        }
    };
    FakeService::start(answer).await.unwrap()
}

/// A machine that roasts since 125 seconds, seen `seen_s` seconds ago.
fn machine(name: &str, seen_s: i64) -> Value {
    json!({
        "orgId": "acme", "siteId": "leipzig", "machineId": name,
        "lastSampleAt": NOW.plus_ms(-seen_s * 1000), "lastSeenAt": NOW.plus_ms(-seen_s * 1000),
        "btC": 187.44, "etC": null, "rorCPerMin": 0.0, "sessionId": "S-1",
        "sessionStartedAt": NOW.plus_ms(-125_000), "lastEvent": "CHARGE",
        "lastEventAt": NOW.plus_ms(-125_000), "missingFrames": 3,
    })
}

/// A roast of ten minutes that ended.
fn session(id: &str) -> Value {
    json!({
        "orgId": "acme", "siteId": "leipzig", "machineId": "r-1", "sessionId": id,
        "startedAt": "2025-10-05T21:08:15.250Z", "endedAt": "2025-10-05T21:18:15.250Z",
        "status": "CLOSED", "durationSeconds": 600.0, "fcSeconds": 480.0, "dropSeconds": 600.0,
        "maxBtC": 210.04, "telemetryPoints": 601, "verifiedPoints": 601, "unsignedPoints": 0,
        "failedPoints": 0, "deviceIds": ["device:gw-1@leipzig"], "completeness": "complete",
    })
}

#[tokio::test]
async fn the_fleet_page_shows_each_machine_with_its_age_and_no_old_value() {
    let machines = json!([machine("r-2", 40), machine("r-1", 1)]);
    let ingestion = ingestion(BTreeMap::from([("/machines", machines)])).await;
    let console = Console::start(ingestion.url());
    let page = console.get("/").await;
    assert_eq!(page.status, 200);
    assert_eq!(page.headers[header::CONTENT_TYPE], "text/html; charset=utf-8");
    let rows = console.get("/fleet").await;
    assert_eq!(rows.status, 200);
    assert!(page.text.contains(rows.text.trim()), "{}", page.text);
    assert!(!rows.text.contains("<html"), "only the rows: {}", rows.text);

    let (_, body) = rows.text.split_once("<tbody>").unwrap();
    let row: Vec<String> = body.split("</tr>").map(|row| row.replace('\n', "")).collect();
    let missing = "<br><span class=\"state delayed\">3 missing frames requested</span>";
    let current = format!(
        "<tr class=\"roasting\"><td><a href=\"/machines/leipzig/r-1\">r-1</a><br>\
         <span class=\"quiet\">leipzig</span></td>\
         <td><span class=\"state roasting\">Roasting</span>{missing}</td>\
         <td class=\"num value bt\">187.4</td><td class=\"num value ror\">0.0</td>\
         <td class=\"num value\">2:05</td><td class=\"wide\">Charge, 2 min ago</td>\
         <td class=\"wide num\">1 s</td>"
    );
    assert_eq!(row[0], current);
    for part in [
        "<a href=\"/machines/leipzig/r-2\">r-2</a>",
        "<span class=\"state stale\">Stale</span>",
        "<td class=\"num value bt\">—</td><td class=\"num value ror\">—</td>",
        "<td class=\"num value\">—</td>",
        "<td class=\"wide num\">40 s</td>",
    ] {
        assert!(row[1].contains(part), "{part}: {}", row[1]);
    }
}

#[tokio::test]
async fn a_display_name_is_shown_in_place_of_the_id_and_links_keep_the_id() {
    let (mut named, mut roast) = (machine("r-1", 1), session("S-2"));
    named["machineName"] = json!("Probat, hall 2");
    roast["machineName"] = json!("Probat, hall 2");
    let answers = [("/machines", json!([named])), ("/sessions", json!([roast]))];
    let ingestion = ingestion(BTreeMap::from(answers)).await;
    let console = Console::start(ingestion.url());
    for (uri, part) in [
        ("/fleet", "<a href=\"/machines/leipzig/r-1\">Probat, hall 2</a>"),
        ("/machines/leipzig/r-1", "<h1>Probat, hall 2</h1>"),
        ("/machines/leipzig/r-1", "data-machine=\"r-1\""),
        ("/sessions", "<td>Probat, hall 2<br>"),
    ] {
        let page = console.get(uri).await;
        assert!(page.text.contains(part), "{uri}: {}", page.text);
    }
}

#[tokio::test]
async fn the_lists_say_that_there_is_nothing_yet() {
    let none = BTreeMap::from([("/machines", json!([])), ("/sessions", json!([]))]);
    let ingestion = ingestion(none).await;
    let console = Console::start(ingestion.url());
    for (uri, text) in [
        ("/", "<p>No machine has sent any data yet. Create a key on a gateway"),
        ("/fleet", "<p>No machine has sent any data yet. Create a key on a gateway"),
        ("/sessions", "No roast yet. The first one appears here when beans are charged."),
        ("/sessions?page=3", "No more roasts. <a href=\"/sessions\">Back to the newest</a>"),
    ] {
        let page = console.get(uri).await;
        assert_eq!(page.status, 200, "{uri}");
        assert!(page.text.contains(text), "{uri}: {}", page.text);
        assert!(!page.text.contains("<table>"), "{uri}: {}", page.text);
    }
}

#[tokio::test]
async fn a_page_without_ingestion_says_so_and_shows_no_table() {
    let busy = busy_ingestion().await;
    for console in [Console::start(busy.url()), Console::alone()] {
        // The lists keep their page, which tries again; a page of one thing is an error.
        for (uri, status) in [
            ("/", 200),
            ("/fleet", 200),
            ("/sessions", 200),
            ("/sessions/S-1", 503),
            ("/machines/leipzig/r-1", 503),
        ] {
            let page = console.get(uri).await;
            assert_eq!(page.status, status, "{uri}");
            assert!(page.text.contains(UNAVAILABLE), "{uri}: {}", page.text);
            assert!(!page.text.contains("<table>"), "{uri}: {}", page.text);
            assert_eq!(page.headers.get("set-cookie"), None, "{uri}");
        }
    }
}

#[tokio::test]
async fn an_unknown_machine_and_an_unknown_roast_are_404() {
    let machines = json!([machine("r-1", 1)]);
    let ingestion = ingestion(BTreeMap::from([("/machines", machines)])).await;
    let console = Console::start(ingestion.url());
    for (uri, text) in [
        ("/machines/leipzig/r-2", "There is no machine of that name."),
        ("/machines/dresden/r-1", "There is no machine of that name."),
        ("/sessions/S-9", "There is no roast of that name."),
        ("/sessions/%2E%2E", "There is no roast of that name."),
        ("/sessions/S-1%2Ftelemetry", "There is no roast of that name."),
    ] {
        let page = console.get(uri).await;
        assert_eq!(page.status, 404, "{uri}");
        let expected = format!("<h1>Not found</h1><p class=\"notice\" role=\"alert\">{text}</p>");
        assert!(page.text.contains(&expected), "{uri}: {}", page.text);
    }
    // What is no session id is not read.
    let paths: Vec<String> = ingestion.requests().into_iter().map(|r| r.path).collect();
    assert_eq!(paths, ["/machines", "/machines", "/sessions/S-9"]);
}

#[tokio::test]
async fn the_live_page_names_the_machine_and_its_running_roast() {
    let machines = json!([machine("r-1", 1)]);
    let ingestion = ingestion(BTreeMap::from([("/machines", machines)])).await;
    let page = Console::start(ingestion.url()).get("/machines/leipzig/r-1").await;
    assert_eq!(page.status, 200);
    let section = "<section id=\"live\" data-site=\"leipzig\" data-machine=\"r-1\" \
                   data-session=\"S-1\"";
    assert!(page.text.contains(section), "{}", page.text);
    assert!(page.text.contains("<title>r-1 · Sim-Corp</title>"), "{}", page.text);
}

#[tokio::test]
async fn the_list_of_roasts_has_pages_of_fifty() {
    // One more than a page: so there is a next page.
    let sessions: Vec<Value> = (0..51).map(|n| session(&format!("S-{n}"))).collect();
    let ingestion = ingestion(BTreeMap::from([("/sessions", sessions.into())])).await;
    let console = Console::start(ingestion.url());
    let first = console.get("/sessions").await.text;
    assert_eq!(first.matches("<a href=\"/sessions/S-").count(), 50);
    assert!(first.contains("<a class=\"button\" href=\"/sessions?page=1\">Older</a>"), "{first}");
    assert!(!first.contains("Newer"), "{first}");
    let row = "<td><a href=\"/sessions/S-0\">2025-10-05 21:08:15</a></td>\n\
        <td>r-1<br><span class=\"quiet\">leipzig</span></td>\n\
        <td class=\"num\">10:00</td>\n\
        <td class=\"num wide\">8:00</td>\n\
        <td class=\"num wide\">20 %</td>\n\
        <td class=\"num wide\">210.0</td>\n\
        <td class=\"num wide\">601</td>\n\
        <td><span class=\"state complete\">Complete</span></td>";
    assert!(first.contains(row), "{first}");
    let third = console.get("/sessions?page=2").await.text;
    assert!(third.contains("href=\"/sessions?page=1\">Newer</a>"), "{third}");
    assert!(third.contains("href=\"/sessions?page=3\">Older</a>"), "{third}");
    let queries: Vec<String> = ingestion.requests().into_iter().map(|r| r.query).collect();
    assert_eq!(queries, ["limit=51&offset=0", "limit=51&offset=100"]);
}

#[tokio::test]
async fn markup_in_data_is_not_markup_on_a_page() {
    let mut roast = session("S-1");
    roast["deviceIds"] = json!(["<img src=x onerror=alert(1)>", "\"quoted\" & 'single'"]);
    let mut named = machine("r-1", 1);
    named["machineId"] = json!("<b>r-1</b>");
    let answers = BTreeMap::from([("/sessions/S-1", roast), ("/machines", json!([named]))]);
    let ingestion = ingestion(answers).await;
    let console = Console::start(ingestion.url());
    let page = console.get("/sessions/S-1").await;
    assert_eq!(page.status, 200);
    let signed = "<dd>&#60;img src=x onerror=alert(1)&#62;, \
                  &#34;quoted&#34; &#38; &#39;single&#39;</dd>";
    assert!(page.text.contains(signed), "{}", page.text);
    assert!(!page.text.contains("<img"), "{}", page.text);
    // No machine has such a name: the answer is not believed.
    let page = console.get("/").await;
    assert!(page.text.contains(UNAVAILABLE), "{}", page.text);
    assert!(!page.text.contains("<b>"), "{}", page.text);
}

#[tokio::test]
async fn the_assets_that_a_page_names_may_be_kept() {
    let console = Console::alone();
    let page = console.get("/").await.text;
    let (_, link) = page.split_once("<link rel=\"stylesheet\" href=\"").unwrap();
    let (uri, _) = link.split_once('"').unwrap();
    assert!(uri.starts_with("/assets/app.css?"), "{uri}");
    let asset = console.get(uri).await;
    assert_eq!(asset.status, 200);
    assert_eq!(asset.headers[header::CONTENT_TYPE], "text/css; charset=utf-8");
    assert_eq!(asset.headers[header::CACHE_CONTROL], "public, max-age=31536000, immutable");
    assert_eq!(console.get("/assets/secret.txt").await.status, 404);
}

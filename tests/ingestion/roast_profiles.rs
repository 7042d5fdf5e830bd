//! Tests roast profiles as clients of upstream Sim-Corp use them, over HTTP.

use crate::support::{Cloud, client};
use serde_json::{Value, json};

async fn send(
    cloud: &Cloud,
    method: reqwest::Method,
    path: &str,
    (kind, body): (&str, String),
) -> anyhow::Result<(u16, Value)> {
    let request = client().request(method, cloud.url(path)).header("content-type", kind);
    let answer = request.body(body).send().await?;
    let status = answer.status().as_u16();
    let text = answer.text().await?;
    Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
}

async fn post(cloud: &Cloud, path: &str, body: &Value) -> anyhow::Result<(u16, Value)> {
    send(cloud, reqwest::Method::POST, path, ("application/json", body.to_string())).await
}

#[tokio::test]
async fn profiles_are_created_versioned_searched_exported_and_imported() -> anyhow::Result<()> {
    let cloud = Cloud::start().await?;
    let new = json!({"changeNote": "first", "profile": {"orgId": "org", "name": "Kenya, AA",
        "version": 9, "createdAt": "nonsense", "notes": "Washed 100%", "tags": ["filter", "light"],
        "targets": {"dropTempC": 212.5, "targetDevRatio": 0.2, "targetTimeToFCSeconds": 480},
        "curve": {"points": [{"elapsedSeconds": 0, "btC": 190}, {"elapsedSeconds": 600, "btC": 212}]}}});
    let (status, made) = post(&cloud, "/profiles", &new).await?;
    assert_eq!(
        (status, &made["version"], &made["source"]["kind"]),
        (201, &json!(1), &json!("MANUAL"))
    );
    let id = made["profileId"].as_str().unwrap().to_owned();
    assert_eq!(made["targets"]["targetTimeToFCSeconds"], 480.0);

    // A mistake is reported with its field, and changes nothing.
    let wrong = json!({"profile": {"name": " ", "targets": {"targetDevRatio": 2}}});
    let (status, told) = post(&cloud, "/profiles", &wrong).await?;
    assert_eq!((status, told["issues"].as_array().map(Vec::len)), (400, Some(2)), "{told}");
    let (status, _) = post(
        &cloud,
        "/profiles",
        &json!({"profile": {"profileId": id, "name": "x", "targets": {}}}),
    )
    .await?;
    assert_eq!(status, 409, "the id exists already");
    let (status, _) = post(
        &cloud,
        "/profiles",
        &json!({"profile": {"orgId": "evil", "name": "x", "targets": {}}}),
    )
    .await?;
    assert_eq!(status, 403);

    // A new version is merged over the old one, which is kept.
    let path = format!("/profiles/{id}/new-version");
    let change =
        json!({"changeNote": "hotter", "profile": {"orgId": "org", "targets": {"dropTempC": 215}}});
    let (status, second) = post(&cloud, &path, &change).await?;
    assert_eq!((status, &second["version"], &second["name"]), (201, &json!(2), &made["name"]));
    assert_eq!(second["targets"], json!({"dropTempC": 215.0}), "a shallow merge, as in upstream");
    let versions = cloud.get(&format!("/profiles/{id}/versions?orgId=org")).await?;
    assert_eq!(versions[0]["changeNote"], "hotter");
    assert_eq!(versions[1]["snapshot"]["targets"]["dropTempC"], 212.5);
    let (status, _) = post(&cloud, "/profiles/nobody/new-version", &change).await?;
    assert_eq!(status, 404);

    // Profiles are found by words of name and notes, and by tag; they are archived and unarchived.
    for (query, found) in [
        ("q=kenya", 1),
        ("q=WASHED%20100%25", 1),
        ("q=wash_d", 0),
        ("tag=light", 1),
        ("tag=ligh", 0),
        ("machineModel=W15A", 0),
        ("limit=0", 0),
    ] {
        let listed = cloud.get(&format!("/profiles?orgId=org&{query}")).await?;
        assert_eq!(listed.as_array().map(Vec::len), Some(found), "{query}");
    }
    let (status, away) =
        post(&cloud, &format!("/profiles/{id}/archive?orgId=org"), &json!({})).await?;
    assert_eq!((status, &away["isArchived"], &away["version"]), (200, &json!(true), &json!(2)));
    assert_eq!(cloud.get("/profiles?orgId=org").await?, json!([]));
    assert_eq!(
        cloud.get("/profiles?includeArchived=true").await?.as_array().map(Vec::len),
        Some(1)
    );
    post(&cloud, &format!("/profiles/{id}/unarchive?orgId=org"), &json!({})).await?;

    // An imported bundle skips identical profiles, updates changed ones, and belongs to the
    // caller's organisation, whatever organisation it names.
    let mut bundle = cloud.get(&format!("/profiles/{id}/export?format=json")).await?;
    let import = "/profiles/import?orgId=org&format=json";
    let (_, told) = post(&cloud, import, &bundle).await?;
    assert_eq!(told, json!({"created": 0, "updated": 0, "skipped": 1, "errors": []}));
    bundle["profiles"][0]["name"] = "Kenya".into();
    bundle["profiles"][0]["orgId"] = "evil".into();
    bundle["profiles"].as_array_mut().unwrap().push(json!({"name": ""}));
    let (_, told) = post(&cloud, import, &bundle).await?;
    assert_eq!(
        (&told["updated"], &told["errors"][0]),
        (&json!(1), &json!("profile 2: name: not 1 to 200 bytes"))
    );
    let now = cloud.get(&format!("/profiles/{id}")).await?;
    assert_eq!((&now["version"], &now["orgId"]), (&json!(3), &json!("org")));

    // An exported table is imported unchanged.
    let url = cloud.url(&format!("/profiles/{id}/export?format=csv"));
    let table = client().get(url).send().await?.text().await?;
    let table = format!("{table}Broken,hot,,,,,,,,,,\n");
    let import = "/profiles/import?format=csv";
    let (status, told) = send(&cloud, reqwest::Method::POST, import, ("text/csv", table)).await?;
    assert_eq!((status, &told["created"]), (200, &json!(1)), "{told}");
    assert!(told["errors"][0].as_str().is_some_and(|error| error.starts_with("line 3")), "{told}");
    let listed = cloud.get("/profiles?tag=filter").await?;
    assert_eq!(listed.as_array().map(Vec::len), Some(2));
    assert_eq!(listed[0]["source"]["kind"], "IMPORT");
    assert_eq!(listed[0]["targets"], listed[1]["targets"]);
    Ok(())
}

#[tokio::test]
async fn an_artisan_recording_is_imported_as_a_profile_with_a_curve() -> anyhow::Result<()> {
    let Some(folder) = testbed::recordings()? else { return Ok(()) };
    let cloud = Cloud::start().await?;
    let text = std::fs::read_to_string(folder.join("skywalker/roast_25-11-29_1458.alog"))?;
    let import = "/profiles/import?format=alog";
    let (status, told) = send(&cloud, reqwest::Method::POST, import, ("text/plain", text)).await?;
    assert_eq!((status, &told["created"]), (200, &json!(1)), "{told}");
    let profile = &cloud.get("/profiles").await?[0];
    assert_eq!(profile["name"], "Columbia El Mirador Pink Bourbon");
    assert!(
        (178.0..194.0).contains(&profile["targets"]["dropTempC"].as_f64().unwrap()),
        "{profile}"
    );
    let points = profile["curve"]["points"].as_array().unwrap();
    assert!((80..120).contains(&points.len()), "{} points", points.len());
    let (status, told) =
        send(&cloud, reqwest::Method::POST, import, ("text/plain", "__import__('os')".to_owned()))
            .await?;
    assert_eq!(status, 400, "{told}");
    Ok(())
}

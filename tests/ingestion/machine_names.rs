//! Tests over HTTP that a machine whose id was changed is one machine again after an alias, and two
//! after its removal.

use std::path::Path;

use crate::support::{Cloud, PATIENCE, Stack, client};
use contract::*;
use serde_json::{Value, json};
use testbed::wait_for;
use trust::{Algorithm, CONTENT_FRAME, FileKey, Signer as _};

/// A roast of ten samples, in one signed frame.
fn roast(key: &FileKey, machine: &str, session: &str) -> anyhow::Result<Vec<u8>> {
    const START: EpochMs = EpochMs(1_795_000_000_000);
    let event = |kind, seq: u32| {
        Ok::<_, IdError>(MachineEvent {
            kind,
            seq: u64::from(seq),
            at: START.plus_ms(i64::from(seq) * 1000),
            elapsed_s: f64::from(seq),
            session: SessionId::new(session)?,
            source: EventSource::Machine,
            bt_c: None,
            note: None,
        })
    };
    let values = (0..10_u8).map(|i| Some(150.0 + f64::from(i))).collect();
    let frame = Frame {
        origin: format!("org/leipzig/{machine}").parse()?,
        chain: ChainId(trust::sha256_digest(machine.as_bytes()).0[..16].try_into()?),
        number: 1,
        previous: None,
        boot_id: 1,
        first_seq: 0,
        mono_ms: 1,
        wall: START,
        clock: ClockQuality::Synchronised,
        profile_digest: None,
        offsets_ms: (0..10).map(|i| i * 1000).collect(),
        columns: vec![Column { channel: Channel::Bt, values, quality: vec![] }],
        events: vec![event(EventKind::Charge, 0)?, event(EventKind::Drop, 9)?],
    };
    Ok(trust::sign_message(key, CONTENT_FRAME, frame.encode())?)
}

/// Writes the registration data of a gateway with both ids; returns the file's name.
fn registration(folder: &Path, key: &FileKey) -> anyhow::Result<String> {
    let file = folder.join("device.json");
    let device = json!({"orgId": "org", "siteId": "leipzig", "machines": ["drum-1", "Drum-1"],
                        "kid": key.key_id(), "publicKey": key.public_key().to_pem()});
    std::fs::write(&file, device.to_string())?;
    Ok(file.display().to_string())
}

async fn change(
    cloud: &Cloud,
    method: reqwest::Method,
    path: &str,
    body: &Value,
) -> anyhow::Result<(u16, Value)> {
    let answer = client().request(method, cloud.url(path)).json(body).send().await?;
    Ok((answer.status().as_u16(), answer.json().await?))
}

/// The values of `field` in a list, sorted.
async fn listed(cloud: &Cloud, path: &str, field: &str) -> anyhow::Result<Vec<String>> {
    let list = cloud.get(path).await?;
    let items = list.as_array().into_iter().flatten();
    let mut values: Vec<String> =
        items.map(|item| item[field].as_str().unwrap_or_default().to_owned()).collect();
    values.sort();
    Ok(values)
}

#[tokio::test]
async fn a_machine_with_a_changed_id_is_joined_by_an_alias_and_parted_again() -> anyhow::Result<()>
{
    let cloud = Cloud::start().await?;
    let key = FileKey::generate("device:gw@leipzig".parse()?, Algorithm::Es256)?;
    cloud.operate(&["device", "add", &registration(cloud.folder.path(), &key)?])?;
    for (machine, session) in [("drum-1", "S-old"), ("Drum-1", "S-new")] {
        let frame = roast(&key, machine, session)?;
        client().post(cloud.url("/v1/frames")).body(frame).send().await?.error_for_status()?;
    }
    let both = || async {
        listed(&cloud, "/machines", "machineId").await.is_ok_and(|ids| ids == ["Drum-1", "drum-1"])
    };
    wait_for("two machines", PATIENCE, both).await?;

    let (put, post) = (reqwest::Method::PUT, reqwest::Method::POST);
    let (name, alias) = ("/machines/leipzig/drum-1/name", "/machines/leipzig/drum-1/alias");
    let successor = json!({"successor": "Drum-1"});
    let (status, told) = change(&cloud, put.clone(), name, &json!({"name": " Probat "})).await?;
    assert_eq!((status, &told["machineName"]), (200, &json!("Probat")), "{told}");
    let (status, told) = change(&cloud, post.clone(), alias, &successor).await?;
    let joined = json!({"orgId": "org", "siteId": "leipzig", "machineId": "Drum-1",
                        "machineName": "Probat", "previousIds": ["drum-1"]});
    assert_eq!((status, told), (200, joined));

    // Every list shows one machine, whichever of its ids a client asks for.
    let machines = cloud.get("/machines").await?;
    assert_eq!(machines.as_array().map(Vec::len), Some(1), "{machines}");
    assert_eq!(machines[0]["machineName"], "Probat");
    assert_eq!(machines[0]["previousIds"], json!(["drum-1"]));
    for asked in ["Drum-1", "drum-1"] {
        let path = |list: &str| format!("/{list}?siteId=leipzig&machineId={asked}");
        assert_eq!(listed(&cloud, &path("sessions"), "sessionId").await?, ["S-new", "S-old"]);
        assert_eq!(listed(&cloud, &path("sessions"), "machineId").await?, ["Drum-1"; 2]);
        assert_eq!(listed(&cloud, &path("sessions"), "machineName").await?, ["Probat"; 2]);
        assert_eq!(listed(&cloud, &path("events"), "machineId").await?, ["Drum-1"; 4]);
        assert_eq!(listed(&cloud, &path("telemetry"), "machineId").await?, ["Drum-1"; 20]);
    }
    let session = cloud.get("/sessions/S-old").await?;
    assert_eq!(
        (&session["machineId"], &session["machineName"]),
        (&json!("Drum-1"), &json!("Probat"))
    );

    // What cannot be is refused, with the status that says why.
    let (back, unknown) = ("/machines/leipzig/Drum-1/alias", "/machines/leipzig/drum-9/name");
    let (first, other) = (json!({"successor": "drum-1"}), json!({"successor": "drum-2"}));
    let too_long = json!({"name": "x".repeat(101)});
    for (method, path, body, expected) in [
        (&post, back, &first, 409),
        (&post, alias, &other, 409),
        (&put, unknown, &json!({"name": "x"}), 404),
        (&put, name, &too_long, 400),
        (&put, name, &json!({"name": " "}), 400),
        (&post, "/machines/leipzig/Drum-1/unalias", &json!({}), 404),
    ] {
        let (status, told) = change(&cloud, method.clone(), path, body).await?;
        assert_eq!(status, expected, "{path} {body}: {told}");
    }

    let unalias = "/machines/leipzig/drum-1/unalias";
    let (status, told) = change(&cloud, post, unalias, &json!({})).await?;
    assert_eq!((status, &told["machineId"]), (200, &json!("drum-1")), "{told}");
    assert_eq!(listed(&cloud, "/machines", "machineId").await?, ["Drum-1", "drum-1"]);
    assert_eq!(listed(&cloud, "/sessions?machineId=Drum-1", "sessionId").await?, ["S-new"]);
    assert_eq!(listed(&cloud, "/sessions?machineId=drum-1", "sessionId").await?, ["S-old"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_names_and_joins_machines_from_the_command_line() -> anyhow::Result<()> {
    let stack = Stack::start(&["kernel", "ingestion"], &[]).await?;
    let operate = |arguments: &[&str]| stack.operate(arguments);
    let key = FileKey::generate("device:gw@leipzig".parse()?, Algorithm::Es256)?;
    operate(&["device", "add", &registration(stack.folder.path(), &key)?])?;
    let frames = stack.url("ingestion", "/v1/frames");
    let frame = roast(&key, "drum-1", "S-old")?;
    client().post(frames).body(frame).send().await?.error_for_status()?;
    let arrived =
        || async { stack.get("ingestion", "/machines").await.is_ok_and(|list| list != json!([])) };
    wait_for("a machine", PATIENCE, arrived).await?;

    let named = operate(&["machine", "rename", "leipzig/drum-1", "Probat"])?;
    assert_eq!(named, "leipzig/drum-1 is shown as Probat\n");
    let joined = operate(&["machine", "alias", "leipzig/drum-1", "Drum-1"])?;
    assert_eq!(joined, "leipzig/drum-1 continues as Drum-1\n");
    let list = operate(&["machine", "list"])?;
    assert!(list.starts_with("MACHINE"), "{list}");
    assert!(list.contains("leipzig/Drum-1  Probat  drum-1 "), "{list}");
    let parted = operate(&["machine", "unalias", "leipzig/drum-1"])?;
    assert_eq!(parted, "leipzig/drum-1 is a machine of its own again\n");
    operate(&["machine", "rename", "leipzig/drum-1", "--remove"])?;
    assert!(operate(&["machine", "list"])?.contains("leipzig/drum-1  -"));
    let refused = operate(&["machine", "unalias", "leipzig/drum-1"]).unwrap_err().to_string();
    assert!(refused.contains("alias not found"), "{refused}");
    let log = stack.get("kernel", "/audit?limit=100").await?.to_string();
    for action in ["machine.rename", "machine.alias", "machine.unalias"] {
        assert!(log.contains(action), "{action}: {log}");
    }
    Ok(())
}

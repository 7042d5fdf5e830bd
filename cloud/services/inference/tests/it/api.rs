//! The HTTP routes, without their layers and without a broker.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{Method, StatusCode, header};
use cache::Cache;
use contract::{Actor, ActorKind, OrgId};
use http_stack::auth::{Auth, Caller, Role};
use http_stack::start::Context;
use http_stack::{AccessControl, Limits, LimitsConfig};
use inference::InferenceConfig;
use serde_json::{Value, json};
use service::mqtt::BrokerSettings;
use service::origin::AllowedOrigins;
use service::secret::Secret;
use service::tasks::Tasks;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::{NOW, open_sqlite};

const OF_R1: &str = "/config?orgId=acme&siteId=leipzig&machineId=r-1";

async fn routes(folder: &tempfile::TempDir) -> Router {
    let auth = Auth::dev(OrgId::new("acme").unwrap(), "ada");
    let context = Context {
        access: AccessControl {
            auth,
            limits: Limits::new(&LimitsConfig::default(), None, Arc::new(|| NOW)),
        },
        cache: Cache::new(None),
        clock: Arc::new(|| NOW),
        database: Some(open_sqlite(folder).await),
        mqtt: BrokerSettings::default(),
        service_token: Secret::default(),
        data: PathBuf::new(),
        development: true,
        origins: AllowedOrigins::default(),
        tasks: Tasks::new(CancellationToken::new()),
        stop: CancellationToken::new(),
    };
    inference::start(&InferenceConfig::default(), &context).unwrap().routes
}

/// Sends a request of a person of acme with a role.
async fn send(
    routes: &Router,
    role: Role,
    (method, uri): (Method, &str),
    body: &Value,
) -> (StatusCode, Value) {
    let org = Some(OrgId::new("acme").unwrap());
    let actor =
        Actor { kind: ActorKind::User, id: "ada".to_owned(), display: None, org: org.clone() };
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .header(header::CONTENT_TYPE, "application/json")
        .extension(Caller { actor, org, role })
        .body(Body::from(body.to_string()));
    let response = routes.clone().oneshot(request.unwrap()).await.unwrap();
    let status = response.status();
    let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    (status, serde_json::from_slice(&body).unwrap())
}

fn set(config: &Value) -> Value {
    json!({"orgId": "acme", "siteId": "leipzig", "machineId": "r-1", "config": config})
}

#[tokio::test]
async fn settings_are_set_one_by_one_and_deleted_together() {
    let folder = tempfile::tempdir().unwrap();
    let routes = routes(&folder).await;
    let none = json!({});
    let (_, before) = send(&routes, Role::Viewer, (Method::GET, OF_R1), &none).await;
    assert_eq!((&before["isDefault"], &before["machineId"]), (&json!(true), &json!("r-1")));
    assert_eq!(before["config"]["fcBtThresholdC"], 196.0);
    for config in [json!({"fcBtThresholdC": 190.0}), json!({"sessionGapSeconds": 60.0})] {
        let (status, _) =
            send(&routes, Role::Operator, (Method::POST, "/config"), &set(&config)).await;
        assert_eq!(status, StatusCode::OK);
    }
    let (_, own) = send(&routes, Role::Viewer, (Method::GET, OF_R1), &none).await;
    assert_eq!(own["isDefault"], false);
    assert_eq!(own["config"]["fcBtThresholdC"], 190.0);
    assert_eq!(own["config"]["sessionGapSeconds"], 60.0);
    assert_eq!(own["config"]["minFirstCrackSeconds"], 300.0, "a default");

    let (status, deleted) = send(&routes, Role::Operator, (Method::DELETE, OF_R1), &none).await;
    assert_eq!((status, &deleted["deleted"]), (StatusCode::OK, &json!(true)));
    let (status, _) = send(&routes, Role::Operator, (Method::DELETE, OF_R1), &none).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let (_, after) = send(&routes, Role::Viewer, (Method::GET, OF_R1), &none).await;
    assert_eq!(after, before);
}

#[tokio::test]
async fn wrong_settings_and_foreign_machines_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let routes = routes(&folder).await;
    let post = (Method::POST, "/config");
    let hot = set(&json!({"fcBtThresholdC": 301.0}));
    let (status, body) = send(&routes, Role::Operator, post.clone(), &hot).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(body["issues"][0]["path"], json!(["config", "fcBtThresholdC"]));
    assert_eq!(body["issues"][0]["message"], "not 100 to 300");
    let good = set(&json!({"fcBtThresholdC": 190.0}));
    let (status, _) = send(&routes, Role::Viewer, post.clone(), &good).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let mut foreign = good;
    foreign["orgId"] = json!("rival");
    let (status, _) = send(&routes, Role::Admin, post, &foreign).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let (_, own) = send(&routes, Role::Viewer, (Method::GET, OF_R1), &json!({})).await;
    assert_eq!(own["isDefault"], true);
}

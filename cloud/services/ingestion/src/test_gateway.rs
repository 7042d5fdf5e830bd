//! A gateway that is registered at the fleet, and what it signs, for tests.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use contract::{ChainId, Channel, ClockQuality, Column, Digest, EpochMs, Frame, Origin};
use database::Database;
use fleet::FleetConfig;
use http_stack::auth::Role;
use http_stack::start::Context;
use serde_json::{Value, json};
use service_testbed::{NOW, caller};
use tower::ServiceExt as _;
use trust::{Algorithm, CONTENT_FRAME, FileKey, Signer as _};

/// The gateway `device:gw@leipzig` of the machine `r-1` of acme.
pub struct Gateway {
    key: FileKey,
    /// The routes of the fleet, where it is registered.
    pub fleet: Router,
}

/// The machine of the gateway.
pub fn origin() -> Origin {
    "acme/leipzig/r-1".parse().unwrap()
}

/// Sends a request as a person of acme; returns the status and the JSON of the answer.
pub async fn send(
    routes: &Router,
    role: Role,
    (method, path): (Method, &str),
    body: &Value,
) -> (StatusCode, Value) {
    let request = Request::builder().method(method).uri(path);
    let request = request.header(header::CONTENT_TYPE, "application/json");
    let mut request = request.body(Body::from(body.to_string())).unwrap();
    request.extensions_mut().insert(caller("acme", role));
    let response = routes.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    (status, serde_json::from_slice(&bytes).unwrap_or_default())
}

/// Reads a route as a person of acme who may only read.
pub async fn read(routes: &Router, path: &str) -> Value {
    let (status, body) = send(routes, Role::Viewer, (Method::GET, path), &Value::Null).await;
    assert_eq!(status, StatusCode::OK, "{path}: {body}");
    body
}

impl Gateway {
    /// Creates the key of the gateway, and registers it by the route of the fleet.
    pub async fn register(database: &Database) -> Self {
        let kid = "device:gw@leipzig".parse().unwrap();
        let key = FileKey::generate(kid, Algorithm::EdDsa).unwrap();
        let context = Context {
            database: Some(database.clone()),
            development: false,
            ..service_testbed::context()
        };
        let fleet = fleet::start(&FleetConfig::default(), &context).unwrap().routes;
        let device = json!({"siteId": "leipzig", "machines": ["r-1"], "kid": key.key_id(),
                            "publicKey": key.public_key().to_pem()});
        let registration = (Method::POST, "/devices");
        let (status, body) = send(&fleet, Role::Admin, registration, &device).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        Self { key, fleet }
    }

    /// Returns a frame as the gateway sends it.
    pub fn signed(&self, frame: &Frame) -> Vec<u8> {
        trust::sign_message(&self.key, CONTENT_FRAME, frame.encode()).unwrap()
    }

    /// Returns a JSON message as upstream Sim-Corp sends it, signed with the gateway's key. `topic`
    /// is `telemetry` or `event`.
    pub fn signed_json(&self, topic: &str, payload: &Value) -> Vec<u8> {
        let part = |value: &Value| BASE64URL.encode(value.to_string());
        let mut claims = payload.clone();
        claims["iat"] = json!(NOW.0 / 1_000);
        claims["exp"] = json!(NOW.0 / 1_000 + 3_600);
        let kid = self.key.key_id();
        let signed = format!("{}.{}", part(&json!({"alg": "EdDSA", "kid": kid})), part(&claims));
        let signature = BASE64URL.encode(self.key.sign(signed.as_bytes()).unwrap());
        let machine = json!({"orgId": "acme", "siteId": "leipzig", "machineId": "r-1"});
        let message = json!({"ts": payload["ts"], "origin": machine, "topic": topic,
            "payload": payload, "kid": kid, "sig": format!("{signed}.{signature}")});
        message.to_string().into_bytes()
    }
}

/// Returns a frame with one sample, made at `wall`.
pub fn frame(chain: u8, number: u64, previous: Option<Digest>, wall: EpochMs) -> Frame {
    let values = vec![Some(150.0)];
    Frame {
        origin: origin(),
        chain: ChainId([chain; 16]),
        number,
        previous,
        boot_id: u64::from(chain),
        first_seq: number - 1,
        mono_ms: number * 1_000,
        wall,
        clock: ClockQuality::Synchronised,
        profile_digest: None,
        offsets_ms: vec![0],
        columns: vec![Column { channel: Channel::Bt, values, quality: vec![] }],
        events: vec![],
    }
}

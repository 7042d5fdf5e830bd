//! Tests authentication by an issuer's tokens and by API keys, against the real services, and that
//! no caller reads another organisation's data.

mod resources;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use self::resources::{create_resources, filled, id_of, sent};
use crate::support::{client, operate, serve, wait_until_healthy};
use anyhow::Context as _;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use axum::Json;
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::Method;
use serde_json::{Value, json};
use testbed::{Postgres, Process, free_port, free_ports, port_settings, wait_for};

const PATIENCE: Duration = Duration::from_mins(1);
const SERVED: [&str; 9] = [
    "fleet",
    "kernel",
    "ingestion",
    "analytics",
    "reports",
    "eval",
    "inference",
    "dispatcher",
    "simulation",
];
/// The services with a listener; simulation has two.
const SERVICES: [&str; 10] = [
    "fleet",
    "kernel",
    "ingestion",
    "analytics",
    "reports",
    "eval",
    "inference",
    "dispatcher",
    "twin",
    "publisher",
];

/// The id of the issuer's key that is for encryption only.
const ENCRYPTION_KEY: &str = "for-encryption";

/// An OIDC issuer with one key for signatures at a time. It publishes the same key for encryption,
/// by another id.
struct Issuer {
    url: String,
    keys: Arc<std::sync::Mutex<(String, Vec<u8>)>>,
    asked: Arc<AtomicUsize>,
}

impl Issuer {
    async fn start() -> anyhow::Result<Self> {
        let keys = Arc::new(std::sync::Mutex::new(new_key("k1")?));
        let asked = Arc::new(AtomicUsize::new(0));
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let told = json!({"issuer": url, "jwks_uri": format!("{url}/keys")});
        let (served, count) = (keys.clone(), asked.clone());
        let jwks = move || {
            count.fetch_add(1, Ordering::Relaxed);
            let (kid, pkcs8) = served.lock().unwrap().clone();
            let pair = Ed25519KeyPair::from_pkcs8(&pkcs8).unwrap();
            let x = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
            let key = |kid: &str, used: &str| {
                json!({"kty": "OKP", "crv": "Ed25519", "use": used, "alg": "EdDSA", "kid": kid,
                       "x": x})
            };
            let body = json!({"keys": [key(&kid, "sig"), key(ENCRYPTION_KEY, "enc")]});
            async move { Json(body) }
        };
        let app = axum::Router::new()
            .route("/.well-known/openid-configuration", get(move || async move { Json(told) }))
            .route("/keys", get(jwks));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(Self { url, keys, asked })
    }

    fn token_of(&self, claims: &Value) -> anyhow::Result<String> {
        let kid = self.keys.lock().unwrap().0.clone();
        self.token_by(&kid, claims)
    }

    /// Returns a token that names the key `kid`.
    fn token_by(&self, kid: &str, claims: &Value) -> anyhow::Result<String> {
        let (_, pkcs8) = self.keys.lock().unwrap().clone();
        let header = Header { kid: Some(kid.to_owned()), ..Header::new(Algorithm::EdDSA) };
        Ok(jsonwebtoken::encode(&header, claims, &EncodingKey::from_ed_der(&pkcs8))?)
    }

    fn token(&self, org: &str, role: &str) -> anyhow::Result<String> {
        self.token_of(&json!({"iss": self.url, "aud": "simcorp", "sub": format!("user-{org}"),
            "org_id": org, "org_role": format!("org:{role}"), "exp": seconds() + 600}))
    }
}

fn new_key(kid: &str) -> anyhow::Result<(String, Vec<u8>)> {
    let random = aws_lc_rs::rand::SystemRandom::new();
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random)?;
    Ok((kid.to_owned(), pkcs8.as_ref().to_vec()))
}

#[allow(clippy::disallowed_methods)] // an issuer's clock
fn seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

struct Cloud {
    process: Process,
    ports: BTreeMap<&'static str, u16>,
    database: Postgres,
    _folder: tempfile::TempDir,
}

impl Cloud {
    async fn start(issuer: &Issuer) -> anyhow::Result<Self> {
        let database = Postgres::start().await?;
        let folder = tempfile::tempdir()?;
        let ports = free_ports(SERVICES)?;
        let stored = [format!("database.url={}", database.url())];
        operate(&["migrate", "up"], &stored)?;
        let place = |what: &str, file: &str| {
            format!("fleet.authority.{what}={}", folder.path().join(file).display())
        };
        let authority = [place("cert_file", "authority.pem"), place("key_file", "authority.key")];
        let set = authority.each_ref().map(|place| format!("--set={place}"));
        operate(&["authority", "create", set[0].as_str(), set[1].as_str()], &stored)?;
        let token = operate(&["token", "create", "--name", "services", "--all-orgs"], &stored)?;
        let file = folder.path().join("service-token");
        std::fs::write(&file, token.trim())?;
        let mut settings = vec![
            format!("database.url={}", database.url()),
            format!("database.data={}", folder.path().display()),
            "broker.embedded=false".to_owned(),
            // Clerk's tokens have the role in `org_role`.
            "auth.mode=clerk".to_owned(),
            format!("auth.oidc.issuer={}", issuer.url),
            "auth.oidc.audience=simcorp".to_owned(),
            format!("auth.service_token=file:{}", file.display()),
            "reports.poll_ms=200".to_owned(),
            format!("fleet.gateway_listen=127.0.0.1:{}", free_port()?),
        ];
        settings.extend(authority);
        settings.extend(port_settings(&ports));
        let mut process = serve(&SERVED, &settings, folder.path().join("simcorp.log"))?;
        process.start()?;
        let cloud = Self { process, ports, database, _folder: folder };
        for service in SERVICES {
            wait_until_healthy(service, cloud.ports[service], &cloud.process, PATIENCE).await?;
        }
        Ok(cloud)
    }

    fn url(&self, service: &str, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.ports[service])
    }

    /// Sends a request with a token; returns status and body.
    async fn ask(
        &self,
        (service, method, path): (&str, Method, &str),
        token: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(u16, Value)> {
        let mut request = client().request(method, self.url(service, path));
        if !token.is_empty() {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await?;
        let status = answer.status().as_u16();
        let text = answer.text().await?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_valid_oidc_tokens_and_api_keys_authenticate() -> anyhow::Result<()> {
    let issuer = Issuer::start().await?;
    let cloud = Cloud::start(&issuer).await?;
    let who = async |token: &str| cloud.ask(("kernel", Method::GET, "/whoami"), token, None).await;
    let ada = issuer.token("acme", "admin")?;
    let (status, body) = who(&ada).await?;
    assert_eq!((status, &body["orgId"], &body["role"]), (200, &json!("acme"), &json!("admin")));
    assert_eq!(body["actor"]["kind"], "USER");

    // These must be refused: no token, a malformed token, another issuer's, an expired one, one for
    // another audience, an unsigned one, and an unknown API key.
    let claims = |change: Value| {
        let mut claims = json!({"iss": issuer.url, "aud": "simcorp", "sub": "u", "org_id": "acme",
                                "exp": seconds() + 600});
        claims.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        claims
    };
    let other = Issuer::start().await?;
    let forged = other.token_of(&claims(json!({})))?;
    let none = format!(
        "{}.{}.",
        URL_SAFE_NO_PAD.encode(r#"{"alg":"none","kid":"k1"}"#),
        URL_SAFE_NO_PAD.encode(claims(json!({})).to_string())
    );
    for (what, token) in [
        ("nobody", String::new()),
        ("nonsense", "a.b.c".to_owned()),
        ("a reference to a file", "file:/etc/hostname".to_owned()),
        ("a key that is none", format!("sck_0123456789ab_{}", "x".repeat(43))),
        ("another issuer's", forged),
        ("expired", issuer.token_of(&claims(json!({"exp": seconds() - 120})))?),
        ("not yet", issuer.token_of(&claims(json!({"nbf": seconds() + 600})))?),
        ("a time in words", issuer.token_of(&claims(json!({"nbf": "yesterday"})))?),
        ("a key for encryption", issuer.token_by(ENCRYPTION_KEY, &claims(json!({})))?),
        ("another audience", issuer.token_of(&claims(json!({"aud": "x"})))?),
        ("another name", issuer.token_of(&claims(json!({"iss": "https://x"})))?),
        ("no organisation", issuer.token_of(&claims(json!({"org_id": ""})))?),
        ("unsigned", none),
    ] {
        for service in ["kernel", "ingestion"] {
            let path = if service == "kernel" { "/whoami" } else { "/sessions" };
            let (status, body) = cloud.ask((service, Method::GET, path), &token, None).await?;
            assert_eq!(status, 401, "{what} at {service}: {body}");
        }
    }
    // Routes that machines read need no token.
    for path in ["/health", "/ready", "/metrics", "/openapi.json"] {
        assert_eq!(cloud.ask(("kernel", Method::GET, path), "", None).await?.0, 200, "{path}");
    }

    // When the issuer changes its key, the new one is fetched at most once a minute.
    let before = issuer.asked.load(Ordering::Relaxed);
    *issuer.keys.lock().unwrap() = new_key("k2")?;
    let (status, _) = who(&issuer.token("acme", "viewer")?).await?;
    assert_eq!(status, 401, "the keys must not be fetched again within a minute");
    assert_eq!(issuer.asked.load(Ordering::Relaxed), before);

    // An admin creates an API key; it has its role until it is revoked.
    let new = json!({"name": "script", "role": "viewer"});
    let (status, key) = cloud.ask(("kernel", Method::POST, "/keys"), &ada, Some(&new)).await?;
    assert_eq!(status, 201, "{key}");
    let token = key["token"].as_str().context("a token")?.to_owned();
    let (status, body) = who(&token).await?;
    assert_eq!((status, &body["role"]), (200, &json!("viewer")));
    let (status, body) = cloud.ask(("kernel", Method::POST, "/keys"), &token, Some(&new)).await?;
    assert_eq!(
        (status, body["error"].as_str()),
        (403, Some("needs the role admin; you are viewer"))
    );
    // A viewer neither counts refusals of the policy nor sends frames.
    for (service, path) in [("kernel", "/policy/check"), ("ingestion", "/v1/frames")] {
        let body = sent(&Method::POST, path);
        let (status, body) =
            cloud.ask((service, Method::POST, path), &token, body.as_ref()).await?;
        assert_eq!(status, 403, "{path}: {body}");
    }
    let (_, listed) = cloud.ask(("kernel", Method::GET, "/keys"), &ada, None).await?;
    assert!(!listed.to_string().contains(&token) && listed[0]["name"] == "script", "{listed}");
    let path = format!("/keys/{}", key["id"].as_str().unwrap());
    let end = ("kernel", Method::DELETE, path.as_str());
    assert_eq!(cloud.ask(end, &ada, None).await?.0, 204);
    let closed = || async { who(&token).await.is_ok_and(|(status, _)| status == 401) };
    wait_for("the revoked key is refused", Duration::from_secs(40), closed).await?;
    // No log contains a secret.
    let log = cloud.process.log();
    assert!(!log.contains(&token) && !log.contains(&ada), "a token in the log");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_caller_reads_another_organisation() -> anyhow::Result<()> {
    let issuer = Issuer::start().await?;
    let cloud = Cloud::start(&issuer).await?;
    let (ada, eve) = (issuer.token("acme", "admin")?, issuer.token("evil", "admin")?);

    let created = create_resources(&cloud, &ada).await?;
    let (_, keys) = cloud.ask(("kernel", Method::GET, "/keys"), &ada, None).await?;
    let key_id = keys[0]["id"].as_str().context("a key")?.to_owned();

    let mut asked = 0;
    for service in SERVICES {
        let (_, document) = cloud.ask((service, Method::GET, "/openapi.json"), "", None).await?;
        for (path, methods) in document["paths"].as_object().context("paths")? {
            for (method, operation) in methods.as_object().context("methods")? {
                if operation["security"] == json!([]) {
                    continue; // machines read these without authentication
                }
                let method: Method = method.to_uppercase().parse()?;
                if path.starts_with("/stream/") || path == "/v1/frames" {
                    continue; // an endless stream; and a route that authenticates by signature
                }
                let id = id_of(path, &created, &key_id);
                let ids = BTreeMap::from([
                    ("id", id),
                    ("missionId", "M-secret"),
                    ("sessionId", "S-secret"),
                    ("reportId", "R-secret"),
                    ("profileId", "P-secret"),
                    ("siteId", "s"),
                    ("machineId", "machine-secret"),
                ]);
                let own = filled(path, &ids);
                let body = sent(&method, path);
                // With Acme's ids only, and with Acme's organisation too.
                for query in ["", "?orgId=acme", "?orgId=acme&referenceId=S-secret"] {
                    let path = format!("{own}{query}");
                    let asking = (service, method.clone(), path.as_str());
                    let (status, answer) = cloud.ask(asking, &eve, body.as_ref()).await?;
                    asked += 1;
                    let shown = format!("{service} {method} {path}: {status} {answer}");
                    assert!(status < 500, "{shown}");
                    let told = answer.to_string();
                    let told = [
                        "M-secret",
                        "S-secret",
                        "R-secret",
                        "T-secret",
                        "a-secret",
                        "t-secret",
                        "bean-secret",
                        "note-secret",
                        "key-secret",
                        "P-secret",
                        "profile-secret",
                        "case-secret",
                        "run-secret",
                        "incident-secret",
                        "machine-secret",
                        "gw-secret",
                        "gw2-secret",
                        "299.125",
                    ]
                    .into_iter()
                    .filter(|secret| told.contains(*secret))
                    // Values that Eve sent herself may be returned.
                    .find(|secret| !body.as_ref().is_some_and(|b| b.to_string().contains(*secret)));
                    assert_eq!(told, None, "{shown}");
                    // These routes are about the caller, or name the organisation in another way.
                    let about_oneself = [
                        "/whoami",
                        "/authority",
                        "/missions/claim",
                        "/simulate/roast",
                        "/config/defaults",
                        "/evaluations/promotion",
                    ];
                    // These routes show the state of a worker, independent of any organisation.
                    let of_nobody = ["reports", "dispatcher"].contains(&service)
                        && ["/status", "/config"].iter().any(|own| path.starts_with(own));
                    let listed = path.starts_with("/missions?") && method == Method::GET;
                    let names_another = query.contains("orgId")
                        && !listed
                        && !of_nobody
                        && !about_oneself.iter().any(|own| path.starts_with(own));
                    let ids = created.values().chain([&key_id]);
                    let names_a_secret = (own.contains("secret")
                        && !own.starts_with("/evaluations/promotion"))
                        || ids.into_iter().any(|id| own.contains(id));
                    let incomplete = path.starts_with("/comparison") && query.is_empty();
                    // For a roast that does not exist, upstream's clients expect these empty
                    // values.
                    let nothing = [json!([]), json!({"profiles": []}), Value::Null];
                    let empty = nothing.contains(&answer) && query.is_empty();
                    if (names_another || names_a_secret) && !incomplete && !empty {
                        assert!(status == 403 || status == 404, "{shown}");
                    }
                }
            }
        }
    }
    assert!(asked > 90, "only {asked} requests");
    // Acme's own data is unchanged.
    let (_, mission) = cloud.ask(("kernel", Method::GET, "/missions/M-secret"), &ada, None).await?;
    assert_eq!(mission["status"], "QUARANTINED");
    let (_, meta) =
        cloud.ask(("ingestion", Method::GET, "/sessions/S-secret/meta"), &ada, None).await?;
    assert_eq!(meta["beanName"], "bean-secret");
    Ok(())
}

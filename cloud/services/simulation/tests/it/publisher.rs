//! The publisher: who may use it, what it needs, and how many machines play at the same time.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::http::Method;
use contract::{KeyId, OrgId, SiteId};
use http_stack::auth::{Caller, Role};
use http_stack::start::Context;
use serde_json::{Value, json};
use service::mqtt::BrokerSettings;
use service_testbed::caller;
use simulation::{Registry, RegistryFuture, SimulationConfig};
use testbed::{Mosquitto, free_port, wait_for};
use tokio::sync::watch;
use trust::PublicKey;

use crate::{context, send};

/// Records the keys that are registered and revoked. It refuses the machine `real`.
struct TestRegistry {
    registered: Mutex<Vec<(KeyId, Vec<String>)>>,
    revoked: watch::Sender<Vec<KeyId>>,
}

impl TestRegistry {
    fn new() -> Arc<Self> {
        Arc::new(Self { registered: Mutex::default(), revoked: watch::Sender::new(Vec::new()) })
    }

    fn registered(&self) -> Vec<(KeyId, Vec<String>)> {
        self.registered.lock().unwrap().clone()
    }

    /// Waits for the first revocation and returns all revoked keys.
    async fn wait_for_revocation(&self) -> Vec<KeyId> {
        let mut revoked = self.revoked.subscribe();
        let first = revoked.wait_for(|all| !all.is_empty());
        tokio::time::timeout(Duration::from_secs(10), first).await.unwrap().unwrap().to_vec()
    }
}

impl Registry for TestRegistry {
    fn add<'r>(
        &'r self,
        _org: &'r OrgId,
        kid: &'r KeyId,
        _site: &'r SiteId,
        machines: &'r [String],
        _key: &'r PublicKey,
    ) -> RegistryFuture<'r> {
        Box::pin(async move {
            if machines.iter().any(|machine| machine == "real") {
                return Err("real is a real machine".to_owned());
            }
            self.registered.lock().unwrap().push((kid.clone(), machines.to_vec()));
            Ok(())
        })
    }

    fn revoke<'r>(&'r self, _org: &'r OrgId, kid: &'r KeyId) -> RegistryFuture<'r> {
        Box::pin(async move {
            self.revoked.send_modify(|all| all.push(kid.clone()));
            Ok(())
        })
    }
}

/// The publisher of at most two machines.
struct Publisher {
    routes: Router,
    context: Context,
}

impl Publisher {
    fn start(publish: Option<bool>, broker_port: Option<u16>, registry: Arc<TestRegistry>) -> Self {
        let mqtt = match broker_port {
            Some(port) => {
                BrokerSettings { host: "127.0.0.1".to_owned(), port, ..BrokerSettings::default() }
            }
            None => BrokerSettings::default(),
        };
        let context = context(mqtt);
        let config = SimulationConfig { publish, machines_max: 2, ..SimulationConfig::default() };
        let routes = simulation::start_publisher(&config, &context, registry).unwrap().routes;
        Self { routes, context }
    }

    /// Starts it with a broker and waits until it is connected.
    async fn connected(broker: &Mosquitto, registry: Arc<TestRegistry>) -> Self {
        let publisher = Self::start(Some(true), Some(broker.port), registry);
        // No machine is too few; but first the broker must be there.
        let request = job("sim", 0);
        let connected = || async { publisher.post("start", &request).await.0 != 503 };
        wait_for("the connection to the broker", Duration::from_secs(10), connected).await.unwrap();
        publisher
    }

    async fn send_as(
        &self,
        caller: Caller,
        method: Method,
        step: &str,
        body: &Value,
    ) -> (u16, Value) {
        let uri = format!("/publish/{step}");
        let (status, body) = send(&self.routes, Some(caller), (method, &uri), body).await;
        (status, serde_json::from_slice(&body).unwrap())
    }

    /// Posts as an operator of acme.
    async fn post(&self, step: &str, body: &Value) -> (u16, Value) {
        self.send_as(caller("acme", Role::Operator), Method::POST, step, body).await
    }

    /// Returns the jobs that a viewer of `org` sees.
    async fn jobs(&self, org: &str) -> Value {
        let viewer = caller(org, Role::Viewer);
        self.send_as(viewer, Method::GET, "status", &Value::Null).await.1
    }

    async fn stop(self) {
        self.context.stop.cancel();
        self.context.tasks.wait().await;
    }
}

/// A request for a job of `machines` machines in real time.
fn job(machine: &str, machines: usize) -> Value {
    json!({"orgId": "acme", "siteId": "leipzig", "machineId": machine, "machines": machines,
           "seed": 42})
}

fn error(text: &str) -> Value {
    json!({ "error": text })
}

/// Returns the response to a request with too many machines.
fn too_many(playing: usize) -> Value {
    let message = format!("not between 1 and 2, of which {playing} are playing");
    json!({"error": format!("machines: {message}"),
           "issues": [{"code": "invalid", "path": ["machines"], "message": message}]})
}

#[tokio::test]
async fn machines_play_only_where_it_is_enabled_and_for_operators_of_the_organisation() {
    let disabled = Publisher::start(None, None, TestRegistry::new());
    let text = "simulated machines are disabled; set simulation.publish to enable them";
    assert_eq!(disabled.post("start", &job("sim", 1)).await, (403, error(text)));
    let enabled = Publisher::start(Some(true), None, TestRegistry::new());
    let viewer = caller("acme", Role::Viewer);
    let refused = enabled.send_as(viewer, Method::POST, "start", &job("sim", 1)).await;
    assert_eq!(refused, (403, error("needs the role operator; you are viewer")));
    let rival = caller("rival", Role::Admin);
    let refused = enabled.send_as(rival, Method::POST, "start", &job("sim", 1)).await;
    assert_eq!(refused, (403, error("orgId names another organisation")));
}

#[tokio::test]
async fn without_a_broker_the_publisher_is_unavailable() {
    for port in [None, Some(free_port().unwrap())] {
        let registry = TestRegistry::new();
        let publisher = Publisher::start(Some(true), port, registry.clone());
        let refused = publisher.post("start", &job("sim", 1)).await;
        assert_eq!(refused, (503, error("no broker is connected")), "{port:?}");
        assert_eq!(publisher.jobs("acme").await, json!([]));
        assert_eq!(registry.registered(), []);
        publisher.stop().await;
    }
}

#[tokio::test]
async fn the_machines_of_running_jobs_count_towards_the_bound() {
    let (broker, registry) = (Mosquitto::start().await.unwrap(), TestRegistry::new());
    let publisher = Publisher::connected(&broker, registry.clone()).await;
    assert_eq!(publisher.post("start", &job("sim", 3)).await, (400, too_many(0)));
    let (status, started) = publisher.post("start", &job("sim", 1)).await;
    assert_eq!(status, 200, "{started}");
    let stats = json!({"telemetrySent": 0, "eventsSent": 0, "framesAcked": 0, "complete": 0,
                       "incomplete": 0, "sessions": []});
    assert_eq!(started["stats"], stats);
    let registered = registry.registered();
    assert_eq!(registered.len(), 1);
    assert_eq!(registered[0].1, ["sim"]);
    assert_eq!(publisher.post("start", &job("other", 2)).await, (400, too_many(1)));

    // Another organisation neither sees nor stops the job.
    let id = &started["sessionId"];
    let stop = json!({ "sessionId": id });
    assert_eq!(publisher.jobs("rival").await, json!([]));
    let rival = caller("rival", Role::Admin);
    let refused = publisher.send_as(rival, Method::POST, "stop", &stop).await;
    assert_eq!(refused, (404, error("job not found")));
    let jobs = publisher.jobs("acme").await;
    assert_eq!((&jobs[0]["id"], &jobs[0]["running"]), (id, &json!(true)));

    assert_eq!(publisher.post("stop", &stop).await, (200, json!({"stopped": true})));
    assert_eq!(registry.wait_for_revocation().await, [registered[0].0.clone()]);
    let jobs = publisher.jobs("acme").await;
    assert_eq!((&jobs[0]["id"], &jobs[0]["running"]), (id, &json!(false)));
    assert_eq!(jobs[0]["stats"]["incomplete"], json!(1));
    assert_eq!(jobs[0]["stats"]["sessions"].as_array().unwrap().len(), 1);
    let (status, started) = publisher.post("start", &job("other", 2)).await;
    assert_eq!(status, 200, "the stopped machine plays no more: {started}");
    assert_eq!(registry.registered()[1].1, ["other-1", "other-2"]);
    publisher.stop().await;
}

#[tokio::test]
async fn a_job_that_cannot_start_leaves_nothing_behind() {
    let (broker, registry) = (Mosquitto::start().await.unwrap(), TestRegistry::new());
    let publisher = Publisher::connected(&broker, registry.clone()).await;
    let refused = publisher.post("start", &job("real", 1)).await;
    assert_eq!(refused, (409, error("real is a real machine")));
    let wrong = json!({"orgId": "acme", "siteId": "a/b", "batchSizeKg": 0, "speed": 20_000});
    let (status, body) = publisher.post("start", &wrong).await;
    let issue = |field: &str, message: &str| {
        let path = [field];
        json!({"code": "invalid", "path": path, "message": message})
    };
    let site = "siteId contains '/'; letters, digits and . _ - : @ are allowed";
    let issues = json!([
        issue("batchSizeKg", "not above 0"),
        issue("speed", "not between 0.01 and 10000"),
        issue("siteId", site),
    ]);
    assert_eq!((status, &body["issues"]), (400, &issues));
    assert_eq!(publisher.jobs("acme").await, json!([]));
    assert_eq!(registry.registered(), []);
    // Neither counts towards the bound.
    assert_eq!(publisher.post("start", &job("sim", 2)).await.0, 200);
    publisher.stop().await;
}

//! A worker against a kernel that is a real HTTP server on loopback and has one mission.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may break

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use contract::EpochMs;
use contract::mission::MissionRecord;
use mission_worker::{
    Job, JobFuture, MissionTools, Outcome, SharedStats, WorkError, Worker, WorkerTimings,
};
use serde_json::{Value, json};
use service::secret::Secret;
use service_client::ServiceClient;
use testbed::{FakeService, ReceivedRequest};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const NOW: EpochMs = EpochMs(1_760_000_000_000);
const CLAIM: &str = "/missions/claim";
const HEARTBEAT: &str = "/missions/m-1/heartbeat";
const COMPLETE: &str = "/missions/m-1/complete";
const FAIL: &str = "/missions/m-1/fail";

/// The mission in the second attempt at it.
fn mission() -> Value {
    json!({
        "missionId": "m-1", "id": "m-1", "idempotencyKey": "k", "goal": {"title": "tidy"},
        "status": "RUNNING", "priority": "MEDIUM", "attempts": 2, "maxAttempts": 5,
        "params": {}, "context": {"orgId": "acme"}, "constraints": [],
        "createdAt": NOW, "updatedAt": NOW, "leaseId": "l-1",
    })
}

/// How the kernel behaves.
#[derive(Default)]
#[allow(clippy::struct_excessive_bools)] // each is one fault, and tests combine them
struct KernelRules {
    has_no_mission: bool,
    /// The mission names no organisation.
    has_no_org: bool,
    /// The status of the first heartbeats; later ones are accepted.
    heartbeats: &'static [u16],
    denies_tools: bool,
    refuses_traces: bool,
    /// Notified by the second heartbeat.
    second_heartbeat: Arc<Notify>,
}

async fn kernel(rules: KernelRules) -> FakeService {
    let (claims, heartbeats) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let answer = move |request: &ReceivedRequest| -> Response {
        match request.path.as_str() {
            CLAIM if rules.has_no_mission || claims.fetch_add(1, Ordering::SeqCst) > 0 => {
                StatusCode::NO_CONTENT.into_response()
            }
            CLAIM => {
                let mut mission = mission();
                if rules.has_no_org {
                    mission["context"] = json!({});
                }
                Json(mission).into_response()
            }
            HEARTBEAT => {
                let n = heartbeats.fetch_add(1, Ordering::SeqCst);
                if n == 1 {
                    rules.second_heartbeat.notify_one();
                }
                let status = rules.heartbeats.get(n).copied().unwrap_or(200);
                (StatusCode::from_u16(status).unwrap(), Json(json!({}))).into_response()
            }
            "/policy/check" => {
                let decision = if rules.denies_tools { "DENY" } else { "ALLOW" };
                Json(json!({ "decision": decision })).into_response()
            }
            "/traces" if rules.refuses_traces => StatusCode::PAYLOAD_TOO_LARGE.into_response(),
            _ => Json(json!({})).into_response(),
        }
    };
    FakeService::start(answer).await.unwrap()
}

/// What the job does with its mission.
enum Work {
    Finish,
    FindFinished,
    Fail(fn() -> WorkError),
    UseTool,
    /// Works until it is dropped, and notes that.
    Forever(Arc<AtomicBool>),
    Until(Arc<Notify>),
}

struct NoteDrop<'n>(&'n AtomicBool);

impl Drop for NoteDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

struct TestJob(Work);

impl Job for TestJob {
    fn goal(&self) -> &'static str {
        "tidy"
    }

    fn names(&self) -> (&'static str, &'static str) {
        ("tidier", "tidy-worker")
    }

    fn run<'r>(
        &'r self,
        tools: &'r mut MissionTools<'_>,
        _mission: &'r MissionRecord,
    ) -> JobFuture<'r> {
        Box::pin(async move {
            let done = json!({"reportId": "R-1"});
            match &self.0 {
                Work::Finish => Ok(Outcome::Done(done)),
                Work::FindFinished => Ok(Outcome::AlreadyDone(done)),
                Work::Fail(error) => Err(error()),
                Work::UseTool => {
                    tools.run_local("sweep", "floor-1", async { Ok(()) }).await?;
                    Ok(Outcome::Done(done))
                }
                Work::Forever(dropped) => {
                    let _noted = NoteDrop(dropped);
                    std::future::pending().await
                }
                Work::Until(released) => {
                    released.notified().await;
                    Ok(Outcome::Done(done))
                }
            }
        })
    }
}

/// A running worker.
struct Running {
    task: JoinHandle<()>,
    stats: SharedStats,
    stop: CancellationToken,
}

impl Running {
    fn start(kernel: &FakeService, work: Work, mission_ms: u32) -> Self {
        let (stats, stop) = (SharedStats::default(), CancellationToken::new());
        let worker = Worker {
            job: TestJob(work),
            kernel: ServiceClient::new("kernel", &kernel.url(), &Secret::default()).unwrap(),
            clock: Arc::new(|| NOW),
            status: stats.clone(),
            pace: WorkerTimings {
                poll: Duration::from_hours(1),
                mission_ms,
                heartbeat: Duration::from_millis(20),
            },
        };
        let until = stop.clone();
        let task = tokio::spawn(async move { worker.run(until).await });
        Self { task, stats, stop }
    }

    /// Stops the worker, waits for its end, and returns its statistics.
    async fn end(self) -> Value {
        self.stop.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(10), self.task).await;
        ended.expect("the worker ends when it is told to stop").unwrap();
        serde_json::to_value(self.stats.snapshot()).unwrap()
    }
}

const A_MINUTE_MS: u32 = 60_000;

/// Lets a worker do its mission until it sends `last`, then stops it. Returns that request, the
/// trace and the statistics.
async fn work_until(
    rules: KernelRules,
    (work, mission_ms): (Work, u32),
    last: &str,
) -> (Vec<ReceivedRequest>, ReceivedRequest, Value, Value) {
    let kernel = kernel(rules).await;
    let running = Running::start(&kernel, work, mission_ms);
    let sent = kernel.wait_for_request("POST", last).await.unwrap();
    let stats = running.end().await;
    let trace = kernel.wait_for_request("POST", "/traces").await.unwrap().json();
    (kernel.requests(), sent, trace, stats)
}

fn counters(stats: &Value) -> [u64; 6] {
    let names = [
        "successes",
        "failures",
        "retryableFailures",
        "alreadyExists",
        "timeouts",
        "heartbeatFailures",
    ];
    names.map(|name| stats["metrics"][name].as_u64().unwrap())
}

#[tokio::test]
async fn a_finished_mission_is_claimed_traced_and_completed() {
    let (requests, complete, trace, stats) =
        work_until(KernelRules::default(), (Work::Finish, A_MINUTE_MS), COMPLETE).await;
    let paths: Vec<&str> = requests.iter().map(|request| request.path.as_str()).collect();
    assert_eq!(paths[..3], [CLAIM, "/traces", COMPLETE]);
    assert_eq!(requests[0].json(), json!({"agentName": "tidier", "goals": ["tidy"]}));
    assert_eq!(requests[0].query, "", "a claim is for all organisations");
    assert_eq!(complete.query, "orgId=acme");
    assert_eq!(complete.json(), json!({"leaseId": "l-1", "summary": {"reportId": "R-1"}}));
    assert_eq!((&trace["status"], &trace["traceId"]), (&json!("SUCCESS"), &json!("T-m-1-2-l-1")));
    assert_eq!(trace["agentId"], "tidy-worker");
    assert_eq!(trace["mission"], mission());
    assert_eq!(counters(&stats), [1, 0, 0, 0, 0, 0]);
    assert_eq!((&stats["processedCount"], &stats["running"]), (&json!(1), &json!(false)));
    assert_eq!(stats["lastRunAt"], json!(NOW));
}

#[tokio::test]
async fn a_success_is_kept_although_its_trace_is_refused() {
    let rules = KernelRules { refuses_traces: true, ..KernelRules::default() };
    let (_, complete, _, stats) = work_until(rules, (Work::Finish, A_MINUTE_MS), COMPLETE).await;
    assert_eq!(complete.json()["summary"], json!({"reportId": "R-1"}));
    assert_eq!(counters(&stats), [1, 0, 0, 0, 0, 0]);
}

#[tokio::test]
async fn what_an_earlier_attempt_has_done_is_completed_too() {
    let (_, complete, _, stats) =
        work_until(KernelRules::default(), (Work::FindFinished, A_MINUTE_MS), COMPLETE).await;
    assert_eq!(complete.json()["summary"], json!({"reportId": "R-1"}));
    assert_eq!(counters(&stats), [0, 0, 0, 1, 0, 0]);
}

#[tokio::test]
async fn a_failure_says_whether_another_attempt_may_help() {
    let unavailable: fn() -> WorkError = || WorkError::Unavailable("the broom is away".to_owned());
    let permanent: fn() -> WorkError = || WorkError::Permanent("there is no floor".to_owned());
    for (error, text, retryable) in
        [(unavailable, "the broom is away", true), (permanent, "there is no floor", false)]
    {
        let (_, fail, trace, stats) =
            work_until(KernelRules::default(), (Work::Fail(error), A_MINUTE_MS), FAIL).await;
        let told = json!({"leaseId": "l-1", "error": text, "retryable": retryable});
        assert_eq!(fail.json(), told);
        assert_eq!((&trace["status"], &trace["error"]["message"]), (&json!("ERROR"), &json!(text)));
        assert_eq!(counters(&stats), [0, 1, u64::from(retryable), 0, 0, 0]);
        assert_eq!(stats["lastError"], text);
    }
}

#[tokio::test]
async fn a_mission_that_panics_is_reported_and_may_be_tried_again() {
    let panics: fn() -> WorkError = || panic!("the broom is odd");
    let (_, fail, trace, stats) =
        work_until(KernelRules::default(), (Work::Fail(panics), A_MINUTE_MS), FAIL).await;
    let text = "mission panicked: the broom is odd";
    assert_eq!(fail.json(), json!({"leaseId": "l-1", "error": text, "retryable": true}));
    assert_eq!(trace["status"], "ERROR");
    assert_eq!(counters(&stats), [0, 1, 1, 0, 0, 0]);
}

#[tokio::test]
async fn a_mission_that_takes_too_long_is_ended_and_may_be_tried_again() {
    let dropped = Arc::new(AtomicBool::new(false));
    let work = Work::Forever(dropped.clone());
    let (_, fail, trace, stats) = work_until(KernelRules::default(), (work, 50), FAIL).await;
    assert_eq!(fail.json()["retryable"], true);
    assert_eq!(trace["status"], "TIMEOUT");
    assert!(dropped.load(Ordering::SeqCst));
    assert_eq!(counters(&stats)[..5], [0, 1, 1, 0, 1]);
}

#[tokio::test]
async fn a_lost_lease_ends_the_work_and_reports_no_result() {
    let dropped = Arc::new(AtomicBool::new(false));
    let rules = KernelRules { heartbeats: &[409], ..KernelRules::default() };
    let work = Work::Forever(dropped.clone());
    let (requests, _, trace, stats) = work_until(rules, (work, A_MINUTE_MS), "/traces").await;
    assert_eq!(
        (&trace["status"], &trace["error"]["message"]),
        (&json!("ABORTED"), &json!("the lease is lost"))
    );
    assert!(dropped.load(Ordering::SeqCst), "the work goes on");
    let reported = requests.iter().any(|request| [COMPLETE, FAIL].contains(&request.path.as_str()));
    assert!(!reported, "another worker may have the mission");
    let heartbeat = requests.iter().find(|request| request.path == HEARTBEAT).unwrap();
    assert_eq!(heartbeat.json(), json!({"leaseId": "l-1", "agentName": "tidier"}));
    assert_eq!(counters(&stats), [0, 1, 0, 0, 0, 1]);
}

#[tokio::test]
async fn a_kernel_that_is_busy_for_one_heartbeat_does_not_end_the_work() {
    let rules = KernelRules { heartbeats: &[503], ..KernelRules::default() };
    let work = Work::Until(rules.second_heartbeat.clone());
    let (_, _, trace, stats) = work_until(rules, (work, A_MINUTE_MS), COMPLETE).await;
    assert_eq!(trace["status"], "SUCCESS");
    assert_eq!(counters(&stats), [1, 0, 0, 0, 0, 1]);
}

#[tokio::test]
async fn a_tool_is_authorised_first_and_its_call_is_in_the_trace() {
    let (requests, _, trace, _) =
        work_until(KernelRules::default(), (Work::UseTool, A_MINUTE_MS), COMPLETE).await;
    let check = requests.iter().find(|request| request.path == "/policy/check").unwrap();
    let asked = json!({"agentId": "tidy-worker", "tool": "sweep", "action": "invoke",
                       "resource": "floor-1", "missionId": "m-1"});
    assert_eq!((check.query.as_str(), check.json()), ("orgId=acme", asked));
    let call = json!({"toolName": "sweep", "action": "invoke", "input": {"resource": "floor-1"},
                      "durationMs": 0, "output": {"ok": true}});
    assert_eq!(trace["entries"][0]["toolCalls"], json!([call]));
}

#[tokio::test]
async fn a_tool_that_the_policy_denies_is_not_used_and_the_mission_fails_for_good() {
    let rules = KernelRules { denies_tools: true, ..KernelRules::default() };
    let (_, fail, trace, _) = work_until(rules, (Work::UseTool, A_MINUTE_MS), FAIL).await;
    let told = json!({"leaseId": "l-1", "error": "the policy denies sweep", "retryable": false});
    assert_eq!(fail.json(), told);
    let call = json!({"toolName": "sweep", "action": "invoke", "deniedByPolicy": true,
                      "input": {"resource": "floor-1"}});
    assert_eq!(trace["entries"][0]["toolCalls"], json!([call]));
}

#[tokio::test]
async fn a_mission_without_an_organisation_fails_for_good() {
    let kernel = kernel(KernelRules { has_no_org: true, ..KernelRules::default() }).await;
    let running = Running::start(&kernel, Work::Finish, A_MINUTE_MS);
    let fail = kernel.wait_for_request("POST", FAIL).await.unwrap();
    let told = json!({"leaseId": "l-1", "error": "the mission has no organisation",
                      "retryable": false});
    assert_eq!((fail.query.as_str(), fail.json()), ("", told));
    let stats = running.end().await;
    assert_eq!(counters(&stats), [0, 1, 0, 0, 0, 0]);
    assert_eq!(stats["running"], false);
}

#[tokio::test]
async fn a_worker_without_a_mission_ends_at_once_when_it_is_told_to_stop() {
    let kernel = kernel(KernelRules { has_no_mission: true, ..KernelRules::default() }).await;
    let running = Running::start(&kernel, Work::Finish, A_MINUTE_MS);
    kernel.wait_for_request("POST", CLAIM).await.unwrap();
    let stats = running.end().await;
    assert_eq!((&stats["processedCount"], kernel.requests().len()), (&json!(0), 1));
}

#[tokio::test]
async fn a_mission_that_is_claimed_is_finished_although_the_worker_is_told_to_stop() {
    let kernel = kernel(KernelRules::default()).await;
    let released = Arc::new(Notify::new());
    let running = Running::start(&kernel, Work::Until(released.clone()), A_MINUTE_MS);
    kernel.wait_for_request("POST", HEARTBEAT).await.unwrap();
    running.stop.cancel();
    released.notify_one();
    let stats = running.end().await;
    assert_eq!(counters(&stats), [1, 0, 0, 0, 0, 0]);
    let paths: Vec<String> = kernel.requests().into_iter().map(|request| request.path).collect();
    assert_eq!(paths.iter().filter(|path| *path == CLAIM).count(), 1);
    assert_eq!(paths.last().map(String::as_str), Some(COMPLETE));
}

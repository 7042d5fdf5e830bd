//! Completes each service's `OpenAPI` document with the responses that every operation may return
//! beside its own. They are written in one place, because the HTTP shell, the authentication and
//! rate-limit layers and the extractors return the same responses for all operations.

use serde_json::{Map, Value, json};
use utoipa::openapi::{Content, OpenApi, RefOr};

/// Statuses that any operation may return.
const COMMON_RESPONSES: [(&str, &str); 7] = [
    ("400", "The request is invalid; the error text says where"),
    ("401", "Missing or invalid credentials"),
    ("403", "The caller's role or organisation does not allow this"),
    ("429", "Too many requests; retry after the time in Retry-After"),
    ("500", "Internal error; the details are in the service's log"),
    ("503", "The service or one of its dependencies is unavailable; retry"),
    ("504", "The request was not answered within the time limit"),
];
/// Statuses that an operation with a request body may return in addition.
const BODY_RESPONSES: [(&str, &str); 4] = [
    (
        "409",
        "The state does not allow this, or a request with this Idempotency-Key is still running",
    ),
    ("413", "The request is too large"),
    ("415", "The body is not application/json"),
    ("422", "The Idempotency-Key was used for a different request"),
];
const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

/// Returns the document with the responses that every operation may return, the bearer security
/// scheme, and the routes of the HTTP shell itself.
///
/// # Errors
/// When the document cannot be serialised as JSON; this happens to none of our documents.
pub fn complete(document: &OpenApi) -> Result<Value, serde_json::Error> {
    let mut document = serde_json::to_value(document)?;
    let error = json!({"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}});
    if let Some(paths) = document["paths"].as_object_mut() {
        for operations in paths.values_mut() {
            for method in METHODS {
                let Some(operation) = operations.get_mut(method) else { continue };
                let body = matches!(method, "post" | "put" | "patch");
                add_responses(operation, body, &error);
            }
        }
        for (path, what, kind) in [
            ("/health", "The process is running", "application/json"),
            ("/ready", "Every dependency of the service is healthy", "application/json"),
            ("/metrics", "Metrics in the Prometheus text format", "text/plain"),
        ] {
            let mut operation = json!({"get": {"tags": ["operation"], "summary": what,
                "security": [], "responses": {"200": {"description": what, "content": {kind: {}}}}}});
            if path == "/ready" {
                operation["get"]["responses"]["503"] =
                    json!({"description": "A dependency is unhealthy", "content": {kind: {}}});
            }
            paths.insert(path.to_owned(), operation);
        }
    }
    let issue = json!({"type": "object", "required": ["code", "path", "message"], "properties": {
        "code": {"type": "string"}, "message": {"type": "string"},
        "path": {"type": "array", "items": {"type": "string"}}}});
    let shape = json!({"type": "object", "required": ["error"], "properties": {
        "error": {"type": "string", "description": "A sentence for people"},
        "issues": {"type": "array", "items": issue}}});
    let components = object_entry(&mut document, "components");
    object_entry(components, "schemas")["Error"] = shape;
    object_entry(components, "securitySchemes")["bearer"] = json!({"type": "http", "scheme": "bearer",
        "description": "An OIDC token or an API key"});
    document["security"] = json!([{"bearer": []}]);
    Ok(document)
}

/// Returns the document with an example for each request body. `examples` is a JSON object that
/// maps `METHOD /path` to a body. An example that is not JSON, or whose operation does not exist,
/// is logged and left out; a test checks that there is none.
#[must_use]
pub fn with_examples(mut document: OpenApi, examples: &str) -> OpenApi {
    let examples: Map<String, Value> = serde_json::from_str(examples).unwrap_or_else(|error| {
        tracing::error!(%error, "the request examples cannot be read; leaving them out");
        Map::new()
    });
    for (operation, example) in examples {
        if let Some(content) = json_request_body(&mut document, &operation) {
            content.example = Some(example);
        } else {
            tracing::error!(operation, "an example names no operation with a request body");
        }
    }
    document
}

/// Returns the JSON request body of an operation, which is named by its method and path:
/// `POST /missions`.
fn json_request_body<'d>(document: &'d mut OpenApi, operation: &str) -> Option<&'d mut Content> {
    let (method, path) = operation.split_once(' ')?;
    let operations = document.paths.paths.get_mut(path)?;
    let operation = match method {
        "POST" => operations.post.as_mut(),
        "PUT" => operations.put.as_mut(),
        "PATCH" => operations.patch.as_mut(),
        "DELETE" => operations.delete.as_mut(),
        _ => None,
    }?;
    let RefOr::T(body) = operation.request_body.as_mut()? else { return None };
    let RefOr::T(content) = body.content.get_mut("application/json")? else { return None };
    Some(content)
}

fn add_responses(operation: &mut Value, body: bool, error: &Value) {
    let responses = object_entry(operation, "responses");
    let also = if body { &BODY_RESPONSES[..] } else { &[] };
    for (status, description) in COMMON_RESPONSES.iter().chain(also) {
        if responses.get(*status).is_none() {
            responses[*status] = json!({ "description": description });
        }
    }
    let Some(responses) = responses.as_object_mut() else { return };
    for (status, response) in responses {
        let refuses = status.starts_with(['4', '5']);
        if refuses && response.get("content").is_none() {
            response["content"] = error.clone();
        }
        if refuses && response["description"] == "" {
            response["description"] = "The request was refused".into();
        }
    }
}

fn object_entry<'v>(value: &'v mut Value, name: &str) -> &'v mut Value {
    if !value[name].is_object() {
        value[name] = Map::new().into();
    }
    &mut value[name]
}

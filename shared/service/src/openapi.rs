//! What every operation may answer beside its own: written into each `OpenAPI` document in one place,
//! since the shell, the door and the extractors answer alike for all of them.

use serde_json::{Map, Value, json};

/// Statuses that any operation may answer.
const ALWAYS: [(&str, &str); 7] = [
    ("400", "The request is wrong; the text says where"),
    ("401", "Nobody knows who asks"),
    ("403", "Not yours to ask"),
    ("429", "Too many requests; Retry-After says when again"),
    ("500", "Something failed inside; the log has it"),
    ("503", "Something that is needed is away; try again"),
    ("504", "Not answered in time"),
];
/// And those that hand something in.
const WITH_BODY: [(&str, &str); 4] = [
    (
        "409",
        "It is not in a state for that, or a request of this Idempotency-Key is being answered",
    ),
    ("413", "Too large"),
    ("415", "Not application/json"),
    ("422", "The Idempotency-Key was used for another request"),
];
const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

/// The document, with what every operation may answer, how one says who one is, and the routes of
/// the shell itself.
///
/// # Errors
/// When the document cannot be written as JSON, which none of ours is.
pub fn complete(document: &utoipa::openapi::OpenApi) -> Result<Value, serde_json::Error> {
    let mut document = serde_json::to_value(document)?;
    let error = json!({"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}});
    if let Some(paths) = document["paths"].as_object_mut() {
        for operations in paths.values_mut() {
            for method in METHODS {
                let Some(operation) = operations.get_mut(method) else { continue };
                let body = matches!(method, "post" | "put" | "patch");
                answer(operation, body, &error);
            }
        }
        for (path, what, kind) in [
            ("/health", "The process lives", "application/json"),
            ("/ready", "It can do its work", "application/json"),
            ("/metrics", "What was counted, for Prometheus", "text/plain"),
        ] {
            let mut operation = json!({"get": {"tags": ["operation"], "summary": what,
                "security": [], "responses": {"200": {"description": what, "content": {kind: {}}}}}});
            if path == "/ready" {
                operation["get"]["responses"]["503"] =
                    json!({"description": "It cannot", "content": {kind: {}}});
            }
            paths.insert(path.to_owned(), operation);
        }
    }
    let issue = json!({"type": "object", "required": ["code", "path", "message"], "properties": {
        "code": {"type": "string"}, "message": {"type": "string"},
        "path": {"type": "array", "items": {"type": "string"}}}});
    let shape = json!({"type": "object", "required": ["error"], "properties": {
        "error": {"type": "string", "description": "A sentence for a person"},
        "issues": {"type": "array", "items": issue}}});
    let components = entry(&mut document, "components");
    entry(components, "schemas")["Error"] = shape;
    entry(components, "securitySchemes")["bearer"] = json!({"type": "http", "scheme": "bearer",
        "description": "An issuer's token, or an API key"});
    document["security"] = json!([{"bearer": []}]);
    Ok(document)
}

/// The document with an example of each body that is handed in; `examples` is a JSON object of
/// `METHOD /path` to body. What is no JSON, or no operation, is told in the log and left out: a test
/// looks for it.
#[must_use]
pub fn with_examples(
    document: utoipa::openapi::OpenApi,
    examples: &str,
) -> utoipa::openapi::OpenApi {
    let insert = || -> Result<utoipa::openapi::OpenApi, serde_json::Error> {
        let examples: Map<String, Value> = serde_json::from_str(examples)?;
        let mut json = serde_json::to_value(&document)?;
        for (operation, example) in examples {
            let (method, path) = operation.split_once(' ').unwrap_or_default();
            let body = json["paths"]
                .get_mut(path)
                .and_then(|operations| operations.get_mut(method.to_lowercase()))
                .and_then(|operation| operation.get_mut("requestBody"));
            if let Some(body) = body {
                body["content"]["application/json"]["example"] = example;
            } else {
                tracing::error!(operation, "an example of no operation");
            }
        }
        serde_json::from_value(json)
    };
    insert().unwrap_or_else(|error| {
        tracing::error!(%error, "examples that cannot be read");
        document
    })
}

fn answer(operation: &mut Value, body: bool, error: &Value) {
    let responses = entry(operation, "responses");
    let also = if body { &WITH_BODY[..] } else { &[] };
    for (status, description) in ALWAYS.iter().chain(also) {
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
            response["description"] = "Refused".into();
        }
    }
}

fn entry<'v>(value: &'v mut Value, name: &str) -> &'v mut Value {
    if !value[name].is_object() {
        value[name] = Map::new().into();
    }
    &mut value[name]
}

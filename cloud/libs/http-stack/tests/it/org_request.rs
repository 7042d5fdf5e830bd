//! `OrgRequest`: the organisation that a request is about.

use axum::http::StatusCode;
use serde_json::json;

use crate::{App, NOW, read};

#[tokio::test]
async fn a_request_is_about_the_caller_s_organisation() {
    let router = App::default().router();
    for uri in ["/orders", "/orders?orgId=acme", "/orders?orgId="] {
        let answer = read(&router, uri, "ada").await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.body, json!({"org": "acme", "caller": "ada", "now": NOW}));
    }
}

#[tokio::test]
async fn another_organisation_is_refused_with_403() {
    let answer = read(&App::default().router(), "/orders?orgId=rival", "ada").await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert_eq!(answer.body, json!({"error": "orgId names another organisation"}));
}

#[tokio::test]
async fn a_service_for_all_organisations_names_one() {
    let router = App::default().router();
    let answer = read(&router, "/orders?orgId=rival", "service").await;
    assert_eq!((answer.status, &answer.body["org"]), (StatusCode::OK, &json!("rival")));
    let answer = read(&router, "/orders", "service").await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert_eq!(answer.body, json!({"error": "orgId is required: this caller may act for any"}));
    let answer = read(&router, "/orders?orgId=a%2Fb", "service").await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert!(answer.body["error"].as_str().unwrap().starts_with("orgId contains '/'"));
}

#[tokio::test]
async fn a_query_that_cannot_be_searched_for_is_refused_with_400() {
    let router = App::default().router();
    let many = format!("/orders?{}", ["a=b"; 65].join("&"));
    for (uri, told) in [
        ("/orders?name=a%00b", "a query parameter contains a NUL"),
        (many.as_str(), "more than 64 query parameters"),
    ] {
        let answer = read(&router, uri, "ada").await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert_eq!(answer.body, json!({"error": told}));
    }
}

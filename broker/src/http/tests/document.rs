//! The OpenAPI document against what is really served.

use std::collections::BTreeSet;

use kdbt_api::problem::ProblemCode;

use super::fake::LEASE;
use super::*;

/// The only calls that need no token.
const PUBLIC: [&str; 5] = [
    "/.well-known/oauth-protected-resource",
    "/healthz",
    "/readyz",
    "/v1/client-config",
    "/v1/openapi.json",
];

async fn document(broker: &Broker) -> Value {
    let answer = broker.send("GET", "/v1/openapi.json", &[], None).await;
    assert_eq!(answer.status, 200);
    answer.json()
}

/// Method, path and operation of every call in the document.
fn calls(document: &Value) -> Vec<(String, String, Value)> {
    let paths = document["paths"].as_object().unwrap();
    let operations = paths.iter().flat_map(|(path, item)| {
        let operations = item
            .as_object()
            .unwrap()
            .iter()
            .filter(|(_, value)| value.get("responses").is_some());
        operations.map(move |(method, operation)| (method.to_uppercase(), path.clone(), operation.clone()))
    });
    operations.collect()
}

#[tokio::test]
async fn the_document_names_the_calls_of_the_design_and_no_others() {
    let broker = Broker::start().await;
    let calls = calls(&document(&broker).await);
    let found: BTreeSet<String> = calls
        .iter()
        .map(|(method, path, _)| format!("{method} {path}"))
        .collect();
    let expected = [
        "DELETE /v1/leases/{id}",
        "GET /.well-known/oauth-protected-resource",
        "GET /healthz",
        "GET /readyz",
        "GET /v1/client-config",
        "GET /v1/leases",
        "GET /v1/leases/{id}",
        "GET /v1/openapi.json",
        "GET /v1/targets",
        "POST /v1/explain",
        "POST /v1/leases",
        "POST /v1/leases/{id}/cancel",
        "POST /v1/leases/{id}/renew",
        "POST /v1/revocations",
    ];
    assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn every_call_but_the_public_ones_answers_401_without_a_token() {
    let broker = Broker::start().await;
    for (method, path, operation) in calls(&document(&broker).await) {
        let is_public = PUBLIC.contains(&path.as_str());
        assert_eq!(operation.get("security").is_none(), is_public, "{method} {path}");
        let answer = broker.send(&method, &path.replace("{id}", LEASE), &[], None).await;
        assert_eq!(answer.status == 401, !is_public, "{method} {path}: {answer:?}");
    }
    assert_eq!(
        broker.service.calls(),
        [""; 0],
        "a call reached the service without a token"
    );
}

#[tokio::test]
async fn every_problem_code_is_documented_with_its_status_and_every_call_names_its_failures() {
    let broker = Broker::start().await;
    let document = document(&broker).await;
    for code in ProblemCode::ALL {
        let answer = &document["components"]["responses"][code.status().to_string()];
        let table = answer["description"].as_str().unwrap();
        assert!(table.contains(&format!("| `{code}` | {} |", code.title())), "{code}");
        let schema = &answer["content"]["application/problem+json"]["schema"]["$ref"];
        assert_eq!(schema, "#/components/schemas/Problem", "{code}");
    }
    for (method, path, operation) in calls(&document) {
        let responses = operation["responses"].as_object().unwrap();
        let mut needed = vec!["400", "414", "431", "500", "503"];
        if operation.get("security").is_some() {
            needed.extend(["401", "403"]);
        }
        if operation.get("requestBody").is_some() {
            needed.extend(["413", "415", "422"]);
        }
        for status in needed {
            assert!(responses.contains_key(status), "{method} {path} names no {status}");
        }
        // It would allow every status.
        assert!(!responses.contains_key("default"), "{method} {path}");
    }
}

#[tokio::test]
async fn a_wrong_method_at_a_public_path_is_told_so_without_a_token() {
    let broker = Broker::start().await;
    for path in PUBLIC {
        let answer = broker.send("TRACE", path, &[], None).await;
        assert_eq!(answer.failure(), (405, "method-not-allowed".to_owned()), "{path}");
        assert_eq!(answer.header("allow"), Some("GET,HEAD"), "{path}");
    }
    let answer = broker.send("TRACE", "/v1/leases", &[], None).await;
    assert_eq!(answer.status, 401, "{answer:?}");
}

#[tokio::test]
async fn no_two_calls_have_one_name() {
    let broker = Broker::start().await;
    let mut names = BTreeSet::new();
    for (method, path, operation) in calls(&document(&broker).await) {
        let name = operation["operationId"].as_str().unwrap().to_owned();
        assert!(names.insert(name), "{method} {path}: {}", operation["operationId"]);
    }
}

#[tokio::test]
async fn the_document_allows_null_nowhere_as_the_broker_takes_it_nowhere() {
    let broker = Broker::start().await;
    let text = document(&broker).await.to_string();
    assert!(!text.contains("null"), "{text}");
    let body = r#"{"target": "dev", "reason": null}"#;
    for path in ["/v1/leases", "/v1/explain"] {
        let answer = broker.call("POST", path, Some(body)).await;
        assert_eq!(answer.failure(), (400, "malformed-request".to_owned()), "{path}");
    }
    let renew = broker
        .call("POST", &format!("/v1/leases/{LEASE}/renew"), Some("null"))
        .await;
    assert_eq!(renew.failure(), (400, "malformed-request".to_owned()));
}

#[tokio::test]
async fn every_answer_has_the_headers_that_the_document_names_for_it() {
    let broker = Broker::start().await;
    let document = document(&broker).await;
    for (method, path, operation) in calls(&document) {
        let place = path.replace("{id}", LEASE);
        let body = r#"{"target": "dev", "mine": true}"#;
        let answers = [
            broker.call(&method, &place, None).await,
            broker.call(&method, &place, Some(body)).await,
            broker.call(&method, &place, Some(r#"{"target": "dev"}"#)).await,
            broker.send(&method, &place, &[], None).await,
        ];
        for answer in answers {
            let said = &operation["responses"][answer.status.to_string()];
            let said = match said["$ref"].as_str() {
                Some(reference) => document.pointer(reference.trim_start_matches('#')).unwrap(),
                None => said,
            };
            let headers = said["headers"].as_object();
            let headers = headers.unwrap_or_else(|| panic!("{method} {path}: {} is not documented", answer.status));
            for (name, header) in headers {
                let name = name.to_lowercase();
                let value = answer.header(&name);
                assert!(value.is_some(), "{method} {path}: no {name} in {answer:?}");
                if let Some(words) = header["schema"]["enum"].as_array() {
                    assert!(words.iter().any(|word| word.as_str() == value), "{name} in {answer:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_revocation_is_taken_in_the_forms_that_the_document_has_and_in_no_other() {
    let broker = Broker::start().await;
    let document = document(&broker).await;
    let schema = &document["components"]["schemas"]["RevocationRequest"];
    assert_eq!(schema["oneOf"].as_array().map(Vec::len), Some(4), "{schema}");
    for (body, status) in [
        (r#"{"mine": true}"#, 200),
        (
            r#"{"subject": "alice", "issuer": "https://sso", "rule": "a", "target": "dev"}"#,
            200,
        ),
        (r#"{"rule": "a", "target": "dev", "mine": false}"#, 200),
        (r#"{"target": "dev", "dry_run": true}"#, 200),
        ("{}", 400),
        (r#"{"mine": false}"#, 400),
        (r#"{"dry_run": true}"#, 400),
        (r#"{"mine": true, "rule": "a"}"#, 400),
        (r#"{"mine": true, "issuer": "https://sso"}"#, 400),
        (r#"{"rule": "a", "issuer": "https://sso"}"#, 400),
        (r#"{"issuer": "https://sso"}"#, 400),
    ] {
        let answer = broker.call("POST", "/v1/revocations", Some(body)).await;
        assert_eq!(answer.status, status, "{body}: {answer:?}");
    }
}

#[tokio::test]
async fn what_is_answered_is_what_the_document_says() {
    let broker = Broker::start().await;
    let document = document(&broker).await;
    for (method, path, operation) in calls(&document) {
        let body = match (method.as_str(), path.as_str()) {
            ("POST", "/v1/leases" | "/v1/explain") => Some(r#"{"target": "dev"}"#),
            ("POST", "/v1/revocations") => Some(r#"{"mine": true}"#),
            _ => None,
        };
        let answer = broker.call(&method, &path.replace("{id}", LEASE), body).await;
        let documented = &operation["responses"][answer.status.to_string()];
        assert!(
            documented.is_object(),
            "{method} {path} answers {}, undocumented",
            answer.status
        );
        if let Some(schema) = documented["content"]["application/json"].get("schema") {
            fits(&document, schema, &answer.json(), &format!("{method} {path}"));
        }
    }
}

#[tokio::test]
async fn every_reference_of_the_document_leads_somewhere() {
    let broker = Broker::start().await;
    let document = document(&broker).await;
    for reference in document.to_string().split(r##""$ref":"#"##).skip(1) {
        let pointer = reference.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer}");
    }
}

/// Required members are there, and documented members are of their type: through references, lists and members.
fn fits(document: &Value, schema: &Value, value: &Value, place: &str) {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = document.pointer(reference.trim_start_matches('#')).unwrap();
        return fits(document, target, value, place);
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        assert!(
            value.get(name.as_str().unwrap()).is_some(),
            "{place}: no {name} in {value}"
        );
    }
    for (name, member) in schema["properties"].as_object().into_iter().flatten() {
        if let Some(value) = value.get(name) {
            fits(document, member, value, &format!("{place} {name}"));
        }
    }
    for item in value.as_array().into_iter().flatten() {
        fits(document, &schema["items"], item, &format!("{place}[]"));
    }
    let fits_type = match schema["type"].as_str() {
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("boolean") => value.is_boolean(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        _ => true,
    };
    assert!(fits_type, "{place}: {value} is no {}", schema["type"]);
}

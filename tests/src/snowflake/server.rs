//! The SQL API, version 2, over HTTP.

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Response, StatusCode, header};
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::account::Account;
use super::fault::Fault;
use super::{LoginFailure, Refusal, Said, Simulator, Table, new_id, statement};

/// Serves until the runtime ends.
pub(super) async fn serve(listener: TcpListener, simulator: Simulator) {
    let router = Router::new()
        .route("/api/v2/statements", post(execute))
        .route("/api/v2/statements/{handle}", get(fetch))
        .layer(axum::middleware::map_response_with_state(simulator.clone(), dated))
        .with_state(simulator);
    let _ = axum::serve(listener, router).await;
}

/// The account's own time, as every HTTP server tells it (RFC 9110 section 6.6.1).
async fn dated(State(simulator): State<Simulator>, mut answer: Answer) -> Answer {
    let now = simulator.look(Account::now);
    let date = jiff::Timestamp::from_millisecond(now).unwrap_or_default();
    let text = date.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    if let Ok(text) = text.parse() {
        answer.headers_mut().insert(header::DATE, text);
    }
    answer
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    #[serde(rename = "requestId")]
    request: Option<String>,
    #[serde(default)]
    retry: bool,
    #[serde(default, rename = "async")]
    later: bool,
}

#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    partition: usize,
}

/// The documented members of the body, and no others.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    statement: String,
    timeout: Option<u64>,
    role: Option<String>,
    warehouse: Option<String>,
    database: Option<String>,
    schema: Option<String>,
    bindings: Option<Value>,
    parameters: Option<Value>,
}

type Answer = Response<Body>;

/// Where everybody who talks to the simulator is.
const OUR_ADDRESS: &str = "127.0.0.1";

async fn execute(
    State(simulator): State<Simulator>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
    body: String,
) -> Answer {
    let user = match admit(&simulator, &headers) {
        Ok(user) => user,
        Err(answer) => return *answer,
    };
    let Ok(order) = serde_json::from_str::<Order>(&body) else {
        return answer(
            400,
            &json!({"code": "390142", "message": "Incoming request does not contain a valid payload."}),
        );
    };
    // A statement that needs none of these is all that we ever send.
    let unused = order.timeout.is_some_and(|timeout| timeout > 604_800)
        || order.bindings.is_some()
        || order.parameters.is_some();
    if unused || order.warehouse.is_some() || order.database.is_some() || order.schema.is_some() {
        return refused(
            &Refusal::new(
                400,
                "390142",
                "22000",
                "the simulator takes a statement, a timeout and a role only",
            ),
            None,
        );
    }
    let (fault, latency) = {
        let mut inside = simulator.inside();
        (inside.script.meet(&order.statement), inside.latency)
    };
    let slow = if let Some(Fault::Slow(more)) = &fault {
        latency + *more
    } else {
        latency
    };
    tokio::time::sleep(slow).await;
    match &fault {
        Some(Fault::Status(status, body)) => return raw(*status, body.clone()),
        Some(Fault::LostBefore) => return lost(),
        _ => {}
    }
    let outcome = run(&simulator, &user, &order, &asked);
    if let Some(Fault::Held(held)) = fault {
        tokio::time::sleep(held).await;
    }
    let handle = new_id();
    match (fault, outcome) {
        (Some(Fault::LostAfter), _) => lost(),
        (_, Err(refusal)) => refused(&refusal, Some(&handle)),
        (Some(Fault::NotReady(looks)), Ok(table)) => later(&simulator, &handle, looks, table),
        (_, Ok(table)) if asked.later => later(&simulator, &handle, 1, table),
        (Some(Fault::Bare), Ok(table)) => answer(
            200,
            &json!({"data": table.rows, "resultSetMetaData": {"rowType": columns(&table)}}),
        ),
        (_, Ok(table)) => {
            let mut inside = simulator.inside();
            inside.pending.insert(handle.clone(), (0, table.clone()));
            result(&table, &handle, 0, inside.partition, inside.account.now)
        }
    }
}

/// The statement is run, or its earlier result given again: with `retry=true`, if it succeeded.
fn run(simulator: &Simulator, user: &str, order: &Order, asked: &Asked) -> Result<Table, Refusal> {
    let mut inside = simulator.inside();
    inside.tick();
    let default = inside.account.user(user).and_then(|user| user.default_role.clone());
    let role = order.role.clone().or(default).unwrap_or_else(|| "PUBLIC".to_owned());
    let mut said = Said {
        user: user.to_owned(),
        role: role.clone(),
        request: asked.request.clone(),
        retry: asked.retry,
        text: order.statement.clone(),
        outcome: None,
    };
    let earlier = asked
        .request
        .as_ref()
        .filter(|_| asked.retry)
        .and_then(|id| inside.answers.get(id).cloned());
    if let Some(table) = earlier {
        inside.transcript.push(said);
        return Ok(table);
    }
    let outcome = if inside.account.may_use(user, &role) {
        statement::run(&mut inside.account, user, &role, &order.statement)
    } else {
        let message = format!("Role '{role}' specified in the connect string is not granted to this user.");
        Err(Refusal::new(422, "390186", "08004", &message))
    };
    said.outcome = Some(outcome.as_ref().map(|_| ()).map_err(|refusal| refusal.code.clone()));
    inside.transcript.push(said);
    if let (Ok(table), Some(id)) = (&outcome, &asked.request) {
        inside.answers.insert(id.clone(), table.clone());
    }
    outcome
}

async fn fetch(
    State(simulator): State<Simulator>,
    Path(handle): Path<String>,
    Query(part): Query<Part>,
    headers: HeaderMap,
) -> Answer {
    if let Err(answer) = admit(&simulator, &headers) {
        return *answer;
    }
    let latency = simulator.inside().latency;
    tokio::time::sleep(latency).await;
    let mut inside = simulator.inside();
    let (partition, now) = (inside.partition, inside.account.now);
    match inside.pending.get_mut(&handle) {
        None => refused(
            &Refusal::new(422, "000709", "02000", "Statement handle not found"),
            Some(&handle),
        ),
        Some((0, table)) => result(&table.clone(), &handle, part.partition, partition, now),
        Some((looks, _)) => {
            *looks -= 1;
            not_ready(&handle)
        }
    }
}

/// Headers and token. The public answer to every wrong token is the same; the cause is kept under an id.
fn admit(simulator: &Simulator, headers: &HeaderMap) -> Result<String, Box<Answer>> {
    let text = |name| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let mut inside = simulator.inside();
    if inside.script.down {
        return Err(Box::new(lost()));
    }
    if text(header::USER_AGENT).is_empty() || !text(header::ACCEPT).contains("application/json") {
        return Err(boxed(
            400,
            &json!({"code": "391903", "message": "User-Agent and Accept are required."}),
        ));
    }
    let kind = headers.get("X-Snowflake-Authorization-Token-Type");
    if kind.is_some_and(|kind| kind != "KEYPAIR_JWT") {
        return Err(boxed(
            401,
            &json!({"code": "390303", "message": "Invalid OAuth access token."}),
        ));
    }
    inside.tick();
    let token = text(header::AUTHORIZATION)
        .strip_prefix("Bearer ")
        .unwrap_or_default()
        .to_owned();
    let user = inside.log_in(&token).map_err(|code| {
        let id = new_id();
        inside.failures.push(LoginFailure { id: id.clone(), code });
        boxed(401, &json!({"data": null, "code": "390144", "message": format!("JWT token is invalid. [{id}]"), "success": false, "headers": null}))
    })?;
    let account = &inside.account;
    if account
        .user(&user)
        .is_some_and(|user| !account.lets_in(user, OUR_ADDRESS))
    {
        let (id, message) = (
            new_id(),
            format!("Incoming request with IP/Token {OUR_ADDRESS} is not allowed to access Snowflake."),
        );
        inside.failures.push(LoginFailure { id, code: "390422" });
        return Err(boxed(
            403,
            &json!({"data": null, "code": "390422", "message": message, "success": false, "headers": null}),
        ));
    }
    Ok(user)
}

fn boxed(status: u16, body: &Value) -> Box<Answer> {
    Box::new(answer(status, body))
}

fn columns(table: &Table) -> Vec<Value> {
    let column = |name: &String| {
        json!({"name": name, "database": "", "schema": "", "table": "", "type": "text", "scale": null, "precision": null,
               "length": 16_777_216, "byteLength": 16_777_216, "nullable": true, "collation": null})
    };
    table.columns.iter().map(column).collect()
}

fn result(table: &Table, handle: &str, part: usize, partition: usize, now: i64) -> Answer {
    let parts: Vec<_> = table.rows.chunks(partition.max(1)).collect();
    let sizes: Vec<Value> = parts
        .iter()
        .map(|rows| json!({"rowCount": rows.len(), "uncompressedSize": 64 * rows.len()}))
        .collect();
    let sizes = if sizes.is_empty() {
        vec![json!({"rowCount": 0, "uncompressedSize": 0})]
    } else {
        sizes
    };
    let Some(rows) = parts.get(part).copied().or((part == 0).then_some(&[][..])) else {
        return refused(&Refusal::new(422, "391912", "22000", "no such partition"), Some(handle));
    };
    if part > 0 {
        return answer(200, &json!({"data": rows}));
    }
    answer(
        200,
        &json!({
            "resultSetMetaData": {"numRows": table.rows.len(), "format": "jsonv2", "partitionInfo": sizes, "rowType": columns(table)},
            "data": rows, "code": "090001", "statementStatusUrl": format!("/api/v2/statements/{handle}?requestId={handle}"),
            "requestId": handle, "sqlState": "00000", "statementHandle": handle, "message": "Statement executed successfully.", "createdOn": now,
        }),
    )
}

fn later(simulator: &Simulator, handle: &str, looks: u32, table: Table) -> Answer {
    simulator
        .inside()
        .pending
        .insert(handle.to_owned(), (looks.saturating_sub(1), table));
    not_ready(handle)
}

fn not_ready(handle: &str) -> Answer {
    answer(
        202,
        &json!({
            "code": "333334", "sqlState": "00000", "statementHandle": handle, "statementStatusUrl": format!("/api/v2/statements/{handle}"),
            "message": "Asynchronous execution in progress. Use provided query id to perform query monitoring and management.",
        }),
    )
}

fn refused(refusal: &Refusal, handle: Option<&str>) -> Answer {
    answer(
        refusal.status,
        &json!({"code": refusal.code, "sqlState": refusal.sql_state, "message": refusal.message, "statementHandle": handle}),
    )
}

fn answer(status: u16, body: &Value) -> Answer {
    raw(status, Some(body.to_string()))
}

fn raw(status: u16, body: Option<String>) -> Answer {
    let response = Response::builder().status(StatusCode::from_u16(status).unwrap_or_default());
    response
        .header(header::CONTENT_TYPE, "application/json")
        .body(body.map_or_else(Body::empty, Body::from))
        .unwrap_or_default()
}

/// The connection breaks in the middle of the answer.
fn lost() -> Answer {
    let broken = futures_util::stream::once(async { Err::<String, _>(std::io::Error::other("lost")) });
    Response::builder().body(Body::from_stream(broken)).unwrap_or_default()
}

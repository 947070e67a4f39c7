use std::io::Write;
use std::sync::Arc;

use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio_util::task::TaskTracker;
use url::Url;

use super::*;
use crate::clock::{Clock, ManualClock, SystemClock};
use crate::warehouse::snowflake::tests::{Account, Reply, fixture};

const HANDLE: &str = "e4ce975e-f7ff-4b5e-b15e-bf25f59371ae";
const FAILURE: &str = "0ce9eb56-821d-4ca9-a774-04ae89a0cf5a";

/// Snowflake SQL API reference, `ResultSet`.
fn rows(data: &Value) -> Value {
    let partitions = vec![json!({"rowCount": 1, "uncompressedSize": 12}); data.as_array().map_or(1, Vec::len)];
    json!({
        "code": "090001", "sqlState": "00000", "message": "Statement executed successfully.",
        "statementHandle": HANDLE, "createdOn": 1_790_000_000_123_i64,
        "statementStatusUrl": format!("/api/v2/statements/{HANDLE}"),
        "resultSetMetaData": {
            "numRows": 1, "format": "jsonv2", "partitionInfo": partitions,
            "rowType": [{"name": "name", "type": "text", "scale": null, "precision": null, "nullable": true}],
        },
        "data": data.as_array().and_then(|all| all.first()).map(|first| json!([first])),
    })
}

fn done() -> Reply {
    (200, rows(&json!([["A"]]))).into()
}

/// `QueryStatus`.
fn running() -> Reply {
    let body = json!({"code": "333334", "message": "Asynchronous execution in progress.", "statementHandle": HANDLE});
    (202, body).into()
}

/// `QueryFailureStatus`.
fn failed(code: &str, state: &str) -> Reply {
    (
        422,
        json!({"code": code, "sqlState": state, "message": "SQL compilation error", "statementHandle": HANDLE}),
    )
        .into()
}

fn empty(status: u16) -> Reply {
    Reply::Answer(status, Vec::new(), Vec::new())
}

/// The body that users quote for a token that is refused.
fn refused_token(date: Option<&str>) -> Reply {
    let message = format!("JWT token is invalid. [{FAILURE}]");
    let body = json!({"data": null, "code": "390144", "message": message, "success": false, "headers": null});
    let date = date.map(|date| ("date", date.to_owned()));
    Reply::Answer(401, date.into_iter().collect(), body.to_string().into_bytes())
}

fn gzip(plain: &Value) -> Reply {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(plain.to_string().as_bytes()).unwrap();
    let coding = vec![("content-encoding", "gzip".to_owned())];
    Reply::Answer(200, coding, packed.finish().unwrap())
}

async fn run_within(account: &Account, patience: Duration) -> Result<Done, Failure> {
    let api = Api::new(&account.config(), Arc::new(SystemClock)).unwrap();
    let until = Instant::now() + patience;
    api.run(Lane::Issue, &Statement::CurrentRole, until).await
}

async fn run(account: &Account) -> Result<Done, Failure> {
    run_within(account, Duration::from_secs(10)).await
}

fn names(done: &Done) -> Vec<String> {
    done.rows
        .iter()
        .map(|row| row.get("name").unwrap().to_owned())
        .collect()
}

/// What an operator reads.
fn error(result: Result<Done, Failure>) -> String {
    result
        .unwrap_err()
        .of(&Statement::CurrentRole, "KDBT_BROKER")
        .to_string()
}

#[tokio::test]
async fn a_request_holds_what_the_account_wants_and_no_more() {
    let account = Account::start([done()]).await;
    let answer = run(&account).await.unwrap();
    assert_eq!(names(&answer), ["A"]);
    assert_eq!(answer.server_time, Some(Timestamp::from_unix_millis(1_790_000_000_123)));
    let request = account.received().remove(0);
    assert!(
        request.line.starts_with("POST /api/v2/statements?requestId="),
        "{}",
        request.line
    );
    assert!(request.query("requestId").unwrap().parse::<Uuid>().is_ok());
    assert_eq!(request.query("retry"), None);
    for (name, value) in [
        ("accept", "application/json"),
        ("content-type", "application/json"),
        ("user-agent", concat!("kdbt/", env!("CARGO_PKG_VERSION"))),
        ("x-snowflake-authorization-token-type", "KEYPAIR_JWT"),
    ] {
        assert_eq!(request.header(name), Some(value));
    }
    assert_eq!(request.body["statement"], "SELECT CURRENT_ROLE()");
    assert_eq!(request.body["role"], "KDBT_BROKER");
    assert!(request.body["timeout"].as_u64().unwrap() > 0, "0 would mean seven days");
    assert_eq!(request.body.as_object().unwrap().len(), 3, "{}", request.body);
}

#[tokio::test]
async fn an_unasked_202_is_asked_about_until_it_is_done() {
    let account = Account::start([
        running(),
        running(),
        empty(503),
        (429, json!({"code": "390505"})).into(),
        done(),
    ])
    .await;
    assert_eq!(names(&run(&account).await.unwrap()), ["A"]);
    let received = account.received();
    assert_eq!(received.len(), 5);
    for asked in &received[1..] {
        assert!(
            asked.line.starts_with(&format!("GET /api/v2/statements/{HANDLE} ")),
            "{}",
            asked.line
        );
    }
}

#[tokio::test]
async fn every_partition_is_read_compressed_or_not() {
    let first = rows(&json!([["A"], ["B"], ["C"]]));
    let more = |name: &str| json!({"data": [[name]]});
    let account = Account::start([
        (200, first).into(),
        gzip(&more("B")),
        empty(503),
        (200, more("C")).into(),
    ])
    .await;
    assert_eq!(names(&run(&account).await.unwrap()), ["A", "B", "C"]);
    let asked: Vec<_> = account
        .received()
        .iter()
        .map(|one| one.query("partition").map(str::to_owned))
        .collect();
    let n = |n: &str| Some(n.to_owned());
    assert_eq!(asked, [None, n("1"), n("2"), n("2")]);
}

#[tokio::test]
async fn what_may_be_repeated_is_repeated_under_the_same_id() {
    let busy = json!({"code": "390505", "message": "Too many requests."});
    let script = [(429, busy).into(), empty(503), Reply::Hang, done()];
    let account = Account::start(script).await;
    assert_eq!(names(&run(&account).await.unwrap()), ["A"]);
    let received = account.received();
    assert_eq!(received.len(), 4);
    let id = received[0].query("requestId");
    assert_eq!(received[0].query("retry"), None, "a first try is no repetition");
    for again in &received[1..] {
        assert_eq!((again.query("requestId"), again.query("retry")), (id, Some("true")));
    }
}

#[tokio::test]
async fn two_statements_never_share_an_id() {
    let account = Account::start([done(), done()]).await;
    run(&account).await.unwrap();
    run(&account).await.unwrap();
    let received = account.received();
    assert_ne!(received[0].query("requestId"), received[1].query("requestId"));
}

#[tokio::test]
async fn a_refused_token_is_tried_once_more_and_never_twice() {
    let account = Account::start([refused_token(None), refused_token(None), done()]).await;
    let error = error(run(&account).await);
    assert_eq!(account.received().len(), 2);
    insta::assert_snapshot!(error, @"log in: 390144 (the account does not let `MYORG-MYACCT.KDBT_SVC` in; ACCOUNTADMIN asks why by SELECT SYSTEM$GET_LOGIN_FAILURE_DETAILS('0ce9eb56-821d-4ca9-a774-04ae89a0cf5a'))");
    let account = Account::start([refused_token(None), done()]).await;
    run(&account).await.unwrap();
}

#[tokio::test]
async fn a_clock_that_is_minutes_off_is_allowed_for_and_named() {
    // Sun, 06 Nov 1994 08:49:37 GMT is 784 111 777; ours is ten minutes behind.
    let date = Some("Sun, 06 Nov 1994 08:49:37 GMT");
    let clock = ManualClock::at(Timestamp::from_unix(784_111_177));
    let account = Account::start([refused_token(date), done(), refused_token(date), refused_token(date)]).await;
    let api = Api::new(&account.config(), clock.clone()).unwrap();
    let until = || Instant::now() + Duration::from_secs(5);
    api.run(Lane::End, &Statement::CurrentRole, until()).await.unwrap();
    let received = account.received();
    assert_eq!(received[0].claims()["iat"], 784_111_177);
    assert_eq!(received[1].claims()["iat"], 784_111_777);
    assert_eq!(received[1].claims()["exp"], 784_111_837);
    assert_eq!(api.now().since(clock.now()), Duration::from_mins(10));
    let error = error(api.run(Lane::End, &Statement::CurrentRole, until()).await);
    assert!(
        error.contains("the account's clock is 600 s ahead of the broker's"),
        "{error}"
    );
}

#[tokio::test]
async fn what_the_account_refuses_is_said_with_what_to_do() {
    let mut errors = Vec::new();
    for reply in [
        (
            400,
            json!({"code": "390142", "message": "Incoming request does not contain a valid payload."}),
        )
            .into(),
        (
            403,
            json!({"code": "390422", "message": "Incoming request with IP is not allowed"}),
        )
            .into(),
        empty(403),
        Reply::Answer(302, vec![("location", "https://evil.example/".into())], Vec::new()),
        empty(404),
        empty(405),
        failed("003001", "42501"),
        failed("390186", "08004"),
        failed("001003", "42000"),
        failed("009999", "0A000"),
    ] {
        let account = Account::start([reply]).await;
        errors.push(error(run(&account).await));
        assert_eq!(account.received().len(), 1, "{errors:?}");
    }
    insta::assert_snapshot!(errors.join("\n"), @r#"
    log in: 390142 (the account does not understand this version of the broker: report it)
    log in: 390422 (the account does not let `MYORG-MYACCT.KDBT_SVC` in: a network policy keeps the broker's address out; SECURITYADMIN asks which by SHOW PARAMETERS LIKE 'NETWORK_POLICY' IN USER "KDBT_SVC", the same IN ACCOUNT, and DESCRIBE NETWORK POLICY)
    log in: http-403 (the account does not let `MYORG-MYACCT.KDBT_SVC` in: a network policy keeps the broker's address out, or the SQL API is not allowed; SECURITYADMIN asks which by SHOW PARAMETERS LIKE 'NETWORK_POLICY' IN USER "KDBT_SVC", the same IN ACCOUNT, and DESCRIBE NETWORK POLICY)
    log in: http-302 (there is no SQL API at this address: is the account identifier right?)
    log in: http-404 (there is no SQL API at this address: is the account identifier right?)
    log in: http-405
    log in: 003001 (role `KDBT_BROKER` may not)
    log in: 390186 (the broker's user does not hold the role that it acts as; run as SECURITYADMIN: GRANT ROLE "KDBT_BROKER" TO USER, with its name)
    log in: 001003 (the account does not understand this version of the broker: report it)
    log in: 009999
    "#);
}

#[tokio::test]
async fn an_outcome_that_nobody_knows_is_never_called_refused() {
    for script in [
        vec![empty(408)],
        vec![failed("000604", "57014")],
        vec![failed("000630", "57014")],
        vec![running(), failed("000709", "02000")],
        vec![empty(503), refused_token(None), refused_token(None)],
        vec![running(), empty(403)],
        vec![running(), refused_token(None), refused_token(None)],
    ] {
        let account = Account::start(script).await;
        let failure = run(&account).await.unwrap_err();
        assert!(matches!(failure, Failure::Unknown(_)), "{failure:?}");
    }
    for reply in [
        empty(503),
        Reply::Hang,
        running(),
        Reply::Answer(202, Vec::new(), b"{}".to_vec()),
    ] {
        let account = Account::start([reply]).await;
        let failure = run_within(&account, Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(failure, Failure::Unknown(_)), "{failure:?}");
    }
}

#[tokio::test]
async fn a_refusal_behind_a_lost_answer_says_that_it_is_one() {
    for (script, repeated) in [
        (vec![Reply::Hang, failed("002002", "42710")], true),
        (vec![empty(503), running(), failed("002002", "42710")], true),
        (vec![(429, json!({})).into(), failed("002002", "42710")], false),
        (vec![running(), failed("002002", "42710")], false),
        (vec![failed("002002", "42710")], false),
    ] {
        let account = Account::start(script).await;
        match run(&account).await.unwrap_err() {
            Failure::Refused(refusal) => assert_eq!((&*refusal.code, refusal.repeated), ("002002", repeated)),
            other @ (Failure::NotRun(_) | Failure::Unknown(_)) => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn nothing_is_sent_after_the_deadline() {
    let account = Account::start([done()]).await;
    let failure = run_within(&account, Duration::ZERO).await.unwrap_err();
    assert!(matches!(failure, Failure::NotRun(_)), "{failure:?}");
    let busy = Account::start((0..20).map(|_| (429, json!({})).into())).await;
    let failure = run_within(&busy, Duration::from_millis(500)).await.unwrap_err();
    assert!(matches!(failure, Failure::NotRun(_)), "{failure:?}");
    assert!(account.received().is_empty());
    assert!((2..=5).contains(&busy.received().len()), "{}", busy.received().len());
}

#[tokio::test]
async fn where_nobody_listens_nothing_was_run() {
    let mut account = Account::start([]).await;
    account.url = Url::parse("http://127.0.0.1:1/").unwrap();
    let failure = run_within(&account, Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(failure, Failure::NotRun(_)), "{failure:?}");
}

#[tokio::test]
async fn a_full_issue_lane_does_not_stop_the_end_lane() {
    let account = Account::start([Reply::Silence, done()]).await;
    let mut config = account.config();
    config.issue_calls = 1;
    let api = Arc::new(Api::new(&config, Arc::new(SystemClock)).unwrap());
    let run = |lane, patience| {
        let api = Arc::clone(&api);
        async move { api.run(lane, &Statement::CurrentRole, Instant::now() + patience).await }
    };
    let stuck = TaskTracker::new().spawn(run(Lane::Issue, Duration::from_mins(1)));
    while account.received().is_empty() {
        tokio::task::yield_now().await;
    }
    let queued = run(Lane::Issue, Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(queued, Failure::NotRun(_)), "{queued:?}");
    run(Lane::End, Duration::from_secs(5)).await.unwrap();
    stuck.abort();
}

#[tokio::test]
async fn an_answer_that_is_cut_or_garbled_is_no_answer() {
    let garbled = Reply::Answer(200, vec![("content-encoding", "gzip".into())], b"no gzip".to_vec());
    let account = Account::start([garbled, done()]).await;
    assert_eq!(names(&run(&account).await.unwrap()), ["A"]);
    assert_eq!(account.received()[1].query("retry"), Some("true"));
}

#[tokio::test]
async fn a_200_without_a_result_and_a_part_without_a_handle_say_nothing() {
    let page = || Reply::Answer(200, Vec::new(), b"<html>Sign in to the hotel's network</html>".to_vec());
    let account = Account::start([page(), done()]).await;
    assert_eq!(names(&run(&account).await.unwrap()), ["A"]);
    let mut parts = rows(&json!([["A"], ["B"]]));
    parts["statementHandle"] = Value::Null;
    let account = Account::start([(200, parts).into()]).await;
    let failure = run(&account).await.unwrap_err();
    assert!(matches!(failure, Failure::Unknown(_)), "{failure:?}");
}

#[tokio::test]
async fn no_error_and_no_debug_output_holds_the_key_or_a_token() {
    let account = Account::start([refused_token(None), refused_token(None)]).await;
    let config = account.config();
    let failure = run(&account).await.unwrap_err();
    let debug = format!("{config:?} {failure:?}");
    let printed = format!("{debug} {}", error(Err(failure)));
    let body = config.private_key.expose_secret().lines().nth(1).unwrap();
    assert!(!printed.contains(body) && !printed.contains("PRIVATE KEY"), "{printed}");
    assert!(!printed.contains("eyJ"), "{printed}");
}

#[tokio::test]
async fn only_https_or_this_machine_is_dialled() {
    let account = Account::start([]).await;
    let refusal = |url: Option<&str>| {
        let mut config = account.config();
        config.base_url = url.map(|url| Url::parse(url).unwrap());
        Api::new(&config, Arc::new(SystemClock))
            .err()
            .map(|error| error.to_string())
    };
    for url in [
        "https://private.acme.example/",
        "http://127.0.0.1:8080/",
        "http://[::1]/",
        "http://localhost:1/",
    ] {
        assert_eq!(refusal(Some(url)), None, "{url}");
    }
    assert_eq!(refusal(None), None);
    assert!(
        refusal(Some("http://acme.example/"))
            .unwrap()
            .contains("plain http is for loopback")
    );
    for url in [
        "https://user:secret@acme.example/",
        "https://acme.example/path",
        "https://acme.example/?q",
        "ftp://acme.example/",
    ] {
        let error = refusal(Some(url)).unwrap();
        assert!(
            error.contains("must be `https://host`") && !error.contains("secret"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_bad_authority_or_key_is_refused_at_once() {
    let account = Account::start([]).await;
    let mut config = account.config();
    config.ca_pem = Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned());
    assert!(matches!(
        Api::new(&config, Arc::new(SystemClock)),
        Err(SnowflakeError::Certificates(_))
    ));
    config.ca_pem = None;
    config.private_key = "no key".into();
    assert!(matches!(
        Api::new(&config, Arc::new(SystemClock)),
        Err(SnowflakeError::Key(_))
    ));
}

/// A documented answer, retyped from the page that its file names.
fn documented(name: &str) -> Reply {
    let file: Value = serde_json::from_str(&fixture(&format!("answers/{name}.json"))).unwrap();
    let status = file["status"].as_u64().and_then(|status| u16::try_from(status).ok());
    let body = file["body"].clone();
    if body.is_null() {
        empty(status.unwrap())
    } else {
        (status.unwrap(), body).into()
    }
}

#[tokio::test]
async fn every_documented_answer_means_what_its_page_says() {
    let mut seen = std::collections::BTreeSet::new();
    for (names, meaning) in [
        (&["ok_one_partition"][..], "done"),
        (&["ok_ddl"], "done"),
        (&["ok_two_partitions_first", "ok_two_partitions_second"], "done"),
        (&["running", "ok_ddl"], "done"),
        (&["too_many_requests", "ok_ddl"], "done"),
        (&["unavailable", "ok_ddl"], "done"),
        (&["token_invalid", "ok_ddl"], "done"),
        (&["token_invalid", "token_invalid_long"], "refused 390144"),
        (&["oauth_token_invalid", "oauth_token_invalid"], "refused 390303"),
        (&["bad_payload"], "refused 390142"),
        (&["forbidden"], "refused http-403"),
        (&["forbidden_by_network_policy"], "refused 390422"),
        (&["method_not_allowed"], "refused http-405"),
        (&["timed_out"], "unknown"),
        (&["cancelled", "cancelled", "cancelled"], "unknown"),
        (&["already_exists"], "refused 002002"),
        (&["missing_or_not_authorized"], "refused 002003"),
        (&["insufficient_privileges"], "refused 003001"),
        (&["invalid_identifier"], "refused 000904"),
        (&["unknown_statement_handle"], "unknown"),
        (&["binding_not_recognized"], "refused 100037"),
        (&["many_statements_failed"], "refused 100132"),
    ] {
        seen.extend(names.iter().copied());
        let account = Account::start(names.iter().map(|name| documented(name))).await;
        let means = match run_within(&account, Duration::from_secs(3)).await {
            Ok(_) => "done".to_owned(),
            Err(Failure::Refused(refusal)) => format!("refused {}", refusal.code),
            Err(Failure::Unknown(_)) => "unknown".to_owned(),
            Err(Failure::NotRun(_)) => "not run".to_owned(),
        };
        assert_eq!(means, meaning, "{names:?}");
    }
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/snowflake/answers");
    for file in std::fs::read_dir(folder).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        assert!(seen.contains(name.trim_end_matches(".json")), "{name} is not replayed");
    }
}

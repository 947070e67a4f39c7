//! Requests that lie about their length, their form or their body, with a good token and without.

use kdbt_broker::identity::Reason as R;

use super::{Row, check, row};

/// A good verifier; whatever becomes of it, nobody repeats it.
pub(super) const VERIFIER: &str = "SCRAM-SHA-256$4096:MDEyMzQ1Njc4OWFiY2RlZg==$\
    QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY=:Z2hpamtsbW5vcHFyc3R1dnd4eXoyMzQ1Njc4OTAxMjM=";
/// What stands in broken bodies, as a secret would that somebody put into the wrong place.
pub(super) const CANARY: &str = "Hunter2AndTheSecretThatNobodyRepeats9";

const MALFORMED: (u16, &str) = (400, "malformed-request");
const INVALID: (u16, &str) = (422, "invalid-order");

#[tokio::test]
async fn a_request_is_read_in_one_way_or_not_at_all() {
    let smuggled = "GET /v1/targets HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let rows: Vec<Row> = vec![
        row("HTTP", "a target in absolute form is its path")
            .request(|r| r.line("POST http://elsewhere.example/v1/leases HTTP/1.1")),
        row("HTTP", "HTTP/1.0 is served").request(|r| r.line("POST /v1/leases HTTP/1.0").without("Host")),
        row("HTTP", "an empty line before the request does not count")
            .request(|r| r.line("\r\nPOST /v1/leases HTTP/1.1")),
        row("HTTP", "lines may end without a carriage return").request(|r| r.line_end("\n")),
        row("HTTP", "a body in chunks is read")
            .request(|r| r.chunked("8\r\n{\"target\r\na\r\n\": \"team\"}\r\n0\r\n\r\n")),
        row("HTTP", "chunks may have extensions and trailers")
            .request(|r| r.chunked("12;a=b\r\n{\"target\": \"team\"}\r\n0\r\nX-Trailer: y\r\n\r\n")),
        row("HTTP", "a wish for another protocol is not heard").request(|r| {
            r.set("Connection", "close, Upgrade, HTTP2-Settings")
                .with("Upgrade", "h2c")
                .with("HTTP2-Settings", "AAMAAABkAAQAAP__")
        }),
        row("HTTP", "headers that rewrite the request elsewhere do nothing here").request(|r| {
            r.with("X-HTTP-Method-Override", "DELETE")
                .with("X-Original-URL", "/metrics")
                .with("X-Forwarded-Host", "evil")
                .with("X-Request-Id", "mine")
        }),
        row("HTTP", "whoever waits for leave to send a body gets it")
            .request(|r| r.with("Expect", "100-continue"))
            .statuses(&[100, 201]),
        row("R1", "whoever has no token gets no leave")
            .request(|r| r.without("Authorization").with("Expect", "100-continue"))
            .refused(R::MissingToken),
        row("HTTP", "the same length twice is one length").request(|r| r.raw("Content-Length: 18")),
        row("HTTP", "two lengths are refused")
            .request(|r| r.raw("Content-Length: 19"))
            .statuses(&[400]),
        row("HTTP", "a length with a sign is refused")
            .request(|r| r.set("Content-Length", "+18"))
            .statuses(&[400]),
        row("HTTP", "a negative length is refused")
            .request(|r| r.set("Content-Length", "-1"))
            .statuses(&[400]),
        row("HTTP", "a length in a list is refused")
            .request(|r| r.set("Content-Length", "18, 19"))
            .statuses(&[400]),
        row("HTTP", "a length above all numbers is refused")
            .request(|r| r.set("Content-Length", "99999999999999999999999"))
            .statuses(&[400]),
        row("HTTP", "a length above the limit is refused unread")
            .request(|r| r.set("Content-Length", "65537"))
            .problem(413, "payload-too-large"),
        row("HTTP", "a body that ends too early books nothing")
            .request(|r| r.set("Content-Length", "500").hang_up())
            .problem(MALFORMED.0, MALFORMED.1),
        row("HTTP", "a body that is longer than it says is cut there")
            .request(|r| r.set("Content-Length", "5"))
            .problem(MALFORMED.0, MALFORMED.1),
        row("HTTP", "length and chunks at once end the connection").request(move |r| {
            r.raw("Transfer-Encoding: chunked")
                .body(format!("12\r\n{{\"target\": \"team\"}}\r\n0\r\n\r\n{smuggled}"))
                .without("Connection")
        }),
        row("HTTP", "chunks in another order of headers do too").request(move |r| {
            r.without("Content-Length")
                .raw("Transfer-Encoding: chunked")
                .raw("Content-Length: 5")
                .body(format!("12\r\n{{\"target\": \"team\"}}\r\n0\r\n\r\n{smuggled}"))
                .without("Connection")
        }),
        row("HTTP", "a coding that is not chunked is refused")
            .request(|r| r.chunked("").set("Transfer-Encoding", "identity"))
            .statuses(&[400]),
        row("HTTP", "chunked before another coding is refused")
            .request(|r| r.chunked("").set("Transfer-Encoding", "chunked, gzip"))
            .statuses(&[400]),
        row("HTTP", "a coding that only sounds like chunked is refused")
            .request(|r| r.chunked("").set("Transfer-Encoding", "xchunked"))
            .statuses(&[400]),
        row("HTTP", "chunks in HTTP/1.0 are refused")
            .request(|r| r.line("POST /v1/leases HTTP/1.0").chunked("0\r\n\r\n"))
            .statuses(&[400]),
        row("HTTP", "a request in the body of a refused one is not served")
            .request(move |r| r.without("Authorization").json(smuggled).then(smuggled))
            .statuses(&[401, 401]),
        row("HTTP", "two requests in a row are two")
            .request(move |r| r.then(smuggled))
            .statuses(&[201, 401]),
        row("HTTP", "a folded header is refused")
            .request(|r| r.raw("X-Long: a\r\n  b"))
            .statuses(&[400]),
        row("HTTP", "a folded token is refused")
            .request(|r| {
                let t = r.token.clone();
                r.without("Authorization").raw(format!("Authorization: Bearer\r\n {t}"))
            })
            .statuses(&[400]),
        row("HTTP", "a blank before a colon is refused")
            .request(|r| {
                let t = r.token.clone();
                r.without("Authorization").raw(format!("Authorization : Bearer {t}"))
            })
            .statuses(&[400]),
        row("HTTP", "a header without a name is refused")
            .request(|r| r.raw(": x"))
            .statuses(&[400]),
        row("HTTP", "a NUL in a header is refused")
            .request(|r| r.raw(b"X: a\0b"))
            .statuses(&[400]),
        row("HTTP", "a bare carriage return in a header is refused")
            .request(|r| r.raw(b"X: a\rb: c"))
            .statuses(&[400]),
        row("HTTP", "an unknown version is refused")
            .request(|r| r.line("POST /v1/leases HTTP/3.0"))
            .statuses(&[400]),
        row("HTTP", "two spaces in the first line are refused")
            .request(|r| r.line("POST  /v1/leases HTTP/1.1"))
            .statuses(&[400]),
        row("HTTP", "headers above the limit are refused")
            .request(|r| r.with("X-Filler", &"x".repeat(17_000)))
            .problem(431, "headers-too-large"),
        row("HTTP", "too many headers are refused")
            .request(|r| (0..200).fold(r, |r, n| r.with(&format!("X-{n}"), "y")))
            .statuses(&[431]),
        row("HTTP", "a URL above the limit is refused")
            .request(|r| r.line(format!("POST /v1/leases?x={} HTTP/1.1", "y".repeat(5000))))
            .problem(414, "uri-too-long"),
        row("HTTP", "no host is refused")
            .request(|r| r.without("Host"))
            .problem(MALFORMED.0, MALFORMED.1),
        row("HTTP", "two hosts are refused")
            .request(|r| r.with("Host", "elsewhere.example"))
            .problem(MALFORMED.0, MALFORMED.1),
    ];
    check(rows).await;
}

#[tokio::test]
async fn a_path_is_what_it_says_and_nothing_is_told_of_it_without_a_token() {
    let mut rows: Vec<Row> = vec![
        row("HTTP", "a method in lower case is another one")
            .request(|r| r.line("post /v1/leases HTTP/1.1"))
            .problem(405, "method-not-allowed"),
        row("HTTP", "TRACE is refused")
            .request(|r| r.line("TRACE /v1/leases HTTP/1.1"))
            .problem(405, "method-not-allowed"),
        row("HTTP", "PUT is refused")
            .request(|r| r.line("PUT /v1/leases HTTP/1.1"))
            .problem(405, "method-not-allowed"),
        row("HTTP", "a wrong method without a token is told nothing")
            .request(|r| r.without("Authorization").line("PUT /v1/leases HTTP/1.1"))
            .refused(R::MissingToken),
        row("HTTP", "an unknown path without a token is told nothing")
            .request(|r| r.without("Authorization").line("GET /v1/secrets HTTP/1.1"))
            .refused(R::MissingToken),
        row("HTTP", "a lease that is none without a token is told nothing")
            .request(|r| r.without("Authorization").get("/v1/leases/lse_0"))
            .refused(R::MissingToken),
        row("HTTP", "a wrong content type without a token is told nothing")
            .request(|r| r.without("Authorization").set("Content-Type", "text/plain"))
            .refused(R::MissingToken),
        row("HTTP", "a query with an unknown name is refused")
            .request(|r| r.get("/v1/leases?limt=5"))
            .problem(MALFORMED.0, MALFORMED.1),
        row("HTTP", "a query with a name that stands twice is refused")
            .request(|r| r.get("/v1/leases?limit=5&limit=6"))
            .problem(MALFORMED.0, MALFORMED.1),
        row("HTTP", "a secret as the name of a query member is not repeated")
            .request(|r| r.get(&format!("/v1/leases?{CANARY}=1")))
            .problem(MALFORMED.0, MALFORMED.1),
        row("HTTP", "a token as the name of a query member is not repeated")
            .request(|r| {
                let t = r.token.clone();
                let cut = t.split('.').nth(1).unwrap()[..200].to_owned();
                r.get(&format!("/v1/leases?{cut}=1"))
            })
            .problem(MALFORMED.0, MALFORMED.1),
        row("HTTP", "a token as a path is not repeated")
            .request(|r| {
                let t = r.token.clone();
                r.get(&format!("/v1/leases/{}", &t[..1000]))
            })
            .problem(404, "not-found"),
    ];
    for path in [
        "/v1/leases/",
        "/v1//leases",
        "//v1/leases",
        "/V1/leases",
        "/v1/%6ceases",
        "/v1%2Fleases",
        "/v1/./leases",
        "/v1/../v1/leases",
        "/v1/leases/..%2f..%2fmetrics",
        "/v1/leases/%00",
        "/v1/leases;x=1",
        "/metrics",
        "/v1/../metrics",
        "/v1/leases/lse_00000000000070008000000000000000%2frenew",
        "/v1/leases/%ff",
        "*",
    ] {
        rows.push(
            row("HTTP", "a path in another spelling is another path")
                .request(move |r| r.line(format!("GET {path} HTTP/1.1")))
                .problem(404, "not-found"),
        );
    }
    check(rows).await;
}

#[tokio::test]
async fn a_body_is_strict_json_and_no_answer_repeats_what_stands_in_it() {
    let order = |name, body: String| row("body", name).request(move |r| r.json(&body));
    let bad = |name, answer: (u16, &'static str), body: String| order(name, body).problem(answer.0, answer.1);
    let secret = CANARY;
    let key = |name, value: String| row("body", name).request(move |r| r.with("Idempotency-Key", &value));
    let rows: Vec<Row> = vec![
        order(
            "blanks around the body are JSON",
            "\r\n\t {\"target\": \"team\"} \n".to_owned(),
        ),
        order("escapes in a name are read", r#"{"\u0074arget": "team"}"#.to_owned()),
        order(
            "a verifier of the caller's is taken",
            format!(r#"{{"target": "team", "verifier": "{VERIFIER}"}}"#),
        ),
        row("body", "a content type may have capitals and a charset")
            .request(|r| r.set("Content-Type", "Application/JSON ; charset=UTF-8")),
        bad("an empty body", MALFORMED, String::new()),
        bad(
            "a byte order mark",
            MALFORMED,
            "\u{feff}{\"target\": \"team\"}".to_owned(),
        ),
        bad(
            "a name that stands twice",
            MALFORMED,
            r#"{"target": "team", "target": "dev"}"#.to_owned(),
        ),
        bad(
            "a name in escapes that stands twice",
            MALFORMED,
            r#"{"target": "team", "\u0074arget": "dev"}"#.to_owned(),
        ),
        bad("a second value", MALFORMED, r#"{"target": "team"}{}"#.to_owned()),
        bad(
            "deep nesting",
            MALFORMED,
            format!(r#"{{"target": {}{}}}"#, "[".repeat(20_000), "]".repeat(20_000)),
        ),
        bad(
            "many members",
            MALFORMED,
            format!(
                "{{{}}}",
                (0..200).map(|n| format!("\"m{n}\":1")).collect::<Vec<_>>().join(",")
            ),
        ),
        bad(
            "a huge number",
            MALFORMED,
            r#"{"target": "team", "ttl": 1e999}"#.to_owned(),
        ),
        bad("a number for a text", MALFORMED, r#"{"target": 7}"#.to_owned()),
        bad(
            "null for nothing",
            MALFORMED,
            r#"{"target": "team", "ttl": null}"#.to_owned(),
        ),
        bad("a list", MALFORMED, r#"["team"]"#.to_owned()),
        bad("a lone surrogate", MALFORMED, r#"{"target": "\ud800"}"#.to_owned()),
        bad("a comment", MALFORMED, "{\"target\": \"team\"} // x".to_owned()),
        bad(
            "an unknown member with a secret",
            MALFORMED,
            format!(r#"{{"target": "team", "password": "{secret}"}}"#),
        ),
        bad(
            "a secret as the name of a member",
            MALFORMED,
            format!(r#"{{"target": "team", "{secret}": 1}}"#),
        ),
        bad(
            "a verifier as the name of a member",
            MALFORMED,
            format!(r#"{{"target": "team", "{VERIFIER}": 1}}"#),
        ),
        bad(
            "a secret as the name of two members",
            MALFORMED,
            format!(r#"{{"{secret}": 1, "{secret}": 1}}"#),
        ),
        bad("a secret as a target", INVALID, format!(r#"{{"target": "{secret}!"}}"#)),
        bad(
            "a secret as a time",
            INVALID,
            format!(r#"{{"target": "team", "ttl": "{secret}"}}"#),
        ),
        bad(
            "a secret as a verifier",
            INVALID,
            format!(r#"{{"target": "team", "verifier": "{secret}"}}"#),
        ),
        bad(
            "a plain password for a verifier",
            INVALID,
            format!(r#"{{"target": "team", "verifier": "md5{secret}"}}"#),
        ),
        bad(
            "a proof of a caller with a session",
            INVALID,
            r#"{"target": "team", "owner_proof": "AAAA"}"#.to_owned(),
        ),
        bad(
            "SQL for a target",
            INVALID,
            r#"{"target": "team\"; DROP ROLE postgres; --"}"#.to_owned(),
        ),
        bad(
            "a reason above its length",
            INVALID,
            format!(r#"{{"target": "team", "reason": "{}"}}"#, "r".repeat(501)),
        ),
        row("body", "bytes that are not UTF-8")
            .request(|r| r.json(b"{\"target\": \"te\xff\xfeam\"}"))
            .problem(MALFORMED.0, MALFORMED.1),
        row("body", "UTF-16")
            .request(|r| r.json(b"{\0}\0"))
            .problem(MALFORMED.0, MALFORMED.1),
        row("body", "another content type")
            .request(|r| r.set("Content-Type", "text/plain"))
            .problem(415, "unsupported-media-type"),
        row("body", "no content type")
            .request(|r| r.without("Content-Type"))
            .problem(415, "unsupported-media-type"),
        row("body", "a form")
            .request(|r| {
                r.set("Content-Type", "application/x-www-form-urlencoded")
                    .json("target=team")
            })
            .problem(415, "unsupported-media-type"),
        row("body", "two content types")
            .request(|r| r.with("Content-Type", "text/plain"))
            .problem(415, "unsupported-media-type"),
        row("body", "a list of content types")
            .request(|r| r.set("Content-Type", "application/json, text/plain"))
            .problem(415, "unsupported-media-type"),
        row("body", "JSON of another sort")
            .request(|r| r.set("Content-Type", "application/json5"))
            .problem(415, "unsupported-media-type"),
        key("a key of 255 characters is taken", "k".repeat(255)),
        key(
            "a secret as a key is not kept",
            format!("{CANARY}-{}", kdbt_e2e::postgres::unique()),
        ),
        key("an empty key is refused", String::new()).problem(MALFORMED.0, MALFORMED.1),
        key("a key with a space is refused", "a b".to_owned()).problem(MALFORMED.0, MALFORMED.1),
        key("a key of 256 characters is refused", "k".repeat(256)).problem(MALFORMED.0, MALFORMED.1),
        key("a key of other letters is refused", "schl\u{fc}ssel".to_owned()).problem(MALFORMED.0, MALFORMED.1),
        row("body", "two keys are refused")
            .request(|r| r.with("Idempotency-Key", "a").with("idempotency-key", "a"))
            .problem(MALFORMED.0, MALFORMED.1),
    ];
    check(rows).await;
}

/// S3: what hangs a server, becomes a plain password or stands for none. The server hears of none of them.
#[tokio::test]
async fn a_verifier_of_another_form_than_ours_is_refused_before_the_server_hears_of_it() {
    let (head, keys) = VERIFIER.rsplit_once('$').unwrap();
    let (stored, server) = keys.split_once(':').unwrap();
    let salt = head.rsplit_once(':').unwrap().1;
    let rounds = |count: &str| VERIFIER.replace("4096", count);
    let forms = [
        rounds("2147483647"),
        rounds("4294967297"),
        rounds("20000000"),
        rounds("4095"),
        rounds("2"),
        rounds("0"),
        rounds("-1"),
        rounds("-5"),
        rounds("+1"),
        rounds("1e3"),
        rounds(""),
        VERIFIER[..VERIFIER.len() - 8].to_owned(),
        format!("{VERIFIER}AAAA"),
        "SCRAM-SHA-256$1:YQ==$YQ==:YQ==".to_owned(),
        format!("{head}$YQ==:YQ=="),
        format!("{head}${stored}:"),
        format!("{head}$:{server}"),
        format!("{head}${stored}"),
        format!("{head}${stored}{stored}:{server}"),
        format!("{head}${stored}:{server}:{server}"),
        VERIFIER.replace(salt, ""),
        VERIFIER.replace(salt, "YQ=="),
        VERIFIER.replace(salt, &"A".repeat(4096)),
        VERIFIER.replace("SHA-256", "SHA-1"),
        VERIFIER.replace("SCRAM", "scram"),
        format!("{VERIFIER}'; ALTER ROLE postgres PASSWORD 'x"),
        String::new(),
    ];
    let rows = forms.into_iter().map(|form| {
        let order = serde_json::json!({ "target": "team", "verifier": form }).to_string();
        let row = row("S3", "a verifier of another form").request(move |r| r.json(&order));
        row.problem(INVALID.0, INVALID.1)
    });
    check(rows.collect()).await;
}

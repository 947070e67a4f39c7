//! R9 to R24: what the claims of an access token are, and what its roles open.

use kdbt_broker::identity::Reason as R;
use serde_json::{Value, json};

use super::{Row, World, check, now, row};

/// Roles that are written in two ways: in `cafe-composed` the accent is part of the letter, in `cafe-combined` it follows.
pub(super) const ACCENTS: &str = r#"kdbt: 1
rules:
  - id: cafe-composed
    why: The accent is part of the letter.
    when: { realm_roles: ["caf\u00e9"] }
    targets: [team]
    create_as: { postgres: dbt_analytics }
    ttl: { min: 1s, default: 10m, max: 1h }
    profile: { schema: analytics }
  - id: cafe-combined
    why: The accent follows the letter.
    when: { realm_roles: ["the\u0301"] }
    targets: [team]
    create_as: { postgres: dbt_analytics }
    ttl: { min: 1s, default: 10m, max: 1h }
    profile: { schema: analytics }
"#;

/// A row for each value of one claim.
fn each(
    rule: &'static str,
    name: &'static str,
    claim: &'static str,
    values: impl IntoIterator<Item = Value>,
) -> Vec<Row> {
    values
        .into_iter()
        .map(|value| row(rule, name).claim(claim, value))
        .collect()
}

fn refuse(rows: Vec<Row>, reason: R) -> impl Iterator<Item = Row> {
    rows.into_iter().map(move |row| row.refused(reason))
}

fn without(rule: &'static str, name: &'static str, claim: &'static str) -> Row {
    row(rule, name).token(move |t| t.without(claim))
}

#[tokio::test]
async fn a_payload_is_one_strict_object_of_a_configured_issuer_for_our_audience() {
    let world = World::shared().await;
    let issuer = world.issuer().url().to_owned();
    let payload = |name, edit: fn(String) -> String| {
        row("R9", name)
            .token(move |t| {
                let text = t.payload().to_string();
                t.payload_bytes(edit(text))
            })
            .refused(R::MalformedPayload)
    };
    let mut rows = vec![
        row("R9", "a claim that nobody knows may stand there")
            .claim("favourite", json!({"a": [1, 2.5, null, "\u{1f600}"]})),
        row("R9", "escapes in a name that stands once are read").token_in(|_, t| {
            let text = t.payload().to_string().replace("\"iss\"", "\"\\u0069ss\"");
            t.payload_bytes(text)
        }),
        row("R9", "blanks around the object are JSON").token(|t| {
            let text = format!("\r\n\t {} \n", t.payload());
            t.payload_bytes(text)
        }),
        row("R9", "a name that stands twice is refused")
            .token(|t| t.repeated("sub", "sub-of-another"))
            .refused(R::MalformedPayload),
        row("R9", "a harmless name that stands twice is refused")
            .token(|t| t.repeated("canary", "x"))
            .refused(R::MalformedPayload),
        payload("a name in escapes that stands twice is refused", |p| {
            p.replacen('{', r#"{"\u0069ss":"x","#, 1)
        }),
        payload("a name that stands twice deep inside is refused", |p| {
            p.replacen('{', r#"{"x":{"y":[{"z":1,"z":2}]},"#, 1)
        }),
        payload("deep nesting is refused", |p| {
            p.replacen('{', &format!(r#"{{"x":{}{},"#, "[".repeat(900), "]".repeat(900)), 1)
        }),
        payload("a lone surrogate is refused", |p| {
            p.replacen('{', r#"{"x":"\ud800","#, 1)
        }),
        payload("a byte order mark is refused", |p| format!("\u{feff}{p}")),
        payload("a second object is refused", |p| format!("{p}{{}}")),
        payload("a NUL behind the object is refused", |p| format!("{p}\0")),
        payload("a comma too many is refused", |p| p.replacen('{', "{,", 1)),
        payload("a comment is refused", |p| format!("{p}/* */")),
        payload("a number that no float holds is refused", |p| {
            p.replacen('{', r#"{"x":1e999,"#, 1)
        }),
        payload("NaN is refused", |p| p.replacen('{', r#"{"x":NaN,"#, 1)),
        payload("a list is refused", |_| "[]".to_owned()),
        payload("a text is refused", |_| "\"x\"".to_owned()),
        payload("half an object is refused", |p| p[..p.len() - 1].to_owned()),
        row("R9", "what is not UTF-8 is refused")
            .token(|t| t.payload_bytes(b"{\"iss\":\"\xff\xfe\"}"))
            .refused(R::MalformedPayload),
        row("R9", "a compressed payload is refused")
            .token(|t| t.payload_bytes(b"\x1f\x8b\x08\x00"))
            .refused(R::MalformedPayload),
        without("R10", "a token without an issuer is refused", "iss").refused(R::InvalidIssuer),
        without("R11", "a token without an audience is refused", "aud").refused(R::MissingAudience),
        row("S17", "the audience of one issuer is none of another's")
            .strict()
            .claim("aud", "kdbt-broker")
            .refused(R::WrongAudience),
        row("R11", "a lightweight token is named as such")
            .token(|t| {
                ["aud", "sub", "realm_access", "resource_access", "groups"]
                    .into_iter()
                    .fold(t, super::TokenForge::without)
            })
            .refused(R::LightweightToken),
    ];
    let near = [
        format!("{issuer}/"),
        issuer.to_uppercase(),
        issuer.replace("kdbt", "other"),
        issuer.replace("http:", "https:"),
        issuer.replace("127.0.0.1", "localhost"),
        format!(" {issuer}"),
        format!("{issuer}?"),
        format!("{issuer}#"),
        issuer.replace("/realms", "//realms"),
        issuer.replace("http://", "http://user@"),
        String::new(),
        format!("{issuer}\0"),
        "https://attacker.example".to_owned(),
    ]
    .map(Value::from);
    rows.extend(refuse(
        each("R10", "an issuer that is only nearly ours is unknown", "iss", near),
        R::UnknownIssuer,
    ));
    let kinds = [
        json!([issuer]),
        json!(null),
        json!(1),
        json!({"iss": issuer}),
        json!(true),
    ];
    rows.extend(refuse(
        each("R10", "an issuer that is no text is refused", "iss", kinds),
        R::InvalidIssuer,
    ));
    rows.extend(each(
        "R11",
        "an audience with ours among them is taken",
        "aud",
        [
            json!("kdbt-broker"),
            json!(["kdbt-broker"]),
            json!(["account", "kdbt-broker"]),
            json!(["kdbt-broker", "kdbt-broker"]),
        ],
    ));
    let others = [
        json!("account"),
        json!(["account"]),
        json!("kdbt-cli"),
        json!("kdbt-broker-dev"),
        json!("my-kdbt-broker"),
        json!("KDBT-BROKER"),
        json!("kdbt-broker account"),
        json!("kdbt-broker "),
        json!("kdbt-broke"),
        json!(""),
        json!([""]),
        json!("*"),
        json!("kdbt\u{2010}broker"),
        json!("kdbt-strict"),
    ];
    rows.extend(refuse(
        each("R11", "another audience is refused", "aud", others),
        R::WrongAudience,
    ));
    let kinds = [
        json!(null),
        json!(1),
        json!({"kdbt-broker": true}),
        json!([]),
        json!(["kdbt-broker", 1]),
        json!([["kdbt-broker"]]),
        json!([null, "kdbt-broker"]),
        json!(true),
    ];
    rows.extend(refuse(
        each("R11", "an audience that is no list of texts is refused", "aud", kinds),
        R::InvalidAudience,
    ));
    check(rows).await;
}

#[tokio::test]
async fn a_token_is_taken_within_its_times_and_no_longer() {
    let at =
        |rule, name, claim: &'static str, seconds: i64| row(rule, name).token(move |t| t.claim(claim, now() + seconds));
    let moved = |rule, name, seconds| row(rule, name).token(move |t| t.moved_by(seconds));
    let mut rows = vec![
        moved("R12", "a token that expired two seconds ago is taken", -302),
        row("R12", "fractions of a second are numbers too")
            .token(|t| t.raw_claim("exp", &format!("{}.75", now() + 200))),
        row("R12", "an exponent is a number too").token(|t| t.raw_claim("exp", &format!("{}e1", (now() + 200) / 10))),
        moved("R12", "a token that expired fourteen seconds ago is refused", -314).refused(R::Expired),
        moved("R12", "a token that expired an hour ago is refused", -3600).refused(R::Expired),
        at("R12", "a token that ends before it begins is refused", "exp", -3).refused(R::InvalidExpiry),
        row("R12", "a zero is an expiry long past")
            .claim("exp", 0)
            .refused(R::Expired),
        without("R12", "a token without an end is refused", "exp").refused(R::InvalidExpiry),
        at("R13", "a start that has passed is fine", "nbf", -100),
        at(
            "R13",
            "a start five seconds ahead is within what clocks may differ",
            "nbf",
            5,
        ),
        row("R13", "a start of zero, as old Keycloaks send it, is fine").claim("nbf", 0),
        at("R13", "a start a minute ahead is refused", "nbf", 60).refused(R::NotYetValid),
        at("R14", "a token issued five seconds ahead is taken", "iat", 5),
        at("R14", "a token issued a minute ahead is refused", "iat", 60).refused(R::IssuedInFuture),
        without("R14", "a token that does not say when it was issued is refused", "iat").refused(R::InvalidIssuedAt),
        row("R14", "a token older than an hour is refused")
            .claim("iat", now() - 3700)
            .refused(R::TokenTooOld),
        row("R14", "a token without age is refused as too old")
            .claim("iat", 0)
            .refused(R::TokenTooOld),
        at("R14", "a token that lives longer than an hour is refused", "exp", 3700).refused(R::LifetimeTooLong),
        row("R14", "a token for ever is refused")
            .claim("exp", 253_402_300_799_i64)
            .refused(R::LifetimeTooLong),
        row("R14", "an issuer's own limit of age holds")
            .strict()
            .token(|t| t.claim("iat", now() - 130))
            .refused(R::TokenTooOld),
        row("R14", "an issuer's own limit of life holds")
            .strict()
            .token(|t| t.claim("exp", now() + 330))
            .refused(R::LifetimeTooLong),
    ];
    for (rule, name, claim, reason) in [
        ("R12", "an end that is no number is refused", "exp", R::InvalidExpiry),
        (
            "R13",
            "a start that is no number is refused",
            "nbf",
            R::InvalidNotBefore,
        ),
        (
            "R14",
            "an issue that is no number is refused",
            "iat",
            R::InvalidIssuedAt,
        ),
    ] {
        let kinds = [
            json!((now() + 100).to_string()),
            json!(null),
            json!([now() + 100]),
            json!(true),
            json!({}),
            json!(-1),
            json!(1e300),
            json!(99_999_999_999_999_u64),
        ];
        rows.extend(refuse(each(rule, name, claim, kinds), reason));
    }
    check(rows).await;
}

#[tokio::test]
async fn only_an_unbound_access_token_of_a_listed_client_and_a_possible_subject_is_taken() {
    let mut rows = vec![
        without("R15", "a token without a type is refused", "typ").refused(R::NotAnAccessToken),
        row("R19", "a type of DPoP is a bound token")
            .claim("typ", "DPoP")
            .refused(R::BoundToken),
        without("R17", "a token without a client is refused", "azp").refused(R::UnauthorizedParty),
        row("R17", "a service's client without a session is a service")
            .token(|t| t.claim("azp", "kdbt-ci").without("sid")),
        row("R17", "a person's login through a service's client is refused")
            .claim("azp", "kdbt-ci")
            .refused(R::UnauthorizedParty),
        row("R17", "a client of one issuer is none of another's")
            .strict()
            .claim("azp", "kdbt-ci")
            .refused(R::UnauthorizedParty),
        row("R17", "the neighbour with full scope is refused")
            .token_in(|w, _| w.issuer().open(&w.issuer().tokens_of("ada", "other-app").access))
            .refused(R::UnauthorizedParty),
        row("R15", "an ID token is refused")
            .token_in(|w, _| w.issuer().open(&w.issuer().tokens_for("ada").id.unwrap()))
            .refused(R::NotAnAccessToken),
        row("R3", "a refresh token is refused")
            .text(|t| t)
            .token_in(|w, _| {
                w.issuer()
                    .open(&w.issuer().tokens_for("ada").refresh.unwrap())
                    .header("alg", "HS512")
            })
            .refused(R::AlgorithmNotAllowed),
        without("R18", "a token without a subject is refused", "sub").refused(R::InvalidSubject),
        row("R22", "the required scope is a word among others")
            .strict()
            .claim("scope", "kdbt openid email"),
        without("R22", "without the required scope a token is refused", "scope")
            .strict()
            .refused(R::MissingScope),
        without("R21", "no session, login time or class is needed", "auth_time"),
    ];
    let kinds = [
        "ID",
        "Refresh",
        "Offline",
        "Logout",
        "bearer",
        "BEARER",
        "Bearer ",
        "",
        "Serialized-ID",
    ]
    .map(Value::from);
    rows.extend(refuse(
        each(
            "R15",
            "another type is refused",
            "typ",
            kinds.into_iter().chain([json!(null), json!(["Bearer"]), json!(1)]),
        ),
        R::NotAnAccessToken,
    ));
    for name in [
        "nonce",
        "at_hash",
        "c_hash",
        "s_hash",
        "events",
        "sub_id",
        "request_body_sha256",
    ] {
        rows.extend(refuse(
            each(
                "R16",
                "a claim of other tokens is refused, even if null",
                name,
                [json!("x"), json!(null)],
            ),
            R::ForeignClaims,
        ));
    }
    let parties = [
        json!("other-app"),
        json!("KDBT-CLI"),
        json!("kdbt-cli "),
        json!("kdbt-cl\u{456}"),
        json!(""),
        json!(null),
        json!(["kdbt-cli"]),
        json!("account-console"),
        json!("kdbt-cli,kdbt-ci"),
    ];
    rows.extend(refuse(
        each("R17", "another client is refused", "azp", parties),
        R::UnauthorizedParty,
    ));
    rows.extend(each(
        "R18",
        "an odd subject is a subject",
        "sub",
        [
            json!("f:8c1d:ada"),
            json!("王伟"),
            json!("s".repeat(255)),
            json!("'; DROP ROLE x; --"),
            json!("e\u{301}"),
            json!("{{ env_var('X') }}"),
        ],
    ));
    let subjects = [
        json!(""),
        json!("s".repeat(256)),
        json!("a\nb"),
        json!("a\u{0}"),
        json!("a\u{85}"),
        json!(1),
        json!(null),
        json!(["a"]),
    ];
    rows.extend(refuse(
        each("R18", "an impossible subject is refused", "sub", subjects),
        R::InvalidSubject,
    ));
    rows.extend(refuse(
        each(
            "R19",
            "a bound token is never a plain one",
            "cnf",
            [json!({"jkt": "x"}), json!({"x5t#S256": "x"}), json!({}), json!(null)],
        ),
        R::BoundToken,
    ));
    rows.extend(refuse(
        each(
            "R20",
            "a token of an impersonated session is refused",
            "act",
            [json!({"sub": "admin"}), json!({}), json!(null)],
        ),
        R::DelegatedToken,
    ));
    for (claim, values) in [
        ("auth_time", [json!("1"), json!(null), json!(-1)]),
        ("acr", [json!(1), json!(null), json!([])]),
        ("sid", [json!(""), json!(1), json!(null)]),
        ("jti", [json!(""), json!("j".repeat(256)), json!("a\tb")]),
        ("scope", [json!(["kdbt"]), json!(null), json!(1)]),
    ] {
        rows.extend(refuse(
            each(
                "R21",
                "a claim that decides something is of the right kind",
                claim,
                values,
            ),
            R::InvalidClaim,
        ));
    }
    let scopes = [
        "",
        "openid",
        "kdbt-admin",
        "notkdbt",
        "KDBT",
        "kdbt,openid",
        "kdbt\topenid",
    ]
    .map(Value::from);
    rows.extend(refuse(
        each(
            "R22",
            "a scope that only holds the word in another is refused",
            "scope",
            scopes,
        )
        .into_iter()
        .map(Row::strict)
        .collect(),
        R::MissingScope,
    ));
    check(rows).await;
}

#[tokio::test]
async fn roles_are_lists_of_texts_and_open_only_what_the_policy_says_of_exactly_them() {
    let realm = |roles: Value| json!({ "roles": roles });
    let mut rows = vec![
        row("R23", "a thousand roles and groups are taken").claim("groups", vec!["/r"; 900]),
        row("R23", "more than a thousand are refused")
            .claim("groups", vec!["/r"; 1001])
            .refused(R::InvalidRoles),
        row("R23", "roles of clients that nobody knows may stand there").claim(
            "resource_access",
            json!({"x": {}, "y": {"roles": [], "verified": true}}),
        ),
        row("R24", "a right role among others opens").claim("realm_access", realm(json!(["x", "engineer"]))),
        without("R24", "no role opens nothing", "realm_access").problem(403, "policy-denied"),
        row("R24", "a client's role is no realm role")
            .token(|t| {
                t.without("realm_access")
                    .claim("resource_access", json!({"kdbt-broker": {"roles": ["engineer"]}}))
            })
            .problem(403, "policy-denied"),
        row("R24", "a group is no role")
            .token(|t| {
                t.without("realm_access")
                    .claim("groups", json!(["engineer", "/engineer"]))
            })
            .problem(403, "policy-denied"),
        row("R24", "a claim called roles is nothing")
            .token(|t| {
                t.without("realm_access")
                    .claim("roles", json!(["engineer"]))
                    .claim("role", "engineer")
            })
            .problem(403, "policy-denied"),
        row("R24", "a name with a dot is no path")
            .token(|t| {
                t.without("realm_access")
                    .claim("realm_access.roles", json!(["engineer"]))
            })
            .problem(403, "policy-denied"),
        row(
            "S16",
            "an admin role of an issuer that provides none opens no list of others",
        )
        .strict()
        .token(|t| t.claim("resource_access", json!({"kdbt-broker": {"roles": ["admin"]}})))
        .request(|r| r.get("/v1/leases?subject=x"))
        .problem(403, "admin-required"),
        row("R24", "an admin of the realm is no admin of the client")
            .token(|t| {
                t.claim("realm_access", json!({"roles": ["admin"]}))
                    .claim("groups", json!(["admin", "/admin"]))
                    .claim("resource_access", json!({"account": {"roles": ["admin"]}}))
            })
            .request(|r| r.get("/v1/leases?subject=x"))
            .problem(403, "admin-required"),
    ];
    // One text to a reader, two to a machine: no form stands for the other (NFC, NFD).
    let (composed, combined) = (["caf\u{e9}", "th\u{e9}"], ["cafe\u{301}", "the\u{301}"]);
    for (held, other) in [(composed[0], combined[0]), (combined[1], composed[1])] {
        let with = move |role: &'static str| {
            row("R24", "an accent in another form is another role").claim("realm_access", json!({"roles": [role]}))
        };
        rows.push(with(held));
        rows.push(with(other).problem(403, "policy-denied"));
    }
    let near = [
        "Engineer",
        "ENGINEER",
        "engineer ",
        " engineer",
        "engineer\u{0}",
        "\u{ff45}ngineer",
        "engineers",
        "eng*",
        "*",
        ".*",
        "",
        "engineer,analyst",
        "realm:engineer",
    ];
    rows.extend(near.into_iter().map(|role| {
        row("R24", "a role that is only nearly right opens nothing")
            .claim("realm_access", json!({"roles": [role]}))
            .problem(403, "policy-denied")
    }));
    let broken = [
        json!("engineer"),
        json!({"0": "engineer"}),
        json!([["engineer"]]),
        json!(["engineer", 1]),
        json!([null]),
        json!(null),
    ];
    for value in broken {
        rows.extend(refuse(
            each(
                "R23",
                "a broken list of roles refuses the request",
                "realm_access",
                [realm(value.clone())],
            ),
            R::InvalidRoles,
        ));
        rows.extend(refuse(
            each(
                "R23",
                "a broken list of another client's roles does too",
                "resource_access",
                [json!({"other": {"roles": value}})],
            ),
            R::InvalidRoles,
        ));
        rows.extend(refuse(
            each("R23", "a broken list of groups does too", "groups", [value]),
            R::InvalidRoles,
        ));
    }
    for name in ["realm_access", "resource_access"] {
        rows.extend(refuse(
            each(
                "R23",
                "role claims that are no objects refuse the request",
                name,
                [json!([]), json!("engineer"), json!(null)],
            ),
            R::InvalidRoles,
        ));
    }
    check(rows).await;
}

// S12
#[tokio::test]
async fn a_hostile_name_becomes_a_plain_user_and_never_a_durable_one() {
    let world = World::shared().await;
    let names = [
        "login",
        "_login_1",
        "kdbt__broker",
        "kdbt__login_1",
        "u_alice",
        "postgres",
        "public",
        "connect",
        "\"; DROP ROLE postgres; --",
        "王伟",
        "\u{202e}ada",
        "a\u{0}b",
        "",
        "__",
        "1",
        "e\u{301}ve",
        "\u{e9}ve",
        "../../etc/passwd",
        "=cmd()",
        "{{ env_var('X') }}",
        "a\r\nX: y",
        "pg_monitor",
    ];
    let mut users = std::collections::BTreeSet::new();
    for (n, name) in names.into_iter().chain(["twin-name", "twin-name"]).enumerate() {
        let token = world
            .honest("named")
            .claim("sub", format!("sub-of-name-{n}"))
            .claim("preferred_username", name)
            .without("name")
            .token();
        let answers = super::Request::order(&token).send(&world.address()).await;
        assert_eq!(answers[0].status, 201, "{name:?}: {answers:?}");
        let user = answers[0].json()["lease"]["user"].as_str().unwrap().to_owned();
        let slug = user.strip_prefix("kdbt_").unwrap();
        assert!(
            !slug.starts_with('_')
                && slug
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
            "{name:?}: {user}"
        );
        assert!(users.insert(user.clone()), "{name:?}: two people are {user}");
        let own = super::Request::order(&token)
            .get("/v1/leases")
            .send(&world.address())
            .await;
        assert_eq!(
            own[0].json()["leases"].as_array().unwrap().len(),
            1,
            "{name:?}: {own:?}"
        );
    }
}

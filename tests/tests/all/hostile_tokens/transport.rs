//! R1 and R2: how a token is sent, and what shape its text has.

use kdbt_broker::identity::Reason as R;

use super::{Row, check, row};

#[tokio::test]
async fn a_token_is_taken_from_one_authorization_header_and_from_nowhere_else() {
    let of = |rule, name, make: fn(&str) -> String| row(rule, name).request(move |r| r.authorization(make));
    let rows: Vec<Row> = vec![
        of("R1", "the scheme may be in lower case", |t| format!("bearer {t}")),
        of("R1", "the scheme may be in upper case", |t| format!("BEARER {t}")),
        of("R1", "the scheme may be in mixed case", |t| format!("bEaReR {t}")),
        of("R1", "several spaces may stand behind the scheme", |t| {
            format!("Bearer    {t}")
        }),
        of("R1", "blanks around the value do not count", |t| {
            format!("\t Bearer {t} \t ")
        }),
        row("R1", "the header's name may be in lower case").request(|r| {
            let t = r.token.clone();
            r.without("Authorization").raw(format!("authorization: Bearer {t}"))
        }),
        row("R1", "the header's name may be in upper case").request(|r| {
            let t = r.token.clone();
            r.without("Authorization").raw(format!("AUTHORIZATION:Bearer {t}"))
        }),
        row("R1", "a query that only looks like a token is none")
            .request(|r| r.line("POST /v1/leases?access_tokens=1&x=access_token HTTP/1.1")),
        row("R1", "without a header there is no token")
            .request(|r| r.without("Authorization"))
            .refused(R::MissingToken),
        row("R1", "a token in the query is none")
            .request(|r| {
                let t = r.token.clone();
                r.without("Authorization")
                    .line(format!("POST /v1/leases?access_token={t} HTTP/1.1"))
            })
            .refused(R::MissingToken),
        row("R1", "a token in a cookie is none")
            .request(|r| {
                let t = r.token.clone();
                r.without("Authorization")
                    .with("Cookie", &format!("access_token={t}; Authorization=Bearer {t}"))
            })
            .refused(R::MissingToken),
        row("R1", "a token in a form is none")
            .request(|r| {
                let t = r.token.clone();
                r.without("Authorization")
                    .set("Content-Type", "application/x-www-form-urlencoded")
                    .json(format!("access_token={t}"))
            })
            .refused(R::MissingToken),
        row("R1", "a token in the body is none")
            .request(|r| {
                let t = r.token.clone();
                r.without("Authorization")
                    .json(format!(r#"{{"target":"team","access_token":"{t}"}}"#))
            })
            .refused(R::MissingToken),
        row("R1", "a token for a proxy is none")
            .request(|r| {
                let t = r.token.clone();
                r.without("Authorization")
                    .with("Proxy-Authorization", &format!("Bearer {t}"))
            })
            .refused(R::MissingToken),
        row("R1", "a token in a made-up header is none")
            .request(|r| {
                let t = r.token.clone();
                r.without("Authorization")
                    .with("X-Authorization", &format!("Bearer {t}"))
                    .with("X-Forwarded-Access-Token", &t)
            })
            .refused(R::MissingToken),
        row("R1", "a token in a websocket protocol is none")
            .request(|r| {
                let t = r.token.clone();
                r.without("Authorization")
                    .with("Sec-WebSocket-Protocol", &format!("bearer, {t}"))
            })
            .refused(R::MissingToken),
        row("R1", "a token in the trailer of a body is none")
            .request(|r| {
                let t = r.token.clone();
                r.without("Authorization").chunked(format!(
                    "12\r\n{{\"target\": \"team\"}}\r\n0\r\nAuthorization: Bearer {t}\r\n\r\n"
                ))
            })
            .refused(R::MissingToken),
        row("R1", "a header and a query are one way too many")
            .request(|r| r.line("POST /v1/leases?access_token=x HTTP/1.1"))
            .refused(R::SeveralMethods),
        row("R1", "a query name in percent signs is read all the same")
            .request(|r| r.line("POST /v1/leases?a=b&access%5Ftoken=x HTTP/1.1"))
            .refused(R::SeveralMethods),
        row("R1", "two equal headers are one too many")
            .request(|r| {
                let t = r.token.clone();
                r.with("Authorization", &format!("Bearer {t}"))
            })
            .refused(R::SeveralHeaders),
        row("R1", "a second header of another scheme is one too many")
            .request(|r| r.with("authorization", "Basic dTpw"))
            .refused(R::SeveralHeaders),
        row("R1", "an empty second header is one too many")
            .request(|r| r.raw("Authorization:"))
            .refused(R::SeveralHeaders),
        of("R1", "two tokens in a list are refused", |t| {
            format!("Bearer {t}, Bearer {t}")
        })
        .refused(R::SeveralCredentials),
        of("R1", "a comma behind the token is refused", |t| format!("Bearer {t},")).refused(R::SeveralCredentials),
        of("R1", "a scheme alone is refused", |_| "Bearer".to_owned()).refused(R::EmptyToken),
        of("R1", "a scheme with spaces is refused", |_| "Bearer     ".to_owned()).refused(R::EmptyToken),
        of("R1", "an empty value is no Bearer", |_| String::new()).refused(R::UnsupportedScheme),
        of("R1", "a token without a scheme is refused", str::to_owned).refused(R::UnsupportedScheme),
        of("R1", "Basic is refused", |t| format!("Basic {t}")).refused(R::UnsupportedScheme),
        of("R1", "Token is refused", |t| format!("Token {t}")).refused(R::UnsupportedScheme),
        of("R1", "Negotiate is refused", |t| format!("Negotiate {t}")).refused(R::UnsupportedScheme),
        of("R1", "a tab behind the scheme is refused", |t| format!("Bearer\t{t}")).refused(R::UnsupportedScheme),
        of("R1", "a colon behind the scheme is refused", |t| format!("Bearer:{t}")).refused(R::UnsupportedScheme),
        of("R1", "a scheme in quotes is refused", |t| format!("\"Bearer {t}\"")).refused(R::UnsupportedScheme),
        of("R1", "a scheme behind a byte order mark is refused", |t| {
            format!("\u{feff}Bearer {t}")
        })
        .refused(R::UnsupportedScheme),
        of("R1", "a scheme with a Cyrillic letter is refused", |t| {
            format!("B\u{435}arer {t}")
        })
        .refused(R::UnsupportedScheme),
        of("R1", "DPoP is not taken as Bearer", |t| format!("DPoP {t}")).refused(R::DpopScheme),
        of("R1", "dpop in lower case is not either", |t| format!("dpop {t}")).refused(R::DpopScheme),
        row("R1", "a value that is not UTF-8 is refused")
            .request(|r| r.without("Authorization").raw(b"Authorization: Bearer \xff\xfe.e30.AA"))
            .refused(R::MalformedToken),
    ];
    check(rows).await;
}

#[tokio::test]
async fn a_token_has_three_parts_in_strict_base64url_and_a_limit() {
    let bad = |name, edit: fn(String) -> String| row("R2", name).text(edit).refused(R::MalformedToken);
    let swap = |token: &str, part: usize, edit: fn(&str) -> String| {
        let parts = token
            .split('.')
            .enumerate()
            .map(|(n, p)| if n == part { edit(p) } else { p.to_owned() });
        parts.collect::<Vec<_>>().join(".")
    };
    let rows: Vec<Row> = vec![
        row("R2", "a token of 30 KiB is taken").token(|t| t.claim("padding", "x".repeat(22_000))),
        row("R2", "a token of more than 32 KiB is refused by its own rule")
            .token(|t| t.claim("padding", "x".repeat(25_000)))
            .refused(R::TokenTooLong),
        row("R2", "a token of 80 KiB still gets that answer")
            .token(|t| t.claim("padding", "x".repeat(60_000)))
            .refused(R::TokenTooLong),
        row("R2", "a token of 200 KiB does not fit and gets a bare answer")
            .token(|t| t.claim("padding", "x".repeat(150_000)))
            .statuses(&[431]),
        row("R2", "five parts are an encrypted token")
            .text(|t| format!("{t}.AAAA.AAAA"))
            .refused(R::EncryptedToken),
        bad("two parts", |t| t.rsplit_once('.').unwrap().0.to_owned()),
        bad("four parts", |t| format!("{t}.AAAA")),
        bad("six parts", |t| format!("{t}.a.b.c")),
        bad("one part", |t| t.replace('.', "")),
        bad("three dots and nothing else", |_| "..".to_owned()),
        bad("no signature", |t| format!("{}.", t.rsplit_once('.').unwrap().0)),
        bad("no header", |t| format!(".{}", t.split_once('.').unwrap().1)),
        bad("a dot at the end", |t| format!("{t}.")),
        bad("padding at the end", |t| format!("{t}==")),
        bad("a space within", |t| t.replacen('.', ". ", 1)),
        bad("a tab within", |t| t.replacen('.', ".\t", 1)),
        bad("quotes around it", |t| format!("\"{t}\"")),
        bad("angle brackets around it", |t| format!("<{t}>")),
        bad("a semicolon behind it", |t| format!("{t};")),
        bad("a percent sign for the dot", |t| t.replace('.', "%2E")),
        bad("a full-width dot", |t| t.replace('.', "\u{ff0e}")),
        bad("a zero-width space behind it", |t| format!("{t}\u{200b}")),
        bad("a byte order mark before it", |t| format!("\u{feff}{t}")),
        row("R2", "padding of the payload is refused")
            .text(move |t| swap(&t, 1, |p| format!("{p}=")))
            .refused(R::MalformedToken),
        row("R2", "the other alphabet of base64 is refused")
            .text(move |t| swap(&t, 2, |p| format!("+/{}", &p[2..])))
            .refused(R::MalformedToken),
        row("R2", "bits that belong to no byte are refused")
            .text(move |t| {
                swap(&t, 2, |p| {
                    // 256 bytes leave four bits: the last letter is one of A, Q, g, w.
                    let other = match &p[p.len() - 1..] {
                        "A" => "B",
                        "Q" => "R",
                        "g" => "h",
                        _ => "x",
                    };
                    format!("{}{other}", &p[..p.len() - 1])
                })
            })
            .refused(R::MalformedToken),
        row("R2", "a SAML assertion is no token")
            .text(|_| "PHNhbWxwOlJlc3BvbnNlPg".to_owned())
            .refused(R::MalformedToken),
        row("R2", "a word is no token")
            .text(|_| "null".to_owned())
            .refused(R::MalformedToken),
    ];
    check(rows).await;
}

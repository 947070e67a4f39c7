use proptest::prelude::*;

use super::*;

fn user() -> CreateUser {
    CreateUser {
        name: "KDBT_ADA_0".into(),
        public_key: Some("MIIBIjANBgkq".into()),
        role: "ANALYST".into(),
        warehouse: Some("TRANSFORM_WH".into()),
        secondary_roles: false,
        days: 1,
        query_tag: Some("kdbt".into()),
        statement_timeout: Some(3600),
        comment: "kdbt/1 acme-prod lse_1".into(),
    }
}

fn all() -> Vec<Statement> {
    let user = "KDBT_ADA_0".to_owned();
    vec![
        Statement::GrantRole {
            role: "KDBT_ENT_ANALYST".into(),
            user: user.clone(),
        },
        Statement::Disable { user: user.clone() },
        Statement::Drop { user: user.clone() },
        Statement::AbortQueries { user: user.clone() },
        Statement::Extend {
            user: user.clone(),
            days: 2,
            comment: "kdbt/1 acme-prod lse_1 end=2".into(),
        },
        Statement::AddKeyPair {
            user: user.clone(),
            key: "MIIBIjANBgkq".into(),
        },
        Statement::RotateKeyPair {
            user: user.clone(),
            throw_away_key: "MIIBIjANBgkr".into(),
            hours: 8,
        },
        Statement::SessionPolicy {
            user: user.clone(),
            policy: "SEC.POLICIES.SHORT".parse().unwrap(),
        },
        Statement::ShowUsers {
            prefix: Some("KDBT_".into()),
            limit: 10_000,
            after: None,
        },
        Statement::ShowUsers {
            prefix: Some("KDBT_".into()),
            limit: 10_000,
            after: Some(user.clone()),
        },
        Statement::DescribeUser { user },
        Statement::CurrentRole,
    ]
}

#[test]
fn a_new_user_is_a_service_with_a_key_an_expiry_and_a_mark() {
    insta::assert_snapshot!(Statement::CreateUser(Box::new(user())).text(), @r#"
    CREATE USER "KDBT_ADA_0" TYPE = SERVICE
      RSA_PUBLIC_KEY = 'MIIBIjANBgkq'
      DEFAULT_ROLE = "ANALYST"
      DEFAULT_WAREHOUSE = "TRANSFORM_WH"
      DEFAULT_SECONDARY_ROLES = ()
      DAYS_TO_EXPIRY = 1
      QUERY_TAG = 'kdbt'
      STATEMENT_TIMEOUT_IN_SECONDS = 3600
      COMMENT = 'kdbt/1 acme-prod lse_1'
    "#);
}

#[test]
fn what_is_not_set_is_not_written() {
    let user = CreateUser {
        public_key: None,
        warehouse: None,
        secondary_roles: true,
        query_tag: None,
        statement_timeout: None,
        ..user()
    };
    insta::assert_snapshot!(Statement::CreateUser(Box::new(user)).text(), @r#"
    CREATE USER "KDBT_ADA_0" TYPE = SERVICE
      DEFAULT_ROLE = "ANALYST"
      DEFAULT_SECONDARY_ROLES = ('ALL')
      DAYS_TO_EXPIRY = 1
      COMMENT = 'kdbt/1 acme-prod lse_1'
    "#);
}

#[test]
fn every_other_statement_is_one_line() {
    let texts: Vec<String> = all().iter().map(Statement::text).collect();
    insta::assert_snapshot!(texts.join("\n"), @r#"
    GRANT ROLE "KDBT_ENT_ANALYST" TO USER "KDBT_ADA_0"
    ALTER USER IF EXISTS "KDBT_ADA_0" SET DISABLED = TRUE
    DROP USER IF EXISTS "KDBT_ADA_0"
    ALTER USER "KDBT_ADA_0" ABORT ALL QUERIES
    ALTER USER "KDBT_ADA_0" SET DAYS_TO_EXPIRY = 2 COMMENT = 'kdbt/1 acme-prod lse_1 end=2'
    ALTER USER "KDBT_ADA_0" ADD KEY PAIR "KDBT" PUBLIC_KEY = 'MIIBIjANBgkq'
    ALTER USER "KDBT_ADA_0" ROTATE KEY PAIR "KDBT" PUBLIC_KEY = 'MIIBIjANBgkr' EXPIRE_ROTATED_KEY_PAIR_AFTER_HOURS = 8
    ALTER USER "KDBT_ADA_0" SET SESSION POLICY "SEC"."POLICIES"."SHORT"
    SHOW USERS STARTS WITH 'KDBT_' LIMIT 10000
    SHOW USERS STARTS WITH 'KDBT_' LIMIT 10000 FROM 'KDBT_ADA_0'
    DESCRIBE USER "KDBT_ADA_0"
    SELECT CURRENT_ROLE()
    "#);
}

#[test]
fn every_refusal_has_a_remedy_that_names_the_grant() {
    let mut statements = all();
    statements.insert(0, Statement::CreateUser(Box::new(user())));
    let mut remedies: Vec<String> = statements
        .iter()
        .filter_map(|statement| statement.remedy("KDBT_BROKER"))
        .collect();
    remedies.dedup();
    insta::assert_snapshot!(remedies.join("\n"), @r#"
    GRANT CREATE USER ON ACCOUNT TO ROLE "KDBT_BROKER"
    GRANT OWNERSHIP ON ROLE "KDBT_ENT_ANALYST" TO ROLE "KDBT_BROKER" COPY CURRENT GRANTS
    GRANT OWNERSHIP ON USER "KDBT_ADA_0" TO ROLE "KDBT_BROKER" COPY CURRENT GRANTS
    GRANT APPLY SESSION POLICY ON ACCOUNT TO ROLE "KDBT_BROKER"
    GRANT OWNERSHIP ON USER "KDBT_ADA_0" TO ROLE "KDBT_BROKER" COPY CURRENT GRANTS
    "#);
}

#[test]
fn a_policy_has_three_plain_parts() {
    for text in [
        "",
        "P",
        "S.P",
        "D.S.P.X",
        "D..P",
        "D.S.",
        "D.S.P;",
        "D.S.\"P\"",
        "D.S.P ",
    ] {
        assert_eq!(text.parse::<PolicyName>(), Err(PolicyNameError), "{text:?}");
    }
}

/// What a statement is made of, read anew from its text by other code than the one that wrote it.
#[derive(Debug, PartialEq, Eq)]
enum Token {
    /// Letters, digits, signs: all that is not quoted.
    Plain(String),
    Ident(String),
    Literal(String),
}

/// Reads as Snowflake does: `""` in a name, `''` and backslash escapes in a string.
fn tokens(text: &str) -> Vec<Token> {
    let mut found = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c.is_whitespace() {
            continue;
        }
        if c != '"' && c != '\'' {
            let mut plain = c.to_string();
            while let Some(next) = chars.next_if(|c| !c.is_whitespace() && *c != '"' && *c != '\'') {
                plain.push(next);
            }
            found.push(Token::Plain(plain));
            continue;
        }
        let mut value = String::new();
        loop {
            match chars.next().expect("a quote without its end") {
                '\\' if c == '\'' => value.push(chars.next().expect("a backslash at the end")),
                quote if quote == c => {
                    if chars.next_if_eq(&c).is_none() {
                        break;
                    }
                    value.push(c);
                }
                other => value.push(other),
            }
        }
        found.push(if c == '"' {
            Token::Ident(value)
        } else {
            Token::Literal(value)
        });
    }
    found
}

/// Texts full of what ends a string, a name or a statement.
fn hostile() -> impl Strategy<Value = String> {
    prop_oneof![
        ".*",
        r#"['"\\;\n\r\t a-z-]{0,24}"#,
        r"[\\']{1,8}",
        Just("'; DROP USER \"ADMIN\"; --".to_owned()),
        Just("\\'; DROP USER ADMIN --".to_owned()),
        Just("''\u{2019}\u{ff07}王\u{202e}$$".to_owned()),
    ]
}

fn plain(words: &str) -> Vec<Token> {
    words.split(' ').map(|word| Token::Plain(word.into())).collect()
}

proptest! {
    #[test]
    fn a_hostile_name_or_value_reads_back_as_itself(name in hostile(), value in hostile(), role in hostile(), days: u32) {
        let extend = Statement::Extend { user: name.clone(), days, comment: value.clone() };
        let mut expected = plain("ALTER USER");
        expected.push(Token::Ident(name.clone()));
        expected.extend(plain(&format!("SET DAYS_TO_EXPIRY = {days} COMMENT =")));
        expected.push(Token::Literal(value.clone()));
        prop_assert_eq!(tokens(&extend.text()), expected);

        let grant = Statement::GrantRole { role: role.clone(), user: name.clone() };
        let mut expected = plain("GRANT ROLE");
        expected.push(Token::Ident(role));
        expected.extend(plain("TO USER"));
        expected.push(Token::Ident(name.clone()));
        prop_assert_eq!(tokens(&grant.text()), expected);

        let show = Statement::ShowUsers { prefix: Some(value.clone()), limit: 7, after: Some(name.clone()) };
        let mut expected = plain("SHOW USERS STARTS WITH");
        expected.push(Token::Literal(value));
        expected.extend(plain("LIMIT 7 FROM"));
        expected.push(Token::Literal(name));
        prop_assert_eq!(tokens(&show.text()), expected);
    }

    #[test]
    fn a_hostile_user_is_still_one_statement(name in hostile(), tag in hostile(), comment in hostile(), role in hostile()) {
        let user = CreateUser { name: name.clone(), role: role.clone(), query_tag: Some(tag.clone()), comment: comment.clone(), ..user() };
        let tokens = tokens(&Statement::CreateUser(Box::new(user)).text());
        let quoted: Vec<&str> = tokens.iter().filter_map(|token| match token {
            Token::Plain(_) => None,
            Token::Ident(value) | Token::Literal(value) => Some(value.as_str()),
        }).collect();
        prop_assert_eq!(quoted, vec![&*name, "MIIBIjANBgkq", &*role, "TRANSFORM_WH", &*tag, &*comment]);
        prop_assert!(!tokens.contains(&Token::Plain(";".into())));
    }
}

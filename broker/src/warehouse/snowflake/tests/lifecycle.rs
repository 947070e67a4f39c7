//! Making and ending users, statement by statement, on an account that answers by a script. That the statements do
//! what they should is the contract suite's part.

use std::collections::BTreeSet;
use std::time::Duration;

use kdbt_api::Timestamp;
use kdbt_api::lease::LeaseId;
use kdbt_api::name::{DbUsername, Slug};
use serde_json::{Value, json};

use super::{Account, Reply};
use crate::clock::ManualClock;
use crate::grant::{Access, Profile, Session, SnowflakeRoles};
use crate::lease::{EngineId, SubjectHash, UserRef};
use crate::mark::Mark;
use crate::warehouse::snowflake::{SnowflakeConfig, SnowflakeWarehouse};
use crate::warehouse::{CreateError, Credential, EndOutcome, MarkedUser, NewUser, Warehouse, WarehouseError};

const NOW: i64 = 1_790_000_000;
/// What every RSA-2048 key starts with.
const KEY: &str = "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8A";

fn warehouse(account: &Account, change: impl FnOnce(&mut SnowflakeConfig)) -> SnowflakeWarehouse {
    let mut config = account.config();
    change(&mut config);
    SnowflakeWarehouse::new(config, ManualClock::at(Timestamp::from_unix(NOW))).unwrap()
}

fn username() -> DbUsername {
    DbUsername::new(&"ada".parse::<Slug>().unwrap(), 0)
}

fn new_user(roles: &[&str]) -> NewUser {
    let (_, public) = kdbt_api::credential::PrivateKey::generate().unwrap();
    NewUser {
        lease: LeaseId::new(uuid::Uuid::from_u128(7)),
        subject: SubjectHash::of("https://sso.test", "ada"),
        username: username(),
        credential: Credential::PublicKey(public),
        database: "DWH".parse().unwrap(),
        access: Access::Snowflake(SnowflakeRoles {
            grants: roles.iter().map(|role| role.parse().unwrap()).collect::<BTreeSet<_>>(),
            session_role: "ANALYST".parse().unwrap(),
        }),
        session: Session {
            connection_limit: 8,
            statement_timeout: None,
            lock_timeout: None,
            idle_in_transaction_session_timeout: None,
            read_only: false,
            query_tag: None,
        },
        profile: Profile {
            threads: 4,
            schema: "MARTS".parse().unwrap(),
            search_path: vec![],
            keepalives_idle: None,
            connect_timeout: None,
            retries: None,
            warehouse: Some("TRANSFORM_WH".parse().unwrap()),
        },
        ends_at: Timestamp::from_unix(NOW + 30 * 3600),
        max_ends_at: Timestamp::from_unix(NOW + 40 * 3600),
        deadline: tokio::time::Instant::now() + Duration::from_secs(20),
    }
}

fn mark(installation: &str, lease: u128) -> String {
    let mark = Mark {
        installation: installation.parse().unwrap(),
        lease: LeaseId::new(uuid::Uuid::from_u128(lease)),
        max_ends_at: Timestamp::from_unix(NOW + 40 * 3600),
        subject: SubjectHash::of("https://sso.test", "ada"),
        owner: None,
        ends_at: Some(Timestamp::from_unix(NOW + 30 * 3600)),
    };
    mark.to_string()
}

fn user_ref() -> UserRef {
    UserRef {
        lease: LeaseId::new(uuid::Uuid::from_u128(7)),
        username: username(),
        engine_id: Some(EngineId::Mark),
        owner: None,
        database: None,
    }
}

fn result(columns: &[&str], data: &Value) -> Reply {
    let columns: Vec<Value> = columns.iter().map(|name| json!({ "name": name })).collect();
    let body = json!({"createdOn": NOW * 1000, "resultSetMetaData": {"rowType": columns}, "data": data});
    (200, body).into()
}

fn done() -> Reply {
    result(&["status"], &json!([["Statement executed successfully."]]))
}

/// Rows of SHOW USERS: name, comment, owner.
fn users(rows: &[(&str, Option<&str>, Option<&str>)]) -> Reply {
    let rows: Vec<Value> = rows
        .iter()
        .map(|(name, comment, owner)| json!([name, comment, owner, "false", "1.25"]))
        .collect();
    result(
        &["name", "comment", "owner", "disabled", "days_to_expiry"],
        &json!(rows),
    )
}

fn ours() -> Reply {
    users(&[("KDBT_ADA_0", Some(&mark("acme-prod", 7)), Some("KDBT_BROKER"))])
}

fn refused(code: &str) -> Reply {
    (422, json!({"code": code})).into()
}

/// The first two words of each statement.
fn verbs(account: &Account) -> Vec<String> {
    let statements = account.statements();
    let verb = |text: &String| text.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
    statements.iter().map(verb).collect()
}

fn describe(fingerprint: &str, comment: &str) -> Reply {
    result(
        &["property", "value", "default", "description"],
        &json!([
            ["NAME", "KDBT_ADA_0", null, ""],
            ["RSA_PUBLIC_KEY_FP", fingerprint, null, ""],
            ["COMMENT", comment, null, ""]
        ]),
    )
}

fn fingerprint(user: &NewUser) -> String {
    match &user.credential {
        Credential::PublicKey(key) => key.fingerprint(),
        Credential::Verifier(_) => panic!("a password"),
    }
}

#[tokio::test]
async fn a_lease_with_one_role_costs_two_requests() {
    let account = Account::start([done(), done()]).await;
    let user = new_user(&["ENT_ANALYST"]);
    assert_eq!(
        warehouse(&account, |_| ()).create_user(user).await.unwrap(),
        EngineId::Mark
    );
    let statements = account.statements();
    assert_eq!(statements.len(), 2);
    let shown: String = statements
        .join("\n")
        .split('\'')
        .filter(|part| !part.starts_with(KEY))
        .collect();
    insta::assert_snapshot!(shown, @r#"
    CREATE USER "KDBT_ADA_0" TYPE = SERVICE
      RSA_PUBLIC_KEY = 
      DEFAULT_ROLE = "ANALYST"
      DEFAULT_WAREHOUSE = "TRANSFORM_WH"
      DEFAULT_SECONDARY_ROLES = ()
      DAYS_TO_EXPIRY = 2
      QUERY_TAG = kdbt:lse_00000000000000000000000000000007
      COMMENT = kdbt/1 acme-prod lse_00000000000000000000000000000007 max=1790144000 sub=093957c18ea57cff owner=- end=1790108000
    GRANT ROLE "ENT_ANALYST" TO USER "KDBT_ADA_0"
    "#);
}

#[tokio::test]
async fn several_roles_are_used_together() {
    let account = Account::start([done(), done(), done(), done()]).await;
    warehouse(&account, |_| ())
        .create_user(new_user(&["ENT_A", "ENT_B", "ENT_C"]))
        .await
        .unwrap();
    let mut statements = account.statements();
    assert!(
        statements[0].contains("DEFAULT_SECONDARY_ROLES = ('ALL')"),
        "{statements:?}"
    );
    statements[1..].sort();
    assert_eq!(
        statements[1..],
        ["A", "B", "C"].map(|role| format!("GRANT ROLE \"ENT_{role}\" TO USER \"KDBT_ADA_0\""))
    );
}

#[tokio::test]
async fn what_may_be_there_without_an_answer_is_told_by_key_and_mark() {
    let user = new_user(&["ENT_ANALYST"]);
    let (key, mark) = (fingerprint(&user), mark("acme-prod", 7));
    for (described, made) in [
        (describe(&key, &mark), true),
        (describe("SHA256:other", &mark), false),
        (describe(&key, "a comment"), false),
        (refused("003001"), false),
        (refused("002003"), false),
    ] {
        let account = Account::start([Reply::Hang, refused("002002"), described, done()]).await;
        let created = warehouse(&account, |_| ()).create_user(user.clone()).await;
        match created {
            Ok(_) => assert!(made, "a foreign user was taken for ours"),
            Err(error) => assert!(!made && matches!(error, CreateError::NameTaken), "{error:?}"),
        }
        assert_eq!(verbs(&account).contains(&"GRANT ROLE".to_owned()), made);
    }
    let account = Account::start([refused("002002")]).await;
    let created = warehouse(&account, |_| ()).create_user(user).await;
    assert!(matches!(created, Err(CreateError::NameTaken)), "{created:?}");
    assert_eq!(account.received().len(), 1, "nobody's user was looked at");
}

#[tokio::test]
async fn a_create_is_refused_unknown_or_not_begun() {
    let create = async |script: Vec<Reply>| {
        let account = Account::start(script).await;
        let created = warehouse(&account, |_| ()).create_user(new_user(&["ENT"])).await;
        created.unwrap_err()
    };
    assert!(matches!(
        create(vec![refused("003001")]).await,
        CreateError::Refused(WarehouseError::Server { .. })
    ));
    assert!(matches!(
        create(vec![Reply::Hang, refused("003001")]).await,
        CreateError::Unknown(_)
    ));
    assert!(matches!(
        create(vec![Reply::from((408, json!({})))]).await,
        CreateError::Unknown(_)
    ));
    let account = Account::start([done()]).await;
    let mut late = new_user(&["ENT"]);
    late.deadline = tokio::time::Instant::now();
    let refused = warehouse(&account, |_| ()).create_user(late).await.unwrap_err();
    assert!(
        matches!(refused, CreateError::Refused(WarehouseError::Unreachable(_))),
        "{refused:?}"
    );
    assert!(account.received().is_empty());
}

#[tokio::test]
async fn a_user_that_cannot_get_its_role_is_ended_at_once() {
    let account = Account::start([done(), refused("003001"), ours(), done(), done()]).await;
    let error = warehouse(&account, |_| ())
        .create_user(new_user(&["ENT_ANALYST"]))
        .await
        .unwrap_err();
    let CreateError::Unknown(why) = error else {
        panic!("{error:?}")
    };
    let grant = "GRANT OWNERSHIP ON ROLE \"ENT_ANALYST\" TO ROLE \"KDBT_BROKER\"";
    assert!(why.to_string().contains(grant), "{why}");
    assert_eq!(
        verbs(&account),
        ["CREATE USER", "GRANT ROLE", "SHOW USERS", "ALTER USER", "DROP USER"]
    );
}

#[tokio::test]
async fn the_optional_stops_come_before_the_roles() {
    let account = Account::start([done(), done(), done(), done(), done()]).await;
    let warehouse = warehouse(&account, |config| {
        config.hard_expiry = true;
        config.session_policy = Some("SEC.POLICIES.SHORT".parse().unwrap());
    });
    warehouse.create_user(new_user(&["ENT_ANALYST"])).await.unwrap();
    let statements = account.statements();
    assert!(!statements[0].contains("RSA_PUBLIC_KEY"), "{}", statements[0]);
    assert!(
        statements[1].ends_with("SET SESSION POLICY \"SEC\".\"POLICIES\".\"SHORT\""),
        "{}",
        statements[1]
    );
    assert!(statements[2].contains("ADD KEY PAIR"), "{}", statements[2]);
    assert!(
        statements[3].ends_with("EXPIRE_ROTATED_KEY_PAIR_AFTER_HOURS = 40"),
        "{}",
        statements[3]
    );
    assert!(statements[4].starts_with("GRANT ROLE"), "{}", statements[4]);
}

async fn end(account: &Account) -> Result<EndOutcome, WarehouseError> {
    warehouse(account, |_| ()).end_users(&[user_ref()]).await.remove(0)
}

#[tokio::test]
async fn an_end_looks_disables_and_drops() {
    let account = Account::start([ours(), done(), done()]).await;
    assert_eq!(end(&account).await.unwrap(), EndOutcome::Dropped);
    insta::assert_snapshot!(account.statements().join("\n"), @r#"
    SHOW USERS STARTS WITH 'KDBT_ADA_0' LIMIT 10000
    ALTER USER IF EXISTS "KDBT_ADA_0" SET DISABLED = TRUE
    DROP USER IF EXISTS "KDBT_ADA_0"
    "#);
}

#[tokio::test]
async fn who_is_not_the_one_that_is_meant_is_never_touched() {
    for rows in [
        vec![],
        vec![("KDBT_ADA_01", Some(mark("acme-prod", 8)))],
        vec![("KDBT_ADA_0", Some(mark("acme-dev", 7)))],
        vec![("KDBT_ADA_0", Some(mark("acme-prod", 8)))],
        vec![("KDBT_ADA_0", Some("a user of ours, said the DBA".to_owned()))],
        vec![("KDBT_ADA_0", None)],
    ] {
        let rows: Vec<_> = rows
            .iter()
            .map(|(name, mark)| (*name, mark.as_deref(), Some("KDBT_BROKER")))
            .collect();
        let account = Account::start([users(&rows), users(&rows)]).await;
        assert_eq!(end(&account).await.unwrap(), EndOutcome::Dropped);
        assert_eq!(verbs(&account), ["SHOW USERS", "SHOW USERS"]);
    }
}

#[tokio::test]
async fn a_user_that_was_renamed_is_found_by_its_mark_and_ended() {
    let renamed = || users(&[("SOMEBODY_ELSE", Some(&mark("acme-prod", 7)), Some("KDBT_BROKER"))]);
    let account = Account::start([users(&[]), renamed(), renamed(), done(), done()]).await;
    assert_eq!(end(&account).await.unwrap(), EndOutcome::Dropped);
    insta::assert_snapshot!(account.statements().join("\n"), @r#"
    SHOW USERS STARTS WITH 'KDBT_ADA_0' LIMIT 10000
    SHOW USERS LIMIT 10000
    SHOW USERS STARTS WITH 'SOMEBODY_ELSE' LIMIT 10000
    ALTER USER IF EXISTS "SOMEBODY_ELSE" SET DISABLED = TRUE
    DROP USER IF EXISTS "SOMEBODY_ELSE"
    "#);
}

#[tokio::test]
async fn who_is_gone_is_not_called_dropped_while_nobody_knows_whether_it_was_renamed() {
    let account = Account::start([users(&[]), refused("003001")]).await;
    let error = end(&account).await.unwrap_err();
    assert!(error.to_string().contains("whether the user was renamed"), "{error}");
    // One that was never seen there was not renamed.
    let account = Account::start([users(&[])]).await;
    let mut never_made = user_ref();
    never_made.engine_id = None;
    let ended = warehouse(&account, |_| ()).end_users(&[never_made]).await;
    assert!(matches!(ended[..], [Ok(EndOutcome::Dropped)]), "{ended:?}");
}

#[tokio::test]
async fn many_ends_on_an_account_that_hangs_take_no_longer_than_one_may() {
    let silence = std::iter::repeat_with(|| Reply::Silence).take(40);
    let account = Account::start(std::iter::once(ours()).chain(silence)).await;
    let warehouse = warehouse(&account, |config| {
        config.end_calls = 2;
        config.request_timeout = Duration::from_millis(300);
        config.end_timeout = Duration::from_millis(900);
    });
    let users: Vec<UserRef> = std::iter::repeat_with(user_ref).take(20).collect();
    let started = std::time::Instant::now();
    let ends = warehouse.end_users(&users).await;
    assert!(
        started.elapsed() < Duration::from_millis(1400),
        "{:?}",
        started.elapsed()
    );
    assert!(ends.iter().all(Result::is_err), "{ends:?}");
    assert!(account.received().len() < 10, "each waits for its own sake");
}

#[tokio::test]
async fn a_user_that_hides_whose_it_is_is_never_called_dropped() {
    for owner in [None, Some("SECURITYADMIN")] {
        let account = Account::start([users(&[("KDBT_ADA_0", None, owner)])]).await;
        let error = end(&account).await.unwrap_err();
        assert_eq!(error.code(), "not-owned");
        assert!(
            error.to_string().contains("GRANT OWNERSHIP ON USER \"KDBT_ADA_0\""),
            "{error}"
        );
        assert_eq!(verbs(&account), ["SHOW USERS"]);
    }
}

#[tokio::test]
async fn a_listing_that_is_none_ends_nobody_and_sweeps_nothing() {
    for columns in [&["name"][..], &["comment"], &["status"], &[]] {
        let account = Account::start([result(columns, &json!([])), result(columns, &json!([]))]).await;
        assert_eq!(end(&account).await.unwrap_err().code(), "unsafe", "{columns:?}");
        let swept = warehouse(&account, |_| ()).marked_users().await;
        assert_eq!(swept.unwrap_err().code(), "unsafe", "{columns:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_disabled_is_not_dropped_and_what_cannot_be_dropped_is_blocked() {
    let account = Account::start([ours(), refused("003001")]).await;
    assert_eq!(end(&account).await.unwrap_err().code(), "003001");
    assert_eq!(verbs(&account), ["SHOW USERS", "ALTER USER"]);
    let account = Account::start([ours(), done(), refused("003001")]).await;
    let EndOutcome::Blocked(why) = end(&account).await.unwrap() else {
        panic!()
    };
    assert!(why[0].starts_with("drop a user: 003001"), "{why:?}");
    let account = Account::start([ours(), done(), Reply::from((408, json!({})))]).await;
    assert_eq!(end(&account).await.unwrap_err().code(), "unreachable");
}

#[tokio::test]
async fn one_end_that_fails_stops_no_other_and_outcomes_keep_their_order() {
    let account = Account::start([refused("001003"), ours(), done(), done()]).await;
    let warehouse = warehouse(&account, |config| config.end_calls = 1);
    let outcomes = warehouse.end_users(&[user_ref(), user_ref()]).await;
    assert!(
        outcomes[0].is_err() && matches!(outcomes[1], Ok(EndOutcome::Dropped)),
        "{outcomes:?}"
    );
}

#[tokio::test]
async fn a_stray_is_ended_only_while_it_bears_what_the_sweep_saw() {
    let stray = |mark: &str| MarkedUser {
        username: None,
        rolname: "KDBT_ADA_0".to_owned(),
        engine_id: EngineId::Mark,
        mark: mark.parse::<Mark>().map_err(|error| error.to_string()),
        native_end: None,
        can_login: true,
        sessions: 0,
        powerless: false,
    };
    let (seen, another) = (mark("acme-prod", 7), mark("acme-prod", 8));
    for (seen, now, ends) in [
        (&*seen, &*seen, true),
        (&seen, &another, false),
        (&seen, "kdbt/1 acme-prod what", false),
        ("kdbt/1 acme-prod what", "kdbt/1 acme-prod what", true),
        ("kdbt/1 acme-prod what", &another, false),
        ("kdbt/1 acme-prod what", "kdbt/1 acme-dev what", false),
    ] {
        let listed = users(&[("KDBT_ADA_0", Some(now), Some("KDBT_BROKER"))]);
        let account = Account::start([listed, done(), done()]).await;
        warehouse(&account, |_| ()).end_marked(&stray(seen)).await.unwrap();
        assert_eq!(verbs(&account).len(), if ends { 3 } else { 1 }, "{seen} / {now}");
    }
}

#[tokio::test]
async fn an_extension_moves_mark_and_expiry_in_one_statement() {
    let account = Account::start([ours(), done(), users(&[])]).await;
    let warehouse = warehouse(&account, |_| ());
    let later = Timestamp::from_unix(NOW + 50 * 3600);
    warehouse.extend_user(&user_ref(), later).await.unwrap();
    let moved = mark("acme-prod", 7).replace(&format!("end={}", NOW + 30 * 3600), &format!("end={}", later.as_unix()));
    assert_eq!(
        account.statements()[1],
        format!("ALTER USER \"KDBT_ADA_0\" SET DAYS_TO_EXPIRY = 3 COMMENT = '{moved}'")
    );
    assert!(matches!(
        warehouse.extend_user(&user_ref(), later).await,
        Err(WarehouseError::Gone)
    ));
}

#[tokio::test]
async fn ending_sessions_aborts_what_runs_and_counts_nothing() {
    let account = Account::start([ours(), done()]).await;
    assert_eq!(
        warehouse(&account, |_| ()).end_sessions(&user_ref()).await.unwrap(),
        None
    );
    assert_eq!(account.statements()[1], "ALTER USER \"KDBT_ADA_0\" ABORT ALL QUERIES");
}

#[tokio::test]
async fn a_sweep_reads_every_page_and_sees_only_our_marks() {
    let (mine, damaged, other) = (mark("acme-prod", 7), "kdbt/1 acme-prod what", mark("acme-dev", 7));
    let broker = Some("KDBT_BROKER");
    let account = Account::start([
        users(&[
            ("KDBT_ADA_0", Some(&mine), broker),
            ("KDBT_BOB_0", Some(&other), broker),
        ]),
        users(&[("KDBT_Odd", Some(damaged), broker), ("KDBT_HIDDEN_0", None, None)]),
        users(&[("KDBT_ZOE_0", Some("hers"), broker)]),
    ])
    .await;
    let sweep = warehouse(&account, |config| config.page = 2)
        .marked_users()
        .await
        .unwrap();
    assert_eq!(sweep.server_time, Timestamp::from_unix(NOW));
    let seen: Vec<_> = sweep
        .users
        .iter()
        .map(|user| (&*user.rolname, user.username.clone(), user.mark.is_ok()))
        .collect();
    assert_eq!(
        seen,
        [("KDBT_ADA_0", Some(username()), true), ("KDBT_Odd", None, false)]
    );
    // 1.25 days by the account, 30 hours by the mark: the same.
    assert_eq!(sweep.users[0].native_end, Some(Timestamp::from_unix(NOW + 30 * 3600)));
    assert!(sweep.users[0].can_login);
    assert_eq!(
        account.statements(),
        [
            "SHOW USERS STARTS WITH 'KDBT_' LIMIT 2",
            "SHOW USERS STARTS WITH 'KDBT_' LIMIT 2 FROM 'KDBT_BOB_0'",
            "SHOW USERS STARTS WITH 'KDBT_' LIMIT 2 FROM 'KDBT_HIDDEN_0'",
        ]
    );
}

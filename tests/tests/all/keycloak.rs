//! The realm file, imported by a real Keycloak, yields the tokens that the broker's rules are made for.

use std::time::Duration;

use kdbt_e2e::keycloak::{Keycloak, REALM_FILE};
use kdbt_e2e::postgres::unique;
use reqwest::Method;
use serde_json::{Value, json};

fn has(list: &Value, item: &str) -> bool {
    list.as_array()
        .is_some_and(|items| items.iter().any(|found| found == item))
}

#[tokio::test]
async fn a_login_with_code_and_pkce_yields_all_that_the_broker_reads() {
    let Some(keycloak) = Keycloak::shared().await else {
        return;
    };
    let tokens = keycloak.login("kdbt-cli", "ada").await.unwrap();
    let claims = tokens.claims().unwrap();
    assert_eq!(tokens.header().unwrap()["alg"], "RS256");
    assert_eq!(claims["iss"], keycloak.issuer());
    assert_eq!(claims["aud"], "kdbt-broker");
    assert_eq!(claims["azp"], "kdbt-cli");
    assert_eq!(claims["typ"], "Bearer");
    assert_eq!(claims["preferred_username"], "ada");
    assert!(claims["sub"].is_string() && claims["sid"].is_string(), "{claims}");
    assert_eq!(claims["realm_access"]["roles"], json!(["engineer"]));
    assert!(
        has(&claims["resource_access"]["kdbt-broker"]["roles"], "analyst"),
        "engineer includes analyst: {claims}"
    );
    assert_eq!(claims["groups"], json!(["/data/engineers"]));
    assert!(tokens.id_token.is_some());

    let again = keycloak
        .refresh("kdbt-cli", tokens.refresh_token.as_deref().unwrap())
        .await
        .unwrap();
    assert_eq!(again.claims().unwrap()["sid"], claims["sid"]);
    let twice = keycloak
        .refresh("kdbt-cli", tokens.refresh_token.as_deref().unwrap())
        .await
        .unwrap_err();
    assert!(
        twice.to_string().contains("invalid_grant"),
        "a refresh token is good for one use: {twice}"
    );
}

#[tokio::test]
async fn people_with_odd_names_can_log_in() {
    let Some(keycloak) = Keycloak::shared().await else {
        return;
    };
    for name in ["login", "u_alice", "王伟"] {
        let claims = keycloak.login("kdbt-cli", name).await.unwrap().claims().unwrap();
        assert_eq!(claims["preferred_username"], name);
    }
}

#[tokio::test]
async fn each_person_has_the_roles_that_their_part_in_the_tests_needs() {
    let Some(keycloak) = Keycloak::shared().await else {
        return;
    };
    for (person, groups, roles) in [
        (
            "ben",
            json!(["/data/engineers"]),
            json!({"kdbt-broker": {"roles": ["analyst", "engineer"]}}),
        ),
        (
            "grace",
            json!(["/data/analysts"]),
            json!({"kdbt-broker": {"roles": ["analyst"]}}),
        ),
        ("adm", Value::Null, json!({"kdbt-broker": {"roles": ["admin"]}})),
        ("nobody", Value::Null, Value::Null),
    ] {
        let mut claims = keycloak
            .password_grant("kdbt-test", person)
            .await
            .unwrap()
            .claims()
            .unwrap();
        if let Some(roles) = claims
            .pointer_mut("/resource_access/kdbt-broker/roles")
            .and_then(Value::as_array_mut)
        {
            roles.sort_by_key(ToString::to_string);
        }
        assert_eq!(
            (&claims["groups"], &claims["resource_access"]),
            (&groups, &roles),
            "{person}"
        );
        assert_eq!(
            claims["aud"], "kdbt-broker",
            "without a role too, so that the answer can be a helpful 403: {person}"
        );
    }
    let leaving = keycloak
        .password_grant("kdbt-test", "leo")
        .await
        .unwrap()
        .claims()
        .unwrap();
    assert!(has(&leaving["groups"], "/offboarding"), "{leaving}");
}

/// R17: the audience alone does not tell whom a token was made for.
#[tokio::test]
async fn a_neighbour_with_full_scope_carries_our_audience_too() {
    let Some(keycloak) = Keycloak::shared().await else {
        return;
    };
    let claims = keycloak.login("other-app", "ada").await.unwrap().claims().unwrap();
    assert_eq!(
        (&claims["aud"], &claims["azp"]),
        (&json!("kdbt-broker"), &json!("other-app"))
    );
    assert!(
        has(&claims["resource_access"]["kdbt-broker"]["roles"], "engineer"),
        "{claims}"
    );
}

#[tokio::test]
async fn a_lightweight_token_lacks_subject_audience_and_roles() {
    let Some(keycloak) = Keycloak::shared().await else {
        return;
    };
    let claims = keycloak
        .password_grant("kdbt-light", "ada")
        .await
        .unwrap()
        .claims()
        .unwrap();
    for absent in ["sub", "aud", "realm_access", "resource_access"] {
        assert!(claims.get(absent).is_none(), "{absent} in {claims}");
    }
    assert_eq!(claims["azp"], "kdbt-light");
}

#[tokio::test]
async fn a_service_accounts_token_has_no_session() {
    let Some(keycloak) = Keycloak::shared().await else {
        return;
    };
    let tokens = keycloak
        .client_credentials("kdbt-ci", keycloak.ci_secret())
        .await
        .unwrap();
    let claims = tokens.claims().unwrap();
    assert!(
        claims.get("sid").is_none() && tokens.refresh_token.is_none(),
        "{claims}"
    );
    assert_eq!(
        (&claims["aud"], &claims["azp"]),
        (&json!("kdbt-broker"), &json!("kdbt-ci"))
    );
    assert!(
        has(&claims["resource_access"]["kdbt-broker"]["roles"], "engineer"),
        "{claims}"
    );
    assert!(keycloak.client_credentials("kdbt-ci", "wrong").await.is_err());
}

#[tokio::test]
async fn a_bound_token_names_its_key() {
    let Some(keycloak) = Keycloak::shared().await else {
        return;
    };
    let claims = keycloak.dpop_bound("ada").await.unwrap().claims().unwrap();
    assert_eq!(claims["typ"], "DPoP");
    assert!(claims["cnf"]["jkt"].is_string(), "{claims}");
}

#[tokio::test]
async fn the_device_flow_waits_for_the_person() {
    let Some(keycloak) = Keycloak::shared().await else {
        return;
    };
    let device = keycloak.device_code("kdbt-cli").await.unwrap();
    let early = keycloak.poll_device("kdbt-cli", &device).await.unwrap_err();
    assert!(early.to_string().contains("authorization_pending"), "{early}");
    keycloak
        .browser()
        .unwrap()
        .approve_device(&device.verification_uri_complete, "grace")
        .await
        .unwrap();
    // The interval is a second, and Keycloak counts it from the last poll.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let claims = keycloak
        .poll_device("kdbt-cli", &device)
        .await
        .unwrap()
        .claims()
        .unwrap();
    assert_eq!(
        (&claims["preferred_username"], &claims["azp"]),
        (&json!("grace"), &json!("kdbt-cli"))
    );
}

#[tokio::test]
async fn a_disabled_person_gets_no_token() {
    let Some(keycloak) = Keycloak::shared().await else {
        return;
    };
    keycloak.login("kdbt-cli", "off").await.unwrap_err();
    let refused = keycloak.password_grant("kdbt-test", "off").await.unwrap_err();
    assert!(refused.to_string().contains("Account disabled"), "{refused}");

    let name = format!("leaver{}", unique());
    let admin = keycloak.admin().await.unwrap();
    admin.create_user(&name, &["/data/engineers"]).await.unwrap();
    let tokens = keycloak.password_grant("kdbt-test", &name).await.unwrap();
    assert_eq!(tokens.claims().unwrap()["groups"], json!(["/data/engineers"]));
    admin.set_enabled(&name, false).await.unwrap();
    let refused = keycloak
        .refresh("kdbt-test", tokens.refresh_token.as_deref().unwrap())
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("User disabled"), "{refused}");
    admin.delete_user(&name).await.unwrap();
}

#[tokio::test]
async fn a_client_can_be_told_to_sign_with_es256() {
    let Some(keycloak) = Keycloak::shared().await else {
        return;
    };
    let name = format!("ec{}", unique());
    let admin = keycloak.admin().await.unwrap();
    admin.copy_client("kdbt-test", &name).await.unwrap();
    admin
        .set_client_attribute(&name, "access.token.signed.response.alg", "ES256")
        .await
        .unwrap();
    let tokens = keycloak.password_grant(&name, "ada").await.unwrap();
    assert_eq!(tokens.header().unwrap()["alg"], "ES256");
    let claims = tokens.claims().unwrap();
    assert_eq!(
        (&claims["aud"], &claims["groups"]),
        (&json!("kdbt-broker"), &json!(["/data/engineers"]))
    );
    assert!(
        has(&claims["resource_access"]["kdbt-broker"]["roles"], "engineer"),
        "{claims}"
    );
}

#[tokio::test]
async fn a_rotated_key_signs_and_the_old_one_still_verifies() {
    let Some(keycloak) = Keycloak::shared().await else {
        return;
    };
    let before = keycloak
        .password_grant("kdbt-test", "ada")
        .await
        .unwrap()
        .header()
        .unwrap();
    keycloak.admin().await.unwrap().rotate_key().await.unwrap();
    let after = keycloak
        .password_grant("kdbt-test", "ada")
        .await
        .unwrap()
        .header()
        .unwrap();
    assert_ne!(before["kid"], after["kid"]);
    let url = format!("{}/protocol/openid-connect/certs", keycloak.issuer());
    let jwks = reqwest::get(url).await.unwrap().text().await.unwrap();
    for header in [before, after] {
        assert!(jwks.contains(header["kid"].as_str().unwrap()), "{header} in {jwks}");
    }
}

#[tokio::test]
async fn the_brokers_own_account_may_look_but_not_touch() {
    let Some(keycloak) = Keycloak::shared().await else {
        return;
    };
    let token = keycloak
        .client_credentials("kdbt-broker", keycloak.broker_secret())
        .await
        .unwrap()
        .access_token;
    let users = format!("{}/admin/realms/kdbt/users", keycloak.base_url());
    let http = reqwest::Client::new();
    let seen = http.get(&users).bearer_auth(&token).send().await.unwrap();
    assert_eq!(seen.status(), 200);
    let touched = http
        .post(&users)
        .bearer_auth(&token)
        .json(&json!({"username": unique()}))
        .send()
        .await
        .unwrap();
    assert_eq!(touched.status(), 403);
}

#[tokio::test]
async fn the_import_left_out_nothing_of_the_realm_file() {
    let Some(keycloak) = Keycloak::shared().await else {
        return;
    };
    let file: Value = serde_json::from_str(&std::fs::read_to_string(REALM_FILE).unwrap()).unwrap();
    let admin = keycloak.admin().await.unwrap();
    let clients = admin.call(Method::GET, "clients", None).await.unwrap();
    for client in file["clients"].as_array().unwrap() {
        let imported = clients
            .as_array()
            .unwrap()
            .iter()
            .find(|found| found["clientId"] == client["clientId"]);
        let imported = imported.unwrap_or_else(|| panic!("{} was not imported", client["clientId"]));
        for field in [
            "publicClient",
            "standardFlowEnabled",
            "directAccessGrantsEnabled",
            "fullScopeAllowed",
        ] {
            assert_eq!(imported[field], client[field], "{field} of {}", client["clientId"]);
        }
    }
    let cli = clients
        .as_array()
        .unwrap()
        .iter()
        .find(|found| found["clientId"] == "kdbt-cli")
        .unwrap();
    let logout = cli["attributes"]["backchannel.logout.url"].as_str().unwrap();
    assert!(
        logout.starts_with("http://127.0.0.1:") && logout.ends_with("/v1/oidc/backchannel-logout"),
        "{logout}"
    );
}

//! One thing of a sound realm is changed at a time; what a live Keycloak makes of it, `tests/` looks at.

use serde_json::{Value, json};

use super::*;
use crate::identity::issuer::Provides;

fn mapper(kind: &str, claim: &str, more: &Value) -> Value {
    let mut config = json!({ "claim.name": claim, "access.token.claim": "true" });
    for (name, value) in more.as_object().into_iter().flatten() {
        config[name] = value.clone();
    }
    json!({ "name": format!("m-{claim}"), "protocolMapper": kind, "config": config })
}

/// A realm in which nothing is wrong.
fn sound() -> Value {
    let groups = mapper(
        "oidc-group-membership-mapper",
        "groups",
        &json!({ "full.path": "true" }),
    );
    let audience = mapper(
        "oidc-audience-mapper",
        "",
        &json!({ "included.client.audience": "kdbt-broker" }),
    );
    json!({
        "entry": { "realm": "data", "accessTokenLifespan": 300, "defaultSignatureAlgorithm": "RS256",
            "editUsernameAllowed": false, "registrationAllowed": false },
        "clients": [
            { "id": "1", "clientId": "kdbt-cli", "enabled": true, "protocolMappers": [groups, audience],
              "defaultClientScopes": ["roles", "people"], "optionalClientScopes": ["extra"] },
            { "id": "2", "clientId": "other", "enabled": true, "defaultClientScopes": ["roles"] },
        ],
        "scopes": [
            { "id": "a", "name": "roles", "protocol": "openid-connect", "protocolMappers": [
                mapper("oidc-usermodel-realm-role-mapper", "realm_access.roles", &json!({})),
                mapper("oidc-usermodel-client-role-mapper", "resource_access.${client_id}.roles", &json!({})),
            ] },
            { "id": "b", "name": "people", "protocol": "openid-connect", "protocolMappers": [
                mapper("oidc-usermodel-attribute-mapper", "department", &json!({ "user.attribute": "dept" })),
            ] },
            { "id": "c", "name": "extra", "protocol": "openid-connect", "protocolMappers": [] },
        ],
        "profile": { "attributes": [
            { "name": "username", "permissions": { "edit": ["admin", "user"] } },
            { "name": "dept", "permissions": { "edit": ["admin"] } },
        ] },
    })
}

fn realm(described: &Value, limited: &[&str]) -> Realm {
    fn part<T: serde::de::DeserializeOwned>(value: &Value) -> T {
        serde_json::from_value(value.clone()).unwrap()
    }
    let mut scopes: Vec<ScopeEntry> = part(&described["scopes"]);
    for scope in &mut scopes {
        scope.limited_to_roles = limited.contains(&scope.name.as_str());
    }
    let of = |holder: Option<&str>, role: &str| {
        let key = ("kdbt-cli".to_owned(), holder.map(str::to_owned));
        (key, BTreeSet::from([role.to_owned()]))
    };
    Realm {
        entry: part(&described["entry"]),
        clients: part(&described["clients"]),
        scopes,
        granted: Grants::from([of(None, "contractor"), of(Some("kdbt-broker"), "barred")]),
        profile: part(&described["profile"]),
    }
}

fn config() -> IssuerConfig {
    let mut config = IssuerConfig::new("https://sso.example/realms/data");
    config.audiences = vec!["kdbt-broker".to_owned()];
    config.authorized_parties = vec!["kdbt-cli".to_owned()];
    config.provides = Provides::from_kinds([
        "realm_roles",
        "client_roles",
        "groups",
        "claims.azp",
        "claims.department",
    ])
    .unwrap();
    config
}

fn reads() -> Reads {
    Reads {
        excluding_realm_roles: BTreeSet::from(["contractor".to_owned()]),
        excluding_client_roles: BTreeSet::from([("kdbt-broker".to_owned(), "barred".to_owned())]),
        claims: BTreeSet::from(["azp".to_owned(), "department".to_owned()]),
    }
}

fn flaws(described: &Value) -> Vec<Flaw> {
    realm(described, &[]).flaws(&config(), &reads())
}

/// The one flaw that a change makes.
#[track_caller]
fn one(change: impl FnOnce(&mut Value)) -> Flaw {
    let mut described = sound();
    change(&mut described);
    match &flaws(&described)[..] {
        [flaw] => flaw.clone(),
        found => panic!("{found:#?}"),
    }
}

#[test]
fn nothing_is_said_of_a_sound_realm() {
    assert_eq!(flaws(&sound()), []);
}

#[test]
fn a_claim_that_a_token_may_lack_is_named_with_the_way_to_the_switch() {
    for (place, value, part) in [
        (
            "/clients/0/protocolMappers/0/config/access.token.claim",
            json!("false"),
            "does not write to access tokens",
        ),
        (
            "/clients/0/protocolMappers/0/config/full.path",
            json!("false"),
            "names instead of paths",
        ),
        (
            "/clients/0/protocolMappers/0/protocolMapper",
            json!("oidc-sha256-pairwise"),
            "no mapper brings the groups",
        ),
        (
            "/clients/0/defaultClientScopes/1",
            json!("email"),
            "no mapper brings the values of the claim `department`",
        ),
        (
            "/scopes/1/protocolMappers/0/config/access.token.claim",
            json!("false"),
            "does not write to access tokens",
        ),
        (
            "/scopes/0/protocolMappers/1/config/claim.name",
            json!("resource_access.fixed.roles"),
            "no mapper brings the client roles",
        ),
    ] {
        let flaw = one(|realm| *realm.pointer_mut(place).unwrap() = value);
        assert_eq!((flaw.code, flaw.serious), ("not-provided", true), "{flaw:?}");
        assert!(flaw.what.contains(part), "{flaw:?}");
        assert!(
            flaw.remedy.contains('→') && flaw.remedy.contains("`provides`"),
            "{flaw:?}"
        );
    }
    let optional = one(|realm| {
        realm["clients"][0]["defaultClientScopes"] = json!(["roles"]);
        realm["clients"][0]["optionalClientScopes"] = json!(["people"]);
    });
    assert!(optional.what.contains("`people`, which is optional"), "{optional:?}");
    let limited = realm(&sound(), &["people"]).flaws(&config(), &reads());
    assert_eq!(limited.len(), 1, "{limited:?}");
    assert!(
        limited[0].what.contains("none of the roles in its scope mapping"),
        "{limited:?}"
    );
}

#[test]
fn a_mapper_that_can_replace_what_is_provided_is_named() {
    for (kind, claim) in [
        ("oidc-hardcoded-claim-mapper", "groups"),
        ("oidc-hardcoded-claim-mapper", "realm_access"),
        ("oidc-usermodel-attribute-mapper", "department"),
    ] {
        let flaw = one(|realm| realm["scopes"][2]["protocolMappers"] = json!([mapper(kind, claim, &json!({}))]));
        assert_eq!((flaw.code, flaw.serious), ("claim-overridden", true), "{flaw:?}");
        assert!(flaw.remedy.contains("Client scopes → extra"), "{flaw:?}");
    }
    // Keycloak's own scope `microprofile-jwt` adds roles to the groups, which takes no group away.
    let mut described = sound();
    described["scopes"][2]["protocolMappers"] =
        json!([mapper("oidc-usermodel-realm-role-mapper", "groups", &json!({}))]);
    assert_eq!(flaws(&described), []);
}

#[test]
fn a_role_that_excludes_must_get_into_the_tokens_under_its_name() {
    let mut reads = reads();
    reads.excluding_realm_roles.insert("leaver".to_owned());
    let key = || ("kdbt-broker".to_owned(), "suspended".to_owned());
    reads.excluding_client_roles.insert(key());
    let found = realm(&sound(), &[]).flaws(&config(), &reads);
    let codes: Vec<_> = found.iter().map(|flaw| flaw.code).collect();
    assert_eq!(codes, ["role-out-of-scope", "role-out-of-scope"]);
    assert!(found[0].what.contains("realm role `leaver`"), "{found:?}");
    assert!(found[1].what.contains("role `suspended` of `kdbt-broker`"), "{found:?}");
    // What is not promised excludes nobody by itself: the policy's own check says so.
    let mut unpromised = config();
    unpromised.provides = Provides::default();
    assert_eq!(realm(&sound(), &[]).flaws(&unpromised, &reads), []);
    let flaw = one(|realm| {
        let renaming = mapper(
            "oidc-role-name-mapper",
            "",
            &json!({ "role": "contractor", "new.role.name": "guest" }),
        );
        realm["scopes"][2]["protocolMappers"] = json!([renaming]);
    });
    assert_eq!(flaw.code, "role-renamed");
}

#[test]
fn tokens_that_would_be_refused_are_told_before_anybody_logs_in() {
    type Change = fn(&mut Value);
    let rows: [(&str, Change); 6] = [
        ("audience-missing", |realm| {
            realm["clients"][0]["protocolMappers"].as_array_mut().unwrap().pop();
        }),
        ("client-missing", |realm| realm["clients"][0]["enabled"] = json!(false)),
        ("lightweight-tokens", |realm| {
            realm["clients"][0]["attributes"] = json!({ "client.use.lightweight.access.token.enabled": "true" });
        }),
        ("token-lifetime", |realm| {
            realm["entry"]["accessTokenLifespan"] = json!(3601);
        }),
        ("token-algorithm", |realm| {
            realm["clients"][0]["attributes"] = json!({ "access.token.signed.response.alg": "RS512" });
        }),
        ("realm-unreadable", |realm| realm["entry"] = json!({ "realm": "data" })),
    ];
    for (code, change) in rows {
        let flaw = one(change);
        assert_eq!((flaw.code, flaw.serious), (code, true), "{flaw:?}");
    }
    let mut service = config();
    service.service_clients = vec!["kdbt-cli".to_owned()];
    service.authorized_parties.clear();
    let found = realm(&sound(), &[]).flaws(&service, &reads());
    assert_eq!(
        found.iter().map(|flaw| flaw.code).collect::<Vec<_>>(),
        ["no-service-account"]
    );
}

#[test]
fn what_people_can_edit_of_their_own_decides_nothing() {
    let flaw = one(|realm| realm["profile"]["attributes"][1]["permissions"]["edit"] = json!(["admin", "user"]));
    assert_eq!((flaw.code, flaw.serious), ("claim-editable", true));
    let unmanaged = |policy: &str| {
        let mut described = sound();
        described["profile"]["attributes"].as_array_mut().unwrap().pop();
        described["profile"]["unmanagedAttributePolicy"] = json!(policy);
        flaws(&described).iter().map(|flaw| flaw.code).collect::<Vec<_>>()
    };
    assert_eq!(unmanaged("ENABLED"), ["claim-editable"]);
    assert_eq!(unmanaged("ADMIN_EDIT"), [""; 0]);
    let renamed = one(|realm| realm["entry"]["editUsernameAllowed"] = json!(true));
    assert_eq!((renamed.code, renamed.serious), ("name-editable", false));
    let registered = one(|realm| realm["entry"]["registrationAllowed"] = json!(true));
    assert_eq!((registered.code, registered.serious), ("registration", false));
}

#[test]
fn a_neighbour_that_carries_our_audience_is_named() {
    let flaw = one(|realm| {
        let audience = realm["clients"][0]["protocolMappers"][1].clone();
        realm["clients"][1]["protocolMappers"] = json!([audience]);
    });
    assert_eq!((flaw.code, flaw.serious), ("audience-elsewhere", false));
    assert!(flaw.what.contains("other"), "{flaw:?}");
}

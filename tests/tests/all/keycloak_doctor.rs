//! The doctor on a real Keycloak: it says nothing of a sound realm, and names each promise that a change breaks.

use kdbt_broker::identity::doctor::{AdminAccess, Flaw, Reads, examine_issuer, examine_realm};
use kdbt_broker::identity::{IssuerConfig, Provides};
use kdbt_e2e::broker::{BrokerOptions, test_policies};
use kdbt_e2e::keycloak::Keycloak;
use kdbt_e2e::keycloak::admin::Admin;
use kdbt_e2e::postgres::{PgOptions, PgVersion, unique};
use kdbt_e2e::process::Finished;
use kdbt_e2e::stack::{Stack, StackOptions};
use reqwest::Method;
use serde_json::{Value, json};

/// The account that the doctor looks with, and its secret.
const DOCTOR: (&str, &str) = ("kdbt-doctor", "the-doctors-own-secret");

/// Our realm without the clients that are there to be refused, and with an account for the doctor.
fn sound(realm: &mut Value) {
    let odd = ["kdbt-dpop", "kdbt-light"];
    let stays = |entry: &Value, name: &str| !odd.contains(&entry[name].as_str().unwrap());
    let list = |value: &mut Value, name: &str| {
        value.as_array_mut().unwrap().retain(|entry| stays(entry, name));
    };
    list(&mut realm["clients"], "clientId");
    list(&mut realm["scopeMappings"], "client");
    list(&mut realm["clientScopeMappings"]["kdbt-broker"], "client");
    let (id, secret) = DOCTOR;
    realm["clients"].as_array_mut().unwrap().push(json!({
        "clientId": id, "secret": secret, "enabled": true, "protocol": "openid-connect", "publicClient": false,
        "standardFlowEnabled": false, "fullScopeAllowed": true, "serviceAccountsEnabled": true,
    }));
    realm["users"].as_array_mut().unwrap().push(json!({
        "username": format!("service-account-{id}"), "enabled": true, "serviceAccountClientId": id,
        "clientRoles": { "realm-management": ["view-clients", "view-realm"] },
    }));
}

fn config(issuer: String) -> IssuerConfig {
    let mut config = IssuerConfig::new(issuer);
    config.audiences = vec!["kdbt-broker".to_owned()];
    config.authorized_parties = vec!["kdbt-cli".to_owned(), "kdbt-test".to_owned()];
    config.service_clients = vec!["kdbt-ci".to_owned()];
    config.provides =
        Provides::from_kinds(["realm_roles", "client_roles", "groups", "claims.azp", "claims.acr"]).unwrap();
    config
}

struct Looked<'a> {
    admin: Admin<'a>,
    config: IssuerConfig,
    reads: Reads,
}

impl Looked<'_> {
    async fn flaws(&self) -> Vec<Flaw> {
        let access = AdminAccess {
            client_id: DOCTOR.0.to_owned(),
            secret: DOCTOR.1.to_owned().into(),
            url: None,
        };
        let mut found = examine_issuer(&self.config).await;
        found.extend(examine_realm(&self.config, &self.reads, &access).await);
        found
    }

    async fn codes(&self) -> Vec<&'static str> {
        self.flaws().await.iter().map(|flaw| flaw.code).collect()
    }

    async fn id(&self, client: &str) -> String {
        self.admin.client(client).await.unwrap()["id"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    async fn scope(&self, name: &str) -> String {
        let scopes = self.admin.call(Method::GET, "client-scopes", None).await.unwrap();
        let mut scopes = scopes.as_array().unwrap().iter();
        let scope = scopes.find(|scope| scope["name"] == name).unwrap();
        scope["id"].as_str().unwrap().to_owned()
    }

    async fn change(&self, method: Method, path: &str, body: Option<Value>) {
        self.admin.call(method, path, body.as_ref()).await.unwrap();
    }

    /// The realm roles in a token that the client `kdbt-test` gets for a person now.
    async fn roles_in_token(&self, keycloak: &Keycloak, person: &str) -> Value {
        let form = [
            ("grant_type", "password"),
            ("client_id", "kdbt-test"),
            ("username", person),
            ("password", keycloak.people_password()),
        ];
        let url = format!("{}/protocol/openid-connect/token", self.admin.issuer());
        let answer = reqwest::Client::new().post(url).form(&form).send().await.unwrap();
        let answer: Value = answer.error_for_status().unwrap().json().await.unwrap();
        let token = answer["access_token"].as_str().unwrap();
        let claims: Value = jsonwebtoken::dangerous::insecure_decode_claims(token).unwrap();
        claims["realm_access"]["roles"].clone()
    }
}

/// S16
#[tokio::test]
async fn a_role_that_no_token_can_carry_and_a_mapper_that_is_optional_are_errors_of_the_doctor() {
    let Some(keycloak) = Keycloak::shared().await else {
        return;
    };
    let admin = keycloak.own_realm(&format!("doctor{}", unique()), sound).await.unwrap();
    let mut looked = Looked {
        config: config(admin.issuer()),
        admin,
        reads: Reads::default(),
    };
    assert_eq!(looked.flaws().await, []);

    // Somebody gets a role that the policy excludes by, and no client has it in its scope.
    looked.reads.excluding_realm_roles.insert("contractor".to_owned());
    looked
        .change(Method::POST, "roles", Some(json!({ "name": "contractor" })))
        .await;
    let role = looked.admin.call(Method::GET, "roles/contractor", None).await.unwrap();
    let ada = looked.admin.user_id("ada").await.unwrap();
    let held = format!("users/{ada}/role-mappings/realm");
    looked.change(Method::POST, &held, Some(json!([role]))).await;
    assert_eq!(
        looked.roles_in_token(keycloak, "ada").await,
        json!(["engineer"]),
        "the attack"
    );
    assert_eq!(looked.codes().await, ["role-out-of-scope"; 3], "one for each client");
    // In the scope of each client, of the last one as a part of another role.
    looked
        .change(Method::POST, "roles", Some(json!({ "name": "externals" })))
        .await;
    looked
        .change(Method::POST, "roles/externals/composites", Some(json!([role])))
        .await;
    let whole = looked.admin.call(Method::GET, "roles/externals", None).await.unwrap();
    for (client, role) in [("kdbt-test", &role), ("kdbt-ci", &role), ("kdbt-cli", &whole)] {
        let path = format!("clients/{}/scope-mappings/realm", looked.id(client).await);
        looked.change(Method::POST, &path, Some(json!([role]))).await;
    }
    let carried = looked.roles_in_token(keycloak, "ada").await;
    assert!(carried.as_array().unwrap().contains(&json!("contractor")), "{carried}");
    assert_eq!(looked.flaws().await, []);

    // The scope that brings the roles is there for whoever asks for it.
    let (client, roles) = (looked.id("kdbt-test").await, looked.scope("roles").await);
    let place = |kind: &str| format!("clients/{client}/{kind}-client-scopes/{roles}");
    looked.change(Method::DELETE, &place("default"), None).await;
    looked.change(Method::PUT, &place("optional"), None).await;
    assert_eq!(looked.roles_in_token(keycloak, "ada").await, Value::Null, "the attack");
    let flaws = looked.flaws().await;
    let optional =
        |flaw: &Flaw| flaw.code == "not-provided" && flaw.serious && flaw.what.contains("`roles`, which is optional");
    assert!(flaws.len() == 2 && flaws.iter().all(optional), "{flaws:#?}");
    looked.change(Method::DELETE, &place("optional"), None).await;
    looked.change(Method::PUT, &place("default"), None).await;
    assert_eq!(looked.flaws().await, []);

    // An optional scope replaces the groups of whoever asks for it.
    let mapper = json!({
        "name": "fixed", "protocol": "openid-connect", "protocolMapper": "oidc-hardcoded-claim-mapper",
        "config": { "claim.name": "groups", "claim.value": "[]", "jsonType.label": "JSON", "access.token.claim": "true" },
    });
    let scope = json!({ "name": "thin", "protocol": "openid-connect", "protocolMappers": [mapper] });
    looked.change(Method::POST, "client-scopes", Some(scope)).await;
    let thin = looked.scope("thin").await;
    looked
        .change(
            Method::PUT,
            &format!("clients/{client}/optional-client-scopes/{thin}"),
            None,
        )
        .await;
    assert_eq!(looked.codes().await, ["claim-overridden"]);
    looked
        .change(Method::DELETE, &format!("client-scopes/{thin}"), None)
        .await;

    // And what makes tokens be refused.
    looked
        .admin
        .set_client_attribute("kdbt-cli", "client.use.lightweight.access.token.enabled", "true")
        .await
        .unwrap();
    assert_eq!(looked.codes().await, ["lightweight-tokens"]);
    looked
        .admin
        .set_client_attribute("kdbt-cli", "client.use.lightweight.access.token.enabled", "false")
        .await
        .unwrap();
    looked.config.authorized_parties = vec!["kdbt-cli".to_owned()];
    let flaws = looked.flaws().await;
    assert!(
        matches!(&flaws[..], [flaw] if flaw.code == "audience-elsewhere" && flaw.what.contains("kdbt-test")),
        "{flaws:#?}"
    );
}

/// S16
#[tokio::test]
async fn the_doctor_looks_into_a_realm_with_a_service_account_and_says_which_right_it_lacks() {
    let Some(keycloak) = Keycloak::shared().await else {
        return;
    };
    let admin = keycloak.own_realm(&format!("doctor{}", unique()), sound).await.unwrap();
    let options = StackOptions {
        version: PgVersion::Pg18,
        postgres: PgOptions::default(),
        keycloak: false,
        broker: BrokerOptions {
            issuers: format!(
                "  - issuer: {}\n    audiences: [kdbt-broker]\n    authorized_parties: [kdbt-cli, kdbt-test]\n    \
                 service_clients: [kdbt-ci]\n    provides: [realm_roles, client_roles, groups, claims.azp]\n",
                admin.issuer()
            ),
            files: vec![("doctor.secret".to_owned(), format!("{}\n", DOCTOR.1))],
            ..BrokerOptions::new(test_policies())
        },
    };
    let stack = Stack::prepare(&options, |_| {}).await.unwrap();
    let stack = stack.bootstrapped(|_| {}).await.unwrap();
    let run = async |client: &str, more: &[&str], secret: Option<&str>| {
        let issuer = admin.issuer();
        let named = ["doctor", "--keycloak-client", client, "--keycloak-issuer", &issuer];
        let mut command = stack.broker_command(&[&named, more].concat()).unwrap();
        if let Some(secret) = secret {
            command.env("KDBT_KEYCLOAK_SECRET", secret);
        }
        let done = Finished::of(command).await.unwrap();
        assert!(!format!("{done:?}").contains(DOCTOR.1), "{done:?}");
        done
    };
    let by_file = ["--keycloak-secret-file", "doctor.secret"];
    let well = run(DOCTOR.0, &by_file, None).await.expect(0).unwrap();
    assert!(!well.stdout.contains(&admin.issuer()), "{}", well.stdout);
    let told = run(DOCTOR.0, &["--verbose"], Some(DOCTOR.1)).await.expect(0).unwrap();
    assert!(
        told.stdout.contains("always hold what `provides` says"),
        "{}",
        told.stdout
    );

    let wrong = run(DOCTOR.0, &[], Some("wrong")).await.expect(1).unwrap();
    assert!(
        wrong.stdout.contains("does not let the client `kdbt-doctor` log in"),
        "{}",
        wrong.stdout
    );
    let poor = run("kdbt-ci", &[], Some(keycloak.ci_secret())).await.expect(1).unwrap();
    assert!(
        poor.stdout.contains("`view-clients` and `view-realm`"),
        "{}",
        poor.stdout
    );
    let half = run("kdbt-broker", &[], Some(keycloak.broker_secret()))
        .await
        .expect(1)
        .unwrap();
    assert!(half.stdout.contains("assign `view-realm`"), "{}", half.stdout);
    let none = run(DOCTOR.0, &[], None).await.expect(2).unwrap();
    assert!(none.stderr.contains("KDBT_KEYCLOAK_SECRET"), "{}", none.stderr);

    admin
        .set_client_attribute("kdbt-cli", "access.token.lifespan", "7200")
        .await
        .unwrap();
    let ill = run(DOCTOR.0, &by_file, None).await.expect(1).unwrap();
    let line = format!(
        "error    {}  token-lifetime: tokens of `kdbt-cli` live for 7200 s",
        admin.issuer()
    );
    assert!(ill.stdout.contains(&line), "{}", ill.stdout);
}

//! docker-compose.yml, as far as it can be held to account without a container engine.

use std::fs;
use std::path::{Path, PathBuf};

use kdbt_e2e::keycloak::{REALM_FILE, VERSION};
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn compose() -> Value {
    serde_saphyr::from_str(&fs::read_to_string(root().join("docker-compose.yml")).unwrap()).unwrap()
}

fn services(compose: &Value) -> impl Iterator<Item = (&String, &Value)> {
    compose["services"].as_object().unwrap().iter()
}

fn texts(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().map(|item| item.as_str().unwrap())
}

#[test]
fn everything_that_is_mounted_is_in_the_repository() {
    let compose = compose();
    let mounts = || services(&compose).flat_map(|(_, service)| texts(&service["volumes"]));
    let sources = mounts().map(|mount| mount.split_once(':').unwrap().0);
    let mut files = 0;
    for source in sources {
        if source.starts_with("./") {
            assert!(root().join(source).exists(), "{source}");
            files += 1;
        } else {
            assert!(
                compose["volumes"].as_object().unwrap().contains_key(source),
                "the volume {source} is not declared"
            );
        }
    }
    assert!(files > 0);
    let realm = mounts()
        .find(|mount| mount.ends_with("/opt/keycloak/data/import/kdbt-realm.json:ro"))
        .unwrap();
    let mounted = root().join(realm.split_once(':').unwrap().0).canonicalize().unwrap();
    assert_eq!(
        mounted,
        Path::new(REALM_FILE).canonicalize().unwrap(),
        "the realm is the one that the tests import"
    );
}

#[test]
fn every_placeholder_of_the_realm_file_has_a_value() {
    let compose = compose();
    let realm = fs::read_to_string(REALM_FILE).unwrap();
    let names: Vec<&str> = realm
        .split("${")
        .skip(1)
        .map(|rest| rest.split_once('}').unwrap().0)
        .collect();
    assert!(names.len() > 3, "{names:?}");
    for name in names {
        assert!(
            compose["services"]["keycloak"]["environment"][name].is_string(),
            "{name}"
        );
    }
}

#[test]
fn it_runs_the_keycloak_that_the_tests_run() {
    assert_eq!(
        compose()["services"]["keycloak"]["image"],
        format!("quay.io/keycloak/keycloak:{VERSION}")
    );
}

#[test]
fn nothing_is_published_beyond_loopback() {
    let compose = compose();
    let ports: Vec<&str> = services(&compose)
        .flat_map(|(_, service)| texts(&service["ports"]))
        .collect();
    assert!(
        ports.len() > 1 && ports.iter().all(|port| port.starts_with("127.0.0.1:")),
        "{ports:?}"
    );
}

#[test]
fn dependencies_and_namespaces_name_services() {
    let compose = compose();
    let is_service = |name: &str| compose["services"].as_object().unwrap().contains_key(name);
    for (name, service) in services(&compose) {
        for (other, _) in service["depends_on"].as_object().into_iter().flatten() {
            assert!(is_service(other), "{name} depends on {other}");
        }
        if let Some(mode) = service["network_mode"].as_str() {
            assert!(
                is_service(mode.strip_prefix("service:").unwrap()),
                "{name} is in {mode}"
            );
        }
    }
}

#[test]
fn the_brokers_configuration_names_keycloak_and_warehouse_as_compose_serves_them() {
    let compose = compose();
    let text = fs::read_to_string(root().join("deploy/compose/broker.yaml")).unwrap();
    let config: Value = serde_saphyr::from_str(&text).unwrap();
    let keycloak = &compose["services"]["keycloak"];
    let hostname = keycloak["environment"]["KC_HOSTNAME"].as_str().unwrap();
    assert_eq!(config["issuers"][0]["issuer"], format!("{hostname}/realms/kdbt"));
    assert_eq!(config["public_url"], keycloak["environment"]["KDBT_BROKER_URL"]);
    let broker = &compose["services"]["broker"];
    let secret = config["servers"]["dwh"]["connect"]["password"]["env"].as_str().unwrap();
    assert!(broker["environment"][secret].is_string(), "{secret}");
    let policies = format!("./policies:{}:ro", config["policies"].as_str().unwrap());
    assert!(texts(&broker["volumes"]).any(|mount| mount == policies), "{policies}");
    let store = Path::new(config["store"]["sqlite"].as_str().unwrap())
        .parent()
        .unwrap()
        .to_str()
        .unwrap();
    assert!(
        texts(&broker["volumes"]).any(|mount| mount == format!("leases:{store}")),
        "{store}"
    );
}

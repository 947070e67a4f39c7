//! Who people are: the realm of `keycloak/kdbt-realm.json`, played by this process or by a real Keycloak.

use std::fs;
use std::sync::Mutex;

use anyhow::{Context, Result};
use url::Url;

use crate::issuer::browser::Browser;
use crate::issuer::{Issuer, Realm};
use crate::keycloak::{KeycloakOptions, KeycloakServer, REALM_FILE};

/// The password of every person in the realm, where this process plays it.
const PASSWORD: &str = "correct-horse";
/// The secret of `kdbt-ci`, where this process plays the realm.
const CI_SECRET: &str = "ci-battery-staple";

/// The realm that everything here logs in at.
#[derive(Debug)]
pub enum IdentityProvider {
    /// In this process: nothing to install, ready at once.
    Played(Box<Issuer>),
    /// A real Keycloak.
    Keycloak(Box<KeycloakServer>),
}

impl IdentityProvider {
    /// Plays the realm in this process.
    pub fn play() -> Result<Self> {
        // Serialised, because a realm's keys take a moment and tests start their stacks at once.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _guard = ONE_AT_A_TIME.lock();
        let file = fs::read_to_string(REALM_FILE).with_context(|| format!("read {REALM_FILE}"))?;
        let realm = [
            ("${KDBT_PEOPLE_PASSWORD}", PASSWORD),
            ("${KDBT_CI_SECRET}", CI_SECRET),
            ("${KDBT_BROKER_SECRET}", "unused"),
            ("${KDBT_BROKER_URL}", "http://127.0.0.1:1"),
        ]
        .iter()
        .fold(file, |text, (name, value)| text.replace(name, value));
        Ok(Self::Played(Box::new(Issuer::start(&Realm::parse(&realm)?)?)))
    }

    /// Starts a real Keycloak: 15 to 20 seconds.
    pub async fn keycloak() -> Result<Self> {
        let server = KeycloakServer::start(&KeycloakOptions::default()).await?;
        Ok(Self::Keycloak(Box::new(server)))
    }

    /// The issuer, as its tokens spell it.
    pub fn issuer(&self) -> String {
        match self {
            Self::Played(issuer) => issuer.url().to_owned(),
            Self::Keycloak(keycloak) => keycloak.issuer(),
        }
    }

    /// The password of every person in the realm.
    pub fn people_password(&self) -> &str {
        match self {
            Self::Played(_) => PASSWORD,
            Self::Keycloak(keycloak) => keycloak.people_password(),
        }
    }

    /// The secret of the service account `kdbt-ci`.
    pub fn ci_secret(&self) -> &str {
        match self {
            Self::Played(_) => CI_SECRET,
            Self::Keycloak(keycloak) => keycloak.ci_secret(),
        }
    }

    /// The issuer, where this process plays it.
    ///
    /// # Panics
    /// On a real Keycloak.
    pub fn played(&self) -> &Issuer {
        match self {
            Self::Played(issuer) => issuer,
            Self::Keycloak(_) => panic!("this is a real Keycloak"),
        }
    }

    /// Plays the browser of a person: opens the address, logs in, and goes where that leads, to the client's own listener.
    pub async fn sign_in(&self, username: &str, address: &Url) -> Result<()> {
        let mut browser = Browser::new();
        let callback = browser.sign_in(username, self.people_password(), address).await?;
        browser.visit(&callback).await
    }
}

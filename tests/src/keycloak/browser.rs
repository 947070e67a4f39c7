//! A person at a browser, as far as Keycloak's pages need one: forms, redirects, cookies.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use reqwest::header::{COOKIE, LOCATION, SET_COOKIE};
use url::Url;

use super::{Keycloak, http};

/// Keycloak's cookies are `Secure` even on plain http, where an ordinary cookie jar holds them back: they are carried by hand.
#[derive(Debug)]
pub struct Browser {
    http: reqwest::Client,
    keycloak: Url,
    password: String,
    cookies: BTreeMap<String, String>,
}

/// Where following the redirects has led.
enum Arrived {
    /// A page of Keycloak's.
    Page { url: Url, html: String },
    /// Out of Keycloak: to the client's redirect URI.
    Elsewhere(Url),
}

impl Keycloak {
    /// A browser with no cookies yet.
    pub fn browser(&self) -> Result<Browser> {
        Ok(Browser {
            http: http()?,
            keycloak: self.base_url().parse()?,
            password: self.people_password().to_owned(),
            cookies: BTreeMap::new(),
        })
    }
}

impl Browser {
    /// Opens an authorization URL, fills in the login page and hands back the redirect to the client, unopened.
    pub async fn log_in(&mut self, authorize_url: &str, user: &str) -> Result<Url> {
        let arrived = self.open(authorize_url.parse()?).await?;
        match self.pass_login_page(arrived, user).await? {
            Arrived::Elsewhere(url) => Ok(url),
            Arrived::Page { url, html } => bail!("{user} was not logged in; {url} says: {}", said(&html)),
        }
    }

    /// Opens the URL of a device flow, logs in, and agrees.
    pub async fn approve_device(&mut self, verification_uri_complete: &str, user: &str) -> Result<()> {
        let arrived = self.open(verification_uri_complete.parse()?).await?;
        let Arrived::Page { url, html } = self.pass_login_page(arrived, user).await? else {
            bail!("the device flow has left Keycloak");
        };
        let code = attribute_after(&html, "name=\"code\"", "value=\"");
        let code = code.with_context(|| format!("{url} asks for no consent: {}", said(&html)))?;
        match self.submit(&url, &html, &[("code", &code), ("accept", "Yes")]).await? {
            Arrived::Page { html, .. } if html.contains("name=\"code\"") => bail!("not agreed: {}", said(&html)),
            Arrived::Page { .. } => Ok(()),
            Arrived::Elsewhere(url) => bail!("the device flow has left Keycloak for {url}"),
        }
    }

    async fn pass_login_page(&mut self, arrived: Arrived, user: &str) -> Result<Arrived> {
        match arrived {
            Arrived::Page { url, html } if html.contains("name=\"password\"") => {
                let password = self.password.clone();
                self.submit(
                    &url,
                    &html,
                    &[("username", user), ("password", &password), ("credentialId", "")],
                )
                .await
            }
            other => Ok(other),
        }
    }

    /// Sends the page's first form.
    async fn submit(&mut self, page: &Url, html: &str, fields: &[(&str, &str)]) -> Result<Arrived> {
        let action = attribute_after(html, "<form", "action=\"");
        let action = page.join(&action.with_context(|| format!("{page} has no form: {}", said(html)))?)?;
        let answer = self
            .http
            .post(action.clone())
            .header(COOKIE, self.cookie_header())
            .form(fields)
            .send()
            .await?;
        self.follow(action, answer).await
    }

    async fn open(&mut self, url: Url) -> Result<Arrived> {
        let answer = self
            .http
            .get(url.clone())
            .header(COOKIE, self.cookie_header())
            .send()
            .await?;
        self.follow(url, answer).await
    }

    async fn follow(&mut self, mut url: Url, mut answer: reqwest::Response) -> Result<Arrived> {
        for _ in 0..10 {
            self.take_cookies(&answer);
            let Some(location) = answer.headers().get(LOCATION) else {
                return Ok(Arrived::Page {
                    url,
                    html: answer.text().await?,
                });
            };
            url = url.join(location.to_str()?)?;
            if url.origin() != self.keycloak.origin() {
                return Ok(Arrived::Elsewhere(url));
            }
            answer = self
                .http
                .get(url.clone())
                .header(COOKIE, self.cookie_header())
                .send()
                .await?;
        }
        bail!("redirected ten times, last to {url}")
    }

    fn take_cookies(&mut self, answer: &reqwest::Response) {
        for cookie in answer
            .headers()
            .get_all(SET_COOKIE)
            .iter()
            .filter_map(|value| value.to_str().ok())
        {
            let (pair, attributes) = cookie.split_once(';').unwrap_or((cookie, ""));
            let Some((name, value)) = pair.split_once('=') else {
                continue;
            };
            if attributes.contains("Max-Age=0") {
                self.cookies.remove(name);
            } else {
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
        }
    }

    fn cookie_header(&self) -> String {
        self.cookies
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect::<Vec<_>>()
            .join("; ")
    }
}

/// The value of the first `attribute` after `mark`.
fn attribute_after(html: &str, mark: &str, attribute: &str) -> Option<String> {
    let (_, rest) = html.split_once(mark)?;
    let (_, rest) = rest.split_once(attribute)?;
    let (value, _) = rest.split_once('"')?;
    Some(value.replace("&amp;", "&"))
}

/// The page's words, for an error.
fn said(html: &str) -> String {
    let body = html.split_once("<body").map_or(html, |(_, body)| body);
    let words = body
        .split('<')
        .filter_map(|piece| piece.split_once('>').map(|(_, text)| text))
        .flat_map(str::split_whitespace);
    words.take(60).collect::<Vec<_>>().join(" ")
}

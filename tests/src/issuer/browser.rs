//! A person at a browser, played over plain HTTP: reads forms, keeps cookies, follows redirects. Knows Keycloak's pages too.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use reqwest::header::{COOKIE, LOCATION, SET_COOKIE};
use reqwest::{Method, Response, StatusCode};
use url::Url;

/// One browser window with its cookies.
#[derive(Debug)]
pub struct Browser {
    http: reqwest::Client,
    /// By hand, because a cookie jar does not send `Secure` cookies back over plain HTTP, which loopback browsers do.
    cookies: BTreeMap<String, String>,
}

/// What a window shows after all redirects.
#[derive(Debug)]
struct Shown {
    url: Url,
    html: String,
}

impl Default for Browser {
    fn default() -> Self {
        Self::new()
    }
}

impl Browser {
    /// A window that has seen nothing yet.
    ///
    /// # Panics
    /// If no HTTP client can be made.
    pub fn new() -> Self {
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(30))
            .build()
            .expect("an HTTP client");
        Self {
            http,
            cookies: BTreeMap::new(),
        }
    }

    /// Logs in at an authorization URL and answers with the address that the client's listener is called with; does not call it.
    pub async fn sign_in(&mut self, username: &str, password: &str, authorization_url: &Url) -> anyhow::Result<Url> {
        let back = |url: &Url| url.query_pairs().any(|(name, _)| name == "code" || name == "error");
        let response = self.send(Method::GET, authorization_url, None).await?;
        let shown = match self.follow(authorization_url, response, &back).await? {
            Ok(shown) => shown,
            Err(callback) => return Ok(callback),
        };
        let (action, response) = self.submit_login(&shown, username, password).await?;
        match self.follow(&action, response, &back).await? {
            Ok(shown) => bail!(
                "the login of `{username}` did not lead back to the client: {}",
                words(&shown.html)
            ),
            Err(callback) => Ok(callback),
        }
    }

    /// Opens a device's verification page with the code in it, logs in and answers the question.
    pub async fn answer_device(
        &mut self,
        username: &str,
        password: &str,
        page: &Url,
        accept: bool,
    ) -> anyhow::Result<()> {
        let never = |_: &Url| false;
        let response = self.send(Method::GET, page, None).await?;
        let shown = self.show(page, response, &never).await?;
        let (action, response) = self.submit_login(&shown, username, password).await?;
        let shown = self.show(&action, response, &never).await?;
        let code = attribute(&shown.html, "name=\"code\"", "value");
        let code = code.with_context(|| format!("no question about the device, but: {}", words(&shown.html)))?;
        let button = if accept { ("accept", "Yes") } else { ("cancel", "No") };
        let action = form_action(&shown)?;
        let response = self
            .send(Method::POST, &action, Some(&[("code", &code), button]))
            .await?;
        self.show(&action, response, &never).await.map(drop)
    }

    /// Opens an address and follows its redirects to a page.
    pub async fn visit(&mut self, url: &Url) -> anyhow::Result<()> {
        let response = self.send(Method::GET, url, None).await?;
        self.show(url, response, &|_| false).await.map(drop)
    }

    async fn submit_login(&mut self, shown: &Shown, username: &str, password: &str) -> anyhow::Result<(Url, Response)> {
        ensure!(
            shown.html.contains("name=\"password\""),
            "no login page at {}, but: {}",
            shown.url.path(),
            words(&shown.html)
        );
        let action = form_action(shown)?;
        let fields = [("username", username), ("password", password), ("credentialId", "")];
        let response = self.send(Method::POST, &action, Some(&fields)).await?;
        Ok((action, response))
    }

    /// Follows redirects until a page shows, or (`Err`) until one leads to an address that is not ours to visit.
    async fn follow(
        &mut self,
        from: &Url,
        mut response: Response,
        stop: &impl Fn(&Url) -> bool,
    ) -> anyhow::Result<Result<Shown, Url>> {
        let mut url = from.clone();
        for _ in 0..10 {
            if !response.status().is_redirection() {
                let status = response.status();
                let html = response.text().await?;
                ensure!(
                    status == StatusCode::OK,
                    "{} answers {status}: {}",
                    url.path(),
                    words(&html)
                );
                return Ok(Ok(Shown { url, html }));
            }
            let location = response
                .headers()
                .get(LOCATION)
                .context("a redirect without an address")?
                .to_str()?;
            url = url.join(location)?;
            if stop(&url) {
                return Ok(Err(url));
            }
            response = self.send(Method::GET, &url, None).await?;
        }
        bail!("more than ten redirects from {}", from.path())
    }

    async fn show(&mut self, from: &Url, response: Response, stop: &impl Fn(&Url) -> bool) -> anyhow::Result<Shown> {
        self.follow(from, response, stop)
            .await?
            .map_err(|url| anyhow::anyhow!("led away to {}", url.path()))
    }

    async fn send(&mut self, method: Method, url: &Url, form: Option<&[(&str, &str)]>) -> anyhow::Result<Response> {
        let mut request = self.http.request(method, url.clone());
        if !self.cookies.is_empty() {
            let pairs: Vec<String> = self
                .cookies
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            request = request.header(COOKIE, pairs.join("; "));
        }
        if let Some(form) = form {
            request = request.form(form);
        }
        let response = request.send().await?;
        for cookie in response.headers().get_all(SET_COOKIE) {
            let pair = cookie.to_str()?.split(';').next().unwrap_or_default();
            if let Some((name, value)) = pair.split_once('=') {
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
        }
        Ok(response)
    }
}

fn form_action(shown: &Shown) -> anyhow::Result<Url> {
    let action =
        attribute(&shown.html, "<form", "action").with_context(|| format!("no form: {}", words(&shown.html)))?;
    Ok(shown.url.join(&action)?)
}

/// The value of an attribute in the first tag that holds `marker`, unescaped.
fn attribute(html: &str, marker: &str, name: &str) -> Option<String> {
    let tag = html
        .split('<')
        .map(|tag| format!("<{tag}"))
        .find(|tag| tag.contains(marker))?;
    let (_, rest) = tag.split_once(&format!(" {name}=\""))?;
    let (value, _) = rest.split_once('"')?;
    Some(
        value
            .replace("&amp;", "&")
            .replace("&#x2F;", "/")
            .replace("&#x3D;", "=")
            .replace("&quot;", "\""),
    )
}

/// The text of a page, for error messages.
fn words(html: &str) -> String {
    let text: Vec<&str> = html
        .split('<')
        .filter_map(|tag| tag.split_once('>'))
        .map(|(_, text)| text.trim())
        .collect();
    text.join(" ").split_whitespace().take(60).collect::<Vec<_>>().join(" ")
}

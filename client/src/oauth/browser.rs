//! Login with a browser on this machine: code and PKCE, answered on a loopback port (RFC 8252 section 7.3).

use std::process::Stdio;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use url::Url;

use super::{Pkce, Provider, Tokens, random_text};
use crate::exit::{Code, Failure, Outcome};
use crate::output::{Output, clean};
use crate::settings::text_variable;

/// How long the person has.
const PATIENCE: Duration = Duration::from_mins(3);

/// The longest request that is read from the browser.
const MAX_REQUEST_BYTES: usize = 16 * 1024;

/// Opens the browser (or only prints where to go) and waits for the one callback.
pub(crate) async fn login(provider: &Provider, open: bool, output: Output) -> Outcome<Tokens> {
    let listening = |error: std::io::Error| {
        Failure::new(Code::Failed, format!("cannot listen on 127.0.0.1: {error}"))
            .hint("use `kdbt-client login --device`")
    };
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(listening)?;
    let port = listener.local_addr().map_err(listening)?.port();
    let attempt = Attempt {
        host: format!("127.0.0.1:{port}"),
        state: random_text(),
        issuer: provider.issuer.issuer.clone(),
        must_name_issuer: provider.names_itself,
    };
    let redirect_uri = format!("http://{}/callback", attempt.host);
    let (pkce, nonce, scope) = (Pkce::generate(), random_text(), provider.scope());
    let mut url = provider.authorization_endpoint.clone();
    url.query_pairs_mut().extend_pairs([
        ("response_type", "code"),
        ("client_id", &provider.issuer.client_id),
        ("redirect_uri", &redirect_uri),
        ("scope", &scope),
        ("state", &attempt.state),
        ("nonce", &nonce),
        ("code_challenge", &pkce.challenge),
        ("code_challenge_method", "S256"),
    ]);
    let opened = open && open_browser(&url);
    output.ask(if opened {
        "Log in in the browser that opens, or go to"
    } else {
        "To log in, open"
    });
    output.ask(url.as_str());
    let code = tokio::time::timeout(PATIENCE, attempt.wait(&listener))
        .await
        .map_err(|_| {
            Failure::new(Code::LoginNeeded, "nobody logged in within 3 minutes").hint("kdbt-client login")
        })??;
    drop(listener);
    let form = [
        ("grant_type", "authorization_code"),
        ("client_id", provider.issuer.client_id.as_str()),
        ("code", code.expose_secret()),
        ("redirect_uri", &redirect_uri),
        ("code_verifier", pkce.verifier.expose_secret()),
    ];
    let tokens = provider.token(&form).await;
    let tokens = tokens.map_err(|error| error.into_failure(&provider.issuer.issuer))?;
    tokens.check_nonce(&provider.issuer, &nonce)?;
    Ok(tokens)
}

/// What the callback is held against.
#[derive(Debug)]
struct Attempt {
    host: String,
    state: String,
    issuer: String,
    must_name_issuer: bool,
}

/// What came in on the port.
#[derive(Debug)]
enum Request {
    /// Not the callback: a favicon, another program.
    Other,
    /// The one callback, with the code or why there is none.
    Callback(Outcome<SecretString>),
}

impl Attempt {
    async fn wait(&self, listener: &TcpListener) -> Outcome<SecretString> {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else {
                continue;
            };
            let head = tokio::time::timeout(Duration::from_secs(5), read_head(&mut stream)).await;
            let request = head.ok().flatten().map_or(Request::Other, |head| self.read(&head));
            let (status, text) = match &request {
                Request::Other => ("404 Not Found", "There is nothing here."),
                Request::Callback(Ok(_)) => ("200 OK", "You are logged in. You can close this window."),
                Request::Callback(Err(_)) => ("400 Bad Request", "The login failed. The terminal says why."),
            };
            let page = format!(
                "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
                 Cache-Control: no-store\r\nReferrer-Policy: no-referrer\r\nConnection: close\r\n\r\n{text}",
                text.len()
            );
            // A browser that no longer listens has missed a courtesy only.
            let _ = stream.write_all(page.as_bytes()).await;
            let _ = stream.shutdown().await;
            if let Request::Callback(result) = request {
                return result;
            }
        }
    }

    /// Takes a request head apart. Only a GET of `/callback` under our own host counts.
    fn read(&self, head: &str) -> Request {
        let mut lines = head.split("\r\n");
        let mut words = lines.next().unwrap_or_default().split(' ');
        let (Some("GET"), Some(target)) = (words.next(), words.next()) else {
            return Request::Other;
        };
        let host = lines
            .filter_map(|line| line.split_once(':'))
            .find_map(|(name, value)| name.eq_ignore_ascii_case("host").then(|| value.trim()));
        if host != Some(&self.host) {
            return Request::Other;
        }
        match Url::parse(&format!("http://{}{target}", self.host)) {
            Ok(url) if url.path() == "/callback" => Request::Callback(self.check(&url)),
            _ => Request::Other,
        }
    }

    fn check(&self, url: &Url) -> Outcome<SecretString> {
        let wrong = |what: &str| {
            Failure::new(
                Code::LoginNeeded,
                format!("the answer to the login is not the one that was asked for: {what}"),
            )
            .hint("kdbt-client login")
        };
        let one = |name: &str| {
            let mut values = url
                .query_pairs()
                .filter(|(key, _)| key == name)
                .map(|(_, value)| value.into_owned());
            match (values.next(), values.next()) {
                (value, None) => Ok(value),
                (_, Some(_)) => Err(wrong(&format!("`{name}` stands twice"))),
            }
        };
        let state = one("state")?.unwrap_or_default();
        if verify_slices_are_equal(state.as_bytes(), self.state.as_bytes()).is_err() {
            return Err(wrong("its `state` differs"));
        }
        match one("iss")? {
            Some(issuer) if issuer != self.issuer => return Err(wrong("it comes from another issuer")),
            None if self.must_name_issuer => return Err(wrong("it does not name its issuer")),
            _ => {}
        }
        if let Some(error) = one("error")? {
            let description = one("error_description")?.unwrap_or_default();
            return Err(Failure::new(
                Code::LoginNeeded,
                format!("the login was refused: {} {}", clean(&error), clean(&description))
                    .trim_end()
                    .to_owned(),
            ));
        }
        one("code")?
            .map(SecretString::from)
            .ok_or_else(|| wrong("there is no `code`"))
    }
}

/// The request up to its empty line; `None` if it does not come or is too long.
async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut chunk = [0_u8; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let count = stream.read(&mut chunk).await.ok().filter(|count| *count > 0)?;
        head.extend_from_slice(chunk.get(..count)?);
        if head.len() > MAX_REQUEST_BYTES {
            return None;
        }
    }
    String::from_utf8(head).ok()
}

/// Starts `$BROWSER`, or what the desktop uses. The URL holds no secret: the PKCE verifier stays here.
fn open_browser(url: &Url) -> bool {
    let configured = text_variable("BROWSER").ok().flatten();
    let usual = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
    let browsers = configured.as_deref().unwrap_or(usual);
    browsers.split(':').any(|browser| {
        let mut words = browser.split_whitespace();
        let Some(program) = words.next() else { return false };
        let mut words: Vec<String> = words.map(|word| word.replace("%s", url.as_str())).collect();
        if !browser.contains("%s") {
            words.push(url.to_string());
        }
        let mut command = std::process::Command::new(program);
        command
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.spawn().is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt() -> Attempt {
        Attempt {
            host: "127.0.0.1:4711".into(),
            state: "the-state".into(),
            issuer: "https://sso/realms/data".into(),
            must_name_issuer: true,
        }
    }

    fn answer(head: &str) -> Request {
        attempt().read(head)
    }

    #[test]
    fn the_right_callback_gives_the_code() {
        let head = "GET /callback?state=the-state&iss=https%3A%2F%2Fsso%2Frealms%2Fdata&code=c0de HTTP/1.1\r\nhost: 127.0.0.1:4711\r\n\r\n";
        let Request::Callback(Ok(code)) = answer(head) else {
            panic!("refused")
        };
        assert_eq!(code.expose_secret(), "c0de");
    }

    #[test]
    fn a_callback_with_another_state_issuer_or_doubled_member_is_refused() {
        let iss = "iss=https%3A%2F%2Fsso%2Frealms%2Fdata";
        for query in [
            format!("state=other&{iss}&code=c"),
            format!("{iss}&code=c"),
            "state=the-state&code=c".to_owned(),
            "state=the-state&iss=https%3A%2F%2Fevil&code=c".to_owned(),
            format!("state=the-state&state=the-state&{iss}&code=c"),
            format!("state=the-state&{iss}"),
            format!("state=the-state&{iss}&error=access_denied"),
        ] {
            let head = format!("GET /callback?{query} HTTP/1.1\r\nHost: 127.0.0.1:4711\r\n\r\n");
            assert!(matches!(answer(&head), Request::Callback(Err(_))), "{query}");
        }
    }

    #[test]
    fn what_is_no_get_of_the_callback_under_our_host_does_not_count() {
        for head in [
            "POST /callback?state=the-state HTTP/1.1\r\nHost: 127.0.0.1:4711\r\n\r\n",
            "GET /favicon.ico HTTP/1.1\r\nHost: 127.0.0.1:4711\r\n\r\n",
            "GET /callback?state=x HTTP/1.1\r\nHost: evil.example\r\n\r\n",
            "GET /callback?state=x HTTP/1.1\r\n\r\n",
            "\r\n\r\n",
        ] {
            assert!(matches!(answer(head), Request::Other), "{head:?}");
        }
    }
}

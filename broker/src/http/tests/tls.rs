//! Certificates: served, exchanged under way, and kept when the new ones are broken.

use std::path::Path;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio_rustls::TlsConnector;

use super::*;
use crate::http::{Tls, TlsError};

/// Writes a fresh pair into the folder.
fn write_pair(folder: &Path) -> CertificateDer<'static> {
    let pair = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(folder.join("cert.pem"), pair.cert.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), pair.signing_key.serialize_pem()).unwrap();
    pair.cert.der().clone()
}

fn load(folder: &Path) -> Result<Tls, TlsError> {
    Tls::load(folder.join("cert.pem"), folder.join("key.pem"))
}

/// Whether a client that trusts this certificate alone gets an answer.
async fn serves(broker: &Broker, trusted: &CertificateDer<'static>) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let Ok(mut stream) = TlsConnector::from(Arc::new(config))
        .connect(name, broker.connect().await)
        .await
    else {
        return false;
    };
    stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").await.unwrap();
    let mut text = String::new();
    // The broker closes without `close_notify`.
    let _ = soon(stream.read_to_string(&mut text)).await;
    text.starts_with("HTTP/1.0 200")
}

#[tokio::test]
async fn a_new_pair_is_served_after_a_reload_and_a_broken_one_never() {
    let folder = TempDir::new().unwrap();
    let old = write_pair(folder.path());
    let tls = Arc::new(load(folder.path()).unwrap());
    let broker = Broker::with_tls(Some(Arc::clone(&tls)), Limits::default()).await;
    assert!(serves(&broker, &old).await);

    let new = write_pair(folder.path());
    assert!(serves(&broker, &old).await, "nothing changes before the reload");
    tls.reload().unwrap();
    assert!(serves(&broker, &new).await && !serves(&broker, &old).await);

    std::fs::write(folder.path().join("key.pem"), "no key").unwrap();
    assert!(matches!(
        tls.reload(),
        Err(TlsError::File {
            what: "a private key",
            ..
        })
    ));
    assert!(serves(&broker, &new).await, "the pair in use stays");
}

#[tokio::test]
async fn a_key_of_another_certificate_is_refused() {
    let (one, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    write_pair(one.path());
    write_pair(other.path());
    let mixed = Tls::load(one.path().join("cert.pem"), other.path().join("key.pem"));
    assert!(matches!(mixed, Err(TlsError::Pair { .. })), "{mixed:?}");
}

#[test]
fn a_folder_without_a_pair_is_an_error_that_names_the_file() {
    let folder = TempDir::new().unwrap();
    let error = load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("cert.pem"), "{error}");
    write_pair(folder.path());
    std::fs::write(folder.path().join("cert.pem"), "").unwrap();
    let empty = load(folder.path()).unwrap_err();
    assert!(empty.to_string().contains("cert.pem"), "{empty}");
}

// S24
#[tokio::test]
async fn a_handshake_that_never_comes_is_cut() {
    let folder = TempDir::new().unwrap();
    write_pair(folder.path());
    let handshake_time = Duration::from_millis(100);
    let limits = Limits {
        handshake_time,
        ..Limits::default()
    };
    let broker = Broker::with_tls(load(folder.path()).ok().map(Arc::new), limits).await;
    assert_eq!(read_to_end(&mut broker.connect().await).await, "");
}

//! A PostgreSQL server that is none: it plays what somebody on the way to the real one would, and keeps what it hears.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::postgres::Postgres;

/// The codes that stand in place of a version in a client's first message.
const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;

/// How long a client may be silent.
const PATIENCE: Duration = Duration::from_secs(10);

/// What it says to a client that wants TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// There is none here.
    Refused,
    /// Here it is, with a certificate for this host that nobody vouches for.
    Unvouched,
    /// Here it is, with a certificate that the server's authority has made for another host.
    Elsewhere,
    /// Here it is, with the server's own certificate: who has that can only be told by what it asks for.
    Stolen,
}

/// What it wants to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wants {
    /// The password as it is.
    Cleartext,
    /// Its MD5 hash, salted by us: as good as the password for whoever can guess fast.
    Md5,
    /// SCRAM, at the end of which it cannot prove that it knows the verifier, and goes on as if it had.
    UnprovenScram,
}

/// What it was told.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    /// How many clients came.
    pub connections: usize,
    /// Answers to what it wanted, as they came.
    pub answers: Vec<Vec<u8>>,
    /// How many clients believed that they are in, and sent a statement.
    pub believers: usize,
}

impl Heard {
    /// Whether somebody told it this password, or a hash that stands for it.
    pub fn holds(&self, password: &str) -> bool {
        let clear = |answer: &[u8]| answer.windows(password.len()).any(|part| part == password.as_bytes());
        self.answers
            .iter()
            .any(|answer| clear(answer) || answer.starts_with(b"md5"))
    }
}

/// A running one, on a free port of 127.0.0.1. Its thread ends with the process.
#[derive(Debug)]
pub struct Impostor {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    play: Mutex<(Tls, Wants)>,
    heard: Mutex<Heard>,
    certificates: Mutex<Vec<(Tls, Arc<ServerConfig>)>>,
}

impl Impostor {
    /// Starts one that refuses TLS and wants the password.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            play: Mutex::new((Tls::Refused, Wants::Cleartext)),
            heard: Mutex::default(),
            certificates: Mutex::new(vec![(Tls::Unvouched, unvouched()?)]),
        });
        let here = Arc::clone(&shared);
        thread::Builder::new().name("impostor".into()).spawn(move || {
            for stream in listener.incoming().flatten() {
                let here = Arc::clone(&here);
                // A client that hangs up has seen through it.
                thread::spawn(move || here.serve(stream));
            }
        })?;
        Ok(Self { port, shared })
    }

    /// Gives it the certificates that it can have of this server's authority.
    pub fn certify(&self, server: &Postgres) -> Result<()> {
        let elsewhere = of_pem(&server.certificate_of_another_host()?)?;
        let stolen = of_pem(&server.certificate()?)?;
        let mut certificates = self.shared.certificates.lock().unwrap();
        certificates.extend([(Tls::Elsewhere, elsewhere), (Tls::Stolen, stolen)]);
        Ok(())
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it plays from now on; what it heard before is forgotten.
    pub fn play(&self, tls: Tls, wants: Wants) {
        *self.shared.play.lock().unwrap() = (tls, wants);
        *self.shared.heard.lock().unwrap() = Heard::default();
    }

    /// What it heard since.
    pub fn heard(&self) -> Heard {
        self.shared.heard.lock().unwrap().clone()
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) -> Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        self.heard.lock().unwrap().connections += 1;
        let (tls, wants) = *self.play.lock().unwrap();
        loop {
            match (first_message(&mut stream)?, self.certificate(tls)) {
                (SSL_REQUEST, Some(certificate)) => {
                    stream.write_all(b"S")?;
                    let session = ServerConnection::new(certificate)?;
                    let mut stream = StreamOwned::new(session, stream);
                    first_message(&mut stream)?;
                    return self.log_in(&mut stream, wants);
                }
                (SSL_REQUEST | GSS_REQUEST, _) => stream.write_all(b"N")?,
                (_startup, _) => return self.log_in(&mut stream, wants),
            }
        }
    }

    fn certificate(&self, tls: Tls) -> Option<Arc<ServerConfig>> {
        let certificates = self.certificates.lock().unwrap();
        let found = certificates.iter().find(|(kind, _)| *kind == tls);
        found.map(|(_, certificate)| Arc::clone(certificate))
    }

    fn log_in(&self, stream: &mut (impl Read + Write), wants: Wants) -> Result<()> {
        match wants {
            Wants::Cleartext => stream.write_all(&ask(3, b""))?,
            Wants::Md5 => stream.write_all(&ask(5, b"salt"))?,
            Wants::UnprovenScram => stream.write_all(&ask(10, b"SCRAM-SHA-256\0\0"))?,
        }
        let answer = self.answer(stream)?;
        if wants == Wants::UnprovenScram {
            let answer = String::from_utf8_lossy(&answer);
            let (_, nonce) = answer.rsplit_once("r=").context("no nonce")?;
            let salt = STANDARD.encode(b"a salt of sixteen");
            stream.write_all(&ask(11, format!("r={nonce}more,s={salt},i=4096").as_bytes()))?;
            self.answer(stream)?;
            stream.write_all(&ask(12, format!("v={}", STANDARD.encode([0; 32])).as_bytes()))?;
        }
        stream.write_all(&ask(0, b""))?;
        stream.write_all(b"Z\0\0\0\x05I")?;
        let (kind, _) = message(stream)?;
        // A client that terminates in good order (`X`) has not been taken in.
        if kind != b'X' {
            self.heard.lock().unwrap().believers += 1;
        }
        Ok(())
    }

    fn answer(&self, stream: &mut impl Read) -> Result<Vec<u8>> {
        let (_, body) = message(stream)?;
        self.heard.lock().unwrap().answers.push(body.clone());
        Ok(body)
    }
}

/// An authentication message of this kind.
fn ask(kind: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(8 + body.len()).unwrap_or(u32::MAX);
    [b"R", &length.to_be_bytes()[..], &kind.to_be_bytes(), body].concat()
}

/// The code of a message without a type: a version, or a request.
fn first_message(stream: &mut impl Read) -> Result<u32> {
    let body = sized(stream)?;
    let code = body.first_chunk::<4>().context("a message without a code")?;
    Ok(u32::from_be_bytes(*code))
}

fn message(stream: &mut impl Read) -> Result<(u8, Vec<u8>)> {
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    Ok((kind[0], sized(stream)?))
}

fn sized(stream: &mut impl Read) -> Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_be_bytes(length))?;
    let body = length.checked_sub(4).filter(|length| *length < 65_536);
    let mut body = vec![0; body.ok_or(std::io::Error::from(ErrorKind::InvalidData))?];
    stream.read_exact(&mut body)?;
    Ok(body)
}

fn unvouched() -> Result<Arc<ServerConfig>> {
    let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
    let made = rcgen::generate_simple_self_signed(names)?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    configured(made.cert.der().clone(), key.into())
}

fn of_pem((certificate, key): &(String, String)) -> Result<Arc<ServerConfig>> {
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
    configured(CertificateDer::from_pem_slice(certificate.as_bytes())?, key)
}

fn configured(certificate: CertificateDer<'static>, key: PrivateKeyDer<'static>) -> Result<Arc<ServerConfig>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config = config.with_no_client_auth().with_single_cert(vec![certificate], key)?;
    Ok(Arc::new(config))
}

//! From the request to the three parts of a compact JWT; nothing is believed here, and no text can make it panic.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::{ExposeSecret as _, SecretString};

use super::reason::Reason;

/// What a request says about who sends it. Its parsing never fails, so that there is one road to a refusal:
/// [`Authenticator::authenticate`](super::Authenticator::authenticate).
///
/// Only the header counts (R1): a token in a form or a cookie is not looked at, since the body comes later.
#[derive(Debug, Clone)]
pub struct AuthorizationHeader(Result<SecretString, Reason>);

impl AuthorizationHeader {
    /// Takes the value of every `Authorization` header of the request, and its raw query.
    pub fn of_request<'a>(values: impl IntoIterator<Item = &'a [u8]>, query: Option<&str>) -> Self {
        let mut values = values.into_iter();
        Self(match (values.next(), values.next()) {
            (None, _) => Err(Reason::MissingToken),
            (Some(_), Some(_)) => Err(Reason::SeveralHeaders),
            (Some(_), None) if has_access_token(query) => Err(Reason::SeveralMethods),
            (Some(value), None) => bearer_token(value).map(SecretString::from),
        })
    }

    /// The token, or why there is none.
    pub(crate) fn token(&self) -> Result<&str, Reason> {
        self.0
            .as_ref()
            .map(SecretString::expose_secret)
            .map_err(|reason| *reason)
    }
}

fn has_access_token(query: Option<&str>) -> bool {
    query.is_some_and(|query| url::form_urlencoded::parse(query.as_bytes()).any(|(name, _)| name == "access_token"))
}

/// RFC 9110 section 11.4: the scheme in any case, one or more spaces, the token.
fn bearer_token(value: &[u8]) -> Result<&str, Reason> {
    let value = str::from_utf8(value).map_err(|_| Reason::MalformedToken)?;
    let value = value.trim_matches([' ', '\t']);
    let (scheme, rest) = value.split_once(' ').unwrap_or((value, ""));
    let token = rest.trim_start_matches(' ');
    if scheme.eq_ignore_ascii_case("dpop") {
        return Err(Reason::DpopScheme);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Reason::UnsupportedScheme);
    }
    match token {
        "" => Err(Reason::EmptyToken),
        _ if token.contains(',') => Err(Reason::SeveralCredentials),
        _ => Ok(token),
    }
}

/// The parts of a compact JWS, decoded, and what its signature is over.
pub(super) struct CompactToken<'a> {
    pub header: Vec<u8>,
    pub payload: Vec<u8>,
    /// Header and payload as sent, with the dot between them.
    pub signed: &'a str,
    /// Still in base64url, as the verifier takes it; known to be strict.
    pub signature: &'a str,
}

impl<'a> CompactToken<'a> {
    /// Splits a token of at most `max_bytes` (R2).
    pub(super) fn parse(token: &'a str, max_bytes: usize) -> Result<Self, Reason> {
        if token.len() > max_bytes {
            return Err(Reason::TokenTooLong);
        }
        let (signed, signature) = match token.split('.').count() {
            3 => token.rsplit_once('.').ok_or(Reason::MalformedToken)?,
            5 => return Err(Reason::EncryptedToken),
            _ => return Err(Reason::MalformedToken),
        };
        let (header, payload) = signed.split_once('.').ok_or(Reason::MalformedToken)?;
        decode(signature)?;
        Ok(Self {
            header: decode(header)?,
            payload: decode(payload)?,
            signed,
            signature,
        })
    }
}

/// Non-empty base64url without padding; bits that no byte uses must be zero.
fn decode(part: &str) -> Result<Vec<u8>, Reason> {
    match URL_SAFE_NO_PAD.decode(part) {
        Ok(bytes) if !bytes.is_empty() => Ok(bytes),
        Ok(_) | Err(_) => Err(Reason::MalformedToken),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token_of(values: &[&str], query: Option<&str>) -> Result<String, Reason> {
        AuthorizationHeader::of_request(values.iter().map(|v| v.as_bytes()), query)
            .token()
            .map(str::to_owned)
    }

    // R1
    #[test]
    fn a_bearer_token_is_found_whatever_the_case_of_the_scheme_and_the_number_of_spaces() {
        for value in [
            "Bearer t",
            "bearer t",
            "BEARER t",
            "bEaReR t",
            "Bearer   t",
            " Bearer t ",
            "Bearer t\t",
        ] {
            assert_eq!(token_of(&[value], None).as_deref(), Ok("t"), "{value:?}");
        }
    }

    // R1
    #[test]
    fn only_one_authorization_header_counts_as_sending_a_token() {
        assert_eq!(token_of(&[], None), Err(Reason::MissingToken));
        assert_eq!(token_of(&["Bearer t", "Bearer t"], None), Err(Reason::SeveralHeaders));
        assert_eq!(token_of(&["Bearer t", "Basic dTpw"], None), Err(Reason::SeveralHeaders));
    }

    // R1, BCP 9700 4.3.2
    #[test]
    fn a_token_in_the_query_is_none_alone_and_one_too_many_beside_a_header() {
        for query in [
            "access_token=t",
            "a=b&access_token=t",
            "access%5Ftoken=t",
            "access_token",
        ] {
            assert_eq!(token_of(&[], Some(query)), Err(Reason::MissingToken), "{query}");
            assert_eq!(
                token_of(&["Bearer t"], Some(query)),
                Err(Reason::SeveralMethods),
                "{query}"
            );
        }
        assert_eq!(
            token_of(&["Bearer t"], Some("access_tokens=1&x=access_token")).as_deref(),
            Ok("t")
        );
    }

    // R1
    #[test]
    fn another_scheme_is_refused() {
        for value in [
            "Basic dTpw",
            "t",
            "",
            "Bearert",
            "Bearer\tt",
            "Token t",
            "Bearer:t",
            "\u{feff}Bearer t",
        ] {
            assert_eq!(token_of(&[value], None), Err(Reason::UnsupportedScheme), "{value:?}");
        }
        for value in ["DPoP t", "dpop t", "DPoP"] {
            assert_eq!(token_of(&[value], None), Err(Reason::DpopScheme), "{value:?}");
        }
    }

    // R1
    #[test]
    fn empty_credentials_and_lists_of_them_are_refused() {
        for value in ["Bearer", "Bearer ", "bearer    "] {
            assert_eq!(token_of(&[value], None), Err(Reason::EmptyToken), "{value:?}");
        }
        for value in ["Bearer a, Bearer b", "Bearer a,b", "Bearer a,"] {
            assert_eq!(token_of(&[value], None), Err(Reason::SeveralCredentials), "{value:?}");
        }
    }

    #[test]
    fn a_header_that_is_not_utf_8_is_refused() {
        let header = AuthorizationHeader::of_request([&b"Bearer \xff"[..]], None);
        assert_eq!(header.token(), Err(Reason::MalformedToken));
    }

    #[test]
    fn the_debug_text_of_a_header_does_not_hold_its_token() {
        let header = AuthorizationHeader::of_request([&b"Bearer very.secret.token"[..]], None);
        assert!(!format!("{header:?}").contains("secret.token"));
    }

    fn parse(token: &str) -> Result<CompactToken<'_>, Reason> {
        CompactToken::parse(token, 64)
    }

    // R2
    #[test]
    fn a_token_has_three_parts_in_strict_base64url() {
        assert!(parse("e30.e30.AAAA").is_ok());
        for token in [
            "e30.e30",
            "e30.e30.",
            ".e30.AAAA",
            "e30..AAAA",
            "e30.e30.AAAA.",
            "e30.e30.AAAA.AAAA",
            "e30=.e30.AAAA",
            "e30.e30.AA==",
            "e30.e30.AA+A",
            "e30.e30.AA/A",
            "e30.e30.AA A",
            "e30.e30.AAAA\n",
            "e30\n.e30.AAAA",
            "\u{feff}e30.e30.AAAA",
            "e31.e30.AAAA", // The last two bits belong to no byte and are not zero.
            "e30.e30.AB",
            "e30.e30.A",
            "...",
        ] {
            assert_eq!(parse(token).err(), Some(Reason::MalformedToken), "{token:?}");
        }
    }

    // R2
    #[test]
    fn an_encrypted_token_is_named_as_such() {
        assert_eq!(parse("e30.AA.AA.AA.AA").err(), Some(Reason::EncryptedToken));
    }

    // R2
    #[test]
    fn a_token_one_byte_above_the_limit_is_refused() {
        let token = |signature: usize| format!("e30.e30.{}", "A".repeat(signature));
        assert!(parse(&token(56)).is_ok());
        assert_eq!(parse(&token(57)).err(), Some(Reason::TokenTooLong));
    }

    proptest! {
        // R2
        #[test]
        fn no_header_makes_the_parser_panic(value in "(?i:bearer)? *.{0,40}", query in proptest::option::of(".{0,20}")) {
            let header = AuthorizationHeader::of_request([value.as_bytes()], query.as_deref());
            if let Ok(token) = header.token() {
                let _ = parse(token);
            }
        }

        // R2
        #[test]
        fn no_bytes_make_the_parser_panic(values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..3)) {
            let header = AuthorizationHeader::of_request(values.iter().map(Vec::as_slice), None);
            if let Ok(token) = header.token() {
                let _ = parse(token);
            }
        }
    }
}

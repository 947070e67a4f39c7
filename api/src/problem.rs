//! Errors on the wire: problem documents (RFC 9457) with a stable code.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A problem document, `application/problem+json`. Never carries what only operators may know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// `urn:kdbt:problem:<code>`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The same for every problem of this code.
    pub title: String,
    /// The HTTP status, repeated as RFC 9457 3.1.3 has it.
    pub status: u16,
    /// A stable kebab-case code: a promise to programs. A plain text here, so that an older client can read
    /// the codes of a newer broker.
    pub code: String,
    /// What was wrong with this very request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The finer reason within the code, where causes have different cures (a token rule, a policy reason).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// To find the request in the broker's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $status:literal, $title:literal;)*) => {
        /// Every code that the broker answers with, its status and its title.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ProblemCode {
            $($(#[$doc])* $variant,)*
        }

        impl ProblemCode {
            /// All of them, for the documentation and its test.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The code on the wire.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $code,)* }
            }

            /// The HTTP status.
            #[must_use]
            pub fn status(self) -> u16 {
                match self { $(Self::$variant => $status,)* }
            }

            /// What stands in `title`.
            #[must_use]
            pub fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)* }
            }

            /// The code with this text, if this version knows it.
            #[must_use]
            pub fn from_code(code: &str) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

codes! {
    /// The body or the query is not what the call takes.
    MalformedRequest = "malformed-request", 400, "The request is malformed";
    /// More than one way of sending a token at once (RFC 6750 section 2).
    AmbiguousCredentials = "ambiguous-credentials", 400, "More than one credential was sent";
    /// No token was sent.
    TokenMissing = "token-missing", 401, "A token is required";
    /// A token was sent and a rule refuses it; `reason` says which.
    TokenInvalid = "token-invalid", 401, "The token is not accepted";
    /// The policy gives this identity nothing there; `reason` says which rule of the policy language refused.
    PolicyDenied = "policy-denied", 403, "The policy does not allow this";
    /// This call needs an admin role.
    AdminRequired = "admin-required", 403, "This call is for admins";
    /// No such path, or not yours: the same answer.
    NotFound = "not-found", 404, "There is nothing here for you";
    /// The path exists, the method does not.
    MethodNotAllowed = "method-not-allowed", 405, "The method is not allowed";
    /// The lease is not in a state in which this can be done.
    LeaseNotActive = "lease-not-active", 409, "The lease is not active";
    /// Today's policy no longer covers what the lease was given.
    GrantChanged = "grant-changed", 409, "The grant has changed";
    /// A request with the same idempotency key is still at work.
    RequestInProgress = "request-in-progress", 409, "The same request is still at work";
    /// The secret of this idempotency key was handed out before; there is never a second one.
    SecretAlreadyDelivered = "secret-already-delivered", 409, "The secret was already delivered";
    /// The identity's access was stopped while the lease was being made.
    Stopped = "stopped", 409, "The access was stopped meanwhile";
    /// The body is too large.
    PayloadTooLarge = "payload-too-large", 413, "The body is too large";
    /// The URL is too long.
    UriTooLong = "uri-too-long", 414, "The URL is too long";
    /// The body is not JSON by its content type.
    UnsupportedMediaType = "unsupported-media-type", 415, "The content type is not supported";
    /// A TTL outside the range that the policy gives; the range stands in `detail`.
    TtlOutOfRange = "ttl-out-of-range", 422, "The TTL is outside the allowed range";
    /// A verifier, key or other member of the order that cannot be.
    InvalidOrder = "invalid-order", 422, "The order cannot be filled";
    /// A verifier for Snowflake, or a public key for PostgreSQL; `reason` names the target's engine.
    WrongCredential = "wrong-credential", 422, "The target takes another kind of credential";
    /// The same idempotency key was used with another body.
    IdempotencyKeyReused = "idempotency-key-reused", 422, "The idempotency key was used for another request";
    /// Too many live leases or requests; see `Retry-After`.
    LimitReached = "limit-reached", 429, "A limit is reached";
    /// The headers are too large.
    HeadersTooLarge = "headers-too-large", 431, "The headers are too large";
    /// Something failed on our side; the log has it under the request id.
    Internal = "internal", 500, "Something failed on our side";
    /// The warehouse could not be reached or refused.
    WarehouseDown = "warehouse-down", 503, "The warehouse is not available";
    /// Issuing is stopped on this server, because ending users there is unhealthy.
    IssuingStopped = "issuing-stopped", 503, "Issuing is stopped on this server";
    /// No policy is loaded.
    PolicyNotLoaded = "policy-not-loaded", 503, "No policy is loaded";
    /// The store is not available.
    StoreDown = "store-down", 503, "The store is not available";
    /// The broker is shutting down or overloaded.
    Unavailable = "unavailable", 503, "The broker cannot take the request now";
}

impl fmt::Display for ProblemCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Problem {
    /// A problem of this code, without details.
    #[must_use]
    pub fn new(code: ProblemCode) -> Self {
        Self {
            kind: format!("urn:kdbt:problem:{code}"),
            title: code.title().to_owned(),
            status: code.status(),
            code: code.as_str().to_owned(),
            detail: None,
            hint: None,
            reason: None,
            request_id: None,
        }
    }

    /// With what was wrong.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// With what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With the finer reason.
    #[must_use]
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_kebab_case_and_reads_back() {
        for code in ProblemCode::ALL {
            assert!(
                code.as_str().bytes().all(|b| b.is_ascii_lowercase() || b == b'-'),
                "{code}"
            );
            assert_eq!(ProblemCode::from_code(code.as_str()), Some(*code));
            assert!((400..600).contains(&code.status()));
        }
    }
}

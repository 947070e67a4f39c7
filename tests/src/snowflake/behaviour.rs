//! What the simulator does, and where that is known from. `docs/snowflake.md` prints the assumptions.

/// Where a behaviour is known from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A page of the vendor's documentation.
    Vendor(&'static str),
    /// Seen by somebody and told in public.
    Case(&'static str),
    /// Nobody could check.
    Assumption(&'static str),
}

/// One behaviour.
#[derive(Debug, Clone, Copy)]
pub struct Behaviour {
    /// A sentence that a live account would confirm or refute.
    pub what: &'static str,
    /// Where it is from.
    pub source: Source,
}

const fn is(what: &'static str, source: Source) -> Behaviour {
    Behaviour { what, source }
}

use Source::{Assumption, Case, Vendor};

/// All of them.
pub const BEHAVIOURS: &[Behaviour] = &[
    is(
        "A token is RS256, names ACCOUNT.USER in capitals and the fingerprint of a key of that user.",
        Vendor("developer-guide/sql-api/authenticating"),
    ),
    is(
        "A token is refused when it was issued more than 60 s ago, or in the future.",
        Vendor("developer-guide/sql-api/handling-responses"),
    ),
    is(
        "Every wrong token gets 401 with 390144 and an id, under which an administrator reads the cause.",
        Case("emqx, duckle#22"),
    ),
    is(
        "A request without User-Agent is refused.",
        Vendor("developer-guide/sql-api/reference"),
    ),
    is(
        "A member of the body that is not documented is refused with 390142.",
        Vendor("developer-guide/sql-api/handling-responses"),
    ),
    is(
        "One request holds one statement.",
        Vendor("developer-guide/sql-api/submitting-multiple-statements"),
    ),
    is(
        "retry=true with the id of a request that succeeded gives its result again and executes nothing.",
        Vendor("developer-guide/sql-api/submitting-requests"),
    ),
    is(
        "retry=true with the id of a request that failed executes it.",
        Assumption("U10"),
    ),
    is(
        "202 may come unasked; the result is fetched by its handle until it is there.",
        Vendor("developer-guide/sql-api/handling-responses"),
    ),
    is(
        "A result comes in partitions, the first inline.",
        Vendor("developer-guide/sql-api/handling-responses"),
    ),
    is(
        "Times come as epoch seconds with nine digits behind the point.",
        Vendor("developer-guide/sql-api/handling-responses"),
    ),
    is(
        "createdOn is the account's time in milliseconds.",
        Vendor("developer-guide/sql-api/reference"),
    ),
    is(
        "CREATE USER needs CREATE USER on the account; the creating role owns the user.",
        Vendor("sql-reference/sql/create-user"),
    ),
    is("A user that exists already: 002002.", Case("public issue threads")),
    is(
        "What does not exist and what may not be seen: 002003.",
        Case("public issue threads"),
    ),
    is(
        "Insufficient privileges: 003001.",
        Case("terraform-provider-snowflake#677"),
    ),
    is(
        "Only a role's owner, or who manages grants, may grant it.",
        Vendor("sql-reference/sql/grant-role"),
    ),
    is(
        "Only a user's owner sees more of it than its name in SHOW USERS.",
        Assumption("U15"),
    ),
    is(
        "SHOW USERS shows DEFAULT_SECONDARY_ROLES to the owner, as a list.",
        Vendor("sql-reference/sql/show-users"),
    ),
    is(
        "GRANT OWNERSHIP ON USER makes another role the owner, who alone may change, grant to and drop the user then.",
        Vendor("sql-reference/sql/grant-ownership"),
    ),
    is(
        "A network policy on a user lets in the addresses that it lists.",
        Vendor("user-guide/network-policies"),
    ),
    is(
        "An address that a network policy does not list gets 403 with 390422.",
        Assumption("U14"),
    ),
    is(
        "ALTER USER … SET SESSION POLICY needs APPLY SESSION POLICY on the account, and the policy must exist.",
        Vendor("user-guide/session-policies-managing"),
    ),
    is(
        "What is made in a session belongs to the session's role; SHOW GRANTS TO ROLE lists it as OWNERSHIP, with the time.",
        Vendor("sql-reference/sql/show-grants"),
    ),
    is(
        "Any role may see what another role holds by SHOW GRANTS TO ROLE.",
        Assumption("U13"),
    ),
    is(
        "SHOW USERS pages by LIMIT … FROM '<last name>', 10 000 at most.",
        Vendor("sql-reference/sql/show-users"),
    ),
    is(
        "A disabled user cannot log in, and what it runs is aborted.",
        Vendor("sql-reference/sql/alter-user"),
    ),
    is(
        "DAYS_TO_EXPIRY counts down; an expired user cannot log in, and its open sessions go on.",
        Vendor("sql-reference/sql/create-user"),
    ),
    is(
        "A user's owner may rename it; its keys, grants and comment stay.",
        Vendor("sql-reference/sql/alter-user"),
    ),
    is(
        "DEFAULT_ROLE and DEFAULT_WAREHOUSE are not checked.",
        Vendor("sql-reference/sql/create-user"),
    ),
    is(
        "A role that is held through another role can be used as the session's role.",
        Assumption("U6"),
    ),
    is(
        "A login as a disabled, expired or dropped user fails with 390144 like any other.",
        Assumption("U1"),
    ),
    is(
        "An open session of a disabled or dropped user is cut.",
        Assumption("U2"),
    ),
    is("A role that is not granted: 422 with 390186.", Assumption("U3")),
    is(
        "The owning role reads a user's comment over the SQL API.",
        Assumption("U5"),
    ),
    is(
        "A rotated key pair stops working after the given number of hours.",
        Assumption("U7"),
    ),
    is("The text of success does not matter to anybody.", Assumption("U9")),
    is(
        "Five tokens with a wrong key or signature lock the user for a quarter of an hour.",
        Assumption("U12"),
    ),
];

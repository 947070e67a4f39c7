//! Short texts that decide much: marks, verifiers, keys, names, times.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kdbt_api::credential::{Iterations, Password, PrivateKey, PublicKey, ScramVerifier};
use kdbt_api::lease::LeaseId;
use kdbt_api::name::{
    DbUsername, InstallationName, NameError, ProfileName, RoleName, SchemaName, Slug, SnowflakeUsername, TargetName,
};
use kdbt_api::{Timestamp, Ttl};
use kdbt_broker::grant::OwnerName;
use kdbt_broker::mark::{Mark, prefix};
use kdbt_e2e::fuzz::{Target, kind, repeats};

use super::{bytes, hold};

/// The value of a text that has one, and that is its only text.
fn canonical<T: FromStr<Err: Display> + Display>(text: &str) -> Result<Result<T, String>, String> {
    match text.parse::<T>() {
        Ok(value) => {
            hold(value.to_string() == text, &format!("{text:?} is taken and is {value}"))?;
            Ok(Ok(value))
        }
        Err(error) => Ok(Err(kind(&error.to_string()))),
    }
}

#[test]
fn a_mark_has_one_text_and_names_nobody_but_whom_it_names() {
    const GOOD: &str = "kdbt/1 acme-prod lse_019023b4c0de7abc8def0123456789ab max=1788307200 sub=9f2c000011112222";
    let check = |input: &[u8]| {
        let text = String::from_utf8_lossy(input);
        let mark: Mark = match canonical(&text)? {
            Ok(mark) => mark,
            Err(said) => return Ok(said),
        };
        hold(
            text.starts_with(&prefix(&mark.installation)),
            "the sweep would not find it",
        )?;
        let words = if mark.ends_at.is_some() { 7 } else { 6 };
        hold(text.split(' ').count() == words, "a part holds a blank")?;
        match &mark.owner {
            Some(OwnerName::Role(role)) => hold(!role.as_str().starts_with("kdbt_"), "it names a role of ours")?,
            Some(OwnerName::Personal(slug)) => hold(canonical::<Slug>(slug.as_str())?.is_ok(), "no slug")?,
            None => {}
        }
        // What an adopted lease is given: both ends are times that can be written and compared.
        let ends = [Some(mark.max_ends_at), mark.ends_at];
        for end in ends.into_iter().flatten() {
            hold(end.to_string().parse() == Ok(end), "an end that cannot be written")?;
        }
        Ok(format!("{} {}", mark.owner.is_some(), mark.ends_at.is_some()))
    };
    Target {
        name: "mark",
        seeds: bytes([
            format!("{GOOD} owner=-"),
            format!("{GOOD} owner=dbt_finance"),
            format!("{GOOD} owner=kdbt__own_ada end=1788300000"),
            format!("{GOOD} owner=- end=0"),
            // Found: a time that could not be written.
            format!("{GOOD} owner=a end=253402300799"),
        ]),
        words: &[
            "kdbt/1 ",
            "kdbt/2 ",
            "lse_",
            "max=",
            "sub=",
            "owner=",
            "end=",
            " owner=-",
            "kdbt__own_",
            "kdbt__broker",
            "-1",
            "+1",
            "9223372036854775807",
            "253402300799",
            "253402300800",
            "public",
            "pg_x",
        ],
        short: 20_000,
        check: &check,
    }
    .run();
}

#[test]
fn a_verifier_that_is_taken_is_written_as_it_was_and_costs_the_server_nothing() {
    let mut rng = rand::rng();
    let verifier = |iterations| {
        let password = Password::generate(&mut rand::rng());
        password.verifier(iterations, &mut rng).to_postgres()
    };
    let seeds: Vec<String> = [Iterations::One, Iterations::Standard].map(verifier).to_vec();
    let check = |input: &[u8]| {
        let text = String::from_utf8_lossy(input);
        let read = text.parse::<ScramVerifier>();
        let json = serde_json::from_value::<ScramVerifier>(serde_json::json!(text));
        hold(json.is_ok() == read.is_ok(), "JSON is read in another way")?;
        let told = [
            read.as_ref().err().map(ToString::to_string),
            json.as_ref().err().map(ToString::to_string),
        ];
        for told in told.into_iter().flatten() {
            let secret = text.strip_prefix("SCRAM-SHA-256$").unwrap_or(&text);
            hold(!repeats(&told, secret.as_bytes(), 16), "an error repeats the verifier")?;
        }
        let verifier = match read {
            Ok(verifier) => verifier,
            Err(error) => return Ok(format!("{error:?}")),
        };
        hold(verifier.to_postgres() == text, "it is written in another way")?;
        hold(!repeats(&format!("{verifier:?}"), input, 16), "Debug tells it")?;
        let [scheme, cost, keys] = text.split('$').collect::<Vec<_>>()[..] else {
            return Err("not in three parts".to_owned());
        };
        let (count, salt) = cost.split_once(':').ok_or("no salt")?;
        hold(
            scheme == "SCRAM-SHA-256" && ["1", "4096"].contains(&count),
            "its scheme or cost",
        )?;
        let salt = STANDARD.decode(salt).map_err(|_| "its salt")?;
        hold((16..=64).contains(&salt.len()), "the length of its salt")?;
        for key in keys.split(':') {
            hold(
                key.len() == 44 && STANDARD.decode(key).is_ok_and(|key| key.len() == 32),
                "a key",
            )?;
        }
        Ok(format!("{count} {}", salt.len()))
    };
    Target {
        name: "verifier",
        seeds: bytes(seeds),
        words: &[
            "SCRAM-SHA-256$",
            "md5",
            "$",
            ":",
            "=",
            "==",
            "4096",
            "2147483647",
            "-1",
            "+1",
            "0",
            "AAAA",
            "YQ==",
        ],
        short: 20_000,
        check: &check,
    }
    .run();
}

#[test]
fn a_public_key_that_is_taken_has_one_encoding_and_a_bearable_size() {
    let keys: Vec<String> = (0..2)
        .map(|_| PrivateKey::generate().unwrap().1.to_snowflake())
        .collect();
    let pem = |text: &str| format!("-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n");
    let check = |input: &[u8]| {
        // What is no text is the DER of a key, broken inside of its encoding.
        let text = match str::from_utf8(input) {
            Ok(text) => text.to_owned(),
            Err(_) => STANDARD.encode(input),
        };
        let key = match text.parse::<PublicKey>() {
            Ok(key) => key,
            Err(error) => return Ok(format!("{error:?}")),
        };
        let plain = key.to_snowflake();
        hold((300..=800).contains(&plain.len()), "its length")?;
        hold(!plain.contains(['\'', '\n', '-']), "it would leave its quotes")?;
        let again: PublicKey = plain
            .parse()
            .map_err(|error| format!("refused when written plainly: {error}"))?;
        hold(again == key && again.fingerprint() == key.fingerprint(), "another key")?;
        let inside = text
            .replace("-----BEGIN PUBLIC KEY-----", "")
            .replace("-----END PUBLIC KEY-----", "");
        let inside: String = inside.split_ascii_whitespace().collect();
        hold(inside == plain, "another key than the text says")?;
        Ok(format!("a key of {}", plain.len()))
    };
    let der = keys.iter().map(|key| STANDARD.decode(key).unwrap());
    Target {
        name: "public key",
        seeds: keys
            .iter()
            .map(|key| key.clone().into_bytes())
            .chain(der)
            .chain(bytes(keys.iter().map(|key| pem(key))))
            // Found: taken for space around the key.
            .chain(bytes(keys.iter().map(|key| format!("\u{2028}{}", pem(key)))))
            .collect(),
        words: &[
            "-----BEGIN PUBLIC KEY-----",
            "-----END PUBLIC KEY-----",
            "-----BEGIN RSA PUBLIC KEY-----",
            "MIIB",
            "AQAB",
            "=",
            "\n",
            "\r\n",
            "0\u{82}",
            "\u{2}\u{3}\u{1}\u{0}\u{1}",
            "'",
        ],
        short: 4_000,
        check: &check,
    }
    .run();
}

#[test]
fn every_name_makes_a_valid_slug_that_meets_no_durable_name() {
    let check = |input: &[u8]| {
        let name = String::from_utf8_lossy(input);
        let slug = Slug::from_name(&name);
        hold(
            Slug::from_name(slug.as_str()) == slug,
            "the slug of a slug is another one",
        )?;
        let hex = [input.len().to_le_bytes()[0], 0xab, 0xff];
        for slug in [
            &slug,
            &slug.with_suffix(hex),
            &slug.with_suffix(hex).with_suffix([0; 3]),
        ] {
            hold(canonical::<Slug>(slug.as_str())?.as_ref() == Ok(slug), "no valid slug")?;
            let slot = u16::from_le_bytes([hex[0], 0x3a]);
            let user = DbUsername::new(slug, slot);
            hold(
                canonical::<DbUsername>(user.as_str())?.as_ref() == Ok(&user),
                "no valid user",
            )?;
            hold(
                !user.as_str().starts_with("kdbt__") && user.as_str().len() <= 63,
                "it meets a durable name",
            )?;
            hold(
                user.as_str().parse::<RoleName>().is_err(),
                "a policy could name the user",
            )?;
            let shown = SnowflakeUsername::from(&user);
            hold(
                canonical::<SnowflakeUsername>(shown.as_str())?.as_ref() == Ok(&shown),
                "no Snowflake user",
            )?;
            let owner = OwnerName::Personal(slug.clone()).to_string();
            hold(
                owner.parse::<DbUsername>().is_err() && owner.parse::<RoleName>().is_err(),
                "an owner that others can be",
            )?;
            hold(owner.len() <= 63, "PostgreSQL cuts the owner's name")?;
        }
        Ok(format!(
            "{} {}",
            slug.as_str().len(),
            slug.as_str().matches('_').count()
        ))
    };
    Target {
        name: "slug",
        seeds: bytes([
            "ada",
            "Ada.Lovelace@acme.example",
            "7of9",
            "u_alice",
            "王伟",
            "login",
            "kdbt__broker",
            "A--B..C__D",
        ]),
        words: &[
            "kdbt_", "kdbt__", "_", "__", "own_", "login", "0", "u", "İ", "ß", "ﬀ", "K",
        ],
        short: 5_000,
        check: &check,
    }
    .run();
}

#[test]
fn a_name_a_time_and_an_id_have_one_text_each_and_no_sql_in_it() {
    fn name<T>(text: &str, longest: usize) -> Result<String, String>
    where
        T: FromStr<Err = NameError> + Display + Debug,
    {
        match canonical::<T>(text)? {
            Ok(_) => {
                let plain = |c: char| c.is_ascii_alphanumeric() || "_$-.".contains(c);
                hold(
                    text.chars().all(plain) && text.len() <= longest,
                    &format!("{text:?} is a name"),
                )?;
                Ok("1".to_owned())
            }
            Err(said) => Ok(said),
        }
    }
    let check = |input: &[u8]| {
        let text = String::from_utf8_lossy(input);
        let mut said = name::<TargetName>(&text, 63)? + &name::<InstallationName>(&text, 63)?;
        said += &(name::<RoleName>(&text, 63)? + &name::<SchemaName>(&text, 63)? + &name::<ProfileName>(&text, 128)?);
        said += &(name::<DbUsername>(&text, 63)? + &name::<SnowflakeUsername>(&text, 63)?);
        said += &canonical::<LeaseId>(&text)?.map_or_else(|said| said, |_| "id".to_owned());
        if let Ok(at) = text.parse::<Timestamp>() {
            hold(at.to_string().parse() == Ok(at), "a time that cannot be written")?;
            hold(Timestamp::from_unix(at.as_unix()) <= at, "a time before its second")?;
            said += "time";
        }
        if let Ok(ttl) = text.parse::<Ttl>() {
            hold(ttl.to_string().parse() == Ok(ttl), "a duration that cannot be written")?;
            hold((Ttl::SHORTEST..=Ttl::LONGEST).contains(&ttl), "a duration out of range")?;
            said += "ttl";
        }
        Ok(said)
    };
    Target {
        name: "names, times and ids",
        seeds: bytes([
            "analytics",
            "my-role",
            "kdbt_ada_0",
            "KDBT_ADA_0",
            "jaffle.shop-1",
            "lse_019023b4c0de7abc8def0123456789ab",
            "8h",
            "90s",
            "720h",
            "2026-01-05T20:00:00Z",
            "2026-01-05T20:00:00.123+01:00",
        ]),
        words: &[
            "kdbt__",
            "pg_",
            "public",
            "$",
            "-",
            "h",
            "m",
            "s",
            "d",
            "T",
            "Z",
            "+00:00",
            "99999999999999999999",
            "lse_",
        ],
        short: 10_000,
        check: &check,
    }
    .run();
}

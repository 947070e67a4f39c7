//! Reads the audit from its first row to its last and says what was changed, cut or swapped. Pure.

use std::fmt;

use kdbt_api::name::InstallationName;
use serde_json::Value;

use super::AuditEvent;
use super::chain::{AuditKey, AuditRow, Head, OPENED, Opening};

/// What is known of the audit from elsewhere.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// A head from log or metrics; without one, a cut tail and a whole forged chain without key go unseen.
    pub head: Option<Head>,
    /// Whose store it should be.
    pub installation: Option<InstallationName>,
}

/// What the check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// How many rows were read.
    pub rows: u64,
    /// How many chains.
    pub chains: u64,
    /// The last row, to be kept for the next check.
    pub head: Option<Head>,
    /// What is wrong, in the order of the rows.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The row where it shows.
    pub row: i64,
    /// What.
    pub flaw: Flaw,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "audit row {}: {}", self.row, self.flaw)
    }
}

/// What can be wrong with an audit row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// The hash does not fit the row.
    Edited,
    /// Rows before it are missing, or it does not follow the row before.
    Gap,
    /// The body is no audit event.
    Unreadable,
    /// A chain does not start with a row that quotes the head before it.
    Opening,
    /// A chain without MAC, after one with it or as the last, though there is a key.
    Unkeyed,
    /// A chain with MAC, and no key to check it with.
    KeyNeeded,
    /// The chain belongs to another installation.
    OtherInstallation,
    /// The expected head is not among the rows: the tail was cut, or the store swapped or forged.
    HeadMissing,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Edited => "the hash does not fit the row: it was edited, or the key is another one",
            Self::Gap => "it does not follow the row before: rows were taken out or put in",
            Self::Unreadable => "the body is no audit event",
            Self::Opening => "the chain does not start with a row that quotes the head before it",
            Self::Unkeyed => "the chain bears no MAC although there is a key: it may be forged",
            Self::KeyNeeded => "the chain bears a MAC and no key was given to check it",
            Self::OtherInstallation => "the chain belongs to another installation",
            Self::HeadMissing => "the expected head is not here: the tail was cut, or the store is another one",
        })
    }
}

/// Checks all rows, in the order of their numbers. Fails only where `rows` fails.
pub fn verify<E>(
    rows: impl IntoIterator<Item = Result<AuditRow, E>>,
    key: Option<&AuditKey>,
    expected: &Expected,
) -> Result<Report, E> {
    let mut check = Check {
        key,
        expected,
        report: Report::default(),
        last: None,
        keyed: false,
        keyed_before: false,
        head_seen: false,
    };
    for row in rows {
        check.row(row?);
    }
    Ok(check.finish())
}

struct Check<'a> {
    key: Option<&'a AuditKey>,
    expected: &'a Expected,
    report: Report,
    last: Option<AuditRow>,
    /// Whether the chain at hand bears a MAC.
    keyed: bool,
    /// Whether any chain so far did.
    keyed_before: bool,
    head_seen: bool,
}

impl Check<'_> {
    fn found(&mut self, row: i64, flaw: Flaw) {
        self.report.findings.push(Finding { row, flaw });
    }

    fn row(&mut self, row: AuditRow) {
        let number = row.row;
        let event = serde_json::from_str::<AuditEvent>(&row.body).ok();
        if event.is_none() {
            self.found(number, Flaw::Unreadable);
        }
        if number != self.last.as_ref().map_or(0, |last| last.row).saturating_add(1) {
            self.found(number, Flaw::Gap);
        }
        match self.last.take() {
            Some(last) if last.chain == row.chain => {
                if (row.n, &row.prev) != (last.n.saturating_add(1), &last.hash) {
                    self.found(number, Flaw::Gap);
                }
            }
            last => self.opening(&row, last.as_ref(), event),
        }
        if self.key.is_some() || !self.keyed {
            let key = self.key.filter(|_| self.keyed);
            if row.seal(key) != row.hash {
                self.found(number, Flaw::Edited);
            }
        }
        let head = Head {
            row: number,
            hash: row.hash.clone(),
        };
        self.head_seen |= self.expected.head.as_ref() == Some(&head);
        self.report.head = Some(head);
        self.report.rows = self.report.rows.saturating_add(1);
        // One flaw is told once: what follows is held against the row as it stands.
        self.last = Some(row);
    }

    /// The first row of a chain.
    fn opening(&mut self, row: &AuditRow, last: Option<&AuditRow>, event: Option<AuditEvent>) {
        self.report.chains = self.report.chains.saturating_add(1);
        let opening = event
            .filter(|event| event.action == OPENED && row.n == 1 && row.prev.is_empty())
            .and_then(|event| serde_json::from_value::<Opening>(Value::Object(event.details)).ok());
        let Some(opening) = opening else {
            // What cannot be told is taken as it would be without forgery.
            self.keyed = self.key.is_some();
            return self.found(row.row, Flaw::Opening);
        };
        let quoted = opening.heads.iter().map(|head| (head.row, head.hash.as_str()));
        if !quoted.eq(last.map(|last| (last.row, last.hash.as_str()))) {
            self.found(row.row, Flaw::Opening);
        }
        let ours = self.expected.installation.as_ref();
        if ours.is_some_and(|ours| *ours != opening.installation) {
            self.found(row.row, Flaw::OtherInstallation);
        }
        self.keyed = opening.keyed;
        match (self.keyed, self.key) {
            (true, None) => self.found(row.row, Flaw::KeyNeeded),
            (false, Some(_)) if self.keyed_before => self.found(row.row, Flaw::Unkeyed),
            (true | false, _) => {}
        }
        self.keyed_before |= self.keyed;
    }

    fn finish(mut self) -> Report {
        let end = self.last.as_ref().map_or(0, |last| last.row);
        if self.key.is_some() && !self.keyed && self.last.is_some() && !self.keyed_before {
            self.found(end, Flaw::Unkeyed);
        }
        if self.expected.head.is_some() && !self.head_seen {
            self.found(end, Flaw::HeadMissing);
        }
        self.report
    }
}

#[cfg(test)]
mod tests {
    use kdbt_api::Timestamp;
    use secrecy::SecretSlice;

    use super::super::Actor;
    use super::super::chain::{AuditKeyTooShort, Chain};
    use super::*;

    fn key() -> AuditKey {
        AuditKey::new(&SecretSlice::from(vec![7; 32])).unwrap()
    }

    fn event(action: &str) -> AuditEvent {
        AuditEvent {
            at: Timestamp::from_unix(1),
            action: action.to_owned(),
            actor: Actor::Broker,
            lease: None,
            username: None,
            server: None,
            target: None,
            details: serde_json::Map::new(),
        }
    }

    /// Two runs of a writer, with `rows` events each.
    fn runs(keys: [Option<AuditKey>; 2], rows: usize, installation: &str) -> Vec<AuditRow> {
        let mut out: Vec<AuditRow> = Vec::new();
        for (run, key) in keys.into_iter().enumerate() {
            let last = out.last().map(|row| Head {
                row: row.row,
                hash: row.hash.clone(),
            });
            let id = uuid::Uuid::from_u128(run as u128);
            let (mut chain, opening) =
                Chain::open(id, key, last, &installation.parse().unwrap(), Timestamp::from_unix(0));
            out.push(chain.append(&opening).unwrap());
            out.extend((0..rows).map(|n| chain.append(&event(&format!("e{n}"))).unwrap()));
        }
        out
    }

    fn check(rows: &[AuditRow], key: Option<&AuditKey>, expected: &Expected) -> Vec<(i64, Flaw)> {
        let rows = rows.iter().cloned().map(Ok::<_, std::convert::Infallible>);
        let report = verify(rows, key, expected).unwrap();
        report.findings.iter().map(|found| (found.row, found.flaw)).collect()
    }

    fn head(rows: &[AuditRow]) -> Expected {
        let last = rows.last().unwrap();
        Expected {
            head: Some(Head {
                row: last.row,
                hash: last.hash.clone(),
            }),
            installation: None,
        }
    }

    #[test]
    fn an_untouched_audit_is_sound_with_and_without_a_key() {
        let plain = runs([None, None], 9, "acme");
        assert_eq!(check(&plain, None, &head(&plain)), []);
        let keyed = runs([Some(key()), Some(key())], 9, "acme");
        assert_eq!(check(&keyed, Some(&key()), &head(&keyed)), []);
        // A key that came later says nothing against what was before it.
        let later = runs([None, Some(key())], 9, "acme");
        assert_eq!(check(&later, Some(&key()), &head(&later)), []);
    }

    #[test]
    fn an_edit_is_found_in_every_row() {
        let sound = runs([None, None], 4, "acme");
        for (i, row) in sound.iter().enumerate() {
            let mut rows = sound.clone();
            rows[i].body = row.body.replace("\"broker\"", "\"operator\"");
            assert_eq!(check(&rows, None, &Expected::default()), [(row.row, Flaw::Edited)]);
        }
    }

    #[test]
    fn a_row_that_was_taken_out_is_found_even_when_the_rest_is_numbered_anew() {
        let sound = runs([None, None], 4, "acme");
        for i in 0..sound.len() - 1 {
            let mut rows = sound.clone();
            rows.remove(i);
            assert_ne!(check(&rows, None, &Expected::default()), [], "row {i}");
            for (row, number) in rows.iter_mut().zip(1..) {
                row.row = number;
            }
            assert_ne!(check(&rows, None, &Expected::default()), [], "row {i}, numbered anew");
        }
    }

    #[test]
    fn a_cut_tail_is_found_by_the_head_that_was_kept() {
        let sound = runs([None, None], 20, "acme");
        let cut = &sound[..sound.len() - 10];
        assert_eq!(
            check(cut, None, &Expected::default()),
            [],
            "nothing in the store can tell"
        );
        assert_eq!(
            check(cut, None, &head(&sound)),
            [(cut.last().unwrap().row, Flaw::HeadMissing)]
        );
        assert_eq!(check(&[], None, &head(&sound)), [(0, Flaw::HeadMissing)]);
    }

    #[test]
    fn a_tail_that_was_computed_anew_needs_the_key_or_misses_the_head() {
        let forge = |rows: &mut [AuditRow]| {
            for i in 5..rows.len() {
                rows[i].body = rows[i].body.replace("\"e", "\"forged-e");
                if rows[i].n > 1 {
                    rows[i].prev = rows[i - 1].hash.clone();
                }
                rows[i].hash = rows[i].seal(None);
            }
        };
        let sound = runs([None, None], 3, "acme");
        let mut rows = sound.clone();
        forge(&mut rows);
        assert_eq!(check(&rows, None, &head(&sound)), [(8, Flaw::HeadMissing)]);

        let sound = runs([Some(key()), Some(key())], 3, "acme");
        let mut rows = sound.clone();
        forge(&mut rows);
        assert_eq!(
            check(&rows, Some(&key()), &Expected::default()),
            [(6, Flaw::Edited), (7, Flaw::Edited), (8, Flaw::Edited)]
        );
    }

    #[test]
    fn a_swapped_store_is_found_by_head_or_installation() {
        let ours = runs([None, None], 3, "acme");
        let theirs = runs([None, None], 3, "other");
        assert_eq!(check(&theirs, None, &head(&ours)), [(8, Flaw::HeadMissing)]);
        let expected = Expected {
            head: None,
            installation: Some("acme".parse().unwrap()),
        };
        assert_eq!(
            check(&theirs, None, &expected),
            [(1, Flaw::OtherInstallation), (5, Flaw::OtherInstallation)]
        );
    }

    #[test]
    fn dropping_the_mac_does_not_hide_a_forgery() {
        let all = runs([None, None], 3, "acme");
        assert_eq!(check(&all, Some(&key()), &Expected::default()), [(8, Flaw::Unkeyed)]);
        let tail = runs([Some(key()), None], 3, "acme");
        assert_eq!(check(&tail, Some(&key()), &Expected::default()), [(5, Flaw::Unkeyed)]);
        let keyed = runs([Some(key()), Some(key())], 3, "acme");
        assert_eq!(
            check(&keyed, None, &Expected::default()),
            [(1, Flaw::KeyNeeded), (5, Flaw::KeyNeeded)]
        );
    }

    #[test]
    fn a_key_is_long_enough_and_never_shown() {
        assert_eq!(
            AuditKey::new(&SecretSlice::from(vec![7; 31])).unwrap_err(),
            AuditKeyTooShort(31)
        );
        assert_eq!(format!("{:?}", key()), "AuditKey(..)");
    }
}

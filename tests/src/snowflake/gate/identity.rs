//! Who the session is, put into its statements: fakesnow does not know.
//!
//! The functions become texts wherever they stand, so a result's column is called otherwise and a view keeps who made it.
//! fakesnow has no temporary views either; they become views, which dbt drops itself.

use super::Session;

/// The statement, as fakesnow can run it for this session.
pub(super) fn as_the_session(text: &str, session: &Session) -> String {
    let quoted = |value: &str| format!("'{}'", value.replace('\'', "''"));
    let known = [
        ("current_user()", quoted(&session.user)),
        ("current_role()", quoted(&session.role)),
        ("current_warehouse()", quoted(&session.warehouse)),
        ("temporary view", "view".to_owned()),
    ];
    known.into_iter().fold(text.to_owned(), |text, (there, instead)| {
        // Only ASCII changes its case here, so the places are the same.
        let lower = text.to_ascii_lowercase();
        let places: Vec<usize> = lower.match_indices(there).map(|(at, _)| at).collect();
        places.into_iter().rev().fold(text, |mut text, at| {
            text.replace_range(at..at + there.len(), &instead);
            text
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_told_its_own_user_role_and_warehouse_in_every_spelling() {
        let session = Session {
            user: "KDBT_ADA_0".to_owned(),
            created_on: 0,
            role: "IT'S".to_owned(),
            warehouse: "BI".to_owned(),
            master: String::new(),
            behind: String::new(),
        };
        assert_eq!(
            as_the_session(
                "select CURRENT_USER(), 'ß', current_role() as r, Current_Warehouse()",
                &session
            ),
            "select 'KDBT_ADA_0', 'ß', 'IT''S' as r, 'BI'"
        );
        assert_eq!(
            as_the_session("create TEMPORARY VIEW v as select 1", &session),
            "create view v as select 1"
        );
    }
}

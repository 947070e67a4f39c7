//! What the SQL API answers, read leniently: every field may be missing, and unknown ones are passed over. Pure.
//!
//! Forms: Snowflake SQL API reference, `ResultSet`, `QueryStatus` and `QueryFailureStatus`. Values are texts or null,
//! whatever their type; times are seconds since the epoch with a fraction.

use kdbt_api::Timestamp;
use serde::Deserialize;
use serde_json::Value;

/// The vendor's code of a statement that was run.
const SUCCESS: &str = "090001";

/// A body of any status.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Body {
    code: Value,
    message: Value,
    statement_handle: Value,
    created_on: Value,
    result_set_meta_data: Value,
    data: Value,
}

impl Body {
    /// A body that is no JSON object, such as a proxy's page, says nothing.
    pub(super) fn read(bytes: &[u8]) -> Self {
        serde_json::from_slice::<serde_json::Map<String, Value>>(bytes)
            .and_then(|object| serde_json::from_value(Value::Object(object)))
            .unwrap_or_default()
    }

    /// Whether it holds a result at all: a proxy's page with status 200 does not, and nothing follows from it.
    pub(super) fn is_result(&self) -> bool {
        self.code().as_deref() == Some(SUCCESS) || self.data.is_array() || self.result_set_meta_data.is_object()
    }

    /// The vendor's code, such as `002002`: six digits, since some answers drop leading zeros.
    pub(super) fn code(&self) -> Option<String> {
        let digits = |code: &str| (1..=6).contains(&code.len()) && code.bytes().all(|byte| byte.is_ascii_digit());
        text(&self.code)
            .filter(|code| digits(code))
            .map(|code| format!("{code:0>6}"))
    }

    /// The uuid that an administrator asks `SYSTEM$GET_LOGIN_FAILURE_DETAILS` about: it stands in brackets at the end
    /// of the message and nowhere else.
    pub(super) fn login_failure(&self) -> Option<uuid::Uuid> {
        let message = text(&self.message)?;
        let (_, tail) = message.rsplit_once('[')?;
        tail.split(']').next()?.parse().ok()
    }

    /// The statement's handle, safe to stand in a path.
    pub(super) fn handle(&self) -> Option<String> {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-';
        text(&self.statement_handle).filter(|handle| (1..=64).contains(&handle.len()) && handle.chars().all(fits))
    }

    /// When the account began to run the statement, by its clock.
    pub(super) fn created_on(&self) -> Option<Timestamp> {
        let millis = text(&self.created_on)?.parse().ok()?;
        Some(Timestamp::from_unix_millis(millis))
    }

    /// Into how many partitions the rows are cut; this body holds one of them.
    pub(super) fn partitions(&self) -> usize {
        let all = self.result_set_meta_data.get("partitionInfo").and_then(Value::as_array);
        all.map_or(1, Vec::len).max(1)
    }

    /// The columns' names in small letters.
    pub(super) fn columns(&self) -> Vec<String> {
        let name = |column: &Value| {
            let name = column.get("name").and_then(Value::as_str);
            name.unwrap_or_default().to_ascii_lowercase()
        };
        let all = self.result_set_meta_data.get("rowType").and_then(Value::as_array);
        all.map(|all| all.iter().map(name).collect()).unwrap_or_default()
    }

    /// The rows. A cell that is no plain value is null.
    pub(super) fn rows(&self) -> Vec<Vec<Option<String>>> {
        let cells = |row: &Value| {
            let cells = row.as_array().map(|row| row.iter().map(text).collect());
            cells.unwrap_or_default()
        };
        let all = self.data.as_array();
        all.map(|all| all.iter().map(cells).collect()).unwrap_or_default()
    }
}

/// A plain value as text.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(bool) => Some(bool.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// The rows of a statement, by column name.
#[derive(Debug, Default)]
pub(in super::super) struct Rows {
    pub(super) columns: Vec<String>,
    pub(super) rows: Vec<Vec<Option<String>>>,
}

impl Rows {
    /// Whether there is such a column, named in small letters, whatever stands in it.
    pub(in super::super) fn shows(&self, column: &str) -> bool {
        self.columns.iter().any(|name| name == column)
    }

    /// How many.
    pub(in super::super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Each row.
    pub(in super::super) fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        let columns = &self.columns;
        self.rows.iter().map(move |cells| Row { columns, cells })
    }
}

/// One row.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Row<'a> {
    columns: &'a [String],
    cells: &'a [Option<String>],
}

impl<'a> Row<'a> {
    /// The value of a column, named in small letters; `None` also where the column is not shown.
    pub(in super::super) fn get(&self, column: &str) -> Option<&'a str> {
        let index = self.columns.iter().position(|name| name == column)?;
        self.cells.get(index)?.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn body(value: &Value) -> Body {
        Body::read(value.to_string().as_bytes())
    }

    #[test]
    fn an_empty_or_foreign_body_says_nothing() {
        for bytes in ["", "{}", "null", "[]", "<html>502 Bad Gateway</html>", "{\"code\":{}}"] {
            let body = Body::read(bytes.as_bytes());
            assert_eq!(body.code(), None, "{bytes}");
            assert_eq!(body.handle(), None, "{bytes}");
            assert_eq!(body.partitions(), 1, "{bytes}");
            assert!(body.rows().is_empty(), "{bytes}");
            assert!(!body.is_result(), "{bytes}");
        }
    }

    #[test]
    fn a_code_has_six_digits_whether_it_comes_as_text_or_number() {
        for (code, read) in [
            (json!("002002"), Some("002002")),
            (json!(2002), Some("002002")),
            (json!("390144"), Some("390144")),
            (json!("SELECT"), None),
            (json!(""), None),
            (json!("1234567"), None),
        ] {
            assert_eq!(body(&json!({ "code": code })).code().as_deref(), read, "{code}");
        }
    }

    #[test]
    fn a_handle_that_would_change_the_path_is_no_handle() {
        let handle = |text: &str| body(&json!({ "statementHandle": text })).handle();
        assert!(handle("e4ce975e-f7ff-4b5e-b15e-bf25f59371ae").is_some());
        for text in ["", "../login", "a/b", "a?b", "é", &"a".repeat(65)] {
            assert_eq!(handle(text), None, "{text}");
        }
    }

    #[test]
    fn the_uuid_of_a_login_failure_is_found_in_its_brackets() {
        let uuid = "0ce9eb56-821d-4ca9-a774-04ae89a0cf5a";
        let failure = |message: &str| {
            let body = body(&json!({ "message": message }));
            body.login_failure().map(|id| id.to_string())
        };
        assert_eq!(
            failure(&format!("JWT token is invalid. [{uuid}]")).as_deref(),
            Some(uuid)
        );
        for message in ["JWT token is invalid.", "JWT token is invalid. []", "[x", "]["] {
            assert_eq!(failure(message), None, "{message}");
        }
    }

    #[test]
    fn cells_are_found_by_column_and_may_be_missing() {
        let body = body(&json!({
            "resultSetMetaData": {
                "rowType": [{"name": "name"}, {"name": "COMMENT", "scale": null}, {"name": "disabled"}],
                "partitionInfo": [{}, {}],
            },
            "data": [["A", null, true], ["B"]],
        }));
        assert_eq!(body.partitions(), 2);
        let rows = Rows {
            columns: body.columns(),
            rows: body.rows(),
        };
        let cells =
            |row: Row<'_>| ["name", "comment", "disabled", "x"].map(|column| row.get(column).map(str::to_owned));
        let seen: Vec<_> = rows.iter().map(cells).collect();
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(
            seen,
            [[text("A"), None, text("true"), None], [text("B"), None, None, None]]
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>, code in ".*", message in ".*") {
            let _ = Body::read(&bytes).code();
            let body = body(&json!({"code": code, "message": message, "createdOn": message, "data": [[code], code]}));
            let _ = (body.code(), body.login_failure(), body.created_on(), body.rows());
        }
    }
}

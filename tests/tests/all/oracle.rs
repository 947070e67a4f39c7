//! What stands in `fixtures/snowflake` is what Snowflake's own tools and pages say.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kdbt_e2e::dbt::Dbt;
use kdbt_e2e::process::Finished;
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/snowflake")
}

#[tokio::test]
async fn the_connector_signs_what_the_table_of_account_spellings_says() {
    if !Dbt::Snowflake.is_there() {
        return;
    }
    // The oldest dbt that we support has another connector: it must say the same.
    for dbt in [Dbt::Snowflake, Dbt::OldSnowflake] {
        let Some(python) = dbt.program("python") else {
            continue;
        };
        let mut script = Command::new(python);
        script.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("oracle/jwt_vectors.py"));
        let printed = Finished::of(script).await.unwrap().expect(0).unwrap().stdout;
        let table = fs::read_to_string(folder().join("jwt_vectors.json")).unwrap();
        assert!(
            printed == table,
            "{dbt} says otherwise; read what has changed in its connector, then write the table anew with oracle/jwt_vectors.py:\n{printed}"
        );
    }
}

/// Panics if `value` breaks a rule that the vendor's description of the SQL API has for this object, null aside: the vendor's own
/// examples have nulls where its description has numbers.
pub(crate) fn must_obey(object: &str, value: &Value) {
    let rules: Value = serde_json::from_str(&fs::read_to_string(folder().join("sql_api.json")).unwrap()).unwrap();
    let mut broken = Vec::new();
    check(&rules[object], value, object, &mut broken);
    assert!(rules[object].is_object() && broken.is_empty(), "{broken:?} in {value}");
}

/// The part of JSON Schema that the description uses.
fn check(rule: &Value, value: &Value, place: &str, broken: &mut Vec<String>) {
    if value.is_null() || !rule.is_object() {
        return;
    }
    let mut must = |holds: bool, what: &str| {
        if !holds {
            broken.push(format!("{place}: {what}"));
        }
    };
    match rule["type"].as_str() {
        Some("string") => must(value.is_string(), "no string"),
        Some("integer") => must(value.is_i64(), "no integer"),
        Some("boolean") => must(value.is_boolean(), "no boolean"),
        Some("array") => must(value.is_array(), "no array"),
        Some("object") => must(value.is_object(), "no object"),
        _ => {}
    }
    if rule["format"] == "uuid" {
        let text = value.as_str().unwrap_or_default();
        must(uuid::Uuid::try_parse(text).is_ok(), "no UUID");
    }
    if let Some(least) = rule["minimum"].as_i64() {
        must(value.as_i64().is_some_and(|number| number >= least), "too small");
    }
    if let Some(allowed) = rule["enum"].as_array() {
        must(allowed.contains(value), "not one of its values");
    }
    for name in rule["required"].as_array().into_iter().flatten() {
        let there = value
            .get(name.as_str().unwrap())
            .is_some_and(|member| !member.is_null());
        must(there, &format!("{name} is missing"));
    }
    let closed = rule["additionalProperties"] == Value::Bool(false);
    for (name, member) in value.as_object().into_iter().flatten() {
        let known = &rule["properties"][name];
        if closed && known.is_null() {
            broken.push(format!("{place}: no member is called {name}"));
        }
        check(known, member, &format!("{place}.{name}"), broken);
    }
    let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
    if rule["minItems"]
        .as_u64()
        .is_some_and(|least| (items.len() as u64) < least)
    {
        broken.push(format!("{place}: too few"));
    }
    for item in items {
        check(&rule["items"], item, &format!("{place}[]"), broken);
    }
}

#[test]
fn every_documented_answer_obeys_the_rules_of_its_kind() {
    let mut seen = 0;
    for file in fs::read_dir(folder().join("answers")).unwrap() {
        let path = file.unwrap().path();
        let answer: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(answer["name"], path.file_stem().unwrap().to_str().unwrap());
        assert!(answer["source"].as_str().unwrap().starts_with("https://"), "{answer}");
        assert!(["doc", "case", "assumption"].contains(&answer["kind"].as_str().unwrap()));
        if let Some(object) = answer["object"].as_str() {
            must_obey(object, &answer["body"]);
        }
        seen += 1;
    }
    assert!(seen > 20, "{seen}");
}

#[test]
#[should_panic(expected = "ResultSet.resultSetMetaData.numRows: no integer")]
fn a_number_of_rows_as_a_text_breaks_a_rule() {
    must_obey("ResultSet", &serde_json::json!({"resultSetMetaData": {"numRows": "1"}}));
}

#[test]
#[should_panic(expected = "no member is called bindngs")]
fn a_member_that_the_request_does_not_have_breaks_a_rule() {
    must_obey("StatementRequest", &serde_json::json!({"bindngs": {}}));
}

//! What stands in `fixtures/snowflake` is what Snowflake's own tools and pages say.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kdbt_e2e::dbt::Dbt;
use kdbt_e2e::process::Finished;

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

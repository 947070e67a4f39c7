use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::diagnostics::{Diagnostics, Source};

fn tree(text: &str) -> (Option<Node>, Diagnostics) {
    let mut found = Diagnostics::none();
    let root = match source_of("a.yaml", text.as_bytes().to_vec(), true) {
        Ok(source) => parse(&source, &mut found),
        Err(error) => {
            found.push(error);
            None
        }
    };
    (root, found)
}

/// `line:column message` of each mistake.
fn mistakes(text: &str) -> Vec<String> {
    let show = |found: crate::diagnostics::Diagnostic| {
        let place = found
            .place
            .map_or_else(String::new, |at| format!("{}:{} ", at.line(), at.column()));
        format!("{place}{}", found.message)
    };
    tree(text).1.into_iter().map(show).collect()
}

#[test]
fn what_yaml_would_reinterpret_is_refused_with_its_place() {
    for (text, expected) in [
        ("a: 1\nb: !x 2\n", "2:"),
        ("a: !!str 2\n", "1:"),
        ("a: &x 1\n", "1:"),
        ("a: *x\n", "1:4 aliases are not allowed"),
        ("<<: { a: 1 }\n", "1:1 merge keys are not allowed"),
        ("a: 1\nb: 2\na: 3\n", "3:1 the key `a` stands twice"),
        ("a: { b: 1, b: 2 }\n", "1:12 the key `b` stands twice"),
        ("a: 1\n---\nb: 2\n", "2:1 a second document in one file"),
        ("%YAML 1.2\n---\na: 1\n", "1:1 this is no YAML"),
        ("a: yes\n", "1:4 a word that some readers of YAML take for a boolean"),
        ("a: [on]\n", "1:5 a word that"),
        ("unless:\n  # realm_roles: [x]\nb: 1\n", "1:1 `unless` has no value"),
        ("a: ~\n", "1:1 `a` has no value"),
        ("a: NULL\n", "1:1 `a` has no value"),
        ("a:\n\t- b\n", "2:1 a tab in the indentation"),
        ("name: {{username}}\n", "1:8 a list or map cannot be a key"),
        ("a: [1\n", "1:4 this is no YAML"),
        ("", "1:1 a.yaml is empty"),
        ("# nothing\n", "1:1 a.yaml is empty"),
        ("? [a]\n: b\n", "1:3 a list or map cannot be a key"),
    ] {
        let found = mistakes(text);
        assert!(
            found.iter().any(|found| found.starts_with(expected)),
            "{text:?}: {found:#?}"
        );
    }
}

#[test]
fn several_mistakes_of_one_file_are_reported_at_once() {
    assert_eq!(
        mistakes("a: yes\nb:\nc: &x 1\nd: !t 1\n").len(),
        4,
        "a boolean word, a null, an anchor, a tag"
    );
}

#[test]
fn a_byte_order_mark_windows_lines_and_a_leading_rule_are_fine() {
    let (root, found) = tree("\u{feff}---\r\na: 1\r\nb: [x, \"no\"]\r\n");
    assert_eq!(found, Diagnostics::none());
    assert!(root.is_some());
}

#[test]
fn bytes_that_are_no_utf8_and_long_files_are_refused() {
    let error = source_of("a.yaml", b"a: 1\nb: \xff\n".to_vec(), true).unwrap_err();
    assert_eq!(error.place.unwrap().to_string(), "a.yaml:2:4");
    assert!(source_of("a.yaml", vec![b'#'; MAX_BYTES + 1], true).is_err());
    assert!(source_of("a.yaml", vec![b'#'; MAX_BYTES], true).is_ok());
}

#[test]
fn deep_nesting_is_an_error_and_no_overflow() {
    for text in [
        "[".repeat(100_000),
        "a: [".repeat(50_000),
        "- ".repeat(100_000),
        "{a: ".repeat(1000),
    ] {
        assert!(!mistakes(&text).is_empty());
    }
}

#[test]
fn a_quoted_boolean_and_a_bare_number_are_no_text_and_no_boolean() {
    let (root, mut found) = tree("a: \"true\"\nb: \"4\"\nc: 4\nd: true\ne: 70000\nx: 1\n");
    let root = root.unwrap();
    let mut fields = root.fields("a test", &mut found).unwrap();
    assert_eq!(fields.optional::<bool>("a", &mut found), None);
    assert_eq!(fields.optional::<u16>("b", &mut found), None);
    assert_eq!(fields.optional::<String>("c", &mut found), None);
    assert_eq!(fields.optional::<String>("d", &mut found), None);
    assert_eq!(fields.optional::<u16>("e", &mut found), None);
    fields.finish(&mut found);
    insta::assert_snapshot!(found, @r#"
    error: expected `true` or `false`, found text in quotes
     --> a.yaml:1:4
      |
    1 | a: "true"
      |    ^^^^^^

    error: expected a whole number up to 65535, found text in quotes
     --> a.yaml:2:4
      |
    2 | b: "4"
      |    ^^^

    error: expected text, found a number or boolean
     --> a.yaml:3:4
      |
    3 | c: 4
      |    ^
      |
      = help: put it in quotes

    error: expected text, found a number or boolean
     --> a.yaml:4:4
      |
    4 | d: true
      |    ^^^^
      |
      = help: put it in quotes

    error: expected a whole number up to 65535, found a value without quotes
     --> a.yaml:5:4
      |
    5 | e: 70000
      |    ^^^^^

    error[K001]: unknown key `x`
     --> a.yaml:6:1
      |
    6 | x: 1
      | ^ did you mean `a`?
    "#);
}

proptest! {
    #[test]
    fn no_text_makes_the_loader_panic(text in r#"[a-c:\-\[\]{}&*!|>'"%@#,? \n\t~é]{0,80}"#) {
        let (root, found) = tree(&text);
        prop_assert!(root.is_some() || found.has_errors());
        let _ = found.to_string();
    }

    #[test]
    fn no_bytes_make_the_loader_panic(bytes: Vec<u8>) {
        if let Ok(source) = source_of("a.yaml", bytes, true) {
            let mut found = Diagnostics::none();
            let _ = parse(&source, &mut found);
            let _ = found.to_string();
        }
    }

    #[test]
    fn every_span_lies_in_its_text(text in r"[a-c:\-\[\]{} \n]{0,60}") {
        fn walk(node: &Node, source: &Arc<Source>) {
            assert!(Arc::ptr_eq(node.span.source(), source) && node.span.start() <= source.text().len());
            match &node.value {
                Value::Plain(_) | Value::Quoted(_) => {}
                Value::List(items) => items.iter().for_each(|item| walk(item, source)),
                Value::Map(entries) => entries.iter().for_each(|(_, item)| walk(item, source)),
            }
        }
        let source = Source::new("a.yaml", text);
        if let Some(root) = parse(&source, &mut Diagnostics::none()) {
            walk(&root, &source);
        }
    }
}

//! What holds for every token and every order.

use super::*;

/// Any token over the words that the policy knows.
fn tokens() -> impl Strategy<Value = serde_json::Value> {
    let some = |words: &'static [&'static str]| proptest::sample::subsequence(words.to_vec(), 0..=words.len());
    let roles = some(&["analyst", "dev", "x"]);
    let client = some(&["engineer"]);
    let groups = some(&["/edit/a", "/guests", "/other"]);
    (roles, client, groups, any::<bool>()).prop_map(|(roles, client, groups, main)| {
        let mut token = json!({
            "realm_access": { "roles": roles },
            "resource_access": { "dbt": { "roles": client } },
            "groups": groups,
        });
        if main {
            token["ref"] = json!("main");
            token["ok"] = json!(true);
        }
        token
    })
}

fn orders() -> impl Strategy<Value = Order> {
    let rules = proptest::sample::subsequence(vec!["read", "more", "build", "edit", "own", "peek"], 0..=2);
    (
        proptest::sample::select(vec!["dev", "prod", "other", "none"]),
        rules,
        proptest::option::of(1u32..100_000),
        any::<bool>(),
    )
        .prop_map(|(target, rules, ttl, reason)| Order {
            ttl: ttl.map(|ttl| Ttl::from_secs(ttl).unwrap()),
            reason: reason.then(|| "because".to_owned()),
            ..named(target, &rules)
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_deny_rule_beats_whatever_allows(token in tokens(), order in orders()) {
        let set = set();
        let mut token = token;
        token["groups"].as_array_mut().unwrap().push(json!("/gone"));
        let outcome = set.decide(&claims(&set, &token), &order);
        if ["dev", "prod"].contains(&order.target.as_str()) {
            prop_assert_eq!(outcome.unwrap_err().code(), "deny-rule");
        }
    }

    #[test]
    fn the_same_question_has_the_same_answer(token in tokens(), order in orders()) {
        let (one, other) = (set(), set());
        let answer = one.decide(&claims(&one, &token), &order);
        prop_assert_eq!(&answer, &other.decide(&claims(&other, &token), &order));
        prop_assert_eq!(&answer, &one.explain(&claims(&one, &token), &order).outcome);
    }

    #[test]
    fn no_lifetime_leaves_the_range(token in tokens(), order in orders()) {
        let set = set();
        if let Ok(grant) = set.decide(&claims(&set, &token), &order) {
            prop_assert!(grant.ttl >= grant.ttl_range.min && grant.ttl <= grant.ttl_range.max);
            prop_assert!(order.ttl.is_none_or(|asked| asked == grant.ttl));
            prop_assert!(grant.target.tier != "prod" || grant.ttl.as_secs() <= 6 * 3600);
        }
    }

    #[test]
    fn a_rule_for_others_changes_nothing(token in tokens(), order in orders()) {
        let strangers = "  - { id: strangers, why: x, when: { realm_roles: [stranger] }, targets: [dev, prod], create_as: { postgres: everything }, rank: 9, ttl: { default: 1h, max: 1h }, profile: { schema: x } }\n";
        let wider = read(&format!("{BASE}{strangers}"), &[]).unwrap().set;
        let set = set();
        let before = set.decide(&claims(&set, &token), &order);
        let after = wider.decide(&claims(&wider, &token), &order);
        let after = after.map(|grant| Grant { policy: set.hash().clone(), ..grant });
        prop_assert_eq!(before, after);
    }

    #[test]
    fn only_roles_of_rules_that_joined_or_stand_are_given(token in tokens(), order in orders()) {
        let set = set();
        let has = |list: &serde_json::Value, word: &str| list.as_array().unwrap().contains(&json!(word));
        if let Ok(grant) = set.decide(&claims(&set, &token), &order) {
            let groups = match grant.access {
                AccessTemplate::Role(role) => {
                    prop_assert!(role.as_str() == "dbt_prod" && token["ref"] == "main");
                    return Ok(());
                }
                AccessTemplate::Personal { groups, .. } | AccessTemplate::Read(groups) => groups,
                AccessTemplate::Snowflake(roles) => roles.grants,
            };
            let edits = has(&token["groups"], "/edit/a");
            prop_assert!(edits || !groups.contains(&"grp_edit".parse().unwrap()));
        }
    }

    #[test]
    fn no_policy_makes_the_loader_panic(cut in 0..BASE.len(), with in r"[a-z:\-\[\]{}*/ \n]{0,12}", len in 0usize..40) {
        let start = BASE.floor_char_boundary(cut);
        let end = BASE.floor_char_boundary((start + len).min(BASE.len()));
        let text = format!("{}{with}{}", BASE.get(..start).unwrap(), BASE.get(end..).unwrap());
        if let Err(found) = read(&text, &[]) {
            prop_assert!(found.has_errors());
            let _ = found.to_string();
        }
    }

    #[test]
    fn no_token_makes_the_decision_panic(roles in any::<Vec<String>>(), group in ".*", number: i64) {
        let set = set();
        for value in [json!(roles), json!(group), json!(number), json!({ "roles": roles }), json!({ "dbt": { "roles": [group] } })] {
            let token = json!({ "realm_access": value, "resource_access": value, "groups": value, "ref": value, "ok": value, "preferred_username": value });
            let _ = set.explain(&claims(&set, &token), &order("prod")).to_string();
        }
    }
}

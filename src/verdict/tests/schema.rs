//! The JSON Schema beside the document, held against what is really written: every key, every word.

use serde_json::{Value, json};

use super::*;

fn schema() -> Value {
    serde_json::from_str(SCHEMA).expect("the schema is JSON")
}

/// As much of JSON Schema as ours uses.
fn complaints(schema: &Value, root: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    if let Some(name) = schema["$ref"].as_str() {
        let part = root.pointer(name.trim_start_matches('#')).expect("a reference to something");
        return complaints(part, root, value, at, found);
    }
    if let Some(words) = schema["enum"].as_array() {
        if !words.contains(value) {
            found.push(format!("{at}: {value} is not in the set"));
        }
        return;
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let allowed: Vec<_> = match &schema["type"] {
        Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
        one => one.as_str().into_iter().collect(),
    };
    let is_whole = kind == "integer" && allowed.contains(&"number");
    if !(allowed.contains(&kind) || is_whole) {
        found.push(format!("{at}: {kind} instead of {allowed:?}"));
    }
    for item in value.as_array().into_iter().flatten() {
        complaints(&schema["items"], root, item, &format!("{at}[]"), found);
    }
    let Some(members) = value.as_object() else { return };
    for (key, member) in members {
        match schema["properties"].get(key) {
            Some(part) => complaints(part, root, member, &format!("{at}.{key}"), found),
            None => found.push(format!("{at}.{key}: not in the schema")),
        }
    }
    for key in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !members.contains_key(key) {
            found.push(format!("{at}.{key}: missing"));
        }
    }
}

fn check(document: &Value) -> Vec<String> {
    let mut found = Vec::new();
    complaints(&schema(), &schema(), document, "", &mut found);
    found
}

#[test]
fn what_is_written_is_what_the_schema_says() {
    let mut evidence =
        evidence(vec![seed("ann", GOOD), seed("<fresh>", [Well, At(Session), Missing, Missing])]);
    let facts = Facts {
        version: Some("0.0.26".to_owned()),
        exchange: Some("/".to_owned()),
        ticket: Some("/".to_owned()),
        cookie: Some("t3_session".to_owned()),
        cookie_on_loopback: Some("t3_session".to_owned()),
        level: Some(32),
        migration_seconds: Some(0.5),
        sessions: Some((3, 0)),
    };
    evidence.seeds[0].rehearsals[1].facts = facts;
    let rehearsal = Some(Rehearsal::Skew);
    let trouble =
        Trouble { grounds: Grounds::NoSpace, seed: Some("ann".to_owned()), rehearsal, detail: String::new() };
    evidence.trouble.push(trouble);
    let document = serde_json::to_value(judged(evidence)).expect("JSON");
    assert_eq!(check(&document), [""; 0]);
    let empty = serde_json::to_value(of(Vec::new())).expect("JSON");
    assert_eq!(check(&empty), [""; 0]);
}

#[test]
fn a_document_that_is_not_one_is_found_out() {
    let good = serde_json::to_value(of(vec![seed("ann", GOOD)])).expect("JSON");
    for (key, value) in [
        ("verdict", json!("perhaps")),
        ("grounds", json!("luck")),
        ("boxed", json!("yes")),
        ("soak_seconds", json!("2m")),
        ("surplus", json!(1)),
    ] {
        let mut bad = good.clone();
        bad[key] = value;
        assert_eq!(check(&bad).len(), 1, "{key}: {:?}", check(&bad));
    }
    let mut short = good.clone();
    short.as_object_mut().expect("an object").remove("rollback");
    assert_eq!(check(&short), [".rollback: missing"]);
}

#[test]
fn the_schema_knows_every_word() {
    let words = |pointer: &str| {
        let set = schema().pointer(pointer).and_then(Value::as_array).cloned().expect("a set of words");
        set.iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
    };
    fn all<T: Copy>(all: &[T], word: fn(T) -> &'static str) -> Vec<String> {
        all.iter().map(|value| word(*value).to_owned()).collect()
    }
    assert_eq!(words("/properties/verdict/enum"), all(Verdict::ALL, Verdict::as_str));
    assert_eq!(words("/$defs/grounds/enum"), all(Grounds::ALL, Grounds::as_str));
    assert_eq!(words("/properties/rollback/enum"), all(Rollback::ALL, Rollback::as_str));
    assert_eq!(words("/properties/risk/enum"), all(Risk::ALL, Risk::as_str));
    assert_eq!(words("/$defs/rehearsal/enum"), all(Rehearsal::ALL, Rehearsal::as_str));
    assert_eq!(words("/$defs/step/enum"), all(RehearsalStep::ALL, RehearsalStep::as_str));
}

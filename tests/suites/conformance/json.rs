//! JSON against JSON, to full depth; of an answer that the recorder cut, as far as it was complete.

use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::compare::Comparer;

/// Numbers that change from run to run, by key: compared as numbers only.
const CHANGING_NUMBERS: [&str; 4] = ["iat", "exp", "expires_in", "pid"];

/// Compares `got` with `expected` at `field`: keys, types, lengths of arrays, and every value that is no date and no id
/// (an id must be the one that stands for the recorded one).
pub fn compare(comparer: &mut Comparer, field: &str, expected: &Value, got: &Value) {
    match (expected, got) {
        (Value::Object(expected_members), Value::Object(members)) => {
            for (key, value) in expected_members {
                match members.get(key) {
                    None => comparer.differ(&format!("{field}.{key}"), "present", "absent"),
                    Some(_) if is_fact_of_the_machine(key, expected) => {}
                    // A port that stands alone, as in `server-runtime.json`, has not the form of one.
                    Some(Value::Number(other)) if key == "port" => {
                        comparer.text(&format!("{field}.port"), &format!(":{value}"), &format!(":{other}"));
                    }
                    Some(other)
                        if CHANGING_NUMBERS.contains(&key.as_str())
                            && value.is_number()
                            && other.is_number() => {}
                    Some(other) => compare(comparer, &format!("{field}.{key}"), value, other),
                }
            }
            for key in members.keys().filter(|key| !expected_members.contains_key(*key)) {
                comparer.differ(&format!("{field}.{key}"), "absent", "present");
            }
            comparer.equal(&format!("{field} lifetime"), &lifetime(expected), &lifetime(got));
        }
        (Value::Array(expected_items), Value::Array(items)) => {
            comparer.equal(&format!("{field}.length"), &expected_items.len(), &items.len());
            for (index, (value, other)) in expected_items.iter().zip(items).enumerate() {
                compare(comparer, &format!("{field}[{index}]"), value, other);
            }
        }
        (Value::String(text), Value::String(other)) => comparer.text(field, text, other),
        (expected, got) if name(expected) != name(got) => comparer.differ(field, name(expected), name(got)),
        (expected, got) => comparer.equal(field, expected, got),
    }
}

/// The name of the machine is the recorder's, in every environment descriptor.
fn is_fact_of_the_machine(key: &str, within: &Value) -> bool {
    key == "label" && within.get("environmentId").is_some()
}

/// From birth to end, where something shows both: the dates change, what lies between them does not.
fn lifetime(value: &Value) -> Option<Duration> {
    let millisecond = |key: &str| value.get(key)?.as_u64().map(Duration::from_millis);
    let date = |key: &str| {
        let date = humantime::parse_rfc3339(value.get(key)?.as_str()?).ok()?;
        date.duration_since(SystemTime::UNIX_EPOCH).ok()
    };
    let birth = millisecond("iat").or_else(|| date("issuedAt")).or_else(|| date("createdAt"))?;
    let end = millisecond("exp").or_else(|| date("expiresAt"))?;
    end.checked_sub(birth)
}

fn name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Compares a whole answer with one that was cut: what was complete before the cut is compared in full; of what was
/// open, an object may have further keys and an array any items.
pub fn compare_cut(comparer: &mut Comparer, field: &str, cut: &str, got: &Value) {
    let (expected, open) = completed(cut);
    compare_open(comparer, field, &expected, &open, got);
}

fn compare_open(comparer: &mut Comparer, field: &str, expected: &Value, open: &[String], got: &Value) {
    match (expected, got) {
        (Value::Object(expected_members), Value::Object(members)) => {
            for (key, value) in expected_members {
                let field = format!("{field}.{key}");
                match (members.get(key), open.first()) {
                    (None, _) => comparer.differ(&field, "present", "absent"),
                    (Some(other), Some(last)) if last == key => {
                        compare_open(comparer, &field, value, &open[1..], other);
                    }
                    (Some(other), _) => compare(comparer, &field, value, other),
                }
            }
        }
        (Value::Array(_), Value::Array(_)) => {}
        (expected, got) => comparer.differ(field, name(expected), name(got)),
    }
}

/// The value that a cut text began, without the member that the cut went through, and the keys that were open there,
/// outermost first, as far as the first open array.
fn completed(cut: &str) -> (Value, Vec<String>) {
    // Every prefix that ends before a comma, closed where it is open, is JSON; the longest is the answer.
    for end in cut.rmatch_indices(',').map(|(at, _)| at) {
        let prefix = &cut[..end];
        let (mut closing, mut in_string, mut escaped) = (Vec::new(), false, false);
        for letter in prefix.chars() {
            match letter {
                _ if escaped => escaped = false,
                '\\' => escaped = in_string,
                '"' => in_string = !in_string,
                '{' if !in_string => closing.push('}'),
                '[' if !in_string => closing.push(']'),
                '}' | ']' if !in_string => {
                    closing.pop();
                }
                _ => {}
            }
        }
        let whole: String = prefix.chars().chain(closing.iter().rev().copied()).collect();
        if let Ok(value) = serde_json::from_str::<Value>(&whole) {
            let open = open_keys(prefix, closing.iter().take_while(|closing| **closing == '}').count());
            return (value, open);
        }
    }
    panic!("not the beginning of a JSON answer: {cut}");
}

/// The keys under which the innermost of `depth` nested objects opens, and under which the array after them does.
fn open_keys(prefix: &str, depth: usize) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    let (mut level, mut key, mut text, mut in_string, mut escaped) =
        (0_usize, String::new(), String::new(), false, false);
    for letter in prefix.chars() {
        if in_string {
            match letter {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => in_string = false,
                _ => text.push(letter),
            }
            continue;
        }
        match letter {
            '"' => {
                in_string = true;
                text.clear();
            }
            ':' => key.clone_from(&text),
            '{' | '[' => {
                level += 1;
                keys.push(std::mem::take(&mut key));
            }
            '}' | ']' => {
                level -= 1;
                keys.truncate(level);
            }
            _ => {}
        }
    }
    // The outermost object has no key.
    keys.into_iter().skip(1).take(depth).collect()
}

mod tests {
    use serde_json::json;

    use super::super::bindings::Bindings;
    use super::*;

    fn fields(check: impl FnOnce(&mut Comparer)) -> Vec<String> {
        let mut bindings = Bindings::default();
        let mut comparer = Comparer::new("a step", &mut bindings);
        check(&mut comparer);
        comparer.found().into_iter().map(|difference| difference.field).collect()
    }

    #[test]
    fn every_kind_of_difference_is_named_where_it_is() {
        let expected = json!({"a": [1, {"b": "x"}], "c": null, "d": true, "e": 7});
        let got = json!({"a": [1, {"b": "y"}], "c": "set", "d": false, "f": 1});
        let found = fields(|comparer| compare(comparer, "body", &expected, &got));
        assert_eq!(found, ["body.a[1].b", "body.c", "body.d", "body.e", "body.f"]);
        assert_eq!(
            fields(|comparer| compare(comparer, "body", &json!([1, 2]), &json!([1]))),
            ["body.length"]
        );
    }

    #[test]
    fn dates_and_changing_numbers_are_compared_by_form() {
        let expected =
            json!({"at": "2026-11-22T06:17:55.509Z", "iat": 1, "label": "vm", "environmentId": "x"});
        let got = json!({"at": "2030-01-01T00:00:00.000Z", "iat": 2, "label": "other", "environmentId": "x"});
        assert_eq!(fields(|comparer| compare(comparer, "body", &expected, &got)), [""; 0]);
        let got = json!({"at": "today", "iat": "2", "label": "other", "environmentId": "x"});
        assert_eq!(fields(|comparer| compare(comparer, "body", &expected, &got)), ["body.at", "body.iat"]);
    }

    #[test]
    fn something_that_lives_longer_or_shorter_is_found() {
        let link = |end: &str| json!({"createdAt": "2026-11-22T06:11:02.457Z", "expiresAt": end});
        let (recorded, later) = (
            link("2026-11-22T06:16:02.457Z"),
            json!({
                "createdAt": "2031-01-01T00:00:00.000Z", "expiresAt": "2031-01-01T00:05:00.000Z"
            }),
        );
        assert_eq!(fields(|comparer| compare(comparer, "link", &recorded, &later)), [""; 0]);
        let shorter = link("2026-11-22T06:16:02.456Z");
        assert_eq!(fields(|comparer| compare(comparer, "link", &recorded, &shorter)), ["link lifetime"]);
        let (claims, others) = (json!({"iat": 1000, "exp": 3000}), json!({"iat": 5000, "exp": 8000}));
        assert_eq!(fields(|comparer| compare(comparer, "claims", &claims, &others)), ["claims lifetime"]);
    }

    #[test]
    fn of_a_cut_answer_what_was_complete_is_compared() {
        let cut = r#"{"id":"1","exit":{"kind":"ok","value":{"version":"3","keys":[{"a":1},{"a"#;
        let check = |got: Value| fields(|comparer| compare_cut(comparer, "recv", cut, &got));
        let whole =
            json!({"id": "1", "exit": {"kind": "ok", "value": {"version": "3", "keys": [], "more": 1}}});
        assert_eq!(check(whole), [""; 0]);
        assert_eq!(
            check(json!({"id": "1", "exit": {"kind": "no", "value": {"version": 3, "keys": []}}})),
            ["recv.exit.kind", "recv.exit.value.version"]
        );
        assert_eq!(
            check(json!({"id": "1", "exit": {"kind": "ok", "value": {"version": "3", "keys": {}}}})),
            ["recv.exit.value.keys"]
        );
        assert_eq!(
            check(json!({"id": "1", "exit": {"kind": "ok", "value": {"version": "3"}}})),
            ["recv.exit.value.keys"]
        );
    }
}

//! Adds and removes members of a JSON object in its text, so that order and formatting of the rest
//! stay as they are: what was added is removed to the byte.
//!
//! The text must be valid JSON with an object, which the callers check with `serde_json`.

use std::ops::Range;

/// An object in a text.
#[derive(Debug)]
pub(super) struct Object {
    /// Where its `{` is.
    open: usize,
    pub(super) members: Vec<Member>,
}

/// A member of an object, with its places in the text.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) name: String,
    start: usize,
    pub(super) value: Range<usize>,
}

impl Object {
    /// Returns the object that begins at or after a place.
    pub(super) fn at(text: &str, place: usize) -> Option<Self> {
        let open = blanks(text, place);
        if text.as_bytes().get(open) != Some(&b'{') {
            return None;
        }
        let mut members = Vec::new();
        let mut next = blanks(text, open + 1);
        while text.as_bytes().get(next) == Some(&b'"') {
            let end = value_end(text, next)?;
            let name = serde_json::from_str(&text[next..end]).ok()?;
            let colon = blanks(text, end);
            let start = blanks(text, colon + 1);
            let value = start..value_end(text, start)?;
            let after = blanks(text, value.end);
            members.push(Member { name, start: next, value });
            next = match text.as_bytes().get(after)? {
                b',' => blanks(text, after + 1),
                _ => after,
            };
        }
        Some(Self { open, members })
    }

    /// Returns a member.
    pub(super) fn member(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.name == name)
    }

    /// Returns the text with a first member, such as `"a": 1`, with the blanks of the one that was
    /// the first.
    pub(super) fn with_first(&self, text: &str, member: &str) -> String {
        let after = self.open + 1;
        match self.members.first() {
            Some(first) => {
                let blank = &text[after..first.start];
                let blank = if blank.is_empty() { " " } else { blank };
                let (before, rest) = text.split_at(first.start);
                format!("{before}{member},{blank}{rest}")
            }
            None => {
                let (before, rest) = text.split_at(after);
                let blank = if rest.starts_with(['\n', '\r']) { "\n    " } else { " " };
                format!("{before}{blank}{member}{rest}")
            }
        }
    }

    /// Returns the text without a member.
    pub(super) fn without(&self, text: &str, name: &str) -> Option<String> {
        let at = self.members.iter().position(|member| member.name == name)?;
        let member = &self.members[at];
        let cut = match (self.members.get(at + 1), at.checked_sub(1)) {
            (Some(next), _) => member.start..next.start,
            (None, Some(last)) => self.members[last].value.end..member.value.end,
            (None, None) => self.open + 1..member.value.end,
        };
        Some(format!("{}{}", &text[..cut.start], &text[cut.end..]))
    }
}

/// Returns the first place that is not blank.
fn blanks(text: &str, place: usize) -> usize {
    let rest = text.get(place..).unwrap_or_default();
    text.len() - rest.trim_start_matches([' ', '\t', '\n', '\r']).len()
}

/// Returns the end of the value that begins at a place.
fn value_end(text: &str, place: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let (mut at, mut depth) = (place, 0_usize);
    loop {
        match bytes.get(at)? {
            b'"' => at = string_end(bytes, at)?,
            b'{' | b'[' => (at, depth) = (at + 1, depth + 1),
            b'}' | b']' if depth > 0 => (at, depth) = (at + 1, depth - 1),
            b',' | b':' if depth > 0 => at += 1,
            byte if byte.is_ascii_whitespace() => at += 1,
            _ => {
                let is_end = |byte: &u8| b",:]}".contains(byte) || byte.is_ascii_whitespace();
                at += bytes[at..].iter().position(is_end).unwrap_or(bytes.len() - at).max(1);
            }
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

fn string_end(bytes: &[u8], quote: usize) -> Option<usize> {
    let mut at = quote + 1;
    loop {
        match bytes.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn added(text: &str) -> String {
        Object::at(text, 0).unwrap().with_first(text, r#""new": {"a": [1, "}"]}"#)
    }

    fn removed(text: &str) -> String {
        Object::at(text, 0).unwrap().without(text, "new").unwrap()
    }

    #[test]
    fn what_was_added_is_removed_to_the_byte() {
        for text in [
            "{}",
            "{ }\n",
            "{\n}\n",
            "{\r\n}",
            "\n{\n  \"a\": 1\n}\n",
            "{\"a\":1,\"b\":[{\"c\":\"\\\"}\"}]}",
            "{\n\t\"a\" : {\n\t\t\"b\": null } ,\n\t\"c\": -1.5e3\n}",
        ] {
            let new = added(text);
            let value: serde_json::Value = serde_json::from_str(&new).unwrap();
            assert_eq!(value["new"]["a"][1], "}", "{new}");
            assert_eq!(removed(&new), text, "{new}");
        }
    }

    #[test]
    fn a_member_is_removed_wherever_it_is() {
        assert_eq!(removed("{ \"a\": 1,\n  \"new\": 2 }"), "{ \"a\": 1 }");
        assert_eq!(removed("{\"a\": 1, \"new\": [2], \"b\": 3}"), "{\"a\": 1, \"b\": 3}");
        assert_eq!(removed("{ \"new\": true }"), "{ }");
    }

    #[test]
    fn members_have_their_places() {
        let text = r#" {"a\n": "x,y", "b": {"c": [ ]}, "d":2}"#;
        let object = Object::at(text, 0).unwrap();
        let members =
            object.members.iter().map(|member| (&*member.name, &text[member.value.clone()]));
        let members: Vec<_> = members.collect();
        assert_eq!(members, [("a\n", "\"x,y\""), ("b", "{\"c\": [ ]}"), ("d", "2")]);
        assert!(Object::at("[1]", 0).is_none() && Object::at("", 0).is_none());
    }

    fn value() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i32>().prop_map(Into::into),
            ".{0,8}".prop_map(Into::into),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                proptest::collection::hash_map("[a-z\"\\\\]{0,4}", inner, 0..4)
                    .prop_map(|map| map.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_object_is_the_same_after_both(
            value in proptest::collection::hash_map("[a-m\"\\\\{},]{0,6}", value(), 0..5),
            pretty: bool,
        ) {
            let text = match pretty {
                true => serde_json::to_string_pretty(&value).unwrap(),
                false => serde_json::to_string(&value).unwrap(),
            };
            let new = added(&text);
            let parsed: serde_json::Value = serde_json::from_str(&new).unwrap();
            prop_assert_eq!(parsed.as_object().unwrap().len(), value.len() + 1);
            prop_assert_eq!(removed(&new), text);
        }
    }
}

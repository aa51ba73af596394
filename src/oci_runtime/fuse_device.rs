//! `/dev/fuse` in a bundle: the node and the device policy, for helpers of `mount.fuse` that open it.
//!
//! It is given to containers with a user namespace of their own alone: ambit answers mount(2) of no
//! others.

use anyhow::Context;
use serde_json::{Map, Value, json};

const PATH: &str = "/dev/fuse";

/// True if the table `linux` has a user namespace of the container's own.
pub(super) fn is_for(linux: &Map<String, Value>) -> bool {
    let namespaces = linux.get("namespaces").and_then(Value::as_array);
    namespaces.is_some_and(|all| all.iter().any(|one| one["type"] == "user"))
}

/// Adds the node to the table `linux`, if it is not there.
pub(super) fn add_node(linux: &mut Map<String, Value>) -> anyhow::Result<()> {
    let nodes = list(linux)?;
    if !nodes.iter().any(|node| node["path"] == PATH) {
        nodes.push(json!({
            "path": PATH, "type": "c", "major": 10, "minor": 229,
            "fileMode": 0o666, "uid": 0, "gid": 0,
        }));
    }
    Ok(())
}

/// Adds the rule to the table `resources`, if it is not there.
pub(super) fn allow(resources: &mut Map<String, Value>) -> anyhow::Result<()> {
    let rule = json!({ "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm" });
    // A later rule counts more than an earlier one.
    let rules = list(resources)?;
    if !rules.contains(&rule) {
        rules.push(rule);
    }
    Ok(())
}

/// Returns the list of devices of a table, which is made if it is not there.
fn list(table: &mut Map<String, Value>) -> anyhow::Result<&mut Vec<Value>> {
    let list = table.entry("devices").or_insert(Value::Null);
    if list.is_null() {
        *list = json!([]);
    }
    list.as_array_mut().context("devices is no list")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(value: Value) -> Map<String, Value> {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_node_and_the_rule_are_added_once() {
        for before in [json!({}), json!({"devices": null}), json!({"devices": [{"path": "/a"}]})] {
            let count = before["devices"].as_array().map_or(0, Vec::len) + 1;
            let (mut linux, mut resources) = (table(before.clone()), table(before));
            for _ in 0..2 {
                add_node(&mut linux).unwrap();
                allow(&mut resources).unwrap();
            }
            let last = |table: &Map<String, Value>| {
                let all = table["devices"].as_array().unwrap();
                assert_eq!(all.len(), count);
                all[count - 1].clone()
            };
            assert_eq!(last(&linux)["path"], PATH);
            assert_eq!(last(&resources)["allow"], true);
        }
        let own = json!({"devices": [{"path": PATH, "uid": 7}]});
        let mut linux = table(own.clone());
        add_node(&mut linux).unwrap();
        assert_eq!(Value::from(linux), own, "the engine's own");
        assert!(add_node(&mut table(json!({"devices": 3}))).is_err());
    }

    #[test]
    fn only_containers_with_users_of_their_own_are_served() {
        assert!(is_for(&table(json!({"namespaces": [{"type": "pid"}, {"type": "user"}]}))));
        for other in [json!({}), json!({"namespaces": [{"type": "pid"}]}), json!({"namespaces": 1})]
        {
            assert!(!is_for(&table(other)));
        }
    }
}

//! Merging rules into the profiles of engines.

use libseccomp::ScmpArch;
use serde_json::json;

use super::super::rules;
use super::*;
use ambit_intercept::Policy;

/// Of the shape that Docker and Podman have.
const DOCKERS: &str = include_str!("../../../tests/profiles/docker.json");

fn made(base: Option<&str>, list: &str) -> anyhow::Result<(Value, String)> {
    let rules = rules::of(&Policy::from_names(list.split(',')).unwrap());
    let socket = Path::new("/run/ambit/oci.sock");
    let contents = Contents { rules: &rules, socket, label: Some("web") };
    let base = base.map(|text| Base { path: Path::new("base.json"), text });
    let Profile { text, warnings } = profile(base, &contents)?;
    Ok((serde_json::from_str(&text)?, warnings.join("\n")))
}

/// The rules for a call.
fn of(profile: &Value, name: &str) -> Vec<Value> {
    let all = profile["syscalls"].as_array().unwrap().iter();
    let named = |entry: &&Value| entry["names"].as_array().unwrap().contains(&json!(name));
    all.filter(named).cloned().collect()
}

#[test]
fn without_a_base_the_rest_is_allowed() {
    let (profile, said) = made(None, "sysinfo,mknod").unwrap();
    assert_eq!(profile["defaultAction"], ALLOW);
    assert_eq!(profile["listenerPath"], "/run/ambit/oci.sock");
    assert_eq!(profile["listenerMetadata"], "web");
    assert_eq!(of(&profile, "sysinfo"), [json!({ "names": ["sysinfo"], "action": NOTIFY })]);
    let mask = json!([{ "index": 1, "op": "SCMP_CMP_MASKED_EQ",
                        "value": 0o170_000, "valueTwo": 0o020_000 }]);
    assert_eq!(of(&profile, "mknod")[0]["args"], mask);
    assert!(said.contains("everything else is allowed"), "{said}");
    for arch in profile["architectures"].as_array().unwrap() {
        arch.as_str().unwrap().parse::<ScmpArch>().unwrap();
    }
}

const ALL: &str = "sysinfo,sched_getaffinity,mknod,setxattr,sched_setscheduler,mount,bpf";

#[test]
fn merging_again_changes_nothing() {
    for base in [None, Some(DOCKERS)] {
        for list in ["sysinfo,sched_getaffinity", ALL] {
            let (first, _) = made(base, list).unwrap();
            let (again, said) = made(Some(&first.to_string()), list).unwrap();
            assert_eq!(again, first, "{said}");
            // Other rules of ambit replace the first ones.
            let (more, _) = made(Some(&first.to_string()), ALL).unwrap();
            for name in ["mknod", "mount", "sysinfo"] {
                assert_eq!(of(&more, name), of(&made(base, ALL).unwrap().0, name), "{name}");
            }
            let (_, said) = made(Some(&more.to_string()), "sysinfo").unwrap();
            assert!(said.contains("reports bpf, fsetxattr"), "{said}");
        }
    }
}

#[test]
fn a_profile_with_another_listener_is_left_alone() {
    for path in [r#""listenerPath":"/run/other.sock","#, ""] {
        let base = format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW",{path}
                "syscalls":[{{"names":["mkdir"],"action":"SCMP_ACT_NOTIFY"}}]}}"#
        );
        let error = made(Some(&base), "sysinfo").unwrap_err().to_string();
        assert!(error.contains("the base reports mkdir to"), "{error}");
        assert!(error.contains("one listener"), "{error}");
    }
}

#[test]
fn reported_names_are_removed_from_the_rules_of_dockers_base() {
    let (profile, said) = made(Some(DOCKERS), "sysinfo,mknod,mount").unwrap();
    assert!(said.contains("Docker and Podman work out"), "{said}");
    assert_eq!(profile["archMap"][0]["architecture"], "SCMP_ARCH_X86_64", "kept");
    assert_eq!(of(&profile, "sysinfo").len(), 1);
    assert_eq!(of(&profile, "sysinfo")[0]["action"], NOTIFY);
    assert_eq!(of(&profile, "read")[0]["action"], ALLOW);
    // Arguments that are not reported pass as before.
    let mknod = of(&profile, "mknod");
    let count = |action| mknod.iter().filter(|entry| entry["action"] == action).count();
    assert_eq!((count(NOTIFY), count(ALLOW)), (1, 4));
    // Containers that could not mount before still cannot.
    for entry in of(&profile, "mount") {
        let (which, action) = (&entry["includes"]["caps"], &entry["action"]);
        let refused =
            action == "SCMP_ACT_ERRNO" && entry["excludes"]["caps"] == json!(["CAP_SYS_ADMIN"]);
        assert!(refused || *which == json!(["CAP_SYS_ADMIN"]), "{entry}");
    }
    assert_eq!(of(&profile, "umount")[0]["includes"]["caps"], json!(["CAP_SYS_ADMIN"]));
}

#[test]
fn a_config_json_is_accepted_as_a_base() {
    let seccomp = r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64"],
        "listenerPath":"/other","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"},
        {"names":["mknod"],"action":"SCMP_ACT_KILL"}]}"#;
    let bundle = format!(r#"{{"ociVersion":"1.0.2","linux":{{"seccomp":{seccomp}}}}}"#);
    let (profile, said) = made(Some(&bundle), "mknod").unwrap();
    assert_eq!(profile["architectures"], json!(["SCMP_ARCH_X86_64"]));
    assert!(of(&profile, "mknod").iter().all(|entry| entry["action"] != "SCMP_ACT_KILL"));
    assert!(
        said.contains("refuses mknod")
            && said.contains("/other, to which it reports nothing, is replaced"),
        "{said}"
    );
    let (profile, said) = made(Some(r#"{"ociVersion":"1.0.2"}"#), "mknod").unwrap();
    assert_eq!(profile["defaultAction"], ALLOW);
    assert!(said.contains("no profile to merge with"), "{said}");
}

#[test]
fn an_invalid_profile_is_an_error_with_its_line() {
    for (base, said) in [
        ("{\n  \"defaultAction\": }", "base.json:2:"),
        ("{\"syscalls\": []}", "missing field `defaultAction`"),
        (
            "{\"defaultAction\": \"SCMP_ACT_ALLOW\",\n\"syscalls\": [\n{\"names\": 3}]}",
            "base.json:3:",
        ),
        ("[]", "no seccomp profile"),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mknod"],
                "action":"SCMP_ACT_ERRNO","args":[{"index":1,"value":1,"op":"SCMP_CMP_EQ"}]}]}"#,
            "rule for mknod with arguments",
        ),
    ] {
        let error = made(Some(base), "mknod").unwrap_err().to_string();
        assert!(error.contains(said), "{base}: {error}");
    }
}

//! Docker's `daemon.json`: the runtime `ambit`, and that it is the default.
//!
//! Docker keeps with each container which runtime it has, and does not start one whose runtime it
//! does not know. So where containers with the runtime are there, undoing makes it runc's other
//! name instead of removing it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::edit::{Context, Edit};
use super::files::Files;
use super::json::Object;
use crate::drop_in;

const CONFIG: &str = "/etc/docker/daemon.json";
const DEFAULT: &str = "default-runtime";
const RUNTIMES: &str = "runtimes";
const NAME: &str = "ambit";

/// Returns the path of the file that dockerd reads.
pub(super) fn path(files: &Files) -> PathBuf {
    let named = arguments(files).into_iter().skip_while(|word| !is_option(word, "--config-file"));
    let words: Vec<_> = named.take(2).collect();
    let value = words.first().and_then(|word| word.split_once('=')).map(|(_, value)| value);
    let value = value.or(words.get(1).map(String::as_str));
    value.map_or_else(|| CONFIG.into(), PathBuf::from)
}

fn is_option(word: &str, name: &str) -> bool {
    word.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
}

/// Returns the arguments of the dockerd that runs.
fn arguments(files: &Files) -> Vec<String> {
    let Some(pid) = super::reload::docker(files) else { return Vec::new() };
    let text = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    text.split('\0').skip(1).map(str::to_owned).collect()
}

/// Returns what is done to the file.
pub(super) fn setup(text: Option<&str>, cx: &Context<'_>) -> anyhow::Result<Edit> {
    let program = drop_in::wrappers(cx.program).join("runc");
    if !cx.files.has(&program) {
        bail!(
            "there is no {}: link it to {}, as the package does",
            program.display(),
            cx.program.display()
        );
    }
    for option in ["--add-runtime", "--default-runtime"] {
        if arguments(cx.files).iter().any(|word| is_option(word, option)) {
            bail!("dockerd has the option {option}, and refuses it in both places: use one");
        }
    }
    set_up(text, &program)
}

fn set_up(text: Option<&str>, program: &Path) -> anyhow::Result<Edit> {
    let Some(text) = text else { return Ok(Edit::to(created(program))) };
    let (mut wanted, top) = parse(text)?;
    let mut new = text.to_owned();
    let ours = runtime(program);
    let entry = format!("\"{NAME}\": {}", runtime_text(program));
    match wanted.get(RUNTIMES).map(|runtimes| runtimes.get(NAME)) {
        None => new = top.with_first(&new, &format!("\"{RUNTIMES}\": {{{entry}}}")),
        Some(None) => new = runtimes(text, &top)?.with_first(&new, &entry),
        Some(Some(found)) if *found == ours => {}
        Some(Some(found)) if *found == runtime(Path::new("runc")) => {
            let runtimes = runtimes(text, &top)?;
            let place = runtimes.member(NAME).context("a runtime without a place")?.value.clone();
            new.replace_range(place, &runtime_text(program));
        }
        Some(Some(_)) => bail!("it has another runtime of the name {NAME}: remove or rename that"),
    }
    wanted[RUNTIMES][NAME] = ours;
    let note = match wanted.get(DEFAULT) {
        None => {
            wanted[DEFAULT] = NAME.into();
            let top = Object::at(&new, 0).context("it has no object")?;
            new = top.with_first(&new, &format!("\"{DEFAULT}\": \"{NAME}\""));
            None
        }
        Some(default) if *default == NAME => None,
        Some(default) => Some(format!(
            "{DEFAULT} stays {default}: containers have the runtime with --runtime {NAME}, and the \
             daemon attaches the others"
        )),
    };
    verify(&new, &wanted)?;
    match new == text {
        true => Ok(note.map_or(Edit::Same, Edit::Skip)),
        false => Ok(Edit::Change { text: Some(new), note }),
    }
}

/// Returns what is done to the file to take the runtime away.
pub(super) fn undo(text: &str, cx: &Context<'_>) -> anyhow::Result<Edit> {
    let program = drop_in::wrappers(cx.program).join("runc");
    take_away(text, &program, |data| containers(cx.files, data))
}

/// Returns the text with runc in the place of ambit. dockerd keeps the keys that a file has no more:
/// it forgets them when it starts again.
pub(super) fn with_runc(text: &str) -> anyhow::Result<String> {
    let (value, top) = parse(text)?;
    let mut new = text.to_owned();
    let inner = runtimes(text, &top)?;
    let mut places = vec![(
        inner.member(NAME).context("a runtime without a place")?.value.clone(),
        runtime_text(Path::new("runc")),
    )];
    if value.get(DEFAULT).is_some_and(|default| *default == NAME) {
        let member = top.member(DEFAULT).context("a key without a place")?;
        places.push((member.value.clone(), "\"runc\"".to_owned()));
    }
    // From the end, so that the other place stays right.
    places.sort_by_key(|(place, _)| std::cmp::Reverse(place.start));
    places.into_iter().for_each(|(place, value)| new.replace_range(place, &value));
    Ok(new)
}

/// `count` returns how many containers below Docker's folder have the runtime.
fn take_away(text: &str, program: &Path, count: impl Fn(&Path) -> usize) -> anyhow::Result<Edit> {
    let (mut wanted, top) = parse(text)?;
    let substitute = runtime(Path::new("runc"));
    match wanted.get(RUNTIMES).and_then(|runtimes| runtimes.get(NAME)) {
        None => return Ok(Edit::Nothing),
        Some(found) if *found == runtime(program) || *found == substitute => {}
        Some(_) => bail!("its runtime {NAME} is not what ambit writes: remove it by hand"),
    }
    let data = wanted.get("data-root").and_then(Value::as_str).unwrap_or("/var/lib/docker");
    let left = count(Path::new(data));
    if left == 0 && text == created(program) {
        return Ok(Edit::removal());
    }
    let mut new = text.to_owned();
    if wanted.get(DEFAULT).is_some_and(|default| *default == NAME) {
        new = top.without(&new, DEFAULT).context("a key without a place")?;
        remove(&mut wanted, DEFAULT);
    }
    let top = Object::at(&new, 0).context("it has no object")?;
    let inner = runtimes(&new, &top)?;
    if left > 0 {
        let place = inner.member(NAME).context("a runtime without a place")?.value.clone();
        new.replace_range(place, &runtime_text(Path::new("runc")));
        wanted[RUNTIMES][NAME] = substitute;
    } else {
        let member = top.member(RUNTIMES).context("a key without a place")?;
        let own = |path: &Path| format!("{{\"{NAME}\": {}}}", runtime_text(path));
        let value = &new[member.value.clone()];
        if value == own(program) || value == own(Path::new("runc")) {
            new = top.without(&new, RUNTIMES).context("a key without a place")?;
            remove(&mut wanted, RUNTIMES);
        } else {
            new = inner.without(&new, NAME).context("a runtime without a place")?;
            remove(&mut wanted[RUNTIMES], NAME);
        }
    }
    verify(&new, &wanted)?;
    let note = (left > 0).then(|| {
        format!(
            "containers that were made with the runtime ambit: {left}. It is runc now, so that they \
             start: run this again when they are removed"
        )
    });
    match new == text {
        true => Ok(note.map_or(Edit::Same, Edit::Skip)),
        false => Ok(Edit::Change { text: Some(new), note }),
    }
}

/// Returns the text of the file where there was none. Its blanks are not those of keys that are added
/// to an empty object.
fn created(program: &Path) -> String {
    format!(
        "{{\n  \"{DEFAULT}\": \"{NAME}\",\n  \"{RUNTIMES}\": {{\n    \"{NAME}\": {}\n  }}\n}}\n",
        runtime_text(program)
    )
}

fn runtime(program: &Path) -> Value {
    json!({ "path": program })
}

fn runtime_text(program: &Path) -> String {
    format!("{{ \"path\": {} }}", json!(program))
}

fn parse(text: &str) -> anyhow::Result<(Value, Object)> {
    let value: Value = serde_json::from_str(text).context("it is no JSON: mend or remove it")?;
    let runtimes = value.get(RUNTIMES);
    if !value.is_object() || runtimes.is_some_and(|runtimes| !runtimes.is_object()) {
        bail!("it is not what dockerd reads: an object, with {RUNTIMES} an object");
    }
    let object = Object::at(text, 0).context("it has no object")?;
    Ok((value, object))
}

fn runtimes(text: &str, top: &Object) -> anyhow::Result<Object> {
    let place = top.member(RUNTIMES).context("a key without a place")?.value.start;
    Object::at(text, place).with_context(|| format!("{RUNTIMES} is no object"))
}

fn remove(object: &mut Value, key: &str) {
    if let Some(object) = object.as_object_mut() {
        object.remove(key);
    }
}

/// # Errors
/// The text does not say what it should: the file has a key twice.
fn verify(text: &str, wanted: &Value) -> anyhow::Result<()> {
    match serde_json::from_str::<Value>(text).is_ok_and(|value| value == *wanted) {
        true => Ok(()),
        false => bail!("it cannot be changed safely: does it have a key twice?"),
    }
}

/// Returns how many containers of Docker have the runtime.
fn containers(files: &Files, data: &Path) -> usize {
    let has = |container: &PathBuf| {
        let text = files.read(&container.join("hostconfig.json")).ok().flatten()?;
        let config: Value = serde_json::from_str(&text).ok()?;
        Some(config.get("Runtime")? == NAME)
    };
    let all = files.names(&data.join("containers"));
    all.iter().filter(|container| has(container) == Some(true)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: &str = "/usr/libexec/ambit/runc";

    fn added(text: &str) -> String {
        match set_up(Some(text), Path::new(PROGRAM)).unwrap() {
            Edit::Change { text: Some(new), .. } => new,
            other => panic!("{text}: {other:?}"),
        }
    }

    fn removed(text: &str, left: usize) -> Edit {
        take_away(text, Path::new(PROGRAM), |_| left).unwrap()
    }

    #[test]
    fn setup_and_undo_leave_every_byte_as_it_was() {
        for text in [
            "{}",
            "{ }",
            "{\n}\n",
            "{\n    \"log-driver\": \"json-file\",\n    \"log-opts\": { \"max-size\": \"10m\" }\n}\n",
            "{\"debug\":true}",
            "{\n\t\"runtimes\": {},\n\t\"debug\": true\n}\n",
            "{\n  \"runtimes\": {\n    \"nvidia\": { \"args\": [], \"path\": \"nv\" }\n  }\n}",
            "{\n  \"runtimes\": {\n    \"nvidia\": { \"args\": [], \"path\": \"nv\" }\n  },\n  \
             \"default-runtime\": \"nvidia\"\n}",
        ] {
            let new = added(text);
            let value: Value = serde_json::from_str(&new).unwrap();
            assert_eq!(value["runtimes"]["ambit"]["path"], PROGRAM, "{new}");
            let again = set_up(Some(&new), Path::new(PROGRAM)).unwrap();
            assert!(matches!(again, Edit::Same | Edit::Skip(_)), "{new}");
            assert_eq!(removed(&new, 0), Edit::to(text), "{new}");
        }
    }

    #[test]
    fn a_file_that_setup_made_is_removed() {
        let Edit::Change { text: Some(text), .. } = set_up(None, Path::new(PROGRAM)).unwrap()
        else {
            panic!("nothing is written")
        };
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            value,
            json!({
                "default-runtime": "ambit",
                "runtimes": { "ambit": { "path": PROGRAM } },
            })
        );
        assert_eq!(set_up(Some(&text), Path::new(PROGRAM)).unwrap(), Edit::Same);
        assert_eq!(removed(&text, 0), Edit::removal());
        assert_eq!(removed("{\"debug\": true}", 0), Edit::Nothing);
    }

    #[test]
    fn other_keys_stay_where_a_user_puts_them() {
        let text =
            added("{\n    \"debug\": true\n}\n").replace("true", "true,\n    \"ip\": \"::1\"");
        let expected = "{\n    \"debug\": true,\n    \"ip\": \"::1\"\n}\n";
        assert_eq!(removed(&text, 0), Edit::to(expected));
    }

    #[test]
    fn containers_with_the_runtime_can_still_be_started() {
        let text = "{\n    \"debug\": true\n}\n";
        let Edit::Change { text: Some(kept), note } = removed(&added(text), 2) else {
            panic!("nothing is changed")
        };
        let value: Value = serde_json::from_str(&kept).unwrap();
        assert_eq!(value, json!({ "debug": true, "runtimes": { "ambit": { "path": "runc" } } }));
        assert!(note.unwrap().ends_with("when they are removed"));
        assert!(matches!(removed(&kept, 2), Edit::Skip(_)));
        assert_eq!(removed(&kept, 0), Edit::to(text));
        assert_eq!(removed(&added(&kept), 0), Edit::to(text));
    }

    #[test]
    fn a_running_dockerd_is_given_runc_in_the_place_of_ambit() {
        for text in ["{\n    \"debug\": true\n}\n", "{}", "{\"default-runtime\": \"nvidia\"}"] {
            let value: Value = serde_json::from_str(&with_runc(&added(text)).unwrap()).unwrap();
            assert_eq!(value["runtimes"]["ambit"], json!({ "path": "runc" }));
            let default = if text.contains("nvidia") { "nvidia" } else { "runc" };
            assert_eq!(value["default-runtime"], default);
        }
    }

    #[test]
    fn another_default_stays_and_is_named() {
        let text = r#"{"default-runtime": "nvidia"}"#;
        let Edit::Change { text: Some(new), note } =
            set_up(Some(text), Path::new(PROGRAM)).unwrap()
        else {
            panic!("nothing is changed")
        };
        assert!(new.contains(r#""default-runtime": "nvidia""#), "{new}");
        assert!(note.unwrap().starts_with("default-runtime stays \"nvidia\""));
    }

    #[test]
    fn what_dockerd_does_not_read_is_an_error() {
        for (text, reason) in [
            ("", "it is no JSON: mend or remove it: EOF"),
            ("{ // comment\n}", "it is no JSON"),
            ("[]", "it is not what dockerd reads"),
            (r#"{"runtimes": []}"#, "it is not what dockerd reads"),
            (r#"{"runtimes": {"ambit": {"path": "x"}}}"#, "another runtime of the name ambit"),
            (r#"{"runtimes": {}, "runtimes": {}}"#, "a key twice"),
        ] {
            let error = format!("{:#}", set_up(Some(text), Path::new(PROGRAM)).unwrap_err());
            assert!(error.contains(reason), "{text}: {error}");
        }
        let changed =
            r#"{"runtimes": {"ambit": {"path": "/usr/libexec/ambit/runc", "runtimeArgs": []}}}"#;
        let error = take_away(changed, Path::new(PROGRAM), |_| 0).unwrap_err().to_string();
        assert!(error.contains("remove it by hand"), "{error}");
    }
}

//! containerd's configuration: a runtime `ambit` for the CRI, which a RuntimeClass can name.
//!
//! Its text goes to a file of its own where containerd merges tables of imported files (2.0 and
//! later) and imports `conf.d`. Earlier versions take a plugin's table from one file only, so there
//! it is a block at the end of `config.toml`.

use std::path::Path;

use anyhow::{Context as _, bail};
use toml::Table;

use super::block;
use super::edit::{Context, Edit, gone, whole};
use crate::drop_in;

pub(super) const CONFIG: &str = "/etc/containerd/config.toml";
pub(super) const DROP_IN: &str = "/etc/containerd/conf.d/ambit.toml";
const FOLDER: &str = "/etc/containerd/conf.d";

/// The plugin that has the runtimes, by the version of the configuration.
const PLUGINS: [(i64, &str); 2] =
    [(2, "io.containerd.grpc.v1.cri"), (3, "io.containerd.cri.v1.runtime")];

/// Returns what is done to the file in `conf.d`.
pub(super) fn setup_file(text: Option<&str>, cx: &Context<'_>) -> anyhow::Result<Edit> {
    let config = cx.files.read(Path::new(CONFIG)).unwrap_or_default();
    let has_folder = cx.files.has(Path::new(FOLDER));
    let is_systemd = match config.as_deref().map(parse) {
        // containerd 2.2 imports the folder by default.
        None if has_folder => false,
        Some(Ok(config)) if imports_folder(&config) => uses_systemd(&config, PLUGINS[1].1),
        _ => return Ok(Edit::Nothing),
    };
    let wrapper = wrapper(cx)?;
    // A file that was written for the other driver of control groups is renewed.
    whole(text, &[is_systemd, !is_systemd].map(|systemd| file(&wrapper, systemd)))
}

/// Returns what is done to the file in `conf.d` to take it away.
pub(super) fn undo_file(text: &str, cx: &Context<'_>) -> anyhow::Result<Edit> {
    let wrapper = wrapper_path(cx);
    gone(text, &[true, false].map(|systemd| file(&wrapper, systemd)))
}

fn file(wrapper: &str, is_systemd: bool) -> String {
    format!("version = 3\n\n{}", runtime(PLUGINS[1].1, wrapper, is_systemd))
}

/// Returns what is done to `config.toml`.
pub(super) fn setup_block(text: Option<&str>, cx: &Context<'_>) -> anyhow::Result<Edit> {
    let Some(text) = text else {
        if cx.files.has(Path::new(FOLDER)) {
            return Ok(Edit::Nothing);
        }
        return Ok(Edit::to(created(&wrapper(cx)?)));
    };
    let config = parse(text)?;
    if imports_folder(&config) {
        return Ok(Edit::Nothing);
    }
    let disabled = config.get("disabled_plugins").and_then(toml::Value::as_array);
    let is_cri = |name: &toml::Value| name.as_str().is_some_and(|name| name.ends_with("cri"));
    if disabled.is_some_and(|names| names.iter().any(is_cri)) {
        return Ok(Edit::Skip("its CRI is disabled, so it needs no runtime of ambit".to_owned()));
    }
    let Some((_, plugin)) = PLUGINS.into_iter().rfind(|(least, _)| version(&config) >= *least)
    else {
        bail!("it has no `version = 2` or later: renew it, or name the runtime by hand");
    };
    let lines = runtime(plugin, &wrapper(cx)?, uses_systemd(&config, plugin));
    match block::find(text)? {
        Some(found) if found == lines => return Ok(Edit::Same),
        Some(_) => bail!("the block of ambit in it was changed: remove it, and run this again"),
        None => {}
    }
    let new = block::add(text, &lines);
    if parse(&new).is_err() {
        bail!("it has a runtime of the name ambit, or tables in one line: name it by hand");
    }
    Ok(Edit::to(new))
}

/// Returns what is done to `config.toml` to take the block away.
pub(super) fn undo_block(text: &str, cx: &Context<'_>) -> anyhow::Result<Edit> {
    let wrapper = wrapper_path(cx);
    if text == created(&wrapper) {
        return Ok(Edit::removal());
    }
    let Some(found) = block::find(text)? else { return Ok(Edit::Nothing) };
    let ours = PLUGINS
        .iter()
        .flat_map(|(_, plugin)| [true, false].map(|systemd| runtime(plugin, &wrapper, systemd)));
    let new = ours.into_iter().find(|lines| lines == found);
    match new.and_then(|lines| block::remove(text, &lines)) {
        Some(new) => Ok(Edit::to(new)),
        None => bail!("the block of ambit in it was changed: remove it by hand"),
    }
}

/// Returns the text of `config.toml` where there was none: containerd has defaults for all else.
fn created(wrapper: &str) -> String {
    block::add("version = 2\n", &runtime(PLUGINS[0].1, wrapper, false))
}

fn runtime(plugin: &str, wrapper: &str, is_systemd: bool) -> String {
    let cgroups = if is_systemd { "    SystemdCgroup = true\n" } else { "" };
    format!(
        "\
[plugins.\"{plugin}\".containerd.runtimes.ambit]
  runtime_type = \"io.containerd.runc.v2\"
  [plugins.\"{plugin}\".containerd.runtimes.ambit.options]
    BinaryName = \"{wrapper}\"
{cgroups}"
    )
}

fn wrapper_path(cx: &Context<'_>) -> String {
    drop_in::wrappers(cx.program).join("runc").display().to_string()
}

fn wrapper(cx: &Context<'_>) -> anyhow::Result<String> {
    let path = wrapper_path(cx);
    if !cx.files.has(Path::new(&path)) {
        bail!("there is no {path}: link it to {}, as the package does", cx.program.display());
    }
    Ok(path)
}

fn parse(text: &str) -> anyhow::Result<Table> {
    let parsed = text.parse::<Table>().map_err(|error| {
        let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count());
        anyhow::anyhow!("line {}: {}", line + 1, error.message())
    });
    parsed.context("it is no TOML: mend it")
}

fn version(config: &Table) -> i64 {
    config.get("version").and_then(toml::Value::as_integer).unwrap_or(1)
}

/// True if containerd merges the tables of the files in `conf.d`.
fn imports_folder(config: &Table) -> bool {
    let imports = config.get("imports").and_then(toml::Value::as_array);
    let is_folder = |path: &toml::Value| path.as_str() == Some("/etc/containerd/conf.d/*.toml");
    version(config) >= PLUGINS[1].0 && imports.is_some_and(|paths| paths.iter().any(is_folder))
}

/// True if systemd makes the control groups of runc's containers: then it has to make those of
/// ambit's too.
fn uses_systemd(config: &Table, plugin: &str) -> bool {
    let path = ["plugins", plugin, "containerd", "runtimes", "runc", "options"];
    let options = path.iter().try_fold(config, |table, key| table.get(*key)?.as_table());
    options.and_then(|options| options.get("SystemdCgroup")?.as_bool()) == Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::setup::files::Files;
    use crate::setup::pieces::Piece;

    /// Of Debian's package.
    const DEBIAN: &str = "\
version = 2

[plugins]
  [plugins.\"io.containerd.grpc.v1.cri\"]
    [plugins.\"io.containerd.grpc.v1.cri\".cni]
      bin_dir = \"/usr/lib/cni\"
      conf_dir = \"/etc/cni/net.d\"
  [plugins.\"io.containerd.internal.v1.opt\"]
    path = \"/var/lib/containerd/opt\"
";

    /// Does something with a root that has this file.
    fn with(config: Option<&str>, act: impl FnOnce(&Context<'_>)) {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::below(folder.path()).unwrap();
        files.write(Path::new("/usr/libexec/ambit/runc"), "").unwrap();
        if let Some(text) = config {
            files.write(Path::new(CONFIG), text).unwrap();
        }
        let program = Path::new("/usr/bin/ambit");
        let config = Config::default();
        act(&Context { files: &files, program, config: &config, config_file: None });
    }

    fn text(edit: anyhow::Result<Edit>) -> String {
        match edit {
            Ok(Edit::Change { text: Some(text), .. }) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_runtime_is_added_and_taken_away_to_the_byte() {
        let systemd = "\
version = 2
[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc.options]
SystemdCgroup = true";
        let third = "version = 3\n[plugins.'io.containerd.cri.v1.runtime']\n";
        let third_systemd =
            systemd.replace("version = 2", "version = 3").replace(PLUGINS[0].1, PLUGINS[1].1);
        for (config, plugin, is_systemd) in [
            (DEBIAN, PLUGINS[0].1, false),
            (systemd, PLUGINS[0].1, true),
            (third, PLUGINS[1].1, false),
            (&third_systemd, PLUGINS[1].1, true),
        ] {
            with(Some(config), |cx| {
                assert_eq!(Piece::ContainerdFile.setup(cx).unwrap(), Edit::Nothing);
                let new = text(Piece::ContainerdBlock.setup(cx));
                let parsed: Table = new.parse().unwrap();
                let ours = &parsed["plugins"][plugin]["containerd"]["runtimes"]["ambit"];
                let options = ours["options"].as_table().unwrap();
                assert_eq!(options["BinaryName"].as_str(), Some("/usr/libexec/ambit/runc"));
                assert_eq!(options.contains_key("SystemdCgroup"), is_systemd, "{new}");
                cx.files.write(Path::new(CONFIG), &new).unwrap();
                assert_eq!(Piece::ContainerdBlock.setup(cx).unwrap(), Edit::Same);
                assert_eq!(text(Piece::ContainerdBlock.undo(cx)), config);
            });
        }
    }

    #[test]
    fn without_a_file_one_is_made_and_removed() {
        with(None, |cx| {
            let new = text(Piece::ContainerdBlock.setup(cx));
            assert_eq!(version(&new.parse().unwrap()), 2);
            cx.files.write(Path::new(CONFIG), &new).unwrap();
            assert_eq!(Piece::ContainerdBlock.setup(cx).unwrap(), Edit::Same);
            assert_eq!(Piece::ContainerdBlock.undo(cx).unwrap(), Edit::removal());
        });
    }

    #[test]
    fn a_file_of_its_own_is_used_where_it_is_imported_and_merged() {
        let config = "version = 3\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n";
        with(Some(config), |cx| {
            assert_eq!(Piece::ContainerdBlock.setup(cx).unwrap(), Edit::Nothing);
            let new = text(Piece::ContainerdFile.setup(cx));
            assert!(new.starts_with("version = 3\n") && new.contains(PLUGINS[1].1), "{new}");
            cx.files.write(Path::new(DROP_IN), &new).unwrap();
            assert_eq!(Piece::ContainerdFile.setup(cx).unwrap(), Edit::Same);
            assert_eq!(Piece::ContainerdFile.undo(cx).unwrap(), Edit::removal());
        });
        // 1.x would take the plugin's whole table from the imported file.
        with(Some(&config.replace("version = 3", "version = 2")), |cx| {
            assert_eq!(Piece::ContainerdFile.setup(cx).unwrap(), Edit::Nothing);
            assert!(text(Piece::ContainerdBlock.setup(cx)).contains(PLUGINS[0].1));
        });
    }

    #[test]
    fn what_cannot_have_a_runtime_is_left_alone() {
        with(Some("disabled_plugins = [\"cri\"]\n"), |cx| {
            assert!(matches!(Piece::ContainerdBlock.setup(cx).unwrap(), Edit::Skip(_)));
        });
        for (config, reason) in [
            ("[plugins.cri]\n", "no `version = 2` or later"),
            ("version = 2\n[[plugins]\n", "it is no TOML: mend it: line 2:"),
            ("version = 2\nplugins = {}\n", "tables in one line"),
        ] {
            with(Some(config), |cx| {
                let error = format!("{:#}", Piece::ContainerdBlock.setup(cx).unwrap_err());
                assert!(error.contains(reason), "{config}: {error}");
            });
        }
    }

    #[test]
    fn a_block_that_was_changed_is_left_alone() {
        with(Some(DEBIAN), |cx| {
            let new = text(Piece::ContainerdBlock.setup(cx)).replace("runc.v2", "runc.v3");
            cx.files.write(Path::new(CONFIG), &new).unwrap();
            for error in [Piece::ContainerdBlock.setup(cx), Piece::ContainerdBlock.undo(cx)] {
                assert!(error.unwrap_err().to_string().contains("was changed"));
            }
        });
    }
}

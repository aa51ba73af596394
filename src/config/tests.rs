//! The configuration as a user writes it: the values that are read, and the errors.

use super::*;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("a.toml")).map_err(|error| error.to_string())
}

fn names(policy: &Policy) -> String {
    policy.names().collect::<Vec<_>>().join(",")
}

/// The errors of texts, which begin at a place and contain some words.
fn fail(cases: &[(&str, &str, &str)]) {
    for (text, place, words) in cases {
        let error = parse(text).unwrap_err();
        let right = error.starts_with(&format!("a.toml:{place}: "));
        assert!(right && error.contains(words), "{text}\n{error}");
        assert!(!error.contains('\n') && error.len() < 300, "{error}");
    }
}

#[test]
fn an_empty_file_is_the_default() {
    let config = parse("").unwrap();
    assert_eq!(config.overlay.mount, Path::new("/var/lib/ambit"));
    assert_eq!(config.socket("oci.sock"), Path::new("/run/ambit/oci.sock"));
    assert_eq!(names(&config.policies.all), "sysinfo,sched_getaffinity");
    assert_eq!(config, Config::default());
}

#[test]
fn the_places_are_found_in_a_file_with_mistakes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.toml");
    let places = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let (Config { daemon, overlay, .. }, error) = Config::places(Some(&file)).unwrap();
        let shown = [daemon.runtime_dir, overlay.mount].map(|path| path.display().to_string());
        (shown, error.map(|error| error.to_string()))
    };
    let (ours, usual) = (["/x", "/y"], ["/run/ambit", "/var/lib/ambit"]);
    let both = "[daemon]\nruntime_dir = \"/x\"\n[overlay]\nmount = \"/y\"\n";
    for wrong in ["", "mistake = 1\n", "mistake\n", "[intercept]\nmknod = {\n", "log = \"\n"] {
        assert_eq!(places(&format!("{both}{wrong}")), (ours.map(str::to_owned), None), "{wrong}");
    }
    assert_eq!(places("[intercept\nx = 1\n[daemon]\nruntime_dir = '/x'\n").0[0], "/x");
    assert_eq!(places("[daemon]\nlog = \"info\"\n"), (usual.map(str::to_owned), None));
    let (paths, error) = places("[daemon\nruntime_dir = /x\n");
    assert!(paths == usual && error.clone().unwrap().contains("a.toml:1:"), "{error:?}");
    // It names another daemon than the usual one.
    assert!(Config::places(Some(&folder.path().join("none"))).is_err());
}

#[test]
fn calls_are_switched_by_name() {
    let all = |text: &str| names(&parse(&format!("[intercept]\n{text}\n")).unwrap().policies.all);
    assert_eq!(all("sysinfo = false"), "sched_getaffinity");
    assert_eq!(all("view = false"), "");
    assert_eq!(all("view = false\nsysinfo = true"), "sysinfo");
    assert_eq!(all("view = true\nsysinfo = { enabled = false }"), "sched_getaffinity");
    assert_eq!(all("setxattr = true"), "sysinfo,sched_getaffinity,setxattr");
    let table = "[intercept.setxattr]\nenabled = true";
    assert_eq!(all(table), "sysinfo,sched_getaffinity,setxattr");
}

#[test]
fn a_call_has_a_table_of_settings() {
    for text in [
        "[intercept.mount]\nenabled = true\nallowed = ['xfs']\nfuse = { ext4 = 'fuse2fs' }\n",
        "[intercept]\nmount = { enabled = true, allowed = ['xfs'], fuse = { ext4 = 'fuse2fs' } }",
        "intercept.mount.enabled = true\nintercept.mount.allowed = ['xfs']\n\
         [intercept.mount.fuse]\next4 = 'fuse2fs'\n",
    ] {
        let all = parse(text).unwrap().policies.all;
        let mount = &all.settings().mount;
        assert_eq!((&*mount.allowed, &*mount.fuse["ext4"]), (&["xfs".to_owned()][..], "fuse2fs"));
        assert_eq!((names(&all).contains("mount"), mount.deadline), (true, 20));
    }
    fail(&[
        ("[intercept.mount]\nallowed = ['ext4']", "1:12", "allowed alone grants nothing: set"),
        ("[intercept.mount]", "1:12", "intercept.mount: the table is empty and grants nothing"),
        (
            "[intercept]\nmount = { enabled = false, shift = true }",
            "2:1",
            "intercept.mount: shift has no effect with enabled = false: set enabled = true",
        ),
        ("[intercept]\nbpf.devices = true", "2:1", "devices alone grants nothing"),
        ("[intercept]\nmount = ['ext4']", "2:9", "intercept.mount: use true, false or a table"),
        ("[intercept]\nmknod = 'yes'", "2:9", "intercept.mknod: use true, false or a table"),
        ("[intercept]\nview = 1", "2:8", "intercept.view: use true or false"),
        ("[intercept]\nlimit = 5", "2:9", "intercept.limit: use a table"),
        ("intercept = true", "1:13", "intercept: this is a table: write [intercept]"),
    ]);
}

#[test]
fn settings_that_give_the_machine_away_are_refused() {
    fail(&[
        (
            "[intercept.mount]\nenabled = true\nallowed = ['ext4', 'proc']",
            "3:1",
            "intercept.mount.allowed: proc is never mounted with the host's rights",
        ),
        (
            "[intercept.mount]\nenabled = true\nfuse = { ext4 = '' }",
            "3:1",
            "intercept.mount.fuse: \"ext4\" needs a filesystem and a program",
        ),
        (
            "[intercept.mount]\nenabled = true\nallowed = ['ext4']\nfuse = { ext4 = 'fuse2fs' }",
            "4:1",
            "ext4 is in both mount.allowed and mount.fuse",
        ),
        (
            "[intercept.mknod]\nenabled = true\ndevices = ['10:229', '1:1']",
            "3:11",
            "intercept.mknod.devices: 1:1 is the machine's memory",
        ),
        (
            "[intercept.mknod]\nenabled = true\ndevices = ['8']",
            "3:11",
            "\"8\" is no character device: use MAJOR:MINOR",
        ),
    ]);
}

#[test]
fn former_spellings_are_answered_with_the_new_ones() {
    fail(&[
        (
            "[intercept]\nmount = true\n\"mount.allowed\" = ['ext4']",
            "3:1",
            "unknown key \"mount.allowed\": write mount = { enabled = true, allowed = [\"ext4\"] }",
        ),
        (
            "[intercept]\n\"sched.priority\" = 5",
            "2:1",
            "write sched_setscheduler = { enabled = true, priority = 10 }",
        ),
        ("[intercept]\n\"limit.calls\" = 5", "2:1", "write limit = { calls = 100000 }"),
        (
            "[intercept]\nmount = true\nmount.allowed = ['ext4']",
            "3:1",
            "with settings, NAME = true is written NAME.enabled = true",
        ),
        (
            "[intercept]\n\"security.syscalls.intercept.mknod\" = true",
            "2:1",
            "it is called mknod in [intercept]",
        ),
        (
            "[intercept]\nmount = true\n[intercept.mount]\nallowed = ['ext4']",
            "3:12",
            "duplicate key; with settings, NAME = true is written NAME.enabled = true",
        ),
        ("[daemon]\nlog = 'info'\nlog = 'info'", "3:1", "duplicate key"),
        ("security.syscalls.intercept.mknod = true", "1:1", "NAME is NAME in [intercept]"),
    ]);
}

#[test]
fn some_containers_get_more() {
    let text = "[intercept.mknod]\nenabled = true\ndevices = ['5:2']\n\
                [[container]]\nid = 'ci-*'\n\
                [container.intercept.mount]\nenabled = true\nallowed = ['ext4']\n\
                [container.intercept]\nmknod.bind = true\n\
                [[container]]\ncgroup = '/lxc/*'\nintercept = { view = false, mknod = false }\n";
    let policies = parse(text).unwrap().policies;
    assert_eq!(names(&policies.all), "sysinfo,sched_getaffinity,mknod");
    let [ci, lxc] = &*policies.sections else { panic!("two sections") };
    assert_eq!(names(&ci.1), "sysinfo,sched_getaffinity,mknod,mount");
    let settings = ci.1.settings();
    assert_eq!((&*settings.mount.allowed, settings.mknod.bind), (&["ext4".to_owned()][..], true));
    assert_eq!(settings.mknod.devices, policies.all.settings().mknod.devices);
    assert_eq!((names(&lxc.1), lxc.0.cgroup.as_deref()), (String::new(), Some("/lxc/*")));
    fail(&[
        ("[[container]]\nintercept = { mknod = true }", "1:1", "say which these are: id"),
        ("[[container]]\nname = 'x'", "2:1", "container: unknown key \"name\": known are id"),
        ("[[container]]\nintercpt = {}", "2:1", "did you mean intercept?"),
        (
            "[[container]]\nid = 'x'\nintercept = { mknood = true }",
            "3:15",
            "container.intercept: unknown key \"mknood\": did you mean mknod?",
        ),
        (
            "[[container]]\nid = 'x'\nintercept = { mount.shift = true }",
            "3:15",
            "container.intercept.mount: shift alone grants nothing",
        ),
        (
            "[intercept.mount]\nenabled = true\nallowed = ['ext4']\n[[container]]\nid = 'x'\n\
             [container.intercept.mount]\nfuse = { ext4 = 'fuse2fs' }",
            "7:1",
            "both",
        ),
        ("[container]\nid = 'x'", "1:1", "write each below [[container]]"),
    ]);
}

#[test]
fn calls_that_grant_nothing_are_noted() {
    let notes = |text: &str| parse(text).unwrap().notes();
    let text = "[intercept]\nbpf = true\n[[container]]\nid = 'a'\nintercept = { mount = true }\n";
    assert_eq!(
        notes(text),
        [
            "[intercept]: bpf grants nothing without bpf.devices",
            "[[container]] 1: mount grants nothing without mount.allowed or mount.fuse"
        ]
    );
    assert_eq!(notes("[intercept]\nbpf = { enabled = true, devices = true }\n"), [""; 0]);
}

#[test]
fn what_is_shown_is_chosen_by_name() {
    let text = "[overlay]\npossible = 'view'\nmemory_limit = 'high'\nswap = 'none'\n\
                btime = 'container'\ncpu_view = 'cpuset'\nview_of = 'caller'\n";
    let Overlay { possible, memory_limit, swap, btime, cpu_view, view_of, .. } =
        parse(text).unwrap().overlay;
    assert_eq!(view_of, ViewOf::Caller);
    assert_eq!((possible, memory_limit), (PossibleCpus::View, MemoryLimit::High));
    assert_eq!((swap, btime), (SwapPolicy::None, BootTime::Container));
    assert_eq!(cpu_view, CpuPolicy::Cpuset);
    // Each name is described.
    for key in ["cpu_view", "possible", "memory_limit", "swap", "btime", "view_of"] {
        let error = parse(&format!("[overlay]\n{key} = 'x'\n")).unwrap_err();
        let doc = <Overlay as settings::Section>::TABLE.key(key).unwrap().doc.concat();
        for name in error.split('`').skip(3).step_by(2) {
            assert!(doc.contains(&format!("`{name}`")), "{key}: {name}");
        }
    }
}

#[test]
fn mistakes_are_located_and_explained() {
    fail(&[
        ("[overlay]\nmuont = '/x'", "2:1", "overlay: unknown key \"muont\": did you mean mount?"),
        ("[overlay]\nlog = 'info'", "2:1", "unknown key \"log\": it belongs in [daemon]"),
        ("[overlay]\nbanana = 1", "2:1", "unknown key \"banana\": known are mount, cpu_view"),
        ("[overlai]\n", "1:2", "unknown key \"overlai\": did you mean overlay?"),
        ("mknod = true", "1:1", "unknown key \"mknod\": it belongs in [intercept]"),
        ("[intercept.mount]\nenabled = true\nalowed = ['ext4']", "3:1", "mean allowed?"),
        ("[intercept]\nsisinfo = true", "2:1", "did you mean sysinfo?"),
        (
            "[overlay]\ncpu_view = 'all'",
            "2:12",
            "`all` is not possible: use `quota`, `cpuset`, `weight`",
        ),
        ("[overlay]\nswap = 'some'", "2:8", "use `limit`, `host`, `none`"),
        ("[overlay]\nmount = 5", "2:9", "use a text in quotes, such as mount = \"/var/lib/ambit\""),
        ("[overlay]\nthreads = 9", "2:1", "overlay.threads: 9 is not possible: use 1 to 8"),
        ("[overlay]\nthreads = 'x'", "2:11", "use a whole number, 1 to 8, such as threads = 2"),
        ("[daemon]\nruntime_dir = 'run'", "2:1", "daemon.runtime_dir: \"run\" is not possible"),
        ("[audit]\n# file\nfile = 'a.log'", "3:1", "audit.file: \"a.log\" is not possible: use an"),
        ("[intercept.sched_setscheduler]\nenabled = true\nnice = -5", "3:1", "use 0 to 20"),
        (
            "[intercept.mount]\nenabled = true\nallowed = 'ext4'",
            "3:11",
            "such as allowed = [\"ext4",
        ),
        ("[intercept.mount]\nenabled = true\nfuse.ext4 = 5", "3:13", "use a table, such as fuse"),
        ("[intercept]\nlimit.calls = 0", "2:7", "limit.calls: 0 is not possible: use 1 or more"),
        ("[intercept]\nlimit.calls = -1", "2:15", "limit.calls: use a whole number, 1 or more"),
        ("[daemon\n", "1:8", ""),
    ]);
    let long = format!("[overlay]\n{} = 1\n", "a".repeat(1 << 19));
    fail(&[(&long, "2:1", "unknown key")]);
    let long = format!("[overlay]\nswap = \"\"\"{}\"\"\"\n", "a\n".repeat(1 << 18));
    let error = parse(&long).unwrap_err();
    assert!(error.starts_with("a.toml:2:8: overlay.swap: ") && error.len() < 500, "{error}");
    assert!(!error.contains('\n'), "{error}");
}

#[test]
fn files_that_are_no_configuration_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.toml");
    for (content, said) in [
        (vec![b'#'; 2 << 20], "a.toml: it has more than 1 MiB"),
        (b"[daemon]\n\xff\xfe".to_vec(), "a.toml: line 2 is no text in UTF-8"),
    ] {
        std::fs::write(&file, content).unwrap();
        let error = Config::load(Some(&file)).unwrap_err().to_string();
        assert!(error.starts_with("cannot read ") && error.contains(said), "{error}");
    }
    let error = Config::load(Some(folder.path())).unwrap_err().to_string();
    assert!(error.contains("Is a directory"), "{error}");
}

#[test]
fn the_default_file_holds_the_defaults() {
    let file = print::default_file();
    assert_eq!(parse(&file).unwrap(), Config::default());
    assert!(file.lines().all(|line| line.len() <= 80), "{file}");
    // All of it is right without the marks of comments, too.
    let is_key = |line: &str| line.starts_with(|c: char| c == '[' || c.is_ascii_lowercase());
    let lines = file.lines().map(|line| match line.strip_prefix('#') {
        Some(key) if is_key(key) => key.replace("enabled = false", "enabled = true"),
        _ => line.to_owned(),
    });
    let config = parse(&lines.collect::<Vec<_>>().join("\n")).unwrap();
    let Config { daemon, overlay, .. } = Config::default();
    assert_eq!((config.daemon, config.overlay), (daemon, overlay));
    assert_eq!(config.policies.sections.len(), 1);
}

#[test]
fn the_reference_is_that_of_these_settings() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let page = std::fs::read_to_string(file).unwrap_or_default();
    let renew = "cargo run --profile suite -- config --reference > docs/configuration.md";
    assert!(page == print::reference(), "docs/configuration.md is stale; renew it with: {renew}");
    let names = ["bpf.devices", "mount.allowed", "mount.fuse", "mount.shift", "sysinfo", "mknod"];
    for name in names {
        assert!(page.contains(&format!("`security.syscalls.intercept.{name}`")), "{name}");
    }
}

#[test]
fn examples_in_the_documentation_are_right() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = std::fs::read_dir(root.join("docs")).unwrap();
    let files = docs.map(|entry| entry.unwrap().path()).chain([root.join("README.md")]);
    let mut count = 0;
    for file in files.filter(|file| file.extension().is_some_and(|end| end == "md")) {
        let text = std::fs::read_to_string(&file).unwrap();
        for example in text.split("```toml\n").skip(1) {
            let example = example.split("```").next().unwrap();
            let config = parse(&example.replace("host:/usr/bin/", ""))
                .unwrap_or_else(|error| panic!("{file:?}: {error}"));
            assert_eq!(config.notes(), [""; 0], "{file:?}");
            count += 1;
        }
    }
    assert!(count > 5, "{count}");
}

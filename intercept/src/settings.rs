//! Structs of settings: each field is a key of the configuration.
//!
//! `settings!` declares a struct with the default of each field, and a [`Table`] that describes it.
//! The parser, the reference in docs/configuration.md, the default file, the words of `--intercept`
//! and the suggestions in errors derive from that one declaration: there must be no second list of
//! keys. A key is one line there, and its doc comment, which users read.

/// A table of the configuration.
#[derive(Debug)]
pub struct Table {
    /// Its doc comment, line by line.
    pub doc: &'static [&'static str],
    /// Its keys.
    pub keys: &'static [Key],
}

/// A key of a table.
#[derive(Debug)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// Its doc comment, line by line.
    pub doc: &'static [&'static str],
    /// Returns the default, which optional keys do not have.
    pub default: fn() -> Option<toml::Value>,
    /// The numbers that it takes, as a range of Rust.
    pub range: Option<&'static str>,
    /// An example of a value, in TOML.
    pub example: Option<&'static str>,
    /// The name in LXD and Incus, after `security.syscalls.intercept.`.
    pub lxd: Option<&'static str>,
    /// The table, if the key is one.
    pub table: Option<&'static Table>,
}

/// The path of a key with a wrong value, relative to the struct, and the reason.
pub type WrongValue = (String, String);

/// A struct of settings, as `settings!` declares it.
pub trait Section: Default + serde::de::DeserializeOwned {
    /// Its description.
    const TABLE: &'static Table;

    /// Returns the first value that is out of its range or contradicts another one.
    fn wrong_value(&self) -> Option<WrongValue>;
}

impl Table {
    /// Returns the key of this name.
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    /// Returns the key at a path such as `mount.allowed`.
    pub fn find(&self, path: &str) -> Option<&'static Key> {
        match path.split_once('.') {
            Some((table, path)) => self.key(table)?.table?.find(path),
            None => self.key(path),
        }
    }

    /// Returns the paths of all keys that are not tables.
    pub fn paths(&self) -> Vec<String> {
        let paths = self.keys.iter().flat_map(|key| match key.table {
            Some(table) => {
                table.paths().iter().map(|path| format!("{}.{path}", key.name)).collect()
            }
            None => vec![key.name.to_owned()],
        });
        paths.collect()
    }
}

impl Key {
    /// Returns a value that the key takes: its example, or its default.
    pub fn example(&self) -> Option<toml::Value> {
        let parsed = self.example.map(|text| text.parse().unwrap_or_else(|_| text.into()));
        parsed.or_else(self.default)
    }

    /// Returns the numbers that it takes, in words.
    pub fn range(&self) -> Option<String> {
        let (from, to) = self.range?.split_once("..")?;
        let (from, to) = (from.trim(), to.trim_start_matches('=').trim());
        let words =
            if to.is_empty() { format!("{from} or more") } else { format!("{from} to {to}") };
        Some(words.replace('_', ""))
    }
}

/// Returns the candidate that a misspelt word most likely means.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A long word is not a typing error, and computing the distance takes the square of its length.
    if word.len() > 64 {
        return None;
    }
    let distance = |candidate: &str| strsim::damerau_levenshtein(word, candidate);
    let near = candidates.into_iter().map(|candidate| (distance(candidate), candidate));
    let (distance, candidate) = near.min_by_key(|(distance, _)| *distance)?;
    (distance <= (candidate.len() / 3).clamp(1, 3)).then_some(candidate)
}

/// Declares a struct of settings: `pub KEY: TYPE = DEFAULT`, or `pub KEY: STRUCT` for a table;
/// then, each after a comma, `within RANGE`, `such as "EXAMPLE"` and `lxd "NAME"`. The last line
/// may be `check FUNCTION`, which returns what is wrong with the struct as a whole.
#[macro_export]
macro_rules! settings {
    ($(#[doc = $about:literal])* pub struct $name:ident {
        $($(#[doc = $doc:literal])* pub $key:ident: $kind:ty $(= $default:expr)?
            $(, within $range:expr)? $(, such as $example:literal)? $(, lxd $lxd:literal)?;)*
        $(check $check:path;)?
    }) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $($(#[doc = $doc])* pub $key: $kind,)*
        }

        impl $crate::settings::Section for $name {
            const TABLE: &'static $crate::settings::Table =
                &$crate::settings::Table {
                    doc: &[$($about),*],
                    keys: &[$($crate::settings::Key {
                        name: stringify!($key),
                        doc: &[$($doc),*],
                        default: $crate::settings!(@shown $kind [$($default)?]),
                        range: $crate::settings!(@option [$(stringify!($range))?]),
                        example: $crate::settings!(@option [$($example)?]),
                        lxd: $crate::settings!(@option [$($lxd)?]),
                        table: $crate::settings!(@table $kind [$($default)?]),
                    }),*],
                };

            fn wrong_value(&self) -> Option<$crate::settings::WrongValue> {
                $($crate::settings!(@check (self.$key) $key [$($default)?] [$($range)?]);)*
                $crate::settings!(@whole (self) [$($check)?])
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $crate::settings!(@default $kind [$($default)?])),* }
            }
        }
    };
    (@whole ($settings:expr) []) => { None };
    (@whole ($settings:expr) [$check:path]) => { $check($settings) };
    (@option []) => { None };
    (@option [$some:expr]) => { Some($some) };
    (@default $kind:ty []) => { <$kind>::default() };
    (@default $kind:ty [$default:expr]) => { $default };
    (@shown $kind:ty []) => { || None };
    (@shown $kind:ty [$default:expr]) => {
        || { let default: $kind = $default; toml::Value::try_from(default).ok() }
    };
    (@table $kind:ty []) => {
        Some(<$kind as $crate::settings::Section>::TABLE)
    };
    (@table $kind:ty [$default:expr]) => { None };
    (@check ($value:expr) $key:ident [] []) => {
        if let Some((path, reason)) = $crate::settings::Section::wrong_value(&$value) {
            return Some((format!("{}.{path}", stringify!($key)), reason));
        }
    };
    (@check ($value:expr) $key:ident [$default:expr] []) => {};
    (@check ($value:expr) $key:ident [$default:expr] [$range:expr]) => {
        if !($range).contains(&$value) {
            let range = Self::TABLE.key(stringify!($key)).and_then(|key| key.range());
            return Some((
                stringify!($key).to_owned(),
                format!("{} is not possible: use {}", $value, range.unwrap_or_default()),
            ));
        }
    };
}

pub use settings;

settings! {
    /// How much of ambit one container may use.
    pub struct Limit {
        /// How many of its calls that change something may be under way or wait; the kernel answers
        /// the others.
        pub acts: usize = 512, within 1..;
        /// How many of its calls a second are answered, whatever they are; what is beyond waits.
        pub calls: u64 = 100_000, within 1..;
        /// How many filesystems that were mounted for it, by the kernel or by helpers, may exist at
        /// a time; the next mount fails with ENOSPC.
        pub mounts: usize = 64, within 1..;
    }
}

#[cfg(test)]
#[allow(unreachable_pub, reason = "structs of settings are public")]
mod tests {
    use super::*;

    settings! {
        /// A table
        /// of two lines.
        pub struct Sample {
            /// How many.
            pub number: u32 = 3, within 1..=5, such as "4", lxd "a.number";
            /// Where.
            pub place: Option<String> = None, such as "\"here\"";
            /// More.
            pub limit: Limit;
        }
    }

    #[test]
    fn a_declaration_makes_a_struct_and_its_description() {
        let sample: Sample = toml::from_str("limit = { calls = 7 }\n").unwrap();
        assert_eq!((sample.number, sample.limit.calls, sample.limit.acts), (3, 7, 512));
        assert_eq!(Sample::TABLE.doc, [" A table", " of two lines."]);
        let number = Sample::TABLE.find("number").unwrap();
        assert_eq!((number.default)(), Some(3.into()));
        assert_eq!((number.example(), number.lxd), (Some(4.into()), Some("a.number")));
        assert_eq!(number.range().as_deref(), Some("1 to 5"));
        let place = Sample::TABLE.find("place").unwrap();
        assert_eq!(((place.default)(), place.example()), (None, Some("here".into())));
        assert_eq!(Sample::TABLE.paths()[1..3], ["place", "limit.acts"]);
    }

    #[test]
    fn a_number_out_of_its_range_is_an_error() {
        assert_eq!(Sample::default().wrong_value(), None);
        let text = "number = 6\n";
        let (path, reason) = toml::from_str::<Sample>(text).unwrap().wrong_value().unwrap();
        assert_eq!((&*path, &*reason), ("number", "6 is not possible: use 1 to 5"));
        let text = "limit = { acts = 0 }\n";
        let (path, reason) = toml::from_str::<Sample>(text).unwrap().wrong_value().unwrap();
        assert_eq!((&*path, &*reason), ("limit.acts", "0 is not possible: use 1 or more"));
    }

    #[test]
    fn a_misspelt_word_has_a_suggestion() {
        let words = ["allowed", "fuse", "dev_and_suid"];
        assert_eq!(nearest("alowd", words), Some("allowed"));
        assert_eq!(nearest("fues", words), Some("fuse"));
        assert_eq!(nearest("banana", words), None);
    }
}

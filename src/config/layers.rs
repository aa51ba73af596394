//! Layers of `[intercept]`: a `[[container]]` section overrides the table for all containers.
//!
//! Layers are merged as TOML tables, in which every value keeps its span, and the result is read
//! into [`Settings`] once.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::document::{self, Mistake};
use ambit_intercept::settings::{Section, Table};
use ambit_intercept::{Policy, Settings, VIEW};

/// Merges layers into a policy. In each of them `NAME = true` may stand for a table, and `view` for
/// two calls.
///
/// # Errors
/// A key or a value is invalid; the error has its place in the text.
pub fn policy(layers: &[&DeTable<'_>]) -> Result<Policy, Mistake> {
    let mut all = DeTable::new();
    for layer in layers {
        merge(&mut all, layer)?;
    }
    document::read::<Settings>(all, &[]).map(Policy::from)
}

/// The description of a call's table.
fn call(name: &str) -> Option<&'static Table> {
    Settings::TABLE.key(name)?.table.filter(|table| table.key("enabled").is_some())
}

/// Overrides with the keys of a layer: a value, the keys of a table, or a call that is switched
/// off.
fn merge<'i>(below: &mut DeTable<'i>, layer: &DeTable<'i>) -> Result<(), Mistake> {
    if let Some(view) = layer.get("view")
        && let Some(on) = view.get_ref().as_bool()
    {
        for name in VIEW {
            below.remove(name);
            below.insert(Spanned::new(view.span(), name.into()), switch(on, view.span()));
        }
    }
    for (key, value) in layer {
        let name = &**key.get_ref();
        if name == "view" && value.get_ref().is_bool() {
            continue;
        }
        let value = match (call(name), value.get_ref()) {
            (Some(_), DeValue::Boolean(on)) => switch(*on, value.span()),
            (Some(_), DeValue::Table(_)) | (None, _) => value.clone(),
            (Some(_), _) => {
                let reason = "use true, false or a table such as { enabled = true }";
                return Err(Mistake::new(value.span().start, name, reason));
            }
        };
        let keeps = call(name).is_none() || enabled(&value) != Some(false);
        match (below.remove(name).map(Spanned::into_inner), value.get_ref()) {
            (Some(DeValue::Table(mut merged)), DeValue::Table(table)) if keeps => {
                for (key, value) in table {
                    merged.remove(&**key.get_ref());
                    merged.insert(key.clone(), value.clone());
                }
                let merged = Spanned::new(value.span(), DeValue::Table(merged));
                below.insert(key.clone(), merged);
            }
            _ => _ = below.insert(key.clone(), value),
        }
        if call(name).is_some() {
            refuse_idle(key, below)?;
        }
    }
    Ok(())
}

/// Refuses settings of a call that is off: the master switches are `enabled = true`.
fn refuse_idle(key: &Spanned<toml::de::DeString<'_>>, layers: &DeTable<'_>) -> Result<(), Mistake> {
    let name = &**key.get_ref();
    let table = layers.get(name).and_then(|value| value.get_ref().as_table());
    let Some(table) = table else { return Ok(()) };
    let keys = table.keys().map(|key| &**key.get_ref());
    let others: Vec<_> = keys.filter(|key| *key != "enabled").collect();
    let reason = match table.get("enabled").map(|on| on.get_ref().as_bool()) {
        None if others.is_empty() => "the table is empty and grants nothing".to_owned(),
        None => format!("{} alone grants nothing", others.join(", ")),
        Some(Some(false)) if !others.is_empty() => {
            format!("{} has no effect with enabled = false", others.join(", "))
        }
        _ => return Ok(()),
    };
    let hint = "set enabled = true, or leave the table out";
    Err(Mistake::new(key.span().start, name, format!("{reason}: {hint}")))
}

fn enabled(value: &Spanned<DeValue<'_>>) -> Option<bool> {
    value.get_ref().as_table()?.get("enabled")?.get_ref().as_bool()
}

fn switch<'i>(on: bool, span: std::ops::Range<usize>) -> Spanned<DeValue<'i>> {
    let enabled = Spanned::new(span.clone(), DeValue::Boolean(on));
    let table = [(Spanned::new(span.clone(), "enabled".into()), enabled)];
    Spanned::new(span, DeValue::Table(table.into_iter().collect()))
}

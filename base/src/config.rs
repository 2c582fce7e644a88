//! Configuration from layers: a TOML file, then the environment, then flags; the later layer is the stronger.
//!
//! The type that is loaded is the single source: its JSON schema says which keys there are, what the environment's
//! variables are called, and what stands in the reference page ([`reference()`]). Every fault is reported at once, with
//! its key path and where it was set. What only a room can judge (is this address allowed?) is added to the same
//! [`Faults`] by the crate that validates.
//!
//! A type is fit to be loaded when it and all its parts are `#[serde(default, deny_unknown_fields)]`.

mod faults;
#[doc(hidden)]
pub mod fuzz;
mod layers;
mod reference;
mod schema;
#[cfg(test)]
mod tests;

use std::path::Path;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use faults::{Fault, Faults};
use layers::Layers;
pub use reference::reference;
use schema::Shape;

/// Loads a configuration.
///
/// `env_prefix` is, for example, `SHOAL_NODE`: then `SHOAL_NODE_MIRROR_LISTEN` sets `mirror.listen`, and
/// `SHOAL_NODE_CONFIG` is left to the caller. Any other variable with that prefix is a fault, except what Kubernetes
/// sets for a service of that name. `sets` are flags of the form key path and value; a key that holds a dot is quoted:
/// `origin.registry."docker.io".ca`. Lists are separated by commas in variables and flags.
///
/// Keys that are free (of a map) can be set in the file and by flags only.
///
/// # Errors
/// All faults that were found.
pub fn load<T>(
    file: Option<&Path>,
    env_prefix: &str,
    env: impl Iterator<Item = (String, String)>,
    sets: &[(String, String)],
) -> Result<T, Faults>
where
    T: Default + Serialize + DeserializeOwned + JsonSchema,
{
    load_shaped(&Shape::of::<T>(), file, env_prefix, env, sets)
}

/// The key paths whose values differ between two configurations of one type.
///
/// # Panics
/// When they can't be written as JSON, which what was loaded can.
pub fn differing<T: Serialize>(one: &T, other: &T) -> Vec<String> {
    let leaves = |of: &T| {
        let mut leaves = std::collections::BTreeMap::new();
        let value = serde_json::to_value(of).expect("what was loaded can be written");
        layers::for_each_leaf(&value, &mut Vec::new(), &mut |path, leaf| {
            leaves.insert(layers::path_text(path), leaf.clone());
        });
        leaves
    };
    let (one, other) = (leaves(one), leaves(other));
    let mut keys: Vec<String> =
        one.keys().chain(other.keys()).filter(|key| one.get(*key) != other.get(*key)).cloned().collect();
    keys.sort();
    keys.dedup();
    keys
}

/// [`load`], by a shape that is at hand.
fn load_shaped<T: DeserializeOwned>(
    shape: &Shape,
    file: Option<&Path>,
    env_prefix: &str,
    env: impl Iterator<Item = (String, String)>,
    sets: &[(String, String)],
) -> Result<T, Faults> {
    let mut faults = Faults::default();
    let mut layers = Layers::default();
    if let Some(path) = file {
        layers.file(path, &mut faults);
    }
    layers.environment(shape, env_prefix, env, &mut faults);
    layers.flags(shape, sets, &mut faults);

    let shaped = shape.check(&layers.merged);
    for fault in &shaped {
        faults.push(fault.key.clone(), layers.with_source(&fault.key, &fault.problem));
    }
    match T::deserialize(&layers.merged) {
        Ok(config) => faults.into_result(config),
        Err(whole) => {
            // What the shape alone does not show: an address that is none, a number that is too large.
            for (key, problem) in faults_of_single_keys::<T>(&layers.merged) {
                if !shaped.iter().any(|fault| concerns(&fault.key, &key)) {
                    let problem = layers.with_source(&key, &problem);
                    faults.push(key, problem);
                }
            }
            if faults.is_empty() {
                faults.push("", whole.to_string());
            }
            Err(faults)
        }
    }
}

/// Parses a flag of the form `key.path=value`.
///
/// # Errors
/// For people, when there is no `=`.
pub fn setting(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .map(|(key, value)| (key.trim().to_owned(), value.to_owned()))
        .ok_or_else(|| format!("{text:?} is not KEY=VALUE"))
}

/// Whether a fault that is named with one key is about another: the same, one above it, or an element of it.
fn concerns(named: &str, key: &str) -> bool {
    let below = |above: &str, below: &str| below.strip_prefix(above).is_some_and(|rest| rest.starts_with(['.', '[']));
    named == key || below(named, key) || below(key, named)
}

/// A deserializer stops at the first fault and does not say where it was. Since every key has a default, each key can
/// be tried alone, which gives all faults with their paths.
fn faults_of_single_keys<T: DeserializeOwned>(merged: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    layers::for_each_leaf(merged, &mut Vec::new(), &mut |path, leaf| {
        let mut alone = leaf.clone();
        for key in path.iter().rev() {
            alone = Value::Object([(key.clone(), alone)].into_iter().collect());
        }
        if let Err(error) = T::deserialize(alone) {
            found.push((layers::path_text(path), error.to_string()));
        }
    });
    found
}

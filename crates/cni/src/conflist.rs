// SPDX-License-Identifier: Apache-2.0
//! The node's CNI configuration as text: which file the runtime takes, and that file with the plugin last in its chain.
//!
//! The text from before is kept in the plugin's own entry, so that a removal leaves the file as it was found.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::PLUGIN;

/// A file of the configuration folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its name, without the folder.
    pub name: String,
    /// What is in it.
    pub text: String,
}

/// What the plugin is told by the node's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Socket of the agent, on the node.
    pub socket: String,
    /// Namespaces whose Pods are never captured. They start without the agent.
    #[serde(default)]
    pub excluded_namespaces: Vec<String>,
    /// The agent's own Pods, which have to start before there is an agent: their namespace.
    pub own_namespace: String,
    /// And the beginning of their names.
    pub own_prefix: String,
}

/// A change of the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// This file gets this text.
    Write(File),
    /// The file of this name goes.
    Remove(String),
}

/// Why the plugin has no place in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No network is configured yet: the cluster's own CNI has not come up.
    #[error(
        "no file of the folder is a valid CNI configuration; the cluster's network has to be installed first"
    )]
    NoNetwork,
}

/// Member of the plugin's entry with the file's name from before, where that was another one.
const NAME_BEFORE: &str = "nameBefore";
/// Member of the plugin's entry with the file's text from before.
const TEXT_BEFORE: &str = "textBefore";

/// What has to change so that the plugin is the last of the chain that the runtime takes, and in no other. Nothing is to be
/// done when it is so.
///
/// # Errors
/// There is no valid configuration.
pub fn put_in(files: &[File], entry: &Entry) -> Result<Vec<Change>, Error> {
    let (first, list) = effective(files).ok_or(Error::NoNetwork)?;
    let mut changes = take_out_of(files.iter().filter(|file| file.name != first.name));
    changes.extend(insert(first, &list, entry));
    Ok(changes)
}

/// What has to change so that the plugin is in no file.
pub fn take_out(files: &[File]) -> Vec<Change> {
    take_out_of(files.iter())
}

/// The types of the other plugins in the configuration that the runtime takes.
pub fn plugins_of(files: &[File]) -> Vec<String> {
    let list = effective(files).map(|(_, list)| plugins(&list)).unwrap_or_default();
    let others = list.iter().filter(|plugin| !is_ours(plugin));
    others.filter_map(|plugin| Some(plugin.get("type")?.as_str()?.to_owned())).collect()
}

/// The file that the runtime takes, read as a list of plugins: the first valid one by name.
fn effective(files: &[File]) -> Option<(&File, Map<String, Value>)> {
    let mut candidates: Vec<&File> = files.iter().filter(|file| is_configuration(&file.name)).collect();
    candidates.sort_by(|a, b| a.name.cmp(&b.name));
    candidates.into_iter().find_map(|file| Some((file, parse(file)?)))
}

fn is_configuration(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|e| e.to_str());
    matches!(extension, Some("conflist" | "conf" | "json")) && !name.starts_with('.')
}

/// A file as a list; one that has a single plugin is a list of one. `None` for what the runtime does not take.
fn parse(file: &File) -> Option<Map<String, Value>> {
    let Ok(Value::Object(read)) = serde_json::from_str(&file.text) else { return None };
    let is_plugin = |value: &Value| value.get("type").and_then(Value::as_str).is_some_and(|t| !t.is_empty());
    if file.name.ends_with(".conflist") {
        let plugins = read.get("plugins")?.as_array()?;
        let others = plugins.iter().filter(|plugin| !is_ours(plugin)).count();
        return (others > 0 && plugins.iter().all(is_plugin) && read.get("name")?.is_string())
            .then_some(read);
    }
    let name = read.get("name")?.as_str()?.to_owned();
    let version = read.get("cniVersion").cloned().unwrap_or_else(|| "0.3.1".into());
    let plugin = Value::Object(read);
    is_plugin(&plugin).then(|| {
        let list = json!({"cniVersion": version, "name": name, "plugins": [plugin]});
        list.as_object().cloned().unwrap_or_default()
    })
}

fn is_ours(plugin: &Value) -> bool {
    plugin.get("type").and_then(Value::as_str) == Some(PLUGIN)
}

fn insert(file: &File, list: &Map<String, Value>, entry: &Entry) -> Vec<Change> {
    let plugins = plugins(list);
    let known = plugins.iter().find(|plugin| is_ours(plugin));
    let kept = |member: &str| known.and_then(|plugin| plugin.get(member)).cloned();
    let others: Vec<Value> = plugins.iter().filter(|plugin| !is_ours(plugin)).cloned().collect();
    let name =
        format!("{}.conflist", file.name.rsplit_once('.').map_or(file.name.as_str(), |(stem, _)| stem));
    let mut ours = json!({"type": PLUGIN});
    if let (Value::Object(ours), Ok(Value::Object(told))) = (&mut ours, serde_json::to_value(entry)) {
        ours.extend(told);
        let is_new = known.is_none();
        let name_before =
            kept(NAME_BEFORE).or_else(|| (name != file.name).then(|| file.name.as_str().into()));
        let text_before = kept(TEXT_BEFORE).or_else(|| is_new.then(|| file.text.as_str().into()));
        ours.extend(name_before.map(|value| (NAME_BEFORE.to_owned(), value)));
        ours.extend(text_before.map(|value| (TEXT_BEFORE.to_owned(), value)));
    }
    let wanted: Vec<Value> = others.into_iter().chain([ours]).collect();
    if name == file.name && wanted == plugins {
        return Vec::new();
    }
    let mut changes = vec![Change::Write(File { name: name.clone(), text: print(list, wanted) })];
    if name != file.name {
        changes.push(Change::Remove(file.name.clone()));
    }
    changes
}

fn take_out_of<'a>(files: impl Iterator<Item = &'a File>) -> Vec<Change> {
    files.filter(|file| is_configuration(&file.name)).flat_map(taken_out).collect()
}

fn taken_out(file: &File) -> Vec<Change> {
    let Ok(Value::Object(list)) = serde_json::from_str(&file.text) else { return Vec::new() };
    let plugins = plugins(&list);
    let Some(ours) = plugins.iter().find(|plugin| is_ours(plugin)) else { return Vec::new() };
    let text = |member: &str| ours.get(member).and_then(Value::as_str).map(str::to_owned);
    let others: Vec<Value> = plugins.iter().filter(|plugin| !is_ours(plugin)).cloned().collect();
    // A name with a slash would lead out of the folder.
    let name = text(NAME_BEFORE).filter(|name| !name.contains('/') && is_configuration(name));
    let name = name.unwrap_or_else(|| file.name.clone());
    // The file as it was, if nobody has changed what is of others in it.
    let before = text(TEXT_BEFORE).map(|text| File { name: name.clone(), text });
    let unchanged = before.filter(|before| parse(before).is_some_and(|read| self::plugins(&read) == others));
    let back = unchanged.unwrap_or_else(|| File { name: file.name.clone(), text: print(&list, others) });
    let renamed = (back.name != file.name).then(|| Change::Remove(file.name.clone()));
    [Change::Write(back)].into_iter().chain(renamed).collect()
}

fn plugins(list: &Map<String, Value>) -> Vec<Value> {
    list.get("plugins").and_then(Value::as_array).cloned().unwrap_or_default()
}

fn print(list: &Map<String, Value>, plugins: Vec<Value>) -> String {
    let mut list = list.clone();
    list.insert("plugins".to_owned(), Value::Array(plugins));
    // An object of JSON values has no key that is not text, so that printing cannot fail.
    let text = serde_json::to_string_pretty(&list).unwrap_or_default();
    format!("{text}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRIDGE: &str = r#"{"cniVersion": "1.0.0", "name": "bridge", "plugins": [
  {"type": "bridge", "isGateway": true}, {"type": "portmap", "capabilities": {"portMappings": true}}]}
"#;
    const SINGLE: &str = r#"{"cniVersion":"0.4.0","name":"ptp","type":"ptp","ipam":{"type":"host-local"}}"#;

    fn entry() -> Entry {
        Entry {
            socket: "/run/meltemi-cni/agent.sock".into(),
            excluded_namespaces: vec!["kube-system".into()],
            own_namespace: "istio-system".into(),
            own_prefix: "ztunnel-".into(),
        }
    }

    fn file(name: &str, text: &str) -> File {
        File { name: name.into(), text: text.into() }
    }

    /// The folder after changes.
    fn after(files: &[File], changes: Vec<Change>) -> Vec<File> {
        let mut files = files.to_vec();
        for change in changes {
            match change {
                Change::Write(new) => {
                    files.retain(|file| file.name != new.name);
                    files.push(new);
                }
                Change::Remove(name) => files.retain(|file| file.name != name),
            }
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        files
    }

    fn types(file: &File) -> Vec<String> {
        let list: Value = serde_json::from_str(&file.text).unwrap();
        let plugins = list["plugins"].as_array().unwrap();
        plugins.iter().map(|p| p["type"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn it_is_last_of_the_first_valid_list_and_a_removal_leaves_what_was() {
        let before = [
            file("00-broken.conflist", "{"),
            file("01-empty.conflist", r#"{"cniVersion":"1.0.0","name":"x","plugins":[]}"#),
            file("10-bridge.conflist", BRIDGE),
            file("20-other.conflist", BRIDGE),
            file("README", "none"),
        ];
        let with = after(&before, put_in(&before, &entry()).unwrap());
        assert_eq!(types(&with[2]), ["bridge", "portmap", "meltemi-cni"]);
        assert_eq!(with[3], before[3]);
        assert_eq!(put_in(&with, &entry()).unwrap(), [], "done once");
        let list: Value = serde_json::from_str(&with[2].text).unwrap();
        assert_eq!(list["cniVersion"], "1.0.0");
        let told: Entry = serde_json::from_value(list["plugins"][2].clone()).unwrap();
        assert_eq!(told, entry());
        assert_eq!(after(&with, take_out(&with)), before);
    }

    #[test]
    fn a_single_plugin_becomes_a_list_and_back() {
        let before = [file("10-ptp.conf", SINGLE), file("90-x.conflist", BRIDGE)];
        let with = after(&before, put_in(&before, &entry()).unwrap());
        assert_eq!(with[0].name, "10-ptp.conflist");
        assert_eq!(types(&with[0]), ["ptp", "meltemi-cni"]);
        assert_eq!(with.len(), 2);
        assert_eq!(put_in(&with, &entry()).unwrap(), []);
        assert_eq!(after(&with, take_out(&with)), before);
    }

    #[test]
    fn what_others_change_is_repaired_and_kept() {
        let before = [file("10-bridge.conflist", BRIDGE)];
        let with = after(&before, put_in(&before, &entry()).unwrap());
        // Another plugin is appended behind it.
        let mut list: Value = serde_json::from_str(&with[0].text).unwrap();
        list["plugins"].as_array_mut().unwrap().push(json!({"type": "tuning"}));
        let appended = [file("10-bridge.conflist", &list.to_string())];
        let repaired = after(&appended, put_in(&appended, &entry()).unwrap());
        assert_eq!(types(&repaired[0]), ["bridge", "portmap", "tuning", "meltemi-cni"]);
        let out = after(&repaired, take_out(&repaired));
        assert_eq!(types(&out[0]), ["bridge", "portmap", "tuning"], "what was added stays");
        // The file is rewritten without it.
        assert_eq!(after(&before, put_in(&before, &entry()).unwrap()), with);
        // A file that comes first takes its place: it moves there, and goes from where it was.
        let earlier = [file("05-cilium.conflist", BRIDGE), with[0].clone()];
        let moved = after(&earlier, put_in(&earlier, &entry()).unwrap());
        assert_eq!(types(&moved[0]), ["bridge", "portmap", "meltemi-cni"]);
        assert_eq!(moved[1], before[0]);
        // Settings that changed are written.
        let other = Entry { own_prefix: "other-".into(), ..entry() };
        let changed = after(&with, put_in(&with, &other).unwrap());
        assert_eq!(types(&changed[0]), ["bridge", "portmap", "meltemi-cni"]);
        assert_eq!(after(&changed, take_out(&changed)), before);
    }

    #[test]
    fn a_list_of_the_plugin_alone_is_no_network() {
        let alone = format!(r#"{{"cniVersion":"1.0.0","name":"x","plugins":[{{"type":"{PLUGIN}"}}]}}"#);
        for files in [vec![], vec![file("a.conflist", &alone)], vec![file("a.txt", BRIDGE)]] {
            assert_eq!(put_in(&files, &entry()), Err(Error::NoNetwork));
        }
    }

    #[test]
    fn a_name_from_before_leads_nowhere_else() {
        let list = json!({"cniVersion": "1.0.0", "name": "x", "plugins": [{"type": "bridge"},
            {"type": PLUGIN, "nameBefore": "../../root/x.conf", "textBefore": SINGLE}]});
        let files = [file("a.conflist", &list.to_string())];
        let out = after(&files, take_out(&files));
        assert_eq!(out.len(), 1);
        assert_eq!((out[0].name.as_str(), types(&out[0])), ("a.conflist", vec!["bridge".to_owned()]));
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Where objects come from: files, folders, or the cluster.

use std::path::{Path, PathBuf};

use anyhow::Context;
use kube::api::{Api, DynamicObject, ListParams};
use kube::core::{ApiResource, GroupVersionKind};
use meltemi_analysis::World;
use meltemi_resources::inert::{self, Inert};
use serde_json::Value;

use crate::cmd::Global;

/// The word for the cluster in place of a file.
const LIVE: &str = "live";

/// Group, version, kind, plural of what matters.
const KINDS: &[(&str, &str, &str, &str)] = &[
    ("", "v1", "Namespace", "namespaces"),
    ("", "v1", "Service", "services"),
    ("", "v1", "ServiceAccount", "serviceaccounts"),
    ("", "v1", "Pod", "pods"),
    ("gateway.networking.k8s.io", "v1", "GatewayClass", "gatewayclasses"),
    ("gateway.networking.k8s.io", "v1", "Gateway", "gateways"),
    ("gateway.networking.k8s.io", "v1", "HTTPRoute", "httproutes"),
    ("gateway.networking.k8s.io", "v1", "GRPCRoute", "grpcroutes"),
    ("gateway.networking.k8s.io", "v1", "TLSRoute", "tlsroutes"),
    ("gateway.networking.k8s.io", "v1beta1", "ReferenceGrant", "referencegrants"),
    ("security.istio.io", "v1", "AuthorizationPolicy", "authorizationpolicies"),
    ("security.istio.io", "v1", "PeerAuthentication", "peerauthentications"),
    ("security.istio.io", "v1", "RequestAuthentication", "requestauthentications"),
];

/// What matters, from the cluster; a kind that it does not serve has no objects.
pub(crate) async fn live(client: kube::Client) -> anyhow::Result<Vec<Value>> {
    let mut objects = Vec::new();
    for (group, version, kind, plural) in KINDS {
        objects.extend(list(&client, (group, version, kind, plural)).await?);
    }
    objects.extend(mesh_object(client).await?);
    Ok(objects)
}

/// Kinds that are stored and that nothing of the mesh acts on, from the cluster.
pub(crate) async fn live_inert(client: &kube::Client) -> anyhow::Result<Vec<Value>> {
    let mut objects = Vec::new();
    for Inert { group, version, kind, plural, .. } in inert::mesh_kinds() {
        objects.extend(list(client, (group, version, kind, plural)).await?);
    }
    Ok(objects)
}

async fn list(
    client: &kube::Client,
    (group, version, kind, plural): (&str, &str, &str, &str),
) -> anyhow::Result<Vec<Value>> {
    let gvk = GroupVersionKind::gvk(group, version, kind);
    let api: Api<DynamicObject> =
        Api::all_with(client.clone(), &ApiResource::from_gvk_with_plural(&gvk, plural));
    let list = match api.list(&ListParams::default()).await {
        Ok(list) => list.items,
        Err(kube::Error::Api(status)) if status.code == 404 => Vec::new(),
        Err(other) => return Err(other).with_context(|| format!("listing {plural}")),
    };
    let api_version = gvk.api_version();
    let with_kind = |item| {
        let mut value = serde_json::to_value(item)?;
        value["apiVersion"] = api_version.as_str().into();
        value["kind"] = kind.into();
        Ok(value)
    };
    list.into_iter().map(with_kind).collect()
}

/// The mesh's settings, where they are written down.
async fn mesh_object(client: kube::Client) -> anyhow::Result<Option<Value>> {
    let api: Api<k8s_openapi::api::core::v1::ConfigMap> = Api::namespaced(client, "istio-system");
    let Some(found) = api.get_opt("istio").await.context("reading ConfigMap istio-system/istio")? else {
        return Ok(None);
    };
    let mut value = serde_json::to_value(found)?;
    value["kind"] = "ConfigMap".into();
    Ok(Some(value))
}

/// Files of YAML documents, and every such file of folders. Objects without a namespace are of the one that is said.
pub(crate) fn files(paths: &[PathBuf], global: &Global) -> anyhow::Result<Vec<Value>> {
    let mut objects = Vec::new();
    for path in paths {
        read(path, false, &mut objects)?;
    }
    if let Some(namespace) = &global.namespace {
        objects.iter_mut().for_each(|object| place(object, namespace));
    }
    Ok(objects)
}

fn place(object: &mut Value, namespace: &str) {
    if let Some(items) = object["items"].as_array_mut() {
        items.iter_mut().for_each(|item| place(item, namespace));
    }
    let own = object["metadata"]["namespace"].as_str().unwrap_or_default();
    if own.is_empty() && object["metadata"].is_object() && object["kind"] != "Namespace" {
        object["metadata"]["namespace"] = namespace.into();
    }
}

/// `inside` a folder, what is no object is passed over.
fn read(path: &Path, inside: bool, objects: &mut Vec<Value>) -> anyhow::Result<()> {
    if path.is_dir() {
        let mut all: Vec<PathBuf> =
            std::fs::read_dir(path)?.map(|e| Ok(e?.path())).collect::<std::io::Result<_>>()?;
        all.sort();
        let wanted = |f: &&PathBuf| {
            f.is_dir() || f.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
        };
        return all.iter().filter(wanted).try_for_each(|file| read(file, true, objects));
    }
    let text = text(path)?;
    for value in serde_yaml_ng::Deserializer::from_str(&text) {
        let value: Value =
            serde::Deserialize::deserialize(value).with_context(|| format!("reading {}", said(path)))?;
        match kind(&value) {
            Ok(Some(_)) => objects.push(value),
            Ok(None) => {}
            // A folder may hold other things: tables of requests, kustomizations.
            Err(_) if inside && value.is_object() && value["apiVersion"].is_null() => {}
            Err(problem) => anyhow::bail!("reading {}: {problem}", said(path)),
        }
    }
    Ok(())
}

/// The kind of a document; none when it is empty. What is misspelt is no policy, and must not be taken for one that is not there.
fn kind(value: &Value) -> Result<Option<&str>, String> {
    if value.is_null() {
        return Ok(None);
    }
    let text = |key: &str| value[key].as_str().filter(|text| !text.is_empty());
    let Some(kind) = text("kind").filter(|_| value.is_object()) else {
        return Err("a document is no object: it has no kind".into());
    };
    let group = text("apiVersion").ok_or_else(|| format!("{kind}: apiVersion is missing"))?.split('/').next();
    let known: Vec<&str> =
        KINDS.iter().filter(|(g, ..)| Some(*g) == group).map(|(_, _, kind, _)| *kind).collect();
    if group == Some("security.istio.io") && !known.contains(&kind) {
        return Err(format!("{kind} is no kind of security.istio.io: expected one of {}", known.join(", ")));
    }
    value["items"].as_array().into_iter().flatten().try_for_each(|item| self::kind(item).map(drop))?;
    Ok(Some(kind))
}

/// The text of a file, or of standard input for `-`.
pub(crate) fn text(path: &Path) -> anyhow::Result<String> {
    if path == Path::new("-") {
        return std::io::read_to_string(std::io::stdin()).context("reading standard input");
    }
    if path.to_str().is_some_and(|p| p.starts_with("http://") || p.starts_with("https://")) {
        let url = path.display();
        anyhow::bail!(
            "{url}: a URL is not fetched here; pipe it: curl -sSf {url} | meltemi ... with `-` for the file"
        );
    }
    std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// A path in words.
fn said(path: &Path) -> String {
    if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() }
}

/// Objects of files, or of the cluster when there are none; and the namespace that is meant when none is said.
pub(crate) async fn from(paths: &[PathBuf], global: &Global) -> anyhow::Result<(String, Vec<Value>)> {
    if paths.is_empty() {
        let client = global.client().await?;
        return Ok((global.namespace(&client), live(client).await?));
    }
    Ok((global.namespace.clone().unwrap_or_else(|| "default".into()), some(paths, global)?))
}

/// Objects of files, of which there must be one: without policies everything is allowed, and a wrong folder must not say so.
pub(crate) fn some(paths: &[PathBuf], global: &Global) -> anyhow::Result<Vec<Value>> {
    let found = files(paths, global)?;
    if found.is_empty() {
        let paths: Vec<String> = paths.iter().map(|p| said(p)).collect();
        anyhow::bail!(
            "{}: there is no object (of folders, .yaml, .yml and .json files are read)",
            paths.join(", ")
        );
    }
    Ok(found)
}

/// One side of a comparison: a file, a folder, or `live`.
pub(crate) async fn side(path: &Path, global: &Global) -> anyhow::Result<World> {
    let cluster = path == Path::new(LIVE) && !path.exists();
    let objects =
        if cluster { live(global.client().await?).await? } else { files(&[path.to_owned()], global)? };
    world(&objects, cluster).with_context(|| path.display().to_string())
}

/// What objects mean. An invalid one in a file is an error; in the cluster it is enforced as far as it can be read, and said.
pub(crate) fn world(objects: &[Value], live: bool) -> anyhow::Result<World> {
    let mut world = World::read(objects, mesh(objects)?);
    if !live {
        return Ok(world.whole()?);
    }
    for fault in std::mem::take(&mut world.faults) {
        eprintln!("warning: {} {} is not valid: {}", fault.kind, fault.name, fault.message);
    }
    world.complete = true;
    Ok(world)
}

/// Settings of the mesh: of the ConfigMap `istio`, where it is among the objects.
pub(crate) fn mesh(objects: &[Value]) -> anyhow::Result<meltemi_translate::MeshConfig> {
    let mesh = meltemi_translate::MeshConfig::default();
    let config = objects.iter().find(|o| o["kind"] == "ConfigMap" && o["metadata"]["name"] == "istio");
    let Some(text) = config.and_then(|c| c["data"]["mesh"].as_str()) else { return Ok(mesh) };
    mesh.configured(text).map_err(|e| anyhow::anyhow!("ConfigMap istio, key mesh: {e}"))
}

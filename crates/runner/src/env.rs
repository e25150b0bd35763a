// SPDX-License-Identifier: Apache-2.0
//! The environment of a container.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, EnvVarSource, Pod};

use crate::configs::{self, Kind};
use crate::content::ContentError;
use crate::context::Context;
use crate::downward;
use crate::expand::expand;
use crate::links;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Builds it: defaults, those of the image (`NAME=VALUE`) and of Services, then `envFrom`, then `env` in order, each seeing those before it.
///
/// # Errors
/// A config map, secret or key is missing; the text is what Kubernetes shows.
pub(crate) async fn build(
    ctx: &Arc<Context>,
    pod: &Pod,
    container: &Container,
    image: &[String],
    address: Option<std::net::IpAddr>,
) -> Result<BTreeMap<String, String>, ContentError> {
    let mut all = defaults(ctx, pod, container);
    all.extend(image.iter().filter_map(|v| v.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())));
    all.extend(links::variables(ctx, pod).await?);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(r) = &source.config_map_ref {
            let map = text(ctx, Kind::ConfigMap, namespace, &r.name, r.optional == Some(true)).await?;
            all.extend(map.into_iter().map(|(k, v)| (format!("{prefix}{k}"), v)));
        }
        if let Some(r) = &source.secret_ref {
            let map = text(ctx, Kind::Secret, namespace, &r.name, r.optional == Some(true)).await?;
            all.extend(map.into_iter().map(|(k, v)| (format!("{prefix}{k}"), v)));
        }
    }
    for var in container.env.iter().flatten() {
        let value = match (&var.value, &var.value_from) {
            (Some(text), _) => Some(expand(text, &all)),
            (None, Some(source)) => from(ctx, pod, container, source, address).await?,
            (None, None) => Some(String::new()),
        };
        if let Some(value) = value {
            all.insert(var.name.clone(), value);
        }
    }
    Ok(all)
}

fn defaults(ctx: &Arc<Context>, pod: &Pod, container: &Container) -> BTreeMap<String, String> {
    let hostname = hostname(pod, &ctx.config.node_name);
    let mut all: BTreeMap<String, String> = [("PATH", PATH), ("HOME", "/root"), ("HOSTNAME", &hostname)]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into();
    if container.tty == Some(true) {
        all.insert("TERM".to_owned(), "xterm".to_owned());
    }
    all
}

/// The name a Pod's processes see as their host's.
pub(crate) fn hostname(pod: &Pod, node: &str) -> String {
    let spec = pod.spec.as_ref();
    if spec.and_then(|s| s.host_network) == Some(true) {
        return node.to_owned();
    }
    let name =
        spec.and_then(|s| s.hostname.clone()).or_else(|| pod.metadata.name.clone()).unwrap_or_default();
    name.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned()
}

async fn from(
    ctx: &Arc<Context>,
    pod: &Pod,
    container: &Container,
    source: &EnvVarSource,
    address: Option<std::net::IpAddr>,
) -> Result<Option<String>, ContentError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    if let Some(field) = &source.field_ref {
        // The API may not know the address yet that the Pod has here.
        if field.field_path.starts_with("status.podIP") {
            return Ok(Some(address.map(|ip| ip.to_string()).unwrap_or_default()));
        }
        return Ok(Some(downward::field(pod, &field.field_path, ctx.config.address)?));
    }
    if let Some(r) = &source.resource_field_ref {
        let name = r.container_name.as_deref().unwrap_or(&container.name);
        let divisor = r.divisor.as_ref().map(|d| d.0.as_str());
        return Ok(Some(downward::resource(pod, name, &r.resource, divisor)?));
    }
    let (kind, name, key, optional) = if let Some(r) = &source.config_map_key_ref {
        (Kind::ConfigMap, &r.name, &r.key, r.optional)
    } else if let Some(r) = &source.secret_key_ref {
        (Kind::Secret, &r.name, &r.key, r.optional)
    } else {
        return Ok(Some(String::new()));
    };
    let optional = optional == Some(true);
    match text(ctx, kind, namespace, name, optional).await?.get(key) {
        Some(value) => Ok(Some(value.clone())),
        None if optional => Ok(None),
        None => Err(ContentError::NoVariable {
            key: key.clone(),
            kind,
            namespace: namespace.to_owned(),
            name: name.clone(),
        }),
    }
}

async fn text(
    ctx: &Arc<Context>,
    kind: Kind,
    ns: &str,
    name: &str,
    optional: bool,
) -> Result<BTreeMap<String, String>, ContentError> {
    match configs::get(ctx, kind, ns, name).await? {
        Some(data) => {
            Ok(data.iter().map(|(k, v)| (k.clone(), String::from_utf8_lossy(v).into_owned())).collect())
        }
        None if optional => Ok(BTreeMap::new()),
        None => Err(ContentError::NoObject { kind, name: name.to_owned() }),
    }
}

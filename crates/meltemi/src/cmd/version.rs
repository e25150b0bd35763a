// SPDX-License-Identifier: Apache-2.0
//! `meltemi version`: of this binary, of the control plane and of the proxies.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Context as _;
use kube::Client;
use serde::Serialize;
use serde_json::Value;

use super::{Global, forward};
use crate::cmd::output::Document;

/// Print versions: of this binary, of the control plane and of the proxies.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  meltemi version -o json")]
pub struct Args {
    /// Ask the control plane too
    #[arg(long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set)]
    remote: bool,
    /// One line each
    #[arg(short, long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set)]
    short: bool,
    /// Output form
    #[arg(short, long, value_enum)]
    output: Option<Document>,
}

#[derive(Serialize, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
struct Versions {
    client_version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mesh_version: Option<String>,
    /// Proxies by version.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    data_plane_version: BTreeMap<String, u32>,
}

/// `meltemi version`.
pub async fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let mut versions = Versions {
        client_version: env!("CARGO_PKG_VERSION").to_owned(),
        mesh_version: None,
        data_plane_version: BTreeMap::new(),
    };
    let mut problem = None;
    if args.remote {
        match ask(global).await {
            Ok((mesh, proxies)) => {
                versions.mesh_version = Some(mesh);
                versions.data_plane_version = proxies;
            }
            Err(error) => problem = Some(error),
        }
    }
    match args.output {
        Some(Document::Json) => println!("{}", serde_json::to_string_pretty(&versions)?),
        Some(Document::Yaml) => print!("{}", serde_yaml_ng::to_string(&versions)?),
        None => print!("{}", text(&versions)),
    }
    if let Some(error) = problem {
        eprintln!("control plane version: unknown: {error:#}");
    }
    Ok(ExitCode::SUCCESS)
}

async fn ask(global: &Global) -> anyhow::Result<(String, BTreeMap<String, u32>)> {
    let client: Client = global.client().await?;
    let namespace = &global.istio_namespace;
    let pod = forward::control_pod(&client, namespace).await?;
    let body = forward::get(&client, namespace, &pod, forward::MONITORING, "/version", None).await?;
    let mesh = String::from_utf8_lossy(&body).trim().to_owned();
    let token = forward::control_token(&client, namespace).await?;
    let body =
        forward::get(&client, namespace, &pod, forward::MONITORING, "/debug/syncz", Some(&token)).await?;
    let proxies: Value = serde_json::from_slice(&body).context("the control plane's list of proxies")?;
    let mut counted = BTreeMap::new();
    for proxy in proxies.as_array().into_iter().flatten() {
        let version = proxy["version"].as_str().filter(|v| !v.is_empty()).unwrap_or("unknown");
        *counted.entry(version.to_owned()).or_default() += 1;
    }
    Ok((mesh, counted))
}

fn text(versions: &Versions) -> String {
    let mut out = format!("client version: {}\n", versions.client_version);
    if let Some(mesh) = &versions.mesh_version {
        out.push_str(&format!("control plane version: {mesh}\n"));
    }
    if !versions.data_plane_version.is_empty() {
        let each: Vec<String> = versions
            .data_plane_version
            .iter()
            .map(|(version, count)| {
                format!("{version} ({count} {})", if *count == 1 { "proxy" } else { "proxies" })
            })
            .collect();
        out.push_str(&format!("data plane version: {}\n", each.join(", ")));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_what_istioctl_prints() {
        let versions = Versions {
            client_version: "0.1.0".into(),
            mesh_version: Some("0.1.0".into()),
            data_plane_version: BTreeMap::from([("0.1.0".to_owned(), 3)]),
        };
        assert_eq!(
            text(&versions),
            "client version: 0.1.0\ncontrol plane version: 0.1.0\ndata plane version: 0.1.0 (3 proxies)\n"
        );
    }
}

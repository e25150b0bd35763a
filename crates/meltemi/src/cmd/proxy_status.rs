// SPDX-License-Identifier: Apache-2.0
//! `meltemi proxy-status`: which proxies are connected, and whether each holds what was sent to it.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::columns::{lay_out, row};
use super::{Global, forward};
use crate::cmd::output::TableOrJson;

/// Show which proxies are connected and whether they hold what was sent to them.
#[derive(clap::Args, Debug)]
#[command(
    visible_alias = "ps",
    after_help = "Example: every proxy, then one of them as JSON\n  meltemi proxy-status\n  meltemi proxy-status waypoint-abc.default -o json"
)]
pub struct Args {
    /// Only this proxy, as NAME or NAME.NAMESPACE
    proxy: Option<String>,
    /// Output form
    #[arg(short, long, value_enum, default_value = "table")]
    output: TableOrJson,
}

/// `meltemi proxy-status`.
pub async fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let client = global.client().await?;
    let namespace = &global.istio_namespace;
    let pod = forward::control_pod(&client, namespace).await?;
    let token = forward::control_token(&client, namespace).await?;
    let body =
        forward::get(&client, namespace, &pod, forward::MONITORING, "/debug/syncz", Some(&token)).await?;
    let proxies: Value = serde_json::from_slice(&body).context("the control plane's list of proxies")?;
    let mut chosen: Vec<Value> = proxies.as_array().cloned().unwrap_or_default();
    if let Some(wanted) = &args.proxy {
        chosen.retain(|p| {
            let name = p["proxy"].as_str().unwrap_or_default();
            name == wanted || name.split_once('.').is_some_and(|(short, _)| short == wanted)
        });
        if chosen.is_empty() {
            bail!("proxy {wanted} is not connected to {pod}; `meltemi proxy-status` lists those that are");
        }
    }
    match args.output {
        TableOrJson::Json => println!("{}", serde_json::to_string_pretty(&chosen)?),
        TableOrJson::Table => print!("{}", table(&chosen, &pod)),
    }
    Ok(ExitCode::SUCCESS)
}

fn table(proxies: &[Value], istiod: &str) -> String {
    let mut rows = vec![row(["NAME", "CLUSTER", "ISTIOD", "VERSION", "TYPE", "SUBSCRIBED TYPES"])];
    for proxy in proxies {
        let text = |key: &str| proxy[key].as_str().unwrap_or_default().to_owned();
        let types: Vec<String> = proxy["types"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, state)| format!("{name}:{}", state["status"].as_str().unwrap_or("UNKNOWN")))
            .collect();
        let subscribed = format!("{} ({})", types.len(), types.join(","));
        rows.push(vec![
            text("proxy"),
            text("cluster"),
            istiod.to_owned(),
            text("version"),
            text("kind"),
            subscribed,
        ]);
    }
    lay_out(&rows, 5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_for_each_proxy() {
        let proxies = [serde_json::json!({
            "proxy": "ztunnel-abc.istio-system", "cluster": "Kubernetes", "version": "0.1.0", "kind": "ztunnel",
            "types": { "WADS": { "status": "SYNCED" }, "WDS": { "status": "STALE" } },
        })];
        let table = table(&proxies, "istiod-1");
        assert!(table.lines().nth(1).unwrap().ends_with("2 (WADS:SYNCED,WDS:STALE)"), "{table}");
    }
}

// SPDX-License-Identifier: Apache-2.0
//! `meltemi authz`: what policies say of a request, live or from files.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Subcommand;
use kube::api::{Api, DynamicObject, ListParams};
use kube::core::{ApiResource, GroupVersionKind};
use meltemi_analysis::{Answer, Request, Verdict, explain};
use serde_json::Value;

use super::Global;

/// What policies say.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Say whether a request is allowed, and by which policy, rule and clause; exit code 0 ALLOW, 1 DENY, 2 UNKNOWN
    Explain(ExplainArgs),
}

/// `meltemi authz explain`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example:\n  meltemi authz explain --from default/curl --to productpage --method GET --path /productpage"
)]
struct ExplainArgs {
    /// The client, NAMESPACE/SERVICEACCOUNT
    #[arg(long, value_name = "NS/SA")]
    from: String,
    /// The Service, SERVICE or SERVICE.NAMESPACE
    #[arg(long, value_name = "SVC[.NS]")]
    to: String,
    /// Port of the Service
    #[arg(long)]
    port: Option<u16>,
    /// HTTP method
    #[arg(long)]
    method: Option<String>,
    /// HTTP path
    #[arg(long)]
    path: Option<String>,
    /// HTTP header, NAME=VALUE
    #[arg(long, value_name = "K=V")]
    header: Vec<String>,
    /// Files or folders to read instead of the cluster; what they lack is assumed and listed
    #[arg(short, long = "filename", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Output form
    #[arg(short, long, value_parser = ["text", "json"], default_value = "text")]
    output: String,
}

/// Runs the command.
pub async fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let Verb::Explain(args) = args.verb;
    let (namespace, objects) = if args.files.is_empty() {
        let client = global.client().await?;
        (global.namespace(&client), live(client).await?)
    } else {
        let mut objects = Vec::new();
        for file in &args.files {
            read(file, &mut objects)?;
        }
        (global.namespace.clone().unwrap_or_else(|| "default".into()), objects)
    };
    let answer = explain(&objects, &request(&args, &namespace)?).map_err(anyhow::Error::msg)?;
    if args.output == "json" {
        println!("{}", serde_json::to_string_pretty(&answer)?);
    } else {
        print(&answer);
    }
    Ok(ExitCode::from(match answer.verdict {
        Verdict::Allow => 0,
        Verdict::Deny => 1,
        Verdict::Unknown => 2,
    }))
}

fn request(args: &ExplainArgs, namespace: &str) -> anyhow::Result<Request> {
    let (from_namespace, account) =
        args.from.split_once('/').context("--from: expected NAMESPACE/SERVICEACCOUNT, e.g. default/curl")?;
    let (service, service_namespace) = match args.to.split('.').collect::<Vec<_>>().as_slice() {
        [service] => (*service, namespace),
        [service, namespace, ..] => (*service, *namespace),
        [] => bail!("--to: expected SERVICE or SERVICE.NAMESPACE"),
    };
    let header = |text: &String| {
        let (name, value) =
            text.split_once('=').with_context(|| format!("--header {text:?}: expected NAME=VALUE"))?;
        Ok((name.to_owned(), value.to_owned()))
    };
    Ok(Request {
        from: (from_namespace.to_owned(), account.to_owned()),
        to: (service_namespace.to_owned(), service.to_owned()),
        port: args.port,
        method: args.method.clone(),
        path: args.path.clone(),
        headers: args.header.iter().map(header).collect::<anyhow::Result<_>>()?,
    })
}

fn print(answer: &Answer) {
    println!(
        "{}",
        match answer.verdict {
            Verdict::Allow => "ALLOW",
            Verdict::Deny => "DENY",
            Verdict::Unknown => "UNKNOWN",
        }
    );
    let lines = [
        ("policy", answer.policy.clone()),
        ("rule", answer.rule.map(|r| r.to_string())),
        ("clause", answer.clause.clone()),
        ("enforced at", answer.enforced_at.clone()),
        ("reason", Some(answer.reason.clone())),
    ];
    for (name, value) in lines {
        if let Some(value) = value {
            println!("{name}: {value}");
        }
    }
    for assumed in &answer.assumed {
        println!("assumed: {assumed}");
    }
}

/// What matters, from the cluster.
async fn live(client: kube::Client) -> anyhow::Result<Vec<Value>> {
    let kinds = [
        ("", "v1", "Namespace", "namespaces"),
        ("", "v1", "Service", "services"),
        ("", "v1", "ServiceAccount", "serviceaccounts"),
        ("", "v1", "Pod", "pods"),
        ("security.istio.io", "v1", "AuthorizationPolicy", "authorizationpolicies"),
    ];
    let mut objects = Vec::new();
    for (group, version, kind, plural) in kinds {
        let resource =
            ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        for item in api.list(&ListParams::default()).await.with_context(|| format!("listing {plural}"))?.items
        {
            let mut value = serde_json::to_value(item)?;
            value["kind"] = kind.into();
            objects.push(value);
        }
    }
    Ok(objects)
}

/// A file of YAML documents, or every such file of a folder.
fn read(path: &Path, objects: &mut Vec<Value>) -> anyhow::Result<()> {
    if path.is_dir() {
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(path)?.map(|e| Ok(e?.path())).collect::<std::io::Result<_>>()?;
        files.sort();
        for file in files.iter().filter(|f| f.extension().is_some_and(|e| e == "yaml" || e == "yml")) {
            read(file, objects)?;
        }
        return Ok(());
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    for object in crate::manifests::parse(&text).with_context(|| format!("reading {}", path.display()))? {
        objects.push(serde_json::to_value(object)?);
    }
    Ok(())
}

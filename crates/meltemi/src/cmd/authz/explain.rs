// SPDX-License-Identifier: Apache-2.0
//! `meltemi authz explain`: one request.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::ValueEnum;
use meltemi_analysis::{Answer, At, Half, Request, To, Token, Verdict, explain, table};

use super::objects;
use crate::cmd::Global;
use crate::cmd::output::TextOrJson;

/// An enforcement point on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Enforcer {
    Waypoint,
    NodeProxy,
}

impl From<Enforcer> for At {
    fn from(enforcer: Enforcer) -> Self {
        match enforcer {
            Enforcer::Waypoint => Self::Waypoint,
            Enforcer::NodeProxy => Self::NodeProxy,
        }
    }
}

/// Says whether a request is allowed.
#[derive(clap::Args, Debug)]
#[command(group = clap::ArgGroup::new("reached").required(true).args(["to", "to_pod", "to_gateway"]))]
#[command(after_help = "\
What is not told must not matter: where the policies look at it, the answer is UNKNOWN and names the option. A header, a
token or a server name that is not told is absent; where one would change the answer, that is among what is assumed.
A Service, port, Gateway or ServiceAccount that does not exist makes UNKNOWN as well. Files may leave objects out: what they
have nothing of its kind and namespace for is assumed to exist, and listed.

Examples:
  meltemi authz explain --from default/curl --to productpage --method GET --path /productpage
  meltemi authz explain --from plaintext --from-ip 10.1.2.3 --to-pod default/app=productpage --port 9080
  meltemi authz explain --from default/curl --to web --method GET --path / --request-principal https://idp.example/alice \\
    --audience web --claim groups=admin --claim '[realm_access][roles]=editor' -f policies/")]
pub(crate) struct Args {
    /// The client: NAMESPACE/SERVICEACCOUNT, a principal (cluster.local/ns/a/sa/b), or `plaintext` for one without an
    /// identity
    #[arg(long, value_name = "NS/SA")]
    from: String,
    /// Address of the client
    #[arg(long, value_name = "IP")]
    from_ip: Option<IpAddr>,
    /// Address of the original client, where proxies before the mesh say another one
    #[arg(long, value_name = "IP")]
    remote_ip: Option<IpAddr>,
    /// The Service, SERVICE or SERVICE.NAMESPACE
    #[arg(long, value_name = "SVC[.NS]")]
    to: Option<String>,
    /// A Pod in place of a Service, by its namespace and labels
    #[arg(long, value_name = "NS/K=V,K=V")]
    to_pod: Option<String>,
    /// A Gateway in place of a Service: what it enforces for everything that passes it
    #[arg(long, value_name = "GATEWAY[.NS]")]
    to_gateway: Option<String>,
    /// Address that is addressed: the Service's at its waypoint, the Pod's at a node proxy
    #[arg(long, value_name = "IP")]
    to_ip: Option<IpAddr>,
    /// Port of the Service, or of the Pod
    #[arg(long)]
    port: Option<u16>,
    /// Ask one enforcement point only: the waypoint, or the node proxy of a connection that does not come through it
    #[arg(long, value_enum)]
    at: Option<Enforcer>,
    /// HTTP method
    #[arg(long)]
    method: Option<String>,
    /// HTTP path
    #[arg(long)]
    path: Option<String>,
    /// HTTP host
    #[arg(long)]
    host: Option<String>,
    /// HTTP header, NAME=VALUE
    #[arg(long, value_name = "K=V")]
    header: Vec<String>,
    /// Server name of TLS
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
    /// Issuer and subject of the verified token
    #[arg(long, value_name = "ISS/SUB")]
    request_principal: Option<String>,
    /// An audience of the token
    #[arg(long, value_name = "AUD")]
    audience: Vec<String>,
    /// The authorized presenter of the token
    #[arg(long, value_name = "AZP")]
    presenter: Option<String>,
    /// Claims of the token.
    #[arg(
        long,
        value_name = "K=V",
        help = "A claim of the token, NAME=VALUE or [OUTER][INNER]=VALUE; once for each element of a list"
    )]
    claim: Vec<String>,
    /// Files or folders to read instead of the cluster; what they lack is assumed and listed
    #[arg(short, long = "filename", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Output form
    #[arg(short, long, value_enum, default_value = "text")]
    output: TextOrJson,
}

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let (namespace, objects) = objects::from(&args.files, global).await?;
    let world = objects::world(&objects, args.files.is_empty())?;
    let answer = explain(&world, &request(&args, &namespace)?)?;
    if args.output == TextOrJson::Json {
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

fn request(args: &Args, namespace: &str) -> anyhow::Result<Request> {
    let header = |text: &String| {
        let (name, value) =
            text.split_once('=').with_context(|| format!("--header {text:?}: expected NAME=VALUE"))?;
        Ok((name.to_owned(), value.to_owned()))
    };
    Ok(Request {
        from: table::client(&args.from).map_err(|e| anyhow::anyhow!("--from: {e}"))?,
        from_ip: args.from_ip,
        remote_ip: args.remote_ip,
        to: reached(args, namespace)?,
        to_ip: args.to_ip,
        at: args.at.map(At::from),
        port: args.port,
        method: args.method.clone(),
        path: args.path.clone(),
        host: args.host.clone(),
        headers: args.header.iter().map(header).collect::<anyhow::Result<_>>()?,
        sni: args.sni.clone(),
        token: token(args)?,
    })
}

fn reached(args: &Args, namespace: &str) -> anyhow::Result<To> {
    match (&args.to, &args.to_pod, &args.to_gateway) {
        (Some(to), _, _) => Ok(To::Service(table::service(to, namespace))),
        (_, Some(pod), _) => table::pod(pod).map_err(|e| anyhow::anyhow!("--to-pod: {e}")),
        (_, _, Some(gateway)) => Ok(To::Gateway(table::service(gateway, namespace))),
        _ => anyhow::bail!("one of --to, --to-pod and --to-gateway says what is reached"),
    }
}

fn token(args: &Args) -> anyhow::Result<Option<Token>> {
    let claims = args.claim.iter().map(|text| table::claim(text));
    let claims = claims.collect::<Result<Vec<_>, _>>().map_err(|e| anyhow::anyhow!("--claim {e}"))?;
    Ok(table::token(args.request_principal.as_deref(), &args.audience, args.presenter.as_deref(), claims)?)
}

fn print(answer: &Answer) {
    println!("{}", answer.verdict);
    let none = (answer.verdict == Verdict::Allow).then(|| "none: no ALLOW policy applies".to_owned());
    let lines = [
        ("policy", answer.policy.clone().or(none)),
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
    if answer.halves.len() > 1 {
        for half in &answer.halves {
            let port = half.port.map(|port| format!(", port {port}")).unwrap_or_default();
            println!("at {}: {} (sees {}{port}): {}", half.enforced_at, half.verdict, half.sees, half.reason);
        }
    } else if let [Half { port: Some(port), enforced_at, .. }] = answer.halves.as_slice() {
        let whose = if enforced_at == "node proxy" { "the Pod's" } else { "the Service's" };
        println!("port: {port} ({whose})");
    }
    for assumed in &answer.assumed {
        println!("assumed: {assumed}");
    }
    for warning in &answer.warnings {
        println!("warning: {warning}");
    }
}

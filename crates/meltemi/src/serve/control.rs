// SPDX-License-Identifier: Apache-2.0
//! `meltemi serve control`.

use std::sync::Arc;

use meltemi_control::Config;
use meltemi_model::TrustDomain;
use meltemi_runtime::Tasks;

/// The control plane; in a Pod everything comes from the environment.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  meltemi serve control        # in a Pod, as deploy/istiod.yaml does")]
pub struct Args {
    /// Name of this replica
    #[arg(long, env = "POD_NAME", default_value = "istiod")]
    pod_name: String,
    /// Its namespace, the mesh's root namespace
    #[arg(long, env = "POD_NAMESPACE", default_value = "istio-system")]
    pod_namespace: String,
    /// Trust domain of the mesh
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local")]
    trust_domain: String,
    /// DNS suffix of Services
    #[arg(long, env = "CLUSTER_DOMAIN", default_value = "cluster.local")]
    cluster_domain: String,
    /// Name of the cluster
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    cluster_id: String,
    /// Image of the proxies of Gateways
    #[arg(long, env = "PROXY_IMAGE", default_value = "ghcr.io/meltemi/meltemi:0.1.0")]
    proxy_image: String,
    /// Networks that keys of token issuers may be fetched from although they are loopback, link-local or metadata addresses
    #[arg(long, env = "JWKS_ALLOWED_CIDRS", value_delimiter = ',', value_name = "CIDR")]
    jwks_allowed_cidrs: Vec<ipnet::IpNet>,
}

/// Starts it.
pub async fn start(args: Args, tasks: Tasks) -> anyhow::Result<()> {
    let kube = kube::Config::infer().await?;
    let mut config = Config::new(kube, args.pod_name, args.proxy_image);
    config.mesh.trust_domain = TrustDomain::parse(&args.trust_domain)?;
    config.mesh.cluster_domain = args.cluster_domain.into();
    config.mesh.cluster_id = args.cluster_id.into();
    config.mesh.root_namespace = args.pod_namespace.into();
    config.jwks_allowed = args.jwks_allowed_cidrs;
    config.reviewer = Some(Arc::new(super::review::review));
    meltemi_control::start(config, &tasks).await?;
    Ok(())
}

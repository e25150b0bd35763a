// SPDX-License-Identifier: Apache-2.0
//! The files of /etc that differ from Pod to Pod.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::Pod;

use crate::accounts::Accounts;
use crate::context::Context;
use crate::env;

/// Builds them. `accounts`: the users of the machine; `None` for an image that has users of its own.
pub(super) fn files(
    ctx: &Context,
    pod: &Pod,
    address: Option<std::net::IpAddr>,
    accounts: Option<&Accounts>,
) -> Vec<(PathBuf, String)> {
    let spec = pod.spec.clone().unwrap_or_default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let domain = &ctx.config.cluster_domain;
    let name = env::hostname(pod, &ctx.config.node_name);
    let mut resolv = format!(
        "search {namespace}.svc.{domain} svc.{domain} {domain}\nnameserver {}\noptions ndots:5\n",
        ctx.config.dns_address
    );
    if spec.dns_policy.as_deref() == Some("None") {
        let dns = spec.dns_config.clone().unwrap_or_default();
        resolv = dns.nameservers.iter().flatten().map(|n| format!("nameserver {n}\n")).collect();
        if let Some(searches) = dns.searches.filter(|s| !s.is_empty()) {
            resolv.push_str(&format!("search {}\n", searches.join(" ")));
        }
        for option in dns.options.into_iter().flatten() {
            let value = option.value.map(|v| format!(":{v}")).unwrap_or_default();
            resolv.push_str(&format!("options {}{value}\n", option.name.unwrap_or_default()));
        }
    }
    let mut hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    if let Some(ip) = address {
        hosts.push_str(&format!("{ip}\t{name}\n"));
    }
    for alias in spec.host_aliases.iter().flatten() {
        hosts.push_str(&format!(
            "{}\t{}\n",
            alias.ip,
            alias.hostnames.clone().unwrap_or_default().join("\t")
        ));
    }
    let mut files =
        vec![("/etc/resolv.conf", resolv), ("/etc/hosts", hosts), ("/etc/hostname", format!("{name}\n"))];
    if let Some(accounts) = accounts {
        files.push(("/etc/passwd", accounts.passwd()));
        files.push(("/etc/group", accounts.group()));
        let switch = "passwd: files\ngroup: files\nhosts: files dns\n";
        files.push(("/etc/nsswitch.conf", switch.to_owned()));
    }
    files.into_iter().map(|(path, text)| (PathBuf::from(path), text)).collect()
}

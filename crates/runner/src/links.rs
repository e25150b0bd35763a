// SPDX-License-Identifier: Apache-2.0
//! Environment variables that name the Services of a Pod's namespace, as Docker's links and the kubelet spell them.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use meltemi_linux::nft::L4;

use crate::content::ContentError;
use crate::context::Context;
use crate::services::{CLUSTER_ADDRESSES, Port, Table};

/// Name of the Service of the API, whose variables every container has.
const API: &str = "kubernetes";
/// How long a container waits for the first list of Services, and between two looks at it.
const PATIENCE: (u32, Duration) = (500, Duration::from_millis(20));

/// The variables of the API, and those of the Services of a Pod's namespace unless the Pod wants none.
///
/// # Errors
/// The Services are not known yet; the text is what Kubernetes shows.
pub(crate) async fn variables(ctx: &Arc<Context>, pod: &Pod) -> Result<Vec<(String, String)>, ContentError> {
    let https = Port { name: "https".to_owned(), number: 443, protocol: L4::Tcp };
    let api = of_service(API, ctx.config.api_address, &[https]);
    if pod.spec.as_ref().and_then(|spec| spec.enable_service_links) == Some(false) {
        return Ok(api);
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    for _ in 0..PATIENCE.0 {
        if let Some(table) = ctx.names.services() {
            let mut all = of_namespace(&table, namespace);
            all.extend(api);
            return Ok(all);
        }
        tokio::time::sleep(PATIENCE.1).await;
    }
    Err(ContentError::NoServices)
}

/// Those of all Services of a namespace that have an address. A Service of the API's name does not take its place, unlike on
/// Kubernetes: whoever may make Services would say where the Pods' tokens go.
fn of_namespace(table: &Table, namespace: &str) -> Vec<(String, String)> {
    let services = table.iter().filter(|((of, name), _)| of == namespace && name != API);
    let with_address = services.filter_map(|((_, name), known)| {
        let address = known.addresses.iter().find(|address| CLUSTER_ADDRESSES.contains(*address))?;
        Some(of_service(name, *address, &known.ports))
    });
    with_address.flatten().collect()
}

fn of_service(name: &str, address: Ipv4Addr, ports: &[Port]) -> Vec<(String, String)> {
    let spelled = |text: &str| text.to_uppercase().replace('-', "_");
    let prefix = spelled(name);
    let mut all = vec![(format!("{prefix}_SERVICE_HOST"), address.to_string())];
    for (index, port) in ports.iter().enumerate() {
        let number = port.number.to_string();
        if index == 0 {
            all.push((format!("{prefix}_SERVICE_PORT"), number.clone()));
        }
        if !port.name.is_empty() {
            all.push((format!("{prefix}_SERVICE_PORT_{}", spelled(&port.name)), number.clone()));
        }
        let protocol = match port.protocol {
            L4::Tcp => "tcp",
            L4::Udp => "udp",
        };
        let url = format!("{protocol}://{address}:{number}");
        if index == 0 {
            all.push((format!("{prefix}_PORT"), url.clone()));
        }
        let link = format!("{prefix}_PORT_{number}_{}", spelled(protocol));
        all.push((format!("{link}_PROTO"), protocol.to_owned()));
        all.push((format!("{link}_PORT"), number));
        all.push((format!("{link}_ADDR"), address.to_string()));
        all.push((link, url));
    }
    all
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::services::Known;

    #[test]
    fn services_are_named_as_the_kubelet_does() {
        let port = |name: &str, number, protocol| Port { name: name.into(), number, protocol };
        let known = |addresses: &[&str], ports: Vec<Port>| Known {
            addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
            ports,
            ..Known::default()
        };
        let two = vec![port("http", 80, L4::Tcp), port("dns-udp", 53, L4::Udp)];
        let table = Table::from([
            (("n".into(), "my-web".into()), known(&["10.96.1.2", "172.30.1.1"], two)),
            (("n".into(), "headless".into()), known(&[], vec![port("", 1, L4::Tcp)])),
            (("n".into(), "outside".into()), known(&["172.30.1.2"], vec![port("", 1, L4::Tcp)])),
            (("n".into(), "kubernetes".into()), known(&["10.96.6.6"], vec![port("", 1, L4::Tcp)])),
            (("other".into(), "db".into()), known(&["10.96.1.3"], vec![port("", 5432, L4::Tcp)])),
        ]);
        let found: BTreeMap<String, String> = of_namespace(&table, "n").into_iter().collect();
        let expected = [
            ("MY_WEB_PORT", "tcp://10.96.1.2:80"),
            ("MY_WEB_PORT_53_UDP", "udp://10.96.1.2:53"),
            ("MY_WEB_PORT_53_UDP_ADDR", "10.96.1.2"),
            ("MY_WEB_PORT_53_UDP_PORT", "53"),
            ("MY_WEB_PORT_53_UDP_PROTO", "udp"),
            ("MY_WEB_PORT_80_TCP", "tcp://10.96.1.2:80"),
            ("MY_WEB_PORT_80_TCP_ADDR", "10.96.1.2"),
            ("MY_WEB_PORT_80_TCP_PORT", "80"),
            ("MY_WEB_PORT_80_TCP_PROTO", "tcp"),
            ("MY_WEB_SERVICE_HOST", "10.96.1.2"),
            ("MY_WEB_SERVICE_PORT", "80"),
            ("MY_WEB_SERVICE_PORT_DNS_UDP", "53"),
            ("MY_WEB_SERVICE_PORT_HTTP", "80"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(found.into_iter().collect::<Vec<_>>(), expected);
        assert_eq!(of_namespace(&table, "empty"), []);
    }
}

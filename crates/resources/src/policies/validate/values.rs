// SPDX-License-Identifier: Apache-2.0
//! Single values: addresses, ports, service accounts, trust domains, paths.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::super::Values;

/// Longest service account reference, and most of them in a list.
const LONGEST_ACCOUNT: usize = 320;
const MOST_ACCOUNTS: usize = 16;

pub(super) type Check = Result<(), String>;

/// Values of a list that is there.
pub(super) fn list(values: &Values) -> &[String] {
    values.as_deref().unwrap_or_default()
}

/// No value is empty.
pub(super) fn not_empty(name: &str, values: &[String]) -> Check {
    match values.iter().any(String::is_empty) {
        true => Err(format!("empty value not allowed, found in {name}")),
        false => Ok(()),
    }
}

/// An address or range. An IPv4 range in IPv6 clothes is the IPv4 range; the host part of a range means nothing.
///
/// # Errors
/// In the words of Istio.
pub fn range(text: &str) -> Result<IpNet, String> {
    let Some((address, bits)) = text.split_once('/') else {
        let address: IpAddr = text.parse().map_err(|_| format!("bad IP address ({text})"))?;
        return Ok(IpNet::from(address.to_canonical()));
    };
    let bad = |why: String| format!("bad CIDR range ({text}): netip.ParsePrefix({text:?}): {why}");
    let address: IpAddr =
        address.parse().map_err(|_| bad(format!("ParseAddr({address:?}): unable to parse IP")))?;
    if !digits(bits) || (bits.len() > 1 && bits.starts_with('0')) {
        return Err(bad(format!("bad bits after slash: {bits:?}")));
    }
    let long = || bad("prefix length out of range".to_owned());
    let bits: u8 = bits.parse().map_err(|_| long())?;
    let net = match address {
        IpAddr::V4(v4) => IpNet::V4(Ipv4Net::new(v4, bits).map_err(|_| long())?),
        IpAddr::V6(v6) => match (v6.to_ipv4_mapped(), bits.checked_sub(96)) {
            (Some(v4), Some(bits)) => IpNet::V4(mapped(v4, bits).ok_or_else(long)?),
            _ => IpNet::V6(Ipv6Net::new(v6, bits).map_err(|_| long())?),
        },
    };
    Ok(net.trunc())
}

fn mapped(address: Ipv4Addr, bits: u8) -> Option<Ipv4Net> {
    Ipv4Net::new(address, bits).ok()
}

fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// A port.
///
/// # Errors
/// In the words of Istio.
pub fn port(text: &str) -> Result<u16, String> {
    let parsing = |why: &str| format!("bad port ({text}): strconv.ParseUint: parsing {text:?}: {why}");
    if !digits(text) {
        return Err(parsing("invalid syntax"));
    }
    let number: u32 = text.parse().map_err(|_| parsing("value out of range"))?;
    u16::try_from(number).map_err(|_| format!("bad port ({text}): <nil>"))
}

/// The value of `istio.io/dry-run`.
///
/// # Errors
/// It is neither yes nor no.
pub fn dry_run(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "" | "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => Err(format!(
            "annotation {}: strconv.ParseBool: parsing {other:?}: invalid syntax",
            super::DRY_RUN
        )),
    }
}

/// Service accounts, `<namespace>/<name>` or `<name>`.
pub(super) fn service_accounts(name: &str, values: &[String]) -> Check {
    if values.len() > MOST_ACCOUNTS {
        return Err(format!("may not have more than {MOST_ACCOUNTS} values"));
    }
    not_empty(name, values)?;
    let wanted = "expected format 'serviceAccount' or 'namespace/serviceAccount', found";
    for value in values {
        if value.contains('*') {
            return Err(format!("wildcard not allowed, found in {name}"));
        }
        if value.matches('/').count() > 1 {
            return Err(format!("{wanted} {value:?} in {name}"));
        }
        if value.len() > LONGEST_ACCOUNT {
            return Err(format!(
                "value cannot exceed {LONGEST_ACCOUNT} characters, found {value:?} in {name}"
            ));
        }
        match value.split_once('/') {
            Some(("", _)) => return Err(format!("{wanted} empty namespace {value:?} in {name}")),
            Some((_, "")) => return Err(format!("{wanted} empty serviceAccount {value:?} in {name}")),
            _ => {}
        }
    }
    Ok(())
}

/// At most one `*`, at the start or the end.
pub(super) fn wildcards(name: &str, values: &[String]) -> Check {
    not_empty(name, values)?;
    for value in values {
        match value.matches('*').count() {
            0 => {}
            1 if value.starts_with('*') || value.ends_with('*') => {}
            1 => {
                return Err(format!(
                    "wildcard is only allowed at the start or end, found in {name}: {value:?}"
                ));
            }
            _ => return Err(format!("at most one wildcard is allowed, found in {name}: {value:?}")),
        }
    }
    Ok(())
}

/// Trust domains.
pub(super) fn trust_domains(name: &str, values: &[String]) -> Check {
    wildcards(name, values)?;
    match values.iter().find(|v| v.contains('/')) {
        Some(value) => Err(format!("trust domain must not contain '/', found in {name}: {value:?}")),
        None => Ok(()),
    }
}

/// Whether a path is a template.
pub fn is_template(path: &str) -> bool {
    path.contains("{*}") || path.contains("{**}")
}

/// Paths and path templates.
pub(super) fn paths(name: &str, values: &[String]) -> Check {
    values.iter().try_for_each(|path| template(path, name))
}

fn template(whole: &str, name: &str) -> Check {
    let path = whole.trim_matches('/');
    let fault = |why: String| Err(format!("invalid or unsupported path {path}, found in {name}. {why}"));
    let literal = |c: char| c.is_ascii_alphanumeric() || "-._~%!$&'()+,;:@=".contains(c);
    let mut last = false;
    for segment in path.split('/') {
        match segment {
            "{*}" | "{**}" if last => return fault("{**} is not the last operator".to_owned()),
            "{**}" => last = true,
            "{*}" => {}
            other if other.contains(['{', '}']) => {
                return fault("Contains '{' or '}' beyond a supported path template".to_owned());
            }
            other => {
                if is_template(whole) && (other.is_empty() || !other.chars().all(literal)) {
                    return fault(format!("Contains segment {other} with invalid string literal"));
                }
            }
        }
    }
    Ok(())
}

// SPDX-License-Identifier: Apache-2.0
//! Keys of `when`.

/// What a condition looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key<'a> {
    /// `source.ip`
    SourceIp,
    /// `remote.ip`
    RemoteIp,
    /// `source.namespace`
    SourceNamespace,
    /// `source.serviceAccount`
    SourceServiceAccount,
    /// `source.trustDomain`
    SourceTrustDomain,
    /// `source.principal`
    SourcePrincipal,
    /// `destination.ip`
    DestinationIp,
    /// `destination.port`
    DestinationPort,
    /// `connection.sni`
    ConnectionSni,
    /// `request.auth.principal`
    RequestPrincipal,
    /// `request.auth.audiences`
    Audiences,
    /// `request.auth.presenter`
    Presenter,
    /// `request.headers[name]`, pseudo headers such as `:authority` among them.
    Header(&'a str),
    /// `request.auth.claims[a][b]`
    Claim(Vec<&'a str>),
    /// `experimental.envoy.filters.filter[key]`, which no proxy of ours has.
    Experimental(&'a str),
}

/// Reads a key.
///
/// # Errors
/// In the words of Istio.
pub fn key(text: &str) -> Result<Key<'_>, String> {
    let format = || format!("bad key ({text}): should have format a[b]");
    Ok(match text {
        "source.ip" => Key::SourceIp,
        "remote.ip" => Key::RemoteIp,
        "source.namespace" => Key::SourceNamespace,
        "source.serviceAccount" => Key::SourceServiceAccount,
        "source.trustDomain" => Key::SourceTrustDomain,
        "source.principal" => Key::SourcePrincipal,
        "destination.ip" => Key::DestinationIp,
        "destination.port" => Key::DestinationPort,
        "connection.sni" => Key::ConnectionSni,
        "request.auth.principal" => Key::RequestPrincipal,
        "request.auth.audiences" => Key::Audiences,
        "request.auth.presenter" => Key::Presenter,
        "destination.namespace" => {
            return Err(format!("attribute {text} is replaced by the metadata.namespace"));
        }
        "destination.name" | "destination.user" => {
            return Err(format!("deprecated attribute {text}: only supported in v1alpha1"));
        }
        _ if text.starts_with("destination.labels") => {
            return Err(format!("attribute {text} is replaced by the workload selector"));
        }
        _ => {
            if let Some(rest) = text.strip_prefix("request.headers") {
                let names = subscripts(rest).ok_or_else(format)?;
                let &[name] = names.as_slice() else { return Err(format()) };
                let token = |b: u8| b.is_ascii_alphanumeric() || b"-_.!#$%&'*+^`|~".contains(&b);
                // A pseudo header of HTTP/2 begins with a colon.
                let bare = name.strip_prefix(':').unwrap_or(name);
                return match !bare.is_empty() && bare.bytes().all(token) {
                    true => Ok(Key::Header(name)),
                    false => Err(format!("bad key ({text}): {name:?} is not the name of a header")),
                };
            }
            if let Some(rest) = text.strip_prefix("request.auth.claims") {
                return Ok(Key::Claim(subscripts(rest).ok_or_else(format)?));
            }
            if let Some(rest) = text.strip_prefix("experimental.envoy.filters.") {
                let open = rest.find('[').ok_or_else(format)?;
                return match open > 0 && subscripts(&rest[open..]).is_some() {
                    true => Ok(Key::Experimental(text)),
                    false => Err(format()),
                };
            }
            return Err(format!("unknown attribute: {text}"));
        }
    })
}

/// `[b][c]` → `b`, `c`; none when it has another form.
fn subscripts(text: &str) -> Option<Vec<&str>> {
    let mut rest = text;
    let mut out = Vec::new();
    while !rest.is_empty() {
        let (inner, after) = rest.strip_prefix('[')?.split_once(']')?;
        if inner.is_empty() || inner.contains('[') {
            return None;
        }
        out.push(inner);
        rest = after;
    }
    (!out.is_empty()).then_some(out)
}
